"""The recipe of a Constitutional AI run: what the data is, and how each step of the paper's two phases is done."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from steersman.cai.answers import AnswersConfig
from steersman.cai.conversations import ConversationsConfig
from steersman.cai.judging import JudgingConfig
from steersman.cai.revise import ReviseConfig
from steersman.card import TemplateSpec
from steersman.config import Config
from steersman.pipelines.critics import CriticSettings
from steersman.pipelines.jobs import TrainSettings
from steersman.pipelines.ppo import PPOSettings
from steersman.pipelines.run_config import Bound, InferenceConfig
from steersman.sandbox.corpus import HarmConfig


class CaiData(Config):
    """Real data.

    Attributes:
        red_team: prompts that ask for harm: red-team attempts, HH rows, or prompts in any form; paths or `hf://`.
        helpful: the dialogues that fine-tuning on revisions is blended with.
        helpful_form: OASST trees (or rows), rows of OpenAI's messages, or conversation JSONL.
        preferences: human preferences, HH rows; a folder's `test.jsonl.gz` validates.
        test_pairs: pairs whose better answer is known, to test the reward model on: HH rows, read for nothing else. Or
        test_fold: "k/n": the k-th of n folds of the preferences tests instead. Whatever opens like a pair of this fold
            is neither trained on nor asked in training; red-team prompts that do are those held out.
        hhh: HHH comparisons as published, if they are to be measured.
        limit: read only the first so many lines of each file.
        split_ratio: share of the red-team prompts, the dialogues and the preferences that is trained on; the others
            validate, and are answered for the report.
        seed: of the splits.
    """

    red_team: tuple[str, ...] = Field(min_length=1)
    helpful: tuple[str, ...] = Field(min_length=1)
    helpful_form: Literal["oasst", "messages", "conversations"] = "oasst"
    preferences: tuple[str, ...] = Field(min_length=1)
    test_pairs: tuple[str, ...] = ()
    test_fold: str | None = None
    hhh: str | None = None
    limit: int | None = Field(default=None, ge=1)
    split_ratio: float = Field(default=0.9, gt=0, lt=1)
    seed: int = 10

    @model_validator(mode="after")
    def _check(self) -> "CaiData":
        if bool(self.test_pairs) == bool(self.test_fold):
            raise ValueError("give exactly one of test_pairs and test_fold")
        return self


class Speaker(Config):
    """A model of somebody else's that takes part in a chat.

    Attributes:
        model: folder, hub id, or the name that its servers serve it under.
        urls: servers of it (`http://host:port/v1` or `…/generate`); none loads it here.
    """

    model: str | None = None
    urls: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Speaker":
        if self.model is None and not self.urls:
            raise ValueError("give model or urls")
        return self


class ReviseStep(ReviseConfig):
    """Critique and revision.

    Attributes:
        num_prompts: the first so many of the red-team prompts.
        few_shot: file of dialogues of critique and revision that every request begins with, if any.
    """

    num_prompts: int = Field(default=256, ge=1)
    few_shot: str | None = None


class AnswersStep(AnswersConfig):
    """Answers for the judge to compare.

    Attributes:
        num_prompts: the first so many of the red-team prompts.
        num_held_out: the first so many of those held out; what the judge says of their answers is measured, and
            trains nothing.
    """

    num_prompts: int = Field(default=256, ge=1)
    num_held_out: int = Field(default=64, ge=1)


class PPOStep(PPOSettings):
    """Reinforcement learning.

    Attributes:
        critic: how the critic, which begins as the reward model, is trained in this process; or else
        critic_url: where `steersman serve-critic` runs it.
    """

    critic: CriticSettings | None = None
    critic_url: str | None = None

    @model_validator(mode="after")
    def _check_critic(self) -> "PPOStep":
        if (self.critic is None) == (self.critic_url is None):
            raise ValueError("give exactly one of critic and critic_url")
        return self


class DPOStep(TrainSettings):
    """Direct preference optimisation.

    Attributes:
        beta: what a nat of divergence from the SL-CAI model costs.
    """

    beta: float = Field(gt=0)


class EvaluationConfig(Config):
    """How the models are compared.

    Attributes:
        num_prompts: held-out requests for harm, and as many harmless ones where there are any.
        max_tokens, temperature, top_p: of the answers.
    """

    num_prompts: int = Field(default=64, ge=1)
    max_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)


class CaiConfig(Config):
    """The whole run.

    Attributes:
        title: of the report.
        output: folder of the run.
        model: what is fine-tuned, a Hugging Face folder or id; the sandbox can train its own instead.
        template: how conversations are written.
        constitution: files of principles, ours or the paper's; by default the shipped one, in the sandbox its own.
        data: real prompts, dialogues and preferences; or else
        sandbox: the synthetic world.
        base: pretraining of the sandbox's model.
        helpful: fine-tuning on helpful dialogues alone, which makes the helpful-only model that everything starts from.
        assistant: another model that answers, criticises and revises instead of that one.
        judge: another model that compares answers instead.
        revise: phase 1, critique and revision.
        blend: which conversations of it are trained on, with how many helpful ones.
        sl_cai: phase 1, fine-tuning on them.
        answers: phase 2, answers of the fine-tuned model,
        judging: and how they are compared.
        reward: the reward model.
        feedback_weight: share of the judge's pairs in what it is trained on; human preferences make up the rest.
        policy: phase 2, what makes the RL-CAI model of the SL-CAI one: reinforcement learning on the reward model
            ("ppo"), or the pairs that this was trained on by themselves ("dpo"); the section of that name says how.
        ppo, dpo: these sections; without either the run ends with the reward model.
        second_reward: another reward model, trained on the pairs that test the first. It measures the policy's gain
            too: one that only the first sees is a weakness of the first.
        evaluation: of all models.
        inference: how models generate and score.
        targets: figures (`cai.harm_rate.sl_cai`, or `cai.hhh` for all of its models) -> bound; those of `ppo` and of
            `dpo` hold where that is run.
        seed: of sampling and evaluation.
    """

    title: str
    output: Path
    model: str | None = None
    template: TemplateSpec = Field(default_factory=TemplateSpec)
    constitution: tuple[str, ...] = ()
    data: CaiData | None = None
    sandbox: HarmConfig | None = None
    base: TrainSettings | None = None
    helpful: TrainSettings | None = None
    assistant: Speaker | None = None
    judge: Speaker | None = None
    revise: ReviseStep
    blend: ConversationsConfig = Field(default_factory=ConversationsConfig)
    sl_cai: TrainSettings
    answers: AnswersStep = Field(default_factory=AnswersStep)
    judging: JudgingConfig = Field(default_factory=JudgingConfig)
    reward: TrainSettings
    feedback_weight: float = Field(default=0.5, gt=0, lt=1)
    policy: Literal["ppo", "dpo"] = "ppo"
    ppo: PPOStep | None = None
    dpo: DPOStep | None = None
    second_reward: TrainSettings | None = None
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    targets: dict[str, Bound] = Field(default_factory=dict)
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> "CaiConfig":
        if (self.data is None) == (self.sandbox is None):
            raise ValueError("give exactly one of data and sandbox")
        if (self.model is None) == (self.base is None):
            raise ValueError("give exactly one of model and base")
        if self.base is not None and self.sandbox is None:
            raise ValueError("only the sandbox pretrains: give model and no base")
        if self.helpful is None and self.assistant is None:
            raise ValueError("nobody answers at first: give helpful, or assistant")
        if (self.ppo or self.dpo) and getattr(self, self.policy) is None:
            raise ValueError(f"policy is {self.policy}, and there is no section {self.policy}")
        if any(step and step.batch.sequences is not None for step in (self.reward, self.dpo, self.second_reward)):
            raise ValueError("reward, dpo and second_reward compare pairs: give their batch.pairs (or tokens)")
        return self
