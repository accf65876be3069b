"""The critic in process: what it reads where, what packing and training leave as it is, how it resumes."""

import math

import pytest
import torch
from safetensors.torch import load_file

from steersman.errors import ModelError, NonFiniteError
from steersman.training import checkpoint
from steersman.training import critic as critics

TOKENS = torch.tensor([[1, 2, 3, 4, 0], [1, 5, 0, 0, 0], [1, 3, 3, 2, 5]])
LENGTHS = torch.tensor([4, 2, 5])
MASK = torch.tensor([[False, True, True, False], [True, False, False, False], [False, True, True, True]])


def plain_scores(model, tokens):
    """What the head says at every token of one sequence."""
    return model.score(model.model(tokens[None]).last_hidden_state)[0, :, 0].detach()


def train_once(critic):
    values, _ = critic.infer(TOKENS, LENGTHS)
    return critic.train(TOKENS, values + 1, values, MASK)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("micro_tokens", [1, 7, 100])
def test_values_lie_before_each_token_and_the_reward_at_the_last(make_critic, critic_backbone, lora, micro_tokens):
    values, rewards = make_critic(lora=lora, micro_tokens=micro_tokens).infer(TOKENS, LENGTHS)
    for tokens, length, value_T, reward in zip(TOKENS, LENGTHS.tolist(), values, rewards, strict=True):
        expected = plain_scores(critic_backbone(), tokens[:length])
        torch.testing.assert_close(value_T[: length - 1], expected[:-1], rtol=1e-5, atol=1e-6)
        assert value_T[length - 1 :].tolist() == [0.0] * (5 - length)
        torch.testing.assert_close(reward, expected[-1], rtol=1e-5, atol=1e-6)


