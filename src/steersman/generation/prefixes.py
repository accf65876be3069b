"""Keys and values of token sequences computed before, shared by their prefixes: a radix tree of bounded size.

A node holds the tokens of one edge with their keys and values; a path from the root spells a sequence. What sequences
have in common is stored once. When the tree is full, the leaf used least recently goes first. Tokens themselves are
compared, never hashes of them.

Shape of stored keys and values: L layers x 2 (keys, values) x K key/value heads x n tokens x D head size.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for index, (token_a, token_b) in enumerate(zip(a, b, strict=False)):
        if token_a != token_b:
            return index
    return min(len(a), len(b))


@dataclass(eq=False)
class _Node:
    ids: tuple[int, ...]
    kv_L2KnD: Tensor
    siblings: "dict[int, _Node]"  # the dict that this node stands in, under its first token
    children: "dict[int, _Node]" = field(default_factory=dict)


class PrefixCache:
    """The tree.

    Args:
        max_tokens: most tokens it holds; 0 turns it off.

    Attributes:
        num_tokens: tokens it holds now.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self._roots: dict[int, _Node] = {}
        # Least recently used first. Using a node uses its parent right after, so the first is always a leaf.
        self._by_use: OrderedDict[_Node, None] = OrderedDict()

    def match(self, ids: Sequence[int]) -> list[Tensor]:
        """Keys and values of the longest known prefix of `ids`, in consecutive pieces."""
        path = self._walk(ids)
        self._use([node for node, _ in path])
        return [node.kv_L2KnD[..., :length, :] for node, length in path]

    def num_matched(self, ids: Sequence[int]) -> int:
        """Length of the longest known prefix of `ids`."""
        return sum(length for _, length in self._walk(ids))

    def insert(self, ids: Sequence[int], read: Callable[[int, int], Tensor]) -> None:
        """Store a sequence; `read(start, end)` gives keys and values of its tokens in [start, end). One longer than
        the whole cache is not stored."""
        if len(ids) > self.max_tokens:
            return
        path = self._walk(ids)
        nodes = [node for node, _ in path]
        if path and path[-1][1] < len(nodes[-1].ids):
            nodes[-1] = self._split(*path[-1])
        known = sum(length for _, length in path)
        if known < len(ids):
            siblings = nodes[-1].children if nodes else self._roots
            leaf = siblings[ids[known]] = _Node(tuple(ids[known:]), read(known, len(ids)), siblings)
            self.num_tokens += len(leaf.ids)
            nodes.append(leaf)
        self._use(nodes)
        while self.num_tokens > self.max_tokens:
            oldest, _ = self._by_use.popitem(last=False)
            del oldest.siblings[oldest.ids[0]]
            self.num_tokens -= len(oldest.ids)

    def _walk(self, ids: Sequence[int]) -> list[tuple[_Node, int]]:
        """Nodes that spell the beginning of `ids`, each with how many of its tokens do (all, but for the last)."""
        ids, position, path, children = tuple(ids), 0, [], self._roots
        while position < len(ids) and (node := children.get(ids[position])) is not None:
            ahead = ids[position : position + len(node.ids)]
            length = len(ahead) if ahead == node.ids else common_prefix(ahead, node.ids)
            path.append((node, length))
            if length < len(node.ids):
                break
            position, children = position + length, node.children
        return path

    def _split(self, lower: _Node, length: int) -> _Node:
        """Put the first `length` tokens of a node into a new one above it; copied, so that each frees its own."""
        upper = _Node(lower.ids[:length], lower.kv_L2KnD[..., :length, :].clone(), lower.siblings)
        upper.siblings[upper.ids[0]] = upper
        lower.ids, lower.kv_L2KnD = lower.ids[length:], lower.kv_L2KnD[..., length:, :].clone()
        lower.siblings = upper.children
        lower.siblings[lower.ids[0]] = lower
        return upper

    def _use(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._by_use[node] = None
            self._by_use.move_to_end(node)
