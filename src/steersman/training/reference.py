"""What a policy says of its data before it is trained: the reference of direct preference optimisation.

In: sequences, and the model as the run begins. Out: the same sequences with a further value each, the log-probability
of their trained tokens. It is computed once and kept in a file, so that a run that was cut goes on with the same
numbers. That is right for full weights, for a fresh adapter and for one that was there before, of which only the second
has its reference in a model whose adapter is off; and no step needs a second model or a second forward pass.

Shapes: N sequences, B of them in a micro-batch.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from transformers import PreTrainedModel

from steersman import jsonl
from steersman.batches.packing import first_fit, join
from steersman.batches.sequences import Floats, Sequences
from steersman.errors import ModelError
from steersman.objectives.logprobs import sequence_sums
from steersman.parallel.mesh import Mesh
from steersman.parallel.reduce import from_first, sum_numbers
from steersman.seams import Progress
from steersman.training.tasks import predictions


def write_reference(
    path: Path,
    model: PreTrainedModel | PeftModel,
    data: Sequence[Sequences],
    *,
    micro_tokens: int,
    mesh: Mesh,
    progress: Progress,
) -> None:
    """Write the log-probabilities of all sequences; the file appears whole or not at all.

    Args:
        path: of the file.
        model: in evaluation mode, as it was loaded.
        data: sets of sequences.
        micro_tokens: most inputs of one forward pass; a longer family goes alone.
        mesh: its processes share the work, and go on together when it is done.
        progress: hears of this process's sequences.

    Raises:
        OutputError: the file cannot be written.
    """
    read = [sequence_logprobs(model, sequences, micro_tokens, mesh, progress) for sequences in data]
    if mesh.rank == 0:
        jsonl.write_bytes(path, save({str(number): logprobs_N for number, logprobs_N in enumerate(read)}))
    from_first(0, mesh)


def with_reference(path: Path, data: Sequence[Sequences]) -> list[Sequences]:
    """The sequences with their log-probabilities (nats) off the file as a last value.

    Raises:
        ModelError: the file is damaged.
    """
    try:
        logprobs = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged ({error}); delete the run's folder and run again") from None
    return [sequences.with_value(logprobs[str(number)]) for number, sequences in enumerate(data)]


@torch.no_grad()
def sequence_logprobs(
    model: PreTrainedModel | PeftModel, sequences: Sequences, micro_tokens: int, mesh: Mesh, progress: Progress
) -> Floats:
    """The log-probability of the trained tokens of each sequence, f32[N], computed by all processes together."""
    logprobs_N = np.zeros(len(sequences.bounds) - 1, np.float32)
    for row in first_fit(sequences.lengths.tolist(), micro_tokens)[mesh.rank :: mesh.size]:
        batch = join([sequences[family] for family in row]).to(mesh.device)
        places_B = np.concatenate([np.arange(*sequences.families[family : family + 2]) for family in row])
        logprobs_B = sequence_sums(predictions(model, batch).logprobs_M, batch.sizes)
        logprobs_N[places_B] = logprobs_B.numpy(force=True)
        progress(len(places_B))
    return np.array(sum_numbers(logprobs_N.tolist(), mesh), np.float32)
