"""The command line's top level: what it loads, lists and suggests, and how each end becomes an exit status."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import typer

from steersman import __version__
from steersman.cli import VERBS, docs, load_verb, main
from steersman.errors import ConfigError, DataError, SteersmanError


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], None]:
    """`verb(error)` makes `steersman show` raise that error, or do nothing for None."""

    def install(error: BaseException | None) -> None:
        def command(path: str) -> None:
            if error:
                raise error
            print(f"shown {path}")

        module = ModuleType("steersman.cli.show")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "steersman.cli.show", module)

    return install


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after running `code`."""
    script = f"{code}\nimport json, sys\nprint('\\n' + json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_loads_nothing_heavy_and_no_verb() -> None:
    loaded = modules_after("from steersman.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass")
    assert loaded.isdisjoint({"torch", "transformers", "pydantic", "numpy", "omegaconf", "httpx2"})
    assert loaded.isdisjoint(f"steersman.cli.{verb}" for verb in VERBS)


def test_verbs_themselves_load_neither_torch_nor_transformers() -> None:
    loaded = modules_after("from steersman.cli import VERBS, load_verb\nfor verb in VERBS: load_verb(verb)")
    assert loaded.isdisjoint({"torch", "transformers"})


def test_a_plain_model_is_opened_without_what_adapters_statistics_and_servers_need() -> None:
    loaded = modules_after("import steersman.generation.batch, steersman.generation.engine, steersman.pipelines.opened")
    assert "transformers.modeling_utils" in loaded
    assert loaded.isdisjoint({"peft", "scipy.stats", "matplotlib", "fastapi", "uvicorn", "gguf"})


def test_help_lists_every_verb_with_its_summary(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "160")
    monkeypatch.setenv("COLUMNS", "160")
    assert run("--help") == 0
    printed = capsys.readouterr().out
    for name, summary in VERBS.items():
        assert any(name in line and summary in line for line in printed.splitlines()), name


def leaves(command: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """(words of the command, click command) of a verb, or of each verb below it."""
    children = getattr(command, "commands", None)
    if not children:
        return [(path, command)]
    return [leaf for name, child in children.items() for leaf in leaves(child, (*path, name))]


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_a_module_a_summary_and_examples(name: str) -> None:
    assert find_spec(f"steersman.cli.{name.replace('-', '_')}")
    for words, command in leaves(load_verb(name), (name,)):
        spoken = "steersman " + " ".join(words)
        assert command.help, spoken
        assert spoken in command.help, f"{spoken} --help shows no example"
        assert "Args:" not in command.help, f"{spoken} --help shows a docstring section"
        options = [option for option in command.params if option.name != "help"]
        assert all(option.help for option in options), f"{spoken}: an option without help"


def test_the_page_of_verbs_names_all_of_them() -> None:
    page = docs.page()
    for name in VERBS:
        assert f"## `steersman {name}`" in page


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"steersman {__version__}\n"


def test_a_verb_that_ends_well(capsys: pytest.CaptureFixture[str], verb: Callable[[None], None]) -> None:
    verb(None)
    assert run("show", "a.jsonl") == 0
    assert capsys.readouterr().out == "shown a.jsonl\n"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DataError("mend [it] " + "at once " * 20, "a.jsonl", 3), 1, "Error: a.jsonl:3: mend [it] at once"),
        (SteersmanError("no"), 1, "Error: no"),
        (ConfigError("unknown key 'modle'"), 2, "Error: unknown key 'modle'"),
        (typer.BadParameter("must be even"), 2, "must be even"),
        (KeyboardInterrupt(), 130, "run the same command again to continue"),
    ],
)
def test_errors_become_one_message_and_a_status(
    capsys: pytest.CaptureFixture[str],
    verb: Callable[[BaseException], None],
    error: BaseException,
    status: int,
    message: str,
) -> None:
    verb(error)
    assert run("show", "a.jsonl") == status
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_a_bug_keeps_its_traceback(verb: Callable[[BaseException], None]) -> None:
    verb(ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError, match="bug"):
        main(["show", "a.jsonl"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["shwo"], "'show'"),
        (["show", "--tokeniser", "x"], "No such option"),
        (["show"], "Missing argument"),
        (["show", "a", "b"], "unexpected extra argument"),
    ],
)
def test_bad_usage(
    capsys: pytest.CaptureFixture[str], verb: Callable[[None], None], args: list[str], words: str
) -> None:
    verb(None)
    assert run(*args) == 2
    assert words in capsys.readouterr().err


def test_no_verb_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "quickstart" in "".join(capsys.readouterr())


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "steersman", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"steersman {__version__}\n"
