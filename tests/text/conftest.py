"""Fixtures of the text tests: conversations in short, tokenizers of several kinds, and chat templates.

The chat templates have the structure and the quirks of the stock ones of their families, in our own minimal wording.
"""

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from steersman.card import TemplateSpec
from steersman.records import Conversation
from steersman.text.template import Rendered
from steersman.text.tokenize import Encoder, add_control_tokens

Turn = tuple[str, ...] | dict[str, Any]


def make_conversation(kind: str | None, *turns: Turn, mask: str = "User", system: str = "Be kind.") -> Conversation:
    """Turns are (role, text[, label]), where "U" and "A" stand for User and Assistant, or JSON objects."""
    roles = {"U": "User", "A": "Assistant"}

    def message(turn: Turn) -> dict[str, Any]:
        if isinstance(turn, dict):
            return turn
        role, text, label = (*turn, None)[:3]
        return {"from": roles.get(role, role), "value": text, "label": label}

    return Conversation.model_validate(
        {"system": system, "mask": mask, "type": kind, "conversations": [message(turn) for turn in turns]}
    )


@pytest.fixture(scope="session")
def conversation() -> Callable[..., Conversation]:
    return make_conversation


def show_trained(rendered: Rendered) -> str:
    """The text with its trained spans in ⟦brackets⟧; spans that touch are one."""
    text = rendered.text
    for start, end in reversed(rendered.trained):
        text = f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}"
    return text.replace("⟧⟦", "")


@pytest.fixture(scope="session")
def marked() -> Callable[[Rendered], str]:
    return show_trained


def letters_tokenizer(scheme: str) -> PreTrainedTokenizerFast:
    """A character-level tokenizer with spaces as ▁, as converted SentencePiece models have them.

    `scheme`: "first" and "always" put a space before the text or every run of words (Llama 2), "never" does not;
    "gemma" replaces spaces in a normalizer instead.
    """
    vocab = {c: i for i, c in enumerate(["<unk>", "<s>", "</s>", "▁", *string.printable, "▁h", "hi", "▁hi"])}
    merges = [("▁", "h"), ("▁h", "i"), ("h", "i")]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True))
    if scheme == "gemma":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


SCHEMES = ["first", "always", "never", "gemma"]


@pytest.fixture(params=SCHEMES)
def letters(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """SentencePiece-like tokenizers; their post-processors add BOS."""
    return letters_tokenizer(request.param)


@pytest.fixture
def characters() -> PreTrainedTokenizerFast:
    """One token a character (but for "hi")."""
    return letters_tokenizer("never")


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """A Unigram model, whose own vocabulary holds its special tokens, with the best score."""
    letters = "▁abcdefghijklmnopqrstuvwxyzASU012<>/_.:\n"
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in letters)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(params=["byte-level", "unigram", *SCHEMES])
def any_tokenizer(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """One tokenizer of each kind."""
    if request.param == "byte-level":
        return tiny_tokenizer
    return unigram_tokenizer() if request.param == "unigram" else letters_tokenizer(request.param)


def make_encoder(tokenizer: PreTrainedTokenizerFast, **template: Any) -> Encoder:
    """The encoder of a tokenizer that was given the template's control tokens."""
    spec = TemplateSpec(**template)
    add_control_tokens(tokenizer, spec)
    return Encoder(tokenizer, spec)


@pytest.fixture(scope="session")
def encoder_of() -> Callable[..., Encoder]:
    return make_encoder


@dataclass(frozen=True)
class Family:
    """A chat template, the special tokens that it writes, and the one that ends an answer."""

    template: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    end: str


LLAMA3 = Family(  # writes BOS itself, trims every message
    template="""{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    special=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
    end="<|eot_id|>",
)

MISTRAL = Family(  # no system role, a space before the answer, roles must alternate
    template="""{{- bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant/user/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] | trim + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    special=("<s>", "</s>"),
    bos="<s>",
    eos="</s>",
    end="</s>",
)

QWEN25 = Family(  # a default system prompt, nothing trimmed
    template="""{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nDefault.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    bos=None,
    eos="<|im_end|>",
    end="<|im_end|>",
)

QWEN3 = Family(  # thoughts are dropped from earlier answers; the last answer is given an empty thought
    template="""{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last_query = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    bos=None,
    eos="<|im_end|>",
    end="<|im_end|>",
)

GEMMA = Family(  # the assistant is called model; the system prompt opens the first user message; trims
    template="""{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set first_prefix = messages[0]['content'] + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set first_prefix = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + (first_prefix if loop.first else '') }}
    {{- message['content'] | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
""",
    special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    bos="<bos>",
    eos="<eos>",
    end="<end_of_turn>",
)

FAMILIES = {"llama3": LLAMA3, "mistral": MISTRAL, "qwen2.5": QWEN25, "qwen3": QWEN3, "gemma": GEMMA}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="session")
def families() -> dict[str, Family]:
    return FAMILIES


def make_chat_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of single characters with a family's special tokens and chat template."""
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos, chat_template=family.template
    )
    tokens = [AddedToken(token, special=True, normalized=False) for token in (*family.special, "<extra_id_2>")]
    tokenizer.add_tokens(tokens, special_tokens=True)
    return tokenizer


@pytest.fixture(scope="session")
def chat_tokenizer() -> Callable[[Family], PreTrainedTokenizerFast]:
    return make_chat_tokenizer
