"""AdamW against hand-worked steps and torch's own; stochastic rounding; schedules by hand."""

import math

import pytest
import torch
from torch import nn

from steersman.errors import ModelError
from steersman.models.derived import Derived
from steersman.training.optim import AdamW, OptimConfig, join_master, learning_rate, round_stochastic, split_master


def make(weight, dtype=torch.float32, rounding="master", **config):
    parameter = nn.Parameter(weight.to(dtype))
    return parameter, AdamW({"w": parameter}, OptimConfig(lr=1.0, **config), rounding=rounding, seed=0)


def test_two_steps_by_hand():
    parameter, optimizer = make(torch.tensor([[2.0]]), betas=(0.5, 0.75), eps=1e-12, weight_decay=0.1)
    parameter.grad = torch.tensor([[8.0]])
    optimizer.step(lr=0.1, scale=0.25)
    # g = 2: m = 1, v = 1, corrected 2 and 4, so the step is 2 / 2 = 1, and decay takes 0.1 * 0.1 * 2.
    assert parameter.item() == pytest.approx(2.0 - 0.1 * (1.0 + 0.1 * 2.0))
    assert parameter.grad.tolist() == [[0.0]]
    before = parameter.item()
    parameter.grad = torch.tensor([[-16.0]])
    optimizer.step(lr=0.2, scale=0.25)
    # g = -4: m = 0.5 - 2 = -1.5, v = 0.75 + 4 = 4.75, corrected by 1 - 0.25 and 1 - 0.5625.
    step = (-1.5 / 0.75) / math.sqrt(4.75 / 0.4375)
    assert parameter.item() == pytest.approx(before - 0.2 * (step + 0.1 * before))


def test_norms_and_biases_do_not_decay():
    parameters = {"norm": nn.Parameter(torch.ones(3)), "matrix": nn.Parameter(torch.ones(2, 2))}
    optimizer = AdamW(parameters, OptimConfig(lr=1.0, weight_decay=0.5), rounding="master", seed=0)
    optimizer.step(lr=0.5, scale=1.0)
    assert parameters["norm"].tolist() == [1.0] * 3
    assert parameters["matrix"].tolist() == [[0.75] * 2] * 2


@pytest.mark.parametrize("block", [7, 10_000])
def test_equals_torch_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr("steersman.training.optim.CPU_BLOCK", block)
    torch.manual_seed(0)
    parameter, optimizer = make(torch.randn(5, 9), weight_decay=0.1)
    theirs = nn.Parameter(parameter.detach().clone())
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=optimizer.config.betas, weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(5, 9)
        parameter.grad, theirs.grad = 3 * gradient, gradient
        optimizer.step(lr=0.01, scale=1 / 3)
        reference.step()
    torch.testing.assert_close(parameter, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_a_gradient_so_far_are_left_out_and_nothing_else_is(monkeypatch, dtype):
    monkeypatch.setattr("steersman.training.optim.VOCABULARY", 8)
    torch.manual_seed(0)
    start = torch.randn(8, 16)
    parameter, optimizer = make(start, dtype, weight_decay=0.0)
    theirs = nn.Parameter(parameter.detach().float())
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=optimizer.config.betas, weight_decay=0.0)
    updated = []
    update_all = optimizer._update_all
    monkeypatch.setattr(
        optimizer,
        "_update_all",
        lambda slot, parts, *rest: updated.append(len(parts[0])) or update_all(slot, parts, *rest),
    )
    for rows in ([], [1], [6, 1], [2], [], [0, 1, 2, 3, 4], [5], [7], [3]):
        theirs.grad = torch.zeros(8, 16)
        theirs.grad[rows] = torch.randn(len(rows), 16).bfloat16().float()
        parameter.grad = theirs.grad.clone()
        assert optimizer.gradient_norm() == pytest.approx(theirs.grad.norm().item())
        optimizer.step(lr=0.01, scale=1.0)
        assert not parameter.grad.any()
        reference.step()
        state = optimizer.state()
        ours = parameter if dtype == torch.float32 else join_master(state["w.weight"], state["w.lower"])
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert updated == [0, 1, 2, 3, 3, 8, 8, 8, 8]  # beyond a half they go all together
    assert all(optimizer._slots["w"].moved)


