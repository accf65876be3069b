"""PPO: a decision problem in text whose numbers are worked out by hand and whose optimum is known; and what must not
matter: micro-batches, temperature, unfinished responses."""

import copy
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from steersman.config import validate as validated
from steersman.errors import ConfigError, NonFiniteError, RemoteError
from steersman.generation.engine import Engine
from steersman.models.adapters import LoraConfig, add_lora
from steersman.records import Completion, Conversation, Message, Prompt
from steersman.seams import GenerationRequest, Sampling
from steersman.training import ppo
from steersman.training.checkpoint import CheckpointConfig, TrainingState
from steersman.training.optim import AdamW, OptimConfig
from steersman.training.ppo import Inline, PPOConfig, PPOJob, Question, RewardFunction

END, ASK, A, B, C, D = range(6)


def question(*prompt_ids, max_tokens=3, temperature=1.0):
    prompt = Prompt(text="ask", token_ids=prompt_ids or (ASK,))
    request = GenerationRequest(prompt=prompt, sampling=Sampling(max_tokens=max_tokens, temperature=temperature))
    return Question(
        conversation=Conversation(conversations=[Message(role="User", value="ask")]), role="Assistant", request=request
    )


class Fresh:
    """Samples from a model as it is at each call."""

    def __init__(self, loaded):
        self.loaded = loaded

    def generate(self, requests, progress=None):
        return Engine(self.loaded).generate(requests, progress)


class Script:
    """Says the same at every rollout."""

    def __init__(self, *answers):
        self.answers = answers

    def generate(self, requests, progress=None):
        said = itertools.islice(itertools.cycle(self.answers), len(requests))
        return [
            Completion(text=str(ids), token_ids=list(ids), finish_reason="stop" if ids[-1] == END else "length")
            for ids in said
        ]


class Told:
    """A critic that believes every state to be worth 1, and notes what it is told."""

    def __init__(self):
        self.lessons = []
        self.coming = []

    def infer(self, tokens, lengths, next_B=None):
        self.coming += [row[:length].tolist() for row, length in zip(tokens[next_B], lengths[next_B], strict=True)]
        return torch.ones(len(tokens), tokens.shape[1] - 1), 10.0 * torch.arange(1, len(tokens) + 1)

    def train(self, tokens, returns, prev_values, mask):
        self.lessons.append((tokens, returns, prev_values, mask))
        return {"loss": 0.0, "lr": 0.0}

    def save(self, step):
        return ""


@pytest.fixture
def make_job(actor, tmp_path) -> Callable[..., PPOJob]:
    """`make_job(critic, actor, generator=…, lr=…, **numbers of PPOConfig)`."""

    def make(
        critic,
        actor=actor,
        *,
        generator=None,
        lr=1e-2,
        schedule="constant",
        lora=False,
        rewards=None,
        critic_weight=1.0,
        questions=None,
        **numbers,
    ):
        rollout = {"samples": 2, "micro_batch": 2, "max_tokens": 3, **numbers.pop("rollout", {})}
        data = {"steps": 1, "global_batch": rollout["samples"], "rollout": rollout, **numbers}
        config = validated(data, PPOConfig, "test")
        optim = OptimConfig(lr=lr, schedule=schedule, weight_decay=0.0, clip_norm=None)
        model, reference = actor.model, None
        if lora:
            torch.manual_seed(3)
            model = add_lora(model, LoraConfig(rank=4), [])
        else:
            reference = type(model)(model.config)
            reference.set_attn_implementation(model.config._attn_implementation)
            reference.load_state_dict(model.state_dict())
            reference = reference.to(model.dtype).eval().requires_grad_(False)
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        rollout = config.rollout
        asked = [question(max_tokens=rollout.max_tokens, temperature=rollout.temperature)] * rollout.samples
        return PPOJob(
            actor=model,
            reference=reference,
            optimizer=AdamW(parameters, optim, rounding="master", seed=0),
            optim=optim,
            generator=generator or Fresh(replace(actor, model=model)),
            critic=critic,
            critic_weight=critic_weight,
            rewards=rewards or {},
            executor=Inline(),
            questions=lambda step: questions or asked,
            config=config,
            validation=[],
            validate_every=1,
            checkpoints=CheckpointConfig(),
            folder=tmp_path / "checkpoints",
            seed=0,
            save_best=lambda: None,
        )

    return make


