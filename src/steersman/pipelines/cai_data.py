"""The files that a Constitutional AI run works on: one layout, from real data or from the sandbox world.

prompts_train.jsonl, prompts_val.jsonl       requests for harm; the latter are answered for measurements only
helpful_train.jsonl, helpful_val.jsonl       dialogues that help
pairs_train.jsonl, pairs_val.jsonl           preferences for the more helpful answer
test_pairs.jsonl                             pairs that judgement is tested on: no training data holds their prompts
hhh.jsonl                                    HHH comparisons, with their category
harmless.jsonl                               harmless requests that no training data holds (sandbox)
assistant_train.jsonl, assistant_val.jsonl   what makes the base a helpful-only assistant (sandbox)
base/                                        untrained model, its pretraining data (sandbox)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steersman import jsonl
from steersman.evaluation import hhh
from steersman.pipelines.cai_config import CaiConfig, CaiData
from steersman.pipelines.steerlm_data import survey
from steersman.records import Conversation, PreferencePair
from steersman.sandbox import corpus
from steersman.sandbox.corpus import HarmConfig
from steersman.sandbox.model import write_base
from steersman.sources.deep_json import parse_object
from steersman.sources.hh import HhConfig, prepare_hh
from steersman.sources.inputs import fetch
from steersman.sources.messages import prepare_messages
from steersman.sources.oasst import OasstConfig, prepare_oasst
from steersman.sources.pairs import PairsConfig, prepare_pairs
from steersman.sources.prepare import UNLABELLED, ConversationConfig, each_line
from steersman.sources.prepare import prepare as source_prepare
from steersman.sources.red_team import RedTeamConfig, prepare_red_team


@dataclass(frozen=True)
class Split:
    """What is trained on, and what validates."""

    train: Path
    validation: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> "Split":
        return cls(folder / f"{name}_train.jsonl", folder / f"{name}_val.jsonl")


@dataclass(frozen=True)
class Files:
    """The files below a folder."""

    folder: Path

    @property
    def prompts(self) -> Split:
        return Split.of(self.folder, "prompts")

    @property
    def helpful(self) -> Split:
        return Split.of(self.folder, "helpful")

    @property
    def pairs(self) -> Split:
        return Split.of(self.folder, "pairs")

    @property
    def assistant(self) -> Split:
        """What the helpful-only model is trained on: helpful dialogues, in the sandbox with more formats than those."""
        own = Split.of(self.folder, "assistant")
        return own if own.train.exists() else self.helpful

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def test_pairs(self) -> Path:
        return self.folder / "test_pairs.jsonl"

    @property
    def hhh(self) -> Path:
        return self.folder / "hhh.jsonl"

    @property
    def harmless(self) -> Path:
        return self.folder / "harmless.jsonl"


def prepare(config: CaiConfig, folder: Path) -> dict[str, Any]:
    """Fill a folder; returns what it holds."""
    if config.data:
        return _prepare_real(config.data, folder)
    assert config.sandbox
    if config.base:
        _prepare_base(config.sandbox, folder / "base")
    return _prepare_sandbox(config.sandbox, folder)


def _prepare_real(data: CaiData, folder: Path) -> dict[str, Any]:
    own = {"split_ratio": data.split_ratio, "limit": data.limit, "seed": data.seed, "overwrite": True}
    prompts = {**own, "input": data.red_team, "output_prefix": str(folder / "prompts"), "fold": data.test_fold}
    prepare_red_team(RedTeamConfig(**prompts))
    _prepare_helpful(data, {**own, "output_prefix": str(folder / "helpful")})
    _prepare_pairs(data, folder, own)
    if data.hhh:
        jsonl.write(folder / "hhh.jsonl", hhh.read(fetch(data.hhh)), overwrite=True)
    return _counts(folder)


def _prepare_pairs(data: CaiData, folder: Path, own: dict[str, Any]) -> None:
    """Preferences that train and validate, and those that test; under a fold, of the same rows."""
    pairs, test = folder / "pairs", folder / "test_pairs"
    if data.test_fold is None:
        prepare_hh(HhConfig(input=data.preferences, output_prefix=str(pairs), **own))
        prepare_hh(HhConfig(input=data.test_pairs, output_prefix=str(test), **{**own, "split_ratio": 1.0}))
        (folder / "test_pairs_train.jsonl").replace(folder / "test_pairs.jsonl")
        return
    prepare_hh(HhConfig(input=data.preferences, output_prefix=str(test), fold=data.test_fold, **own))
    (folder / "test_pairs_val.jsonl").replace(folder / "test_pairs.jsonl")
    rest = folder / "test_pairs_train.jsonl"
    prepare_pairs(PairsConfig(input=(str(rest),), output_prefix=str(pairs), **own))
    rest.unlink()


def _prepare_helpful(data: CaiData, own: dict[str, Any]) -> None:
    """Conversations without labels, whatever they were."""
    options = {**own, "input": data.helpful, "type": None, "system": ""}
    if data.helpful_form == "oasst":
        prepare_oasst(OasstConfig(**options, train_once=True))
        return
    config = ConversationConfig(**options)
    if data.helpful_form == "messages":
        prepare_messages(config)
        return
    read = each_line(lambda text: Conversation.model_validate({**parse_object(text), "type": None}))
    source_prepare(config, read, UNLABELLED)


def _prepare_sandbox(sandbox: HarmConfig, folder: Path) -> dict[str, Any]:
    seed, num_validation = sandbox.seed, sandbox.num_validation
    test = list(corpus.test_pairs(sandbox.num_test, seed))
    files: dict[str, Iterable[Any]] = {
        "assistant_train": corpus.assistant_mixture(sandbox.num_assistant, seed),
        "assistant_val": corpus.assistant_mixture(num_validation, seed, "assistant validation"),
        "helpful_train": corpus.helpful_talks(sandbox.num_helpful, seed),
        "helpful_val": corpus.helpful_talks(num_validation, seed, "helpful validation"),
        "pairs_train": corpus.helpful_pairs(sandbox.num_pairs, seed),
        "pairs_val": corpus.helpful_pairs(num_validation, seed, split="helpful pairs validation"),
        "prompts_train": corpus.red_team(),
        "prompts_val": corpus.requests_for_harm(),
        "harmless": corpus.harmless_requests(),
        "test_pairs": test,
        "hhh": test,
    }
    for name, records in files.items():
        jsonl.write(folder / f"{name}.jsonl", records, overwrite=True)
    return _counts(folder)


def _prepare_base(sandbox: HarmConfig, folder: Path) -> None:
    jsonl.write(folder / "train.jsonl", corpus.base_mixture(sandbox.num_base, sandbox.seed), overwrite=True)
    validation = corpus.base_mixture(sandbox.num_validation, sandbox.seed, "base validation")
    jsonl.write(folder / "validation.jsonl", validation, overwrite=True)
    write_base(folder / "model")


def _counts(folder: Path) -> dict[str, Any]:
    """What the report says of the data."""
    files = Files(folder)
    conversations = {
        "base mixture": files.base / "train.jsonl",
        "helpful-only mixture": folder / "assistant_train.jsonl",
        "requests for harm": files.prompts.train,
        "held-out requests for harm": files.prompts.validation,
        "helpful dialogues": files.helpful.train,
    }
    pairs = {"helpful preferences": files.pairs.train, "test pairs": files.test_pairs}
    sets = [survey(name, path) for name, path in conversations.items() if path.exists()]
    num_pairs = {name: sum(1 for _ in jsonl.read(path, PreferencePair)) for name, path in pairs.items()}
    return {"data": sets, "num_pairs": num_pairs}


def inputs(config: CaiConfig) -> dict[str, str]:
    """Every file that the data comes from; those at `hf://` are fetched."""
    if config.data is None:
        return {}
    data = config.data
    locations = [*data.red_team, *data.helpful, *data.preferences, *data.test_pairs, *filter(None, [data.hhh])]
    return {str(file): str(file) for location in locations for file in fetch(location)}
