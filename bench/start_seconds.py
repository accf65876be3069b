"""How long `steersman generate` takes from the command line to its first token, beside the libraries it is built on.

    python bench/start_seconds.py [--runs 3] [--toy]

The model is of the sandbox's size, with random weights; the prompt is answered with one token, and the whole process is
timed. The peer is a Python that imports torch and transformers' model classes and ends. `import_seconds` is what
importing all that `generate` needs takes, `help_seconds` the whole of `steersman --help`.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import inputs
from result import write

STEERSMAN = [sys.executable, "-m", "steersman"]
LIBRARIES = "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer"
IMPORTS = "import steersman.cli.generate, steersman.generation.batch, steersman.pipelines.opened"


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    asked = inputs.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = inputs.toy_model(Path(folder))
        prompts, output = Path(folder, "prompts.jsonl"), f"{folder}/answers.jsonl"
        prompts.write_text('{"prompt": "Where and when did techno music originate?"}\n')
        generate = [*STEERSMAN, "generate", model, "--input", str(prompts), "--output", output,
                    "--max-tokens", "1", "--overwrite"]  # fmt: skip
        python = sys.executable
        commands = [generate, [python, "-c", LIBRARIES], [python, "-c", IMPORTS], [*STEERSMAN, "--help"]]
        for command in commands:
            seconds(*command)  # warms the file cache
        rounds = [[seconds(*command) for command in commands] for _ in range(asked.runs)]
    ours, peer, imports, shown = zip(*rounds, strict=True)
    write(
        "start_seconds", "s", ours, peer, "importing torch and transformers alone", toy=asked.toy,
        import_seconds=median(imports), help_seconds=median(shown),
    )  # fmt: skip


if __name__ == "__main__":
    main()