def lookup(rewards):
    """The reward of each response by its tokens; 0 for others."""
    return RewardFunction(
        weight=1.0, score=lambda responses: [rewards.get(tuple(one.completion.token_ids), 0.0) for one in responses]
    )


def expected_reward(model, rewards, temperature=1.0):
    """The exact mean reward of the policy: the sum over the rewarded answers of their probability."""
    total = 0.0
    for answer, reward in rewards.items():
        ids = torch.tensor([[ASK, *answer]])
        with torch.no_grad():
            logprobs = (model(ids).logits[0] / temperature).log_softmax(-1)
        total += reward * math.exp(sum(float(logprobs[t, token]) for t, token in enumerate(answer)))
    return total


def test_returns_and_advantages_by_hand(make_job):
    """gamma 1, lambda 1/2, every state believed to be worth 1; the critic rewards the two answers with 10 and 20. The
    actor still is its reference, so nothing is lost to divergence.

    `a end`: delta = (0, 10 - 1), A = (9/2, 9), returns (11/2, 10).
    `a b c`, cut off: delta = (0, 0, 20 - 1), A = (19/4, 19/2, 19), returns (23/4, 21/2, 20).
    """
    critic = Told()
    job = make_job(
        critic, generator=Script((A, END), (A, B, C)), lam=0.5, kl_penalty=0.5, questions=[question(ASK, D)] * 2
    )
    report = ppo.train_step(job, 1)
    ((tokens, returns, values, mask),) = critic.lessons
    order = [0, 1] if tokens[0, 3] == END else [1, 0]
    assert tokens[order].tolist() == [[ASK, D, A, END, 0], [ASK, D, A, B, C]]
    assert mask[order].tolist() == [[False, True, True, False], [False, True, True, True]]
    torch.testing.assert_close(returns[order], torch.tensor([[0, 5.5, 10, 0], [0, 5.75, 10.5, 20]]))
    assert (values[mask] == 1).all()
    advantages = torch.tensor([4.5, 9, 4.75, 9.5, 19])
    numbers = report.metrics
    assert numbers["rewards"] == numbers["rewards_with_kl"] == 15
    assert [numbers["init_policy_kl"], numbers["response_kl"]] == pytest.approx([0, 0], abs=1e-6)
    assert numbers["advantages.mean"] == pytest.approx(advantages.mean().item())
    assert numbers["advantages.std"] == pytest.approx(advantages.std(correction=0).item())
    assert numbers["returns.mean"] == pytest.approx(1 + advantages.mean().item())
    assert numbers["explained_variance"] == pytest.approx(0)  # a constant explains nothing
    assert (numbers["prompt_length"], numbers["response_length"], numbers["fraction_ended"]) == (2, 2.5, 0.5)
    assert (numbers["actor.ratio"], numbers["actor.clip_fraction"]) == (pytest.approx(1), 0)
    # Only the answer that ended teaches the actor; its loss is minus the mean of its whitened advantages.
    whitened = (advantages - advantages.mean()) / advantages.std(correction=0)
    assert numbers["actor.loss"] == pytest.approx(-whitened[:2].mean().item(), rel=1e-4)
    assert [sample["score"] for sample in report.samples] == [10, 20]
    assert [sample["ended"] for sample in report.samples] == [True, False]


def test_scores_are_weighed_and_standardised(make_job):
    critic = Told()
    job = make_job(
        critic,
        generator=Script((A, END)),
        critic_weight=0.5,
        rewards={"rule": replace(lookup({(A, END): 3.0}), weight=2.0)},
        reward_mean=1.0,
        reward_std=2.0,
        lam=1.0,
    )
    numbers = ppo.train_step(job, 1).metrics
    assert (numbers["rewards.critic"], numbers["rewards.rule"]) == (15, 3)
    assert numbers["rewards"] == 0.5 * 15 + 2 * 3
    ((_, returns, _, _),) = critic.lessons
    assert sorted(returns[:, 0].tolist()) == [(0.5 * 10 + 6 - 1) / 2, (0.5 * 20 + 6 - 1) / 2]