def test_one_step_by_hand(make_critic, critic_backbone):
    """All returns lie 1 above the values: the loss is 1/2, its gradient that of minus the mean value."""
    critic = make_critic(lr=1e-2)
    critic.start(0, 10)
    numbers = train_once(critic)
    model = critic_backbone()
    read = [
        plain for tokens, length in zip(TOKENS, LENGTHS, strict=True) for plain in [model.model(tokens[None, :length])]
    ]
    states = [
        model.score(output.last_hidden_state)[0, :-1, 0][mask[: length - 1]]
        for output, mask, length in zip(read, MASK, LENGTHS, strict=True)
    ]
    mean = torch.cat(states).mean()
    mean.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    assert numbers["loss"] == pytest.approx(0.5, rel=1e-5)
    assert numbers["clip_fraction"] == 0
    assert numbers["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert numbers["lr"] == 1e-2


@pytest.mark.parametrize("lora", [False, True])
def test_the_split_into_micro_batches_changes_nothing(make_critic, lora):
    critics = [make_critic(lora=lora, micro_tokens=size, dtype=torch.float64) for size in (1, 1000)]
    for critic in critics:
        critic.start(0, 10)
    numbers, whole = ([train_once(critic) for _ in range(3)] for critic in critics)
    for one, other in zip(numbers, whole, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    (values, _), (others, _) = (critic.infer(TOKENS, LENGTHS) for critic in critics)
    torch.testing.assert_close(values, others, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_training_moves_the_values_and_never_the_rewards(make_critic, lora):
    critic = make_critic(lora=lora)
    critic.start(0, 100)
    values, rewards = critic.infer(TOKENS, LENGTHS)
    target = values + 1
    losses = [critic.train(TOKENS, target, critic.infer(TOKENS, LENGTHS)[0], MASK)["loss"] for _ in range(40)]
    later, rewards_later = critic.infer(TOKENS, LENGTHS)
    assert losses[-1] < 0.05 * losses[0]
    assert torch.equal(rewards, rewards_later)
    assert not torch.equal(values, later)


@pytest.mark.parametrize("lora", [False, True])
def test_it_continues_from_a_save_to_the_same_bits(make_critic, tmp_path, lora):
    whole = make_critic(lora=lora, folder="whole")
    whole.start(0, 10)
    expected = [train_once(whole) for _ in range(4)]
    whole.save(4)

    first = make_critic(lora=lora)
    first.start(0, 10)
    numbers = [train_once(first) for _ in range(2)]
    first.save(2)
    train_once(first)
    second = make_critic(lora=lora)
    assert second.steps() == [0, 2]
    second.start(2, 10)
    numbers += [train_once(second) for _ in range(2)]
    second.save(4)
    assert numbers == expected
    saved, ours = (load_file(tmp_path / name / "step-00000004" / checkpoint.TENSORS) for name in ("whole", "critic"))
    assert saved.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in saved.items())


def test_it_stands_where_it_is_told_and_forgets_what_came_later(make_critic):
    critic = make_critic()
    critic.start(0, 10)
    begun = critic.infer(TOKENS, LENGTHS)[0]
    after = {0: begun}
    for step in (1, 2, 3):
        train_once(critic)
        critic.save(step)
        after[step] = critic.infer(TOKENS, LENGTHS)[0]
    assert critic.steps() == [0, 2, 3]
    critic.start(2, 10)
    assert critic.steps() == [0, 2]
    assert torch.equal(critic.infer(TOKENS, LENGTHS)[0], after[2])
    assert critic.num_updates == 2
    train_once(critic)
    critic.save(3)
    assert torch.equal(critic.infer(TOKENS, LENGTHS)[0], after[3])
    critic.start(0, 10)
    assert (critic.steps(), critic.num_updates) == ([0], 0)
    assert torch.equal(critic.infer(TOKENS, LENGTHS)[0], begun)
    with pytest.raises(ModelError, match="step-00000007"):
        critic.start(7, 10)


def test_a_step_that_is_saved_already_stays_what_it_is(make_critic):
    critic = make_critic()
    critic.start(0, 10)
    train_once(critic)
    assert critic.save(1) == critic.save(1)


def test_a_loss_that_is_not_finite_leaves_the_weights(make_critic):
    critic = make_critic()
    critic.start(0, 10)
    values, _ = critic.infer(TOKENS, LENGTHS)
    with pytest.raises(NonFiniteError, match=r"critic\.optim\.lr"):
        critic.train(TOKENS, values * math.nan, values, MASK)
    assert critic.num_updates == 0
    other = make_critic()
    other.start(0, 10)
    assert train_once(critic) == train_once(other)


@pytest.fixture
def num_read(monkeypatch):
    """How many sequences each forward call of a critic had."""
    calls = []
    hidden_states = critics.hidden_states

    def counted(model, input_ids, position_ids, segments, at_M):
        calls.append(int((position_ids == 0).sum()))
        return hidden_states(model, input_ids, position_ids, segments, at_M)

    monkeypatch.setattr(critics, "hidden_states", counted)
    return calls


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("micro_tokens", [1, 1000])
def test_what_it_will_learn_from_is_read_once(make_critic, num_read, lora, micro_tokens):
    ahead, plain = (make_critic(lora=lora, micro_tokens=micro_tokens, dtype=torch.float64) for _ in range(2))
    rows = torch.tensor([2, 0])  # of the next step, in its order
    next_B = torch.tensor([True, False, True])
    for number in range(3):
        for critic in (ahead, plain):
            if not number:
                critic.start(0, 10)
        values, rewards = plain.infer(TOKENS, LENGTHS)
        num_read.clear()
        found, found_rewards = ahead.infer(TOKENS, LENGTHS, next_B)
        assert num_read == ([2, 1, 3] if micro_tokens > 1 else [1] * 6)
        torch.testing.assert_close(found, values, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found_rewards, rewards, rtol=1e-12, atol=1e-12)
        lesson = (torch.nn.functional.pad(TOKENS, (0, 2))[rows], *(pad(x)[rows] for x in (values + 1, values, MASK)))
        num_read.clear()
        numbers = ahead.train(*lesson)
        assert num_read == ([] if micro_tokens > 1 else [1])
        assert numbers == pytest.approx(plain.train(*lesson), rel=1e-9)


def pad(x_BT):
    """As in a longer rollout."""
    return torch.nn.functional.pad(x_BT, (0, 2))


def test_asked_again_it_says_the_same(make_critic, num_read):
    # As when an answer was lost on its way.
    critic = make_critic(lora=True)
    asked = TOKENS, LENGTHS, torch.tensor([True, False, True])
    first = critic.infer(*asked)
    num_read.clear()
    again = critic.infer(*asked)
    assert all(map(torch.equal, again, first))
    assert num_read == [1, 3]


def test_a_later_part_of_a_rollout_may_be_shorter(make_critic):
    ahead, plain = (make_critic(lora=True, dtype=torch.float64) for _ in range(2))
    short = TOKENS[:2, :4], LENGTHS[:2]
    expected = plain.infer(*short)
    ahead.infer(TOKENS[2:], LENGTHS[2:], torch.tensor([True]))  # of five tokens
    for found, wanted in zip(ahead.infer(*short, torch.tensor([True, False])), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    values, _ = plain.infer(TOKENS, LENGTHS)
    lesson = (TOKENS, values + 1, values, MASK)
    assert ahead.train(*lesson) == pytest.approx(plain.train(*lesson), rel=1e-9)


def test_the_same_response_twice_counts_twice(make_critic):
    ahead, plain = (make_critic(lora=True, dtype=torch.float64) for _ in range(2))
    twice = torch.tensor([0, 0, 1])
    values, _ = plain.infer(TOKENS[twice], LENGTHS[twice])
    ahead.infer(TOKENS[twice], LENGTHS[twice], torch.tensor([True, True, False]))
    lesson = (TOKENS[twice], values + 1, values, MASK[twice])
    assert ahead.train(*lesson) == pytest.approx(plain.train(*lesson), rel=1e-9)


@pytest.mark.parametrize("between", ["another lesson", "the same lesson", "a new start"])
def test_what_was_read_by_other_weights_is_not_learnt_from(make_critic, between):
    ahead, plain = (make_critic(lora=True, dtype=torch.float64, folder=folder) for folder in ("ahead", "plain"))
    values, _ = plain.infer(TOKENS, LENGTHS)
    lesson, other = ((TOKENS[rows], values[rows] + 1, values[rows], MASK[rows]) for rows in ([0], [1, 2]))
    for critic in (ahead, plain):
        critic.start(0, 10)
        critic.train(*lesson)
        critic.save(1)
        critic.infer(TOKENS, LENGTHS, torch.tensor([True, False, False]) if critic is ahead else None)
        if between == "a new start":
            critic.start(1, 10)
        else:
            critic.train(*(other if between == "another lesson" else lesson))
    assert ahead.train(*lesson) == pytest.approx(plain.train(*lesson), rel=1e-9)