def test_rows_that_moved_before_a_checkpoint_go_on_moving(monkeypatch):
    monkeypatch.setattr("steersman.training.optim.VOCABULARY", 8)

    def step(parameter, optimizer, *rows):
        parameter.grad[list(rows)] = 1.0
        optimizer.step(lr=0.01, scale=1.0)

    parameter, optimizer = make(torch.ones(8, 16), weight_decay=0.0)
    step(parameter, optimizer, 2, 3)
    other, resumed = make(torch.zeros(8, 16), weight_decay=0.0)
    resumed.load_state({name: tensor.clone() for name, tensor in optimizer.state().items()}, num_steps=1)
    for each in ((parameter, optimizer), (other, resumed)):
        step(*each, 5)
    assert torch.equal(other, parameter)
    assert (other[2] < 0.985).all()  # two steps of about 0.01
    assert (other[0] == 1).all()


def test_decay_moves_every_row(monkeypatch):
    monkeypatch.setattr("steersman.training.optim.VOCABULARY", 2)
    parameter, optimizer = make(torch.ones(4, 2), weight_decay=0.5)
    optimizer.step(lr=0.5, scale=1.0)
    assert parameter.tolist() == [[0.75] * 2] * 4


def test_master_weights_take_steps_that_bf16_would_round_away():
    parameter, optimizer = make(torch.full((4, 4), 1.0), torch.bfloat16, weight_decay=0.0)
    assert parameter.grad_dtype == torch.float32
    for _ in range(10):
        parameter.grad = torch.ones(4, 4)
        optimizer.step(lr=1e-3, scale=1.0)  # half the distance between bf16 numbers just below 1 is 2e-3
    state = optimizer.state()
    master = join_master(state["w.weight"], state["w.lower"])
    torch.testing.assert_close(master, torch.full((4, 4), 0.99), rtol=0, atol=1e-5)
    assert parameter.dtype == torch.bfloat16
    assert torch.equal(parameter, master.bfloat16())


def test_gradients_are_as_wide_as_their_sums_need():
    for sums, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        parameter = nn.Parameter(torch.ones(1, 2, dtype=torch.bfloat16))
        optimizer = AdamW({"w": parameter}, OptimConfig(lr=1.0), rounding="master", seed=0, sums=sums)
        for _ in range(2):
            (parameter * torch.tensor([1.0, 2**-9], dtype=torch.bfloat16)).sum().backward()
        assert parameter.grad.dtype == dtype
        assert parameter.grad.tolist() == [[2.0, 2**-8]]
        parameter.grad += 2**-9  # lost beside 2 in bf16
        assert (parameter.grad[0, 0] == 2) == (not sums)
        optimizer.step(lr=0.0, scale=1.0)


def test_halves_of_master_weights_by_hand():
    # 1 is 0x3F800000; one bf16 distance above it is 2^-7, whose half is 2^-8. At that tie it goes away from zero.
    values = torch.tensor([1.0, 1 + 2**-9, 1 + 2**-8, -1 - 2**-8, 1 + 2**-7 - 2**-23, 0.0, -0.0])
    upper, lower = split_master(values)
    assert upper.tolist() == [1.0, 1.0, 1 + 2**-7, -1 - 2**-7, 1 + 2**-7, 0.0, -0.0]
    assert lower.tolist() == [0, 2**14, -(2**15), -(2**15), -1, 0, 0]
    assert torch.equal(join_master(upper, lower).view(torch.int32), values.view(torch.int32))
    many = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 10_000)
    upper, lower = split_master(many)
    assert torch.equal(upper, many.bfloat16())  # no ties here
    assert torch.equal(join_master(upper, lower), many)


def test_stochastic_rounding_takes_them_on_average():
    parameter, optimizer = make(torch.full((100, 100), 1.0), torch.bfloat16, "stochastic", weight_decay=0.0)
    for _ in range(10):
        parameter.grad = torch.ones(100, 100, dtype=torch.bfloat16)
        optimizer.step(lr=1e-3, scale=1.0)
    assert all(tensor.dtype == torch.bfloat16 for tensor in optimizer.state().values())
    # A weight is a binomial number of bf16 distances of 2^-8 below 1: standard error about 6e-5.
    assert parameter.float().mean().item() == pytest.approx(0.99, abs=3e-4)