def test_leaving_the_reference_costs(make_job):
    """After the reference was moved the divergence shows in the rewards, at every action."""
    critic = Told()
    job = make_job(critic, generator=Script((A, B, END)), kl="k1", kl_penalty=0.1, lam=1.0)
    with torch.no_grad():
        job.reference.lm_head.weight.mul_(1.5)
    numbers = ppo.train_step(job, 1).metrics
    ids = torch.tensor([[ASK, A, B, END]])
    with torch.no_grad():
        ours, theirs = (model(ids).logits[0, :-1].log_softmax(-1) for model in (plain_actor(job), job.reference))
    kl = (ours - theirs).gather(1, ids[0, 1:, None])[:, 0]
    assert numbers["response_kl"] == pytest.approx(kl.sum().item(), abs=1e-5)
    assert numbers["init_policy_kl"] == pytest.approx(kl.mean().item(), abs=1e-5)
    ((_, returns, _, _),) = critic.lessons
    for row, reward in zip(returns.tolist(), (10, 20), strict=True) if returns[0, 0] < returns[1, 0] else ():
        assert row == pytest.approx([reward - 0.1 * kl[t:].sum().item() for t in range(3)], abs=1e-4)


def plain_actor(job):
    """The actor as it was before the one step of the test, which is what its critic was told of."""
    model = type(job.reference)(job.reference.config)
    model.load_state_dict(job.reference.state_dict())
    with torch.no_grad():
        model.lm_head.weight.div_(1.5)
    return model.eval()


@pytest.mark.parametrize("temperature", [0.7, pytest.param(1.0, marks=pytest.mark.slow)])
def test_the_policy_reaches_the_optimum(make_job, make_critic, make_actor, temperature):
    """Two decisions over three words, then `end`: `a b` is worth 1, `a` and another 2/5, all else nothing. The policy's
    mean reward is computed exactly, at the temperature at which it is sampled. There is room for one word more, since
    from answers that never end it would not learn to end them."""
    rewards = {(A, y, END): 1.0 if y == B else 0.4 for y in (ASK, A, B)}
    critic = make_critic(lr=5e-3)
    critic.start(0, 600)
    job = make_job(
        critic,
        make_actor(num_words=4),
        critic_weight=0.0,
        rewards={"table": lookup(rewards)},
        lr=5e-3,
        schedule="cosine",
        rollout={"samples": 128, "micro_batch": 128, "max_tokens": 4, "temperature": temperature},
        global_batch=16,
        lam=1.0,
        epochs=2,
        steps=30,
        kl="k1",
        kl_penalty=0.01,
    )
    begun = expected_reward(job.actor, rewards, temperature)
    reports = []
    ppo.train(job, TrainingState(), on_step=reports.append)
    assert begun < 0.2
    assert expected_reward(job.actor, rewards, temperature) >= 0.99
    assert reports[-1].metrics["response_kl"] > 1


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_split_into_micro_batches_changes_nothing(make_job, actor, temperature):
    """In double precision: the same update, and the gradient that torch finds on the plain formula."""
    actor.model.double()
    before = {name: tensor.clone() for name, tensor in actor.model.state_dict().items()}
    tokens = torch.tensor([[ASK, A, B, END], [ASK, D, END, 0], [ASK, C, C, A]])
    mask = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
    generator = torch.Generator().manual_seed(0)
    old, advantages = (torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    old = old * 0.1 - 1.8
    found = {}
    for micro_tokens in (1, 5, 1000):
        actor.model.load_state_dict(before)
        job = make_job(Told(), micro_tokens=micro_tokens, entropy=0.1, rollout={"temperature": temperature})
        numbers = ppo.update(job, 1, tokens, mask, old, advantages)
        found[micro_tokens] = (numbers, {n: p.detach().clone() for n, p in actor.model.named_parameters()})
    for numbers, weights in found.values():
        assert numbers == pytest.approx(found[1000][0], rel=1e-9)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, found[1000][1][name], rtol=1e-9, atol=1e-12)

    actor.model.load_state_dict(before)
    actor.model.zero_grad()
    losses = []
    for row, length in ((0, 4), (1, 3)):
        logprobs = (actor.model(tokens[row : row + 1, :length]).logits[0, :-1] / temperature).log_softmax(-1)
        new = logprobs.gather(1, tokens[row, 1:length, None])[:, 0]
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        ratio = (new - old[row, : length - 1]).exp()
        gain = advantages[row, : length - 1]
        losses.append(-torch.minimum(gain * ratio, gain * ratio.clamp(0.8, 1.2)) - 0.1 * entropy)
    loss = torch.cat(losses).mean()
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in actor.model.parameters()))
    assert found[1000][0]["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert found[1000][0]["grad_norm"] == pytest.approx(norm, rel=1e-6)


def test_log_probabilities_are_those_of_the_sampler(make_job, actor):
    """At temperature 1/2 the sampler draws from softmax(2 z)."""
    job = make_job(Told(), rollout={"temperature": 0.5})
    tokens, mask = torch.tensor([[ASK, A, B, END]]), torch.ones(1, 3, dtype=torch.bool)
    found = ppo.logprobs(job.actor, tokens, mask, job.config)
    with torch.no_grad():
        expected = (2 * actor.model(tokens).logits[0, :-1]).log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)


