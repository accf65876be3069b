"""Sums over processes, with the other process played by a fake. Real ones: tests/pipelines/test_jobs.py."""

import pytest
import torch
from torch import nn

from steersman.parallel import mesh, reduce
from steersman.parallel.mesh import Mesh

CPU = torch.device("cpu")
ALONE, FIRST_OF_TWO = Mesh(0, 1, CPU), Mesh(0, 2, CPU)


class Done:
    def wait(self) -> None: ...


@pytest.fixture
def other(monkeypatch):
    """What the other process contributes to each coming `all_reduce`, in order."""
    contributions: list[torch.Tensor] = []

    def all_reduce(tensor, async_op=False):
        tensor += contributions.pop(0).to(tensor.dtype)
        return Done()

    monkeypatch.setattr(reduce.dist, "all_reduce", all_reduce)
    return contributions


def test_one_process_is_its_own_sum():
    parameter = nn.Parameter(torch.ones(2))
    reduce.sum_gradients([parameter], ALONE)
    assert parameter.grad is None
    assert reduce.sum_numbers([1.5, 2], ALONE) == [1.5, 2]
    assert reduce.from_first(7, ALONE) == 7


def test_sums_and_the_first_ones_number(other):
    other += [torch.tensor([0.25, 2**53]), torch.tensor([0.0])]
    assert reduce.sum_numbers([1.5, -1.0], FIRST_OF_TWO) == [1.75, 2.0**53 - 1]
    assert reduce.from_first(7, FIRST_OF_TWO) == 7


def test_each_gradient_becomes_its_sum(other):
    parameters = [nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad_dtype = torch.float32
        parameter.grad = torch.tensor([1.0, 2.0])
    other += [torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])]
    reduce.sum_gradients(parameters, FIRST_OF_TWO)
    assert [parameter.grad.tolist() for parameter in parameters] == [[1.0, 2.0], [4.0, 6.0]]


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    joined = mesh.join()
    assert (joined.rank, joined.size) == (0, 1)
    mesh.leave()
