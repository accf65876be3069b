"""What a step computes: the same whatever the packing and the split; and when it must stop."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from steersman.batches.packing import idle, pack
from steersman.batches.sequences import shift, shift_family
from steersman.errors import NonFiniteError
from steersman.models.attention import IMPLEMENTATION
from steersman.parallel.mesh import Mesh
from steersman.training import checkpoint, tasks
from steersman.training.checkpoint import CheckpointConfig, TrainingState
from steersman.training.loop import Job, ValidateConfig, train, train_step, validate
from steersman.training.optim import AdamW, OptimConfig

ALONE = Mesh(rank=0, size=1, device=torch.device("cpu"))


def tokens(model, lengths=(23, 5, 17, 9, 30, 2)):
    """Unshifted (ids, mask) pairs, about half of them trained; longer than Gemma's window of 8."""
    generator = np.random.default_rng(0)
    pairs = []
    for length in lengths:
        mask = generator.random(length) < 0.5
        mask[-1] = True
        pairs.append((generator.integers(0, model.config.vocab_size, length), mask))
    return pairs


def sum_gradients(model, batches):
    """(summed loss, gradients by name) of the micro-batches."""
    model.set_attn_implementation(IMPLEMENTATION)
    model.zero_grad()
    task = tasks.sft(model)
    total = 0.0
    for batch in batches:
        loss = task(batch)
        loss.sum.backward()
        total += loss.sum.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


def plain_gradients(model, pairs):
    """The same from `transformers` alone: each sequence by itself, all logits, torch's cross-entropy."""
    model.zero_grad()
    total = torch.zeros(())
    for ids, mask in pairs:
        logits = model(torch.from_numpy(ids)[None]).logits[0]
        targets = torch.from_numpy(np.where(mask, ids, -100))[1:]
        total = total + F.cross_entropy(logits[:-1], targets, ignore_index=-100, reduction="sum")
    total.backward()
    return total.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gemma3"])
@pytest.mark.parametrize("micro_tokens", [1, 32, 1000])
def test_packing_and_split_change_neither_loss_nor_gradients(request, family, micro_tokens):
    model = request.getfixturevalue(family)().double()
    pairs = tokens(model)
    expected_loss, expected = plain_gradients(model, pairs)
    batches = pack([shift(ids, mask) for ids, mask in pairs], micro_tokens)
    assert len(batches) == {1: 6, 32: 3, 1000: 1}[micro_tokens]
    loss, gradients = sum_gradients(model, [*batches, idle()])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6 * expected[name].abs().max().item())


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gemma3"])
def test_sharing_beginnings_changes_neither_loss_nor_gradients(request, family):
    """Paths of a tree, two of which train the same token, beside a sequence of their own."""
    model = request.getfixturevalue(family)().double()
    (root, _), (left, _), (right, _), (leaf, _), (other, _) = tokens(model, lengths=(20, 9, 14, 30, 12))
    paths = [np.concatenate(parts) for parts in ([root, left, leaf], [root, left], [root, left, right], [root, right])]
    pairs = [(ids, np.arange(len(ids)) >= start) for ids, start in zip(paths, (29, 18, 35, 20), strict=True)]
    alone = (other, np.ones(len(other), bool))
    expected_loss, expected = plain_gradients(model, [*pairs, alone])
    (row,) = pack([shift(*alone), shift_family(pairs)], 1000)
    # The second path does not take in its last token, so that token goes in twice, for the first and for the third.
    assert row.num_tokens == 11 + 20 + (8 + 1 + 29) + (1 + 13) + 13
    loss, gradients = sum_gradients(model, [row])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6 * expected[name].abs().max().item())


def test_activation_checkpointing_changes_nothing(tiny_gemma3):
    model = tiny_gemma3().train()
    batches = pack([shift(ids, mask) for ids, mask in tokens(model)], 32)
    loss, gradients = sum_gradients(model, batches)
    model.activation_checkpointing_enable()
    loss_again, gradients_again = sum_gradients(model, batches)
    assert model.model.layers[0].gradient_checkpointing
    assert loss == loss_again
    assert all(torch.equal(gradient, gradients_again[name]) for name, gradient in gradients.items())