def test_responses_that_did_not_end_teach_the_critic_alone(make_job, actor, caplog):
    critic = Told()
    before = {name: tensor.clone() for name, tensor in actor.model.state_dict().items()}
    job = make_job(critic, generator=Script((A, B, C)))
    numbers = ppo.train_step(job, 1).metrics
    assert all(torch.equal(tensor, before[name]) for name, tensor in actor.model.state_dict().items())
    assert critic.lessons[0][3].all()
    assert numbers["fraction_ended"] == 0
    assert "raise rollout.max_tokens" in caplog.text


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("micro_tokens", [1, 1000])
def test_what_the_first_update_reads_first_is_read_once(make_job, actor, monkeypatch, lora, micro_tokens):
    """Four responses, of which one did not end, and two updates."""
    plain = copy.deepcopy(actor)
    plain.model.set_attn_implementation(actor.model.config._attn_implementation)
    read, found = ppo._read, []
    for model, ahead in ((actor, ppo.read_ahead), (plain, lambda *given: None)):
        reads = []

        def counted(model, batch, config, entropies=False, reads=reads):
            reads.append((torch.is_grad_enabled(), len(batch.targets_M)))
            return read(model, batch, config, entropies)

        monkeypatch.setattr(ppo, "_read", counted)
        monkeypatch.setattr(ppo, "read_ahead", ahead)
        said = Script((A, B, END), (B, END), (C, D, A), (END,))
        numbers = {"rollout": {"samples": 4, "micro_batch": 4}, "global_batch": 2, "micro_tokens": micro_tokens}
        job = make_job(Told(), model, generator=said, lora=lora, **numbers)
        metrics = ppo.train_step(job, 1).metrics
        kept = {name: number for name, number in metrics.items() if not name.startswith("seconds")}
        found.append((kept, {name: p.detach() for name, p in job.actor.named_parameters()}, reads))
    (ours, weights, reads), (expected, others, all_reads) = found
    assert ours == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-4, atol=1e-6)
    learnt = sum(num for with_gradients, num in reads if with_gradients)
    assert learnt == sum(num for with_gradients, num in all_reads if with_gradients) == 3 + 2 + 1
    spared = sum(num for _, num in all_reads) - sum(num for _, num in reads)
    assert spared == reads[0][1] > 0


def test_the_critic_knows_what_it_learns_from_first(make_job):
    critic = Told()
    said = Script((A, B, END), (B, END), (C, D, A, END), (END,), (D, END), (C, C, END))
    rollout = {"samples": 6, "micro_batch": 4}
    job = make_job(critic, generator=said, rollout=rollout, global_batch=2, epochs=2)
    ppo.train_step(job, 1)
    tokens, _, _, mask = critic.lessons[0]
    first = [row[: int(here.nonzero().max()) + 2].tolist() for row, here in zip(tokens, mask, strict=True)]
    assert sorted(critic.coming) == sorted(first)
    critic.coming.clear()
    ppo.rollout(job, job.questions(2), "validation", ppo.Clock())
    assert critic.coming == []