def test_stochastic_rounding_is_unbiased_and_exact_where_it_can_be():
    low, high = 1.0, 1.0 + 2**-7
    values = torch.full((200_000,), low + 0.3 * (high - low))
    noise = torch.randint(2**16, values.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    for sign in (1, -1):
        rounded = round_stochastic(sign * values, noise).float()
        assert set(rounded.unique().tolist()) == {sign * low, sign * high}
        assert (rounded == sign * high).float().mean().item() == pytest.approx(0.3, abs=0.005)
    exact = torch.tensor([0.0, -2.5, 1e-30]).bfloat16()
    assert torch.equal(round_stochastic(exact.float(), torch.full((3,), 2**16 - 1, dtype=torch.int32)), exact)


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, "master"), (torch.bfloat16, "master"), (torch.bfloat16, "stochastic")]
)
def test_a_loaded_state_continues_exactly(dtype, rounding):
    def gradient(step):
        return torch.randn(6, 6, generator=torch.Generator().manual_seed(step))

    def run(optimizer, parameter, steps):
        for step in steps:
            parameter.grad = gradient(step).to(parameter.grad_dtype)
            optimizer.step(lr=0.01, scale=1.0)

    parameter, optimizer = make(torch.ones(6, 6), dtype, rounding)
    run(optimizer, parameter, range(3))
    saved = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    run(optimizer, parameter, range(3, 6))
    other, resumed = make(torch.zeros(6, 6), dtype, rounding)
    resumed.load_state(saved, num_steps=3)
    run(resumed, other, range(3, 6))
    assert torch.equal(parameter, other)


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.float32, "master"), (torch.bfloat16, "master"), (torch.bfloat16, "stochastic")],
)
def test_whoever_keeps_something_made_of_a_weight_learns_that_it_has_changed(dtype, rounding):
    parameter, optimizer = make(torch.ones(2, 2), dtype, rounding)
    double = Derived(lambda tensors: 2 * tensors[0].detach())
    double.of([parameter])
    parameter.grad.fill_(1)
    optimizer.step(lr=0.5, scale=1.0)
    assert torch.equal(double.of([parameter]), 2 * parameter.detach())
    assert parameter[0, 0] < 0.6


def test_a_state_of_another_kind_is_refused():
    parameter, optimizer = make(torch.ones(2, 2), torch.bfloat16, "master")
    _, narrow = make(torch.zeros(2, 2), torch.bfloat16, "stochastic")
    with pytest.raises(ModelError, match=r"no w\.lower.*new folder"):
        optimizer.load_state(narrow.state(), num_steps=1)
    assert parameter.unique().tolist() == [1.0]
    assert optimizer.num_steps == 0


def test_gradient_norm_over_all_parameters():
    parameters = {
        "a": nn.Parameter(torch.zeros(2)),
        "b": nn.Parameter(torch.zeros(1, 1)),
        "c": nn.Parameter(torch.zeros(3)),
    }
    optimizer = AdamW(parameters, OptimConfig(lr=1.0), rounding="master", seed=0)
    assert optimizer.gradient_norm() == 0.0
    parameters["a"].grad, parameters["b"].grad = torch.tensor([2.0, 3.0]), torch.tensor([[6.0]])
    assert optimizer.gradient_norm() == pytest.approx(7.0)


def rates(num_steps, **config):
    config = OptimConfig(lr=8.0, **config)
    return [learning_rate(config, step, num_steps) for step in range(1, num_steps + 1)]


def test_schedules_by_hand():
    assert rates(4, schedule="constant", warmup_steps=2) == [4.0, 8.0, 8.0, 8.0]
    assert rates(4, schedule="linear") == [8.0, 6.0, 4.0, 2.0]
    assert rates(6, schedule="linear", warmup_steps=2, min_lr=4.0) == [4.0, 8.0, 8.0, 7.0, 6.0, 5.0]
    assert rates(4, schedule="cosine") == pytest.approx([8.0, 4 + 4 * math.sqrt(0.5), 4.0, 4 - 4 * math.sqrt(0.5)])
    assert rates(1, schedule="cosine") == [8.0]
