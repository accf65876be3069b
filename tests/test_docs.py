"""The docs tell the truth: commands and flags exist, paths exist, examples of files parse."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from steersman import config
from steersman.attributes import OASST, SCHEMAS
from steersman.cai.constitution import Constitution
from steersman.cai.revise import Revised
from steersman.card import TemplateSpec
from steersman.cli import VERBS, load_verb
from steersman.models.load import load_model, prepare_for_training, save_model
from steersman.pipelines.critics import CriticSettings
from steersman.pipelines.jobs import TrainConfig
from steersman.records import Conversation, PreferencePair
from steersman.sources.prompts import parse_prompt

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(text: str, language: str = "[a-z]*") -> list[str]:
    """The contents of fenced blocks."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `steersman` command in a fenced block; usage lines and comments left out."""
    for line in "\n".join(blocks(text)).replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if "steersman" in words and not line.startswith("$ ") and words[0] != "pip":
            yield words[words.index("steersman") + 1 :]


def check_command(words: list[str]) -> None:
    """The verb, its sub-verb and each option exist."""
    assert words[0] in VERBS, f"no verb {words[0]}"
    command: Any = load_verb(words.pop(0))
    while children := getattr(command, "commands", None):
        assert words, f"{command.name} needs one of {', '.join(children)}"
        assert words[0] in children, f"{command.name} has no {words[0]}"
        command = children[words.pop(0)]
    known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= known | {"--help"}, f"{command.name} has no {', '.join(sorted(given - known))}"
    required = {option.opts[0] for option in command.params if option.required and option.opts[0].startswith("--")}
    assert required <= given, f"{command.name} needs {', '.join(sorted(required - given))}"


@PAGE
def test_commands_exist(page: Path) -> None:
    for words in commands(page.read_text()):
        check_command(words)


@pytest.mark.parametrize("verb", VERBS)
def test_examples_in_the_help_exist(verb: str) -> None:
    pending: list[Any] = [load_verb(verb)]
    for command in pending:
        pending.extend(getattr(command, "commands", {}).values())
        for words in commands(command.help):
            check_command(words)


@PAGE
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)", text):
        found = (ROOT / path).exists() or (ROOT / "src/steersman" / path).exists()
        assert found or path.startswith(("scripts/", "examples/nlp/")), path  # NeMo's own scripts are named too
    for recipe in re.findall(r"recipes/[\w.-]+\.yaml", text):
        assert (ROOT / recipe).exists(), recipe


@PAGE
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = page.read_text()
    named = re.findall(r"`make ([a-z]+)`", text)
    for block in blocks(text):
        named += re.findall(r"^make (?:[A-Z]+=\S+ )?([a-z]+)", block, flags=re.MULTILINE)
    assert set(named) <= targets


def test_examples_of_records_parse() -> None:
    text = (ROOT / "docs/formats.md").read_text()
    conversation, pair, revised = map(orjson.loads, blocks(text, "json"))
    assert Conversation.model_validate(conversation).to_json() == conversation
    assert PreferencePair.model_validate(pair).model_dump() == pair
    assert Revised.model_validate(revised).model_dump() == revised
    (constitution,) = blocks(text, "yaml")
    assert Constitution.model_validate(yaml.safe_load(constitution)).name == "mine"
    (prompts,) = (block for block in blocks(text) if block.startswith('{"prompt"'))
    for line in prompts.splitlines():
        assert parse_prompt(orjson.loads(line), "").conversation.conversations[-1].role == "User"


def test_schemas_are_listed_in_order() -> None:
    text = (ROOT / "docs/formats.md").read_text()
    for name in ("oasst", "helpsteer"):
        assert f"| `{name}` | {', '.join(SCHEMAS[name].names)} |" in text
    assert SCHEMAS["merged"].names == (*SCHEMAS["oasst"].names[:2], "humor", "creativity", *SCHEMAS["helpsteer"].names)


def test_the_tutorials_recipe_and_its_overrides_are_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs/coming-from-nemo.md").read_text()
    recipe = tmp_path / "value_model.yaml"
    recipe.write_text("".join(blocks(text, "yaml")))
    runs = [words for words in commands(text) if words[0] == "train" and words[2] == recipe.name]
    assert [words[1] for words in runs] == ["attributes", "sft", "sft"]
    for _, role, _, *overrides in runs:
        trained = config.load(recipe, TrainConfig, [f"role={role}", *overrides])
        assert trained.optim.lr == 5e-6
        assert len(trained.data.train) == len(trained.data.validation) == 1


def test_the_critics_settings_in_the_tutorial_are_valid() -> None:
    texts = [(ROOT / name).read_text() for name in ("docs/coming-from-nemo.md", "docs/cli.md")]
    runs = [words for text in texts for words in commands(text) if words[0] == "serve-critic"]
    for words in runs:
        settings = config.from_overrides([word for word in words if "=" in word], "docs")
        assert config.validate(settings, CriticSettings, "docs").optim.lr == 3e-7
    assert len(runs) >= 2


def test_the_overrides_of_what_learns_from_pairs_are_valid() -> None:
    text = (ROOT / "docs/coming-from-nemo.md").read_text()
    runs = [words for words in commands(text) if words[0] == "train" and words[1] in ("reward", "dpo")]
    assert [words[1] for words in runs] == ["reward", "reward", "dpo"]
    for _, role, recipe, *overrides in runs:
        config.load(ROOT / recipe, TrainConfig, [f"role={role}", *overrides])


def test_the_python_example_answers(
    tmp_path: Path,
    tiny_model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("steersman.models.load.bf16_is_fast", lambda device: False)  # fp32: reuse changes nothing
    trained = prepare_for_training(load_model(tiny_model_folder), TemplateSpec(), None)
    save_model(replace(trained, card=trained.card.model_copy(update={"attributes": OASST})), tmp_path / "best")
    text = (ROOT / "docs/coming-from-nemo.md").read_text()
    (code,) = blocks(text, "python")
    code = code.replace("runs/steerlm_model/best", str(tmp_path / "best")).replace("4096", "12")
    names: dict[str, Any] = {}
    exec(code, names)
    assert (
        capsys.readouterr().out
        == names["get_answer"]("Where and when did techno music originate?", 12, {"quality": 4, "humor": 0}) + "\n"
    )
