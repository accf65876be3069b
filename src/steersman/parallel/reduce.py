"""Sums over the processes of a mesh. With one process each of them is what it was."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from steersman.parallel.mesh import Mesh


def sum_numbers(numbers: Sequence[float], mesh: Mesh) -> list[float]:
    """Element-wise sums over all processes, in double precision; every process gets them."""
    if mesh.size == 1:
        return list(numbers)
    total = torch.tensor(numbers, dtype=torch.float64, device=mesh.device)
    dist.all_reduce(total)
    return [float(number) for number in total.tolist()]


def from_first(number: float, mesh: Mesh) -> float:
    """Rank 0's number, on every process; none goes on before rank 0 has given it."""
    return sum_numbers([number if mesh.rank == 0 else 0.0], mesh)[0]


def sum_gradients(parameters: Iterable[nn.Parameter], mesh: Mesh) -> None:
    """Replace each parameter's gradient by its sum over all processes."""
    if mesh.size == 1:
        return
    handles = [dist.all_reduce(parameter.grad, async_op=True) for parameter in parameters]
    for handle in handles:
        handle.wait()
