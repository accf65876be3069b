"""How long `steersman generate` takes from the command line to its first token, beside the libraries it is built on.

    python bench/start_seconds.py [--runs 3] [--toy]

The model is of the sandbox's size, with random weights, and the prompt is answered with one token. A process is timed
until it has printed its last line, for `generate` the one that says that the answer is written; the end of the
interpreter is not counted. The peer is the least that any program needs which runs such a model: a Python that imports
torch and transformers' Llama class, without the garbage collector, and nothing else. `import_seconds` is what importing
all that `generate` needs takes, `help_seconds` is `steersman --help`.
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
LLAMA = "import torch; from transformers.models.llama.modeling_llama import LlamaForCausalLM"
LIBRARIES = f"""
import gc; gc.disable()
{LLAMA}
print("imported", flush=True)
"""
IMPORTS = f"""
from steersman.cli.start import loading
with loading():
    import steersman.cli.generate, steersman.generation.batch, steersman.pipelines.opened
    {LLAMA}
print("imported", flush=True)
"""


def seconds(*command: str) -> float:
    """Until the last line that a command prints."""
    start = last = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for _ in process.stdout:
            last = time.perf_counter()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return last - start


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
        "start_seconds", "s", ours, peer, "importing torch and transformers' Llama alone, nothing collected",
        toy=asked.toy, import_seconds=median(imports), help_seconds=median(shown),
    )  # fmt: skip


if __name__ == "__main__":
    main()