@pytest.fixture
def make_job(tiny_llama, tmp_path):
    def make(*, num_steps=4, keep=1, every=None, validate_every=100, **optim):
        model = tiny_llama()
        model.set_attn_implementation(IMPLEMENTATION)
        sequences = [shift(ids, mask) for ids, mask in tokens(model)]
        optimizer = AdamW(
            dict(model.named_parameters()), OptimConfig(**{"lr": 1e-2, **optim}), rounding="master", seed=0
        )
        saved = []
        job = Job(
            model=model,
            task=tasks.sft(model),
            optimizer=optimizer,
            batches=lambda after: ([*pack(sequences, 32)] for _ in range(after, num_steps)),
            num_steps=num_steps,
            validation={"one": pack(sequences[:2], 32), "two": pack(sequences[2:], 32)},
            validate=ValidateConfig(every=validate_every),
            checkpoints=CheckpointConfig(every=every, keep=keep),
            folder=tmp_path / "checkpoints",
            seed=0,
            save_best=lambda: saved.append(optimizer.num_steps),
        )
        return job, saved

    return make


def test_a_step_is_divided_by_the_global_count_and_clipped(make_job):
    job, _ = make_job(clip_norm=None, weight_decay=0.0)
    pairs = tokens(job.model)
    num_trained = sum(int(mask[1:].sum()) for _, mask in pairs)
    expected_loss, gradients = plain_gradients(job.model, pairs)
    job.model.zero_grad()
    report = train_step(job, 1, next(job.batches(0)), ALONE)
    assert report.num_trained == num_trained
    assert report.num_tokens == sum(len(shift(ids, mask).inputs_T) for ids, mask in pairs)
    assert report.loss == pytest.approx(expected_loss / num_trained, rel=1e-6)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
    assert report.grad_norm == pytest.approx(norm / num_trained, rel=1e-5)
    first_moment = job.optimizer.state()["lm_head.weight.exp_avg"]
    torch.testing.assert_close(first_moment, 0.1 * gradients["lm_head.weight"] / num_trained, rtol=1e-5, atol=1e-8)

    clipped, _ = make_job(clip_norm=0.01, weight_decay=0.0)
    train_step(clipped, 1, next(clipped.batches(0)), ALONE)
    torch.testing.assert_close(
        clipped.optimizer.state()["lm_head.weight.exp_avg"],
        first_moment * (0.01 / report.grad_norm),
        rtol=1e-4,
        atol=1e-8,
    )


def test_best_by_mean_validation_loss_and_checkpoints_kept(make_job):
    job, saved = make_job(num_steps=7, every=2, keep=2, validate_every=3)
    reports = []
    state = train(job, TrainingState(), ALONE, None, reports.append)
    means = {
        report.step: (report.validation["one"]["loss"] + report.validation["two"]["loss"]) / 2
        for report in reports
        if report.validation
    }
    assert list(means) == [3, 6, 7]
    lowest = [step for step in means if means[step] == min(loss for other, loss in means.items() if other <= step)]
    assert saved == lowest
    assert state == TrainingState(step=7, best_loss=min(means.values()))
    assert checkpoint.steps(job.folder) == [6, 7]
    assert checkpoint.load(job.folder, 6)[0] == TrainingState(step=6, best_loss=means[6] if 6 in saved else means[3])


def test_validation_is_the_mean_over_trained_tokens(make_job):
    job, _ = make_job()
    rows = [*job.validation["one"], *job.validation["two"]]
    expected, _ = sum_gradients(job.model, rows)
    means = validate(job, rows, ALONE)
    assert means["loss"] == pytest.approx(expected / sum(row.num_trained for row in rows), rel=1e-6)
    assert 0 <= means["accuracy"] <= 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(make_job, bad):
    job, _ = make_job(num_steps=4, every=2)
    good = job.batches

    def poisoned(after):
        for step, batches in enumerate(good(after), start=1):
            if step == 4:
                with torch.no_grad():
                    job.model.lm_head.weight[0, 0] = bad
            yield batches

    poisoned_job = Job(**{**vars(job), "batches": poisoned})
    before = {}
    with pytest.raises(NonFiniteError, match=r"step 4: .* the checkpoint of step 2 stands"):
        train(
            poisoned_job,
            TrainingState(),
            ALONE,
            None,
            lambda report: before.update({n: p.detach().clone() for n, p in job.model.named_parameters()}),
        )
    assert checkpoint.steps(job.folder) == [2]
    assert torch.equal(before["model.norm.weight"], job.model.model.norm.weight)
