"""Write docs/cli.md from the verbs' own help (`python -m steersman.cli.docs`), or fail when it is stale (`--check`)."""

import sys
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from steersman.cli import VERBS, load_verb

PAGE = Path("docs/cli.md")
HEADER = """# Command line

Written by `make docs` from the verbs' own `--help`.

Every verb exits with status 0 (done), 1 (failed: one message says what, where and what to do), 2 (bad usage) or 130
(interrupted; long verbs continue when the same command is run again).

"""


def page() -> str:
    """The whole page as Markdown: a table of verbs, then each verb's help."""
    table = "| verb | does |\n|---|---|\n" + "".join(
        f"| [`steersman {verb}`](#steersman-{verb}) | {summary} |\n" for verb, summary in VERBS.items()
    )
    return HEADER + table + "\n" + "".join(_section(verb) for verb in VERBS).rstrip() + "\n"


def _section(verb: str) -> str:
    command = load_verb(verb)
    for child in getattr(command, "commands", {}).values():
        child.short_help = " ".join(child.help.partition("\n\n")[0].split())  # whole, not cut at a line's end
    return get_docs_for_click(obj=command, ctx=typer.Context(command), indent=1, name=verb, call_prefix="steersman")


def main() -> None:
    text = page()
    if sys.argv[1:] != ["--check"]:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PAGE}")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE} does not match the verbs' help; run make docs")


if __name__ == "__main__":
    main()