def test_the_critic_warms_up_alone(make_job, actor):
    critic = Told()
    before = actor.model.lm_head.weight.detach().clone()
    said = Script((A, END))
    job = make_job(critic, generator=said, critic_warmup=2, steps=3, epochs=2, rollout={"samples": 4}, global_batch=2)
    reports = []
    ppo.train(job, TrainingState(), on_step=lambda report: reports.append((report, actor.model.lm_head.weight.clone())))
    assert len(critic.lessons) == 3 * 2 * 2
    assert ["actor.loss" in report.metrics for report, _ in reports] == [False, False, True]
    assert [torch.equal(weight, before) for _, weight in reports] == [True, True, False]
    assert job.optimizer.num_steps == job.config.actor_updates(3) == 4


def test_every_epoch_has_every_response_once(make_job):
    job = make_job(Told(), epochs=2, rollout={"samples": 6}, global_batch=2)
    rows = [row.tolist() for row in ppo.minibatches(job, 1)]
    assert [len(row) for row in rows] == [2] * 6
    first, second = ([*itertools.chain(*rows[start : start + 3])] for start in (0, 3))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second
    assert [row.tolist() for row in ppo.minibatches(job, 1)] == rows
    with pytest.raises(ConfigError, match="must divide"):
        make_job(Told(), rollout={"samples": 6}, global_batch=4)


def test_the_best_model_is_the_one_with_the_best_validation_score(make_job):
    saved, reports = [], []
    answers = iter([(A, END), (B, END), (A, END), (C, END)])
    worth = {(A, END): 1.0, (B, END): 2.0, (C, END): 5.0}

    class Changing:
        def generate(self, requests, progress=None):
            answer = next(answers) if len(requests) == 3 else (D, END)
            return [Completion(text="", token_ids=list(answer), finish_reason="stop") for _ in requests]

    job = make_job(
        Told(),
        generator=Changing(),
        critic_weight=0.0,
        rewards={"worth": lookup(worth)},
        steps=4,
        rollout={"micro_batch": 3},
    )
    job = replace(job, validation=[question()] * 3, save_best=lambda: saved.append(len(reports)))
    job = replace(
        job, config=job.config.model_copy(update={"rollout": job.config.rollout.model_copy(update={"micro_batch": 3})})
    )
    state = ppo.train(job, TrainingState(), log=reports.append)
    assert saved == [0, 1, 3]
    assert state == TrainingState(step=4, best_loss=-5.0)
    assert [report.metrics["validation.rewards"] for report in reports] == [1, 2, 1, 5]


class Failing(Told):
    def __init__(self, when):
        super().__init__()
        self.when = when

    def infer(self, tokens, lengths, next_B=None):
        if self.when == "infer":
            raise RemoteError("the critic has caught fire")
        return super().infer(tokens, lengths, next_B)

    def train(self, *told):
        if self.when == "train":
            raise RemoteError("the critic has caught fire")
        return super().train(*told)

    def save(self, step):
        raise RemoteError("the critic has caught fire")


@pytest.mark.parametrize("when", ["infer", "train", "save"])
def test_a_critic_that_fails_elsewhere_stops_the_run_in_its_own_words(make_job, when):
    with ThreadPoolExecutor(1) as executor:
        job = replace(make_job(Failing(when), steps=2), executor=executor)
        with pytest.raises(RemoteError, match="caught fire"):
            ppo.train(job, TrainingState())
    assert not job.folder.exists()


def test_rewards_that_are_not_finite_stop_the_run(make_job):
    job = make_job(Told(), rewards={"broken": lookup({(A, END): math.nan})}, generator=Script((A, END)))
    with pytest.raises(NonFiniteError, match="a reward of broken"):
        ppo.train_step(job, 1)
