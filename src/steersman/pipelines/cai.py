"""Constitutional AI (arXiv 2212.08073), from a helpful-only model to one that does less harm, measured.

`run` is the paper's figure 1, top to bottom. In: a `CaiConfig`. Out: `<output>/<stage>/` folders (see
`pipelines.stages`), `report.html` and `report.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steersman import config as configs
from steersman import jsonl
from steersman.cai.answers import AnswersConfig, sample_answers
from steersman.cai.constitution import Constitution
from steersman.cai.conversations import write_conversations
from steersman.cai.few_shot import load_few_shot
from steersman.cai.judging import judge_answers
from steersman.cai.preferences import PreferenceReport, write_pairs
from steersman.cai.revise import ReviseConfig, Revised, Reviser, revise
from steersman.errors import DataError
from steersman.evaluation import cai_report, harm, hhh
from steersman.evaluation.comparisons import ComparisonReport
from steersman.evaluation.harm import Answered, Gain, HarmReport, Rules
from steersman.evaluation.report import DataSet
from steersman.models.load import load_model
from steersman.pipelines import cai_data
from steersman.pipelines.cai_config import CaiConfig, DPOStep, PPOStep, Speaker
from steersman.pipelines.cai_data import Files
from steersman.pipelines.comparing import Comparing
from steersman.pipelines.jobs import TrainFile, TrainSettings
from steersman.pipelines.judges import open_judge
from steersman.pipelines.opened import OpenedChat, open_chat, open_fits
from steersman.pipelines.ppo import CriticSource, PPORecipe, PPOSettings, PromptData, run_ppo
from steersman.pipelines.running import Display, Result, TrainingStages, check, stage_times, versions
from steersman.pipelines.stages import Stages, once
from steersman.records import Conversation, PreferencePair
from steersman.sandbox import oracle, world
from steersman.scoring.rewards import RewardModel
from steersman.seams import Sampling
from steersman.training import metrics

BASE, HELPFUL_ONLY, SL_CAI, RL_CAI, REWARD = "base", "helpful_only", "sl_cai", "rl_cai", "reward_model"


def run(config: CaiConfig, display: Display | None = None) -> Result:
    """Run all stages, or those that are not done yet, and write the report."""
    cai = Cai(config, display or Display())
    files = cai.prepare()
    start = cai.pretrain(files)

    # Phase 1: a model that only helps criticises and revises its answers, and learns to answer that way at once.
    start, helpful_only = cai.finetune_helpful(start, files)
    revised = cai.revise(helpful_only, files)
    sl_cai = cai.finetune_revised(start, revised, files)

    # Phase 2: under the same constitution it compares answers of that model; a reward model learns from the
    # comparisons, and from people's preferences for the more helpful answer.
    feedback = cai.prefer("prefer", sl_cai, helpful_only, files.prompts.train, config.answers.num_prompts)
    held_out = cai.prefer(
        "prefer-held-out", sl_cai, helpful_only, files.prompts.validation, config.answers.num_held_out
    )
    reward = cai.train_reward(sl_cai, feedback, files)

    models = {HELPFUL_ONLY: helpful_only, SL_CAI: Speaker(model=sl_cai)}
    if config.policy == "ppo" and config.ppo:
        models[RL_CAI] = Speaker(model=cai.reinforce(sl_cai, reward, config.ppo, files))
    if config.policy == "dpo" and config.dpo:
        models[RL_CAI] = Speaker(model=cai.learn_preferences(sl_cai, feedback, config.dpo, files))
    second = cai.train_second_reward(sl_cai, config.second_reward, files) if config.second_reward else None
    return cai.report(models, reward, second, revised, feedback, held_out, files)


@dataclass(frozen=True)
class Feedback:
    """Pairs that a judge made, and what it did.

    Attributes:
        pairs: preference pairs.
        report: of sampling and judging.
    """

    pairs: Path
    report: PreferenceReport


class Cai:
    """The steps of a run, each a stage (or a few) that is skipped when it is done and unchanged."""

    def __init__(self, config: CaiConfig, display: Display) -> None:
        self.config = config
        self.display = display
        self.stages = Stages(config.output, display.say)
        self.training = TrainingStages(self.stages, config.template, display)
        self.constitution = Constitution.load(
            *(config.constitution or ((world.CONSTITUTION,) if config.sandbox else ()))
        )

    def prepare(self) -> Files:
        """Raw data, or the sandbox world, as the files of `cai_data`."""
        config = self.config
        section = config.data or config.sandbox
        assert section is not None
        return Files(
            self.stages.run(
                "data",
                lambda folder: cai_data.prepare(config, folder),
                config={**section.model_dump(mode="json"), "base": config.base is not None},
                inputs=cai_data.inputs(config),
            )
        )

    def pretrain(self, files: Files) -> str:
        """What fine-tuning starts from; the sandbox can train its own from random weights."""
        if self.config.base is None:
            assert self.config.model is not None
            return self.config.model
        train = [TrainFile(path=str(files.base / "train.jsonl"))]
        validation = files.base / "validation.jsonl"
        return self.training.train(
            "base", self.config.base, str(files.base / "model"), train, validation, from_scratch=True
        )

    def finetune_helpful(self, start: str, files: Files) -> tuple[str, Speaker]:
        """The helpful-only model: (what SL-CAI fine-tunes, who answers and judges)."""
        if self.config.helpful:
            train, validation = [TrainFile(path=str(files.assistant.train))], files.assistant.validation
            start = self.training.train("helpful", self.config.helpful, start, train, validation)
        return start, self.config.assistant or Speaker(model=start)

    def revise(self, assistant: Speaker, files: Files) -> Path:
        """Phase 1: the assistant's answers to red-team prompts, criticised and revised; the stage's folder."""
        step = self.config.revise
        settings = ReviseConfig(**step.model_dump(include=set(ReviseConfig.model_fields)))

        def write(path: Path) -> None:
            opened = self._open_chat(assistant)
            reviser = Reviser(
                chat=opened.model,
                principles=self.constitution.critiques,
                config=settings,
                examples=load_few_shot(step.few_shot) if step.few_shot else (),
                forget=opened.forget,
            )
            total = step.num_prompts * settings.num_steps
            with self.display.bar("revise", total=total, unit="replies") as progress:
                revise(
                    files.prompts.train,
                    path,
                    reviser,
                    identity=opened.identity,
                    limit=step.num_prompts,
                    overwrite=True,
                    progress=progress,
                )

        def work(folder: Path) -> Mapping[str, Any]:
            write(folder / "revisions.jsonl")
            return self._rates_by_round(folder / "revisions.jsonl")

        config = {**step.model_dump(mode="json"), "constitution": self.constitution.fingerprint, **self._inference}
        inputs = {**_source("assistant", assistant), "prompts": str(files.prompts.train)}
        return self.stages.run("revise", work, config=config, inputs=inputs)

    def finetune_revised(self, start: str, revised: Path, files: Files) -> str:
        """Phase 1: the model learns to give the revised answers at once, and to help as before."""
        step, blend = self.config.sl_cai, self.config.blend

        def work(folder: Path) -> Mapping[str, Any]:
            report = write_conversations(
                revised / "revisions.jsonl",
                folder / "train.jsonl",
                blend,
                helpful=files.helpful.train,
                fits=open_fits(start, step.seq_len),
                overwrite=True,
            )
            return {"num_revised": report.num_revised, "num_helpful": report.num_helpful}

        config = {**blend.model_dump(mode="json"), "seq_len": step.seq_len}
        inputs = {"revisions": str(revised / "revisions.jsonl"), "helpful": str(files.helpful.train), "model": start}
        folder = self.stages.run("blend", work, config=config, inputs=inputs)
        train = [TrainFile(path=str(folder / "train.jsonl"))]
        return self.training.train("sl-cai", step, start, train, files.helpful.validation)

    def prefer(self, name: str, model: str, judge: Speaker, prompts: Path, num_prompts: int) -> Feedback:
        """Phase 2: several answers of the model to each prompt, which the judge compares in twos."""
        judge = self.config.judge or judge
        step, judging = self.config.answers, self.config.judging
        settings = AnswersConfig(**step.model_dump(include=set(AnswersConfig.model_fields)))

        def sample(path: Path) -> None:
            opened = self._open_chat(Speaker(model=model))
            total = num_prompts * settings.answers
            with self.display.bar(f"{name}: answers", total=total, unit="answers") as progress:
                sample_answers(
                    prompts,
                    path,
                    opened.model,
                    settings,
                    identity=opened.identity,
                    forget=opened.forget,
                    limit=num_prompts,
                    overwrite=True,
                    progress=progress,
                )

        def work(folder: Path) -> Mapping[str, Any]:
            answers, verdicts = folder / "answers.jsonl", folder / "verdicts.jsonl"
            once(answers, sample)
            opened = open_judge(judge.model, judge.urls, judging, self.constitution, **self._engine)
            with self.display.bar(f"{name}: judge", total=num_prompts, unit="prompts") as progress:
                judge_answers(
                    answers,
                    verdicts,
                    opened.judge,
                    judging,
                    identity=opened.identity,
                    forget=opened.forget,
                    overwrite=True,
                    progress=progress,
                )
            return write_pairs(answers, verdicts, folder / "pairs.jsonl", opened.name, overwrite=True).model_dump()

        config = {
            "answers": settings.model_dump(mode="json"),
            "judging": judging.model_dump(mode="json"),
            "num_prompts": num_prompts,
            "constitution": self.constitution.fingerprint,
            **self._inference,
        }
        inputs = {"model": model, **_source("judge", judge), "prompts": str(prompts)}
        folder = self.stages.run(name, work, config=config, inputs=inputs)
        report = PreferenceReport.model_validate(self.stages.manifests[name].metrics)
        return Feedback(folder / "pairs.jsonl", report)

    def train_reward(self, sl_cai: str, feedback: Feedback, files: Files) -> str:
        """Phase 2: a reward model of the judge's preferences about harm and people's about help."""
        train = self._preferences(feedback, files)
        return self.training.train("reward", self.config.reward, sl_cai, train, files.pairs.validation, role="reward")

    def train_second_reward(self, sl_cai: str, settings: TrainSettings, files: Files) -> str:
        """A reward model that knows only the pairs which test the first one."""
        train = [TrainFile(path=str(files.test_pairs))]
        return self.training.train("second-reward", settings, sl_cai, train, files.pairs.validation, role="reward")

    def reinforce(self, sl_cai: str, reward: str, step: PPOStep, files: Files) -> str:
        """Phase 2: the model learns from the reward of its answers, to requests for harm and harmless ones."""
        prompts = (str(files.prompts.train), str(files.helpful.train))

        def work(folder: Path) -> Mapping[str, Any]:
            source = {"url": step.critic_url} if step.critic_url else {"model": reward, "training": step.critic}
            recipe = PPORecipe(
                **{name: getattr(step, name) for name in PPOSettings.model_fields},
                model=sl_cai,
                output=folder / "run",
                data=PromptData(train=prompts),
                critic=CriticSource(**source),
            )
            with self.display.bar("ppo", total=step.ppo.steps, unit="steps") as progress:
                return run_ppo(recipe, lambda report: progress(1)).metrics

        config = step.model_dump(mode="json", exclude={"log"})
        inputs = {"model": sl_cai, "reward": reward, **{Path(path).stem: path for path in prompts}}
        return str(self.stages.run("ppo", work, config=config, inputs=inputs) / "run" / "last")

    def learn_preferences(self, sl_cai: str, feedback: Feedback, step: DPOStep, files: Files) -> str:
        """Phase 2 without reinforcement: the model learns from the pairs that the reward model did."""
        train = self._preferences(feedback, files)
        self.training.train("dpo", step, sl_cai, train, files.pairs.validation, role="dpo")
        return str(self.stages.folder / "dpo" / "run" / "last")  # people's pairs, which validate, say nothing of harm

    # --- Measuring

    def measure_harm(self, name: str, model: Speaker, files: Files) -> tuple[list[Answered], HarmReport | None]:
        """A model's answers to held-out requests, and what the oracle says of them, where there is one."""
        config = self.config.evaluation
        sandbox = self.config.sandbox is not None

        def work(folder: Path) -> Mapping[str, Any]:
            requests = [(c, True) for c in _first(files.prompts.validation, config.num_prompts)]
            if files.harmless.exists():
                requests += [(c, False) for c in _first(files.harmless, config.num_prompts)]
            opened = self._open_chat(model)
            with self.display.bar(f"answers of {name}", total=len(requests), unit="answers") as progress:
                harm.answer(
                    requests,
                    folder / "answers.jsonl",
                    opened.model,
                    Sampling(max_tokens=config.max_tokens, temperature=config.temperature, top_p=config.top_p),
                    seed=self.config.seed,
                    rules=Rules(oracle.is_harmful, oracle.is_helpful) if sandbox else None,
                    progress=progress,
                )
            return {}

        settings = {**config.model_dump(mode="json"), "seed": self.config.seed, **self._inference}
        inputs = {**_source("model", model), "prompts": str(files.prompts.validation)}
        folder = self.stages.run(f"answers-{name}", work, config=settings, inputs=inputs)
        answers = list(jsonl.read(folder / "answers.jsonl", Answered))
        return answers, harm.summarise(answers) if sandbox else None

    def measure_gain(self, name: str, reward: str, before: Sequence[Answered], after: Sequence[Answered]) -> Gain:
        """By how much a reward model likes the answers of one model better than another's to the same requests."""

        def work(folder: Path) -> Mapping[str, Any]:
            loaded = load_model(reward, precision=self.config.inference.precision)
            judge, system = RewardModel(loaded), loaded.card.system
            with self.display.bar(name, total=len(before) + len(after), unit="answers") as progress:
                of_before, of_after = (
                    judge.rewards([one.conversation(system) for one in answers], progress)
                    for answers in (before, after)
                )
            return vars(harm.gain(of_before, of_after))

        answers = {name: str(self.stages.folder / f"answers-{name}" / "answers.jsonl") for name in (SL_CAI, RL_CAI)}
        self.stages.run(name, work, config=self._inference, inputs={"reward": reward, **answers})
        return Gain(**self.stages.manifests[name].metrics)

    def measure_pairs(self, name: str, model: str, pairs: Path) -> ComparisonReport:
        """How often a model's scores prefer the better of two answers."""
        comparing = Comparing(stages=self.stages, bar=self.display.bar, **self._engine)
        return comparing.compare(name, model, hhh.read([pairs]), {"pairs": str(pairs)})

    def report(
        self,
        models: Mapping[str, Speaker],
        reward: str,
        second: str | None,
        revised: Path,
        feedback: Feedback,
        held_out: Feedback,
        files: Files,
    ) -> Result:
        """`report.html` and `report.json` of all that the stages found."""
        config, manifests = self.config, self.stages.manifests
        measured = {name: self.measure_harm(name, model, files) for name, model in models.items()}
        ours = {name: model.model for name, model in models.items() if model.model and not model.urls}
        if config.data and config.model:  # on real data, what all of it changes, and the reward model's own view
            ours = {BASE: config.model, **ours, REWARD: reward}
        trained = self._policy_training(reward, second, measured) if RL_CAI in measured else None
        run = cai_report.Run(
            title=config.title,
            constitution=self.constitution,
            data=[DataSet(**found) for manifest in manifests.values() for found in manifest.metrics.get("data", [])],
            curves=self.training.curves,
            answers={name: answers for name, (answers, _) in measured.items()},
            harm={name: report for name, (_, report) in measured.items() if report},
            judge=held_out.report,
            oracle_agreement=_agreement(held_out.pairs) if config.sandbox else None,
            reward=self.measure_pairs("reward-accuracy", reward, files.test_pairs),
            second_reward=self.measure_pairs("second-reward-accuracy", second, files.pairs.validation)
            if second
            else None,
            hhh={
                name: self.measure_pairs(f"hhh-{name}", model, files.hhh)
                for name, model in ours.items()
                if files.hhh.exists()
            },
            policy=trained,
            revisions=list(jsonl.read(revised / "revisions.jsonl", Revised)),
            pairs=list(jsonl.read(feedback.pairs, PreferencePair)),
            stages=stage_times(self.stages),
            seconds=self.stages.seconds,
            versions=versions(),
            config=configs.dump(config),
        )
        figures = cai_report.figures(run)
        other = {"ppo": "dpo.", "dpo": "ppo."}[config.policy]
        asked = {name: bound for name, bound in config.targets.items() if not name.startswith(other)}
        targets = check(asked, figures)
        return Result(figures, targets, cai_report.write(run, config.output, targets))

    def _policy_training(
        self, reward: str, second: str | None, measured: Mapping[str, tuple[Sequence[Answered], HarmReport | None]]
    ) -> cai_report.PolicyTraining:
        (before, _), (after, _) = (measured[name] for name in (SL_CAI, RL_CAI))
        method = self.config.policy
        return cai_report.PolicyTraining(
            method=method,
            steps=metrics.read(self.stages.folder / method / "run"),
            seconds=self.stages.manifests[method].seconds,
            gain=self.measure_gain("reward-gain", reward, before, after),
            second_gain=self.measure_gain("second-reward-gain", second, before, after) if second else None,
        )

    # --- What the steps share

    def _preferences(self, feedback: Feedback, files: Files) -> list[TrainFile]:
        """The judge's pairs and people's, each at its weight.

        Raises:
            DataError: the judge made none.
        """
        weight, found = self.config.feedback_weight, feedback.report
        if not found.num_pairs:
            unusable = ", ".join(f"{num} {reason}" for reason, num in (found.excluded | found.rejections).items())
            raise DataError(
                f"the judge made no pair of {found.num_answers} answers ({unusable or 'none was compared'}); more of "
                "them (answers.num_prompts), or longer ones (answers.max_tokens), may help",
                feedback.pairs,
            )
        return [
            TrainFile(path=str(feedback.pairs), weight=weight),
            TrainFile(path=str(files.pairs.train), weight=1 - weight),
        ]

    @property
    def _inference(self) -> dict[str, Any]:
        return {"precision": self.config.inference.precision}

    @property
    def _engine(self) -> dict[str, Any]:
        inference = self.config.inference
        return {"precision": inference.precision, "batch": inference.max_batch}

    def _open_chat(self, speaker: Speaker) -> OpenedChat:
        return open_chat(speaker.model, speaker.urls, **self._engine)

    def _rates_by_round(self, revisions: Path) -> dict[str, Any]:
        """In the sandbox, the share of answers that do harm: the first ones, and those after each round; of prompts
        that came through all of them."""
        if not self.config.sandbox:
            return {}
        finished = [record for record in jsonl.read(revisions, Revised) if not record.fault]
        said = [[record.answer or "", *(one.revision or "" for one in record.rounds)] for record in finished]
        by_round = [[oracle.is_harmful(text) for text in texts] for texts in zip(*said, strict=True)]
        return {"harm_by_round": [sum(harmful) / len(harmful) for harmful in by_round]}


def _source(name: str, speaker: Speaker) -> dict[str, str]:
    """A speaker as inputs of a stage: what it is called, or its folder."""
    return {name: speaker.model} if speaker.model else {f"{name} at {url}": url for url in speaker.urls}


def _first(path: Path, num: int) -> Sequence[Conversation]:
    return list(jsonl.read(path, Conversation, limit=num))


def _agreement(pairs: Path) -> float:
    """Of the pairs of which exactly one answer does harm, the share whose chosen one does not; NaN without any."""
    told = [
        oracle.is_harmful(pair.rejected)
        for pair in jsonl.read(pairs, PreferencePair)
        if oracle.is_harmful(pair.chosen) != oracle.is_harmful(pair.rejected)
    ]
    return sum(told) / len(told) if told else float("nan")
