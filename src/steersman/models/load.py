"""A model folder (or hub id) -> `LoadedModel`, ready for the packed forward call; and back to a folder.

Only safetensors weights are read: nothing is ever unpickled. A folder without a card (a plain Hugging Face model) is
addressed by the tokenizer's own chat template when it has one, and by the `extra_id` template in plain text otherwise.
"""

import itertools
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from steersman import card as cards
from steersman.card import ModelCard, TemplateSpec
from steersman.errors import ModelError, OutputError
from steersman.models.adapters import TRAINED_PARTS, LoraConfig, add_lora, has_adapter, read_adapter
from steersman.models.attention import IMPLEMENTATION, Segments
from steersman.models.heads import load_with_head, new_with_head, output_names
from steersman.models.last_layer import read_only
from steersman.models.norms import lighten
from steersman.models.weights import from_pretrained
from steersman.text.export import export_chat_template
from steersman.text.tokenize import Encoder, add_control_tokens, load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel

Precision = Literal["auto", "float32", "bfloat16"]

logging.disable_progress_bar()  # a bar for every few megabytes drowns our own


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to address it.

    Attributes:
        model: the causal language model, or one with a head that judges; possibly wrapped by peft.
        encoder: its tokenizer and template.
        card: how it is addressed.
        path: folder or hub id that it came from.
    """

    model: "PreTrainedModel | PeftModel"
    encoder: Encoder
    card: ModelCard
    path: str

    @property
    def device(self) -> torch.device:
        return cast(torch.device, next(self.model.parameters()).device)

    @property
    def window(self) -> int:
        """Longest sequence that the model can take, in tokens."""
        return int(plain_model(self.model).config.get_text_config().max_position_embeddings)


def bf16_is_fast(device: torch.device | str = "cpu") -> bool:
    """Whether bfloat16 matrix products run in hardware: a recent GPU, or a CPU with AVX-512 bf16 or AMX."""
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def resolve_dtype(precision: Precision, device: torch.device | str = "cpu") -> torch.dtype:
    """`auto` is bfloat16 where that is fast and float32 elsewhere."""
    if precision == "auto":
        return torch.bfloat16 if bf16_is_fast(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def default_device() -> torch.device:
    """CUDA when present, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def plain_model(model: "PreTrainedModel | PeftModel") -> PreTrainedModel:
    """The causal language model itself, with adapters in its layers but without peft's wrapper."""
    return cast(PreTrainedModel, model.get_base_model() if has_adapter(model) else model)


def backbone(model: "PreTrainedModel | PeftModel") -> nn.Module:
    """The part that maps ids i64[1, T] to hidden states [1, T, H] (`.last_hidden_state`), without the head.

    Call it with `input_ids`, `position_ids`, `attention_context` (see `models.attention`) and `use_cache=False`.
    """
    return cast(nn.Module, plain_model(model).base_model)


def hidden_states(
    model: "PreTrainedModel | PeftModel",
    input_ids_1T: Tensor,
    position_ids_1T: Tensor,
    segments: Segments,
    at_M: Tensor,
) -> Tensor:
    """The last hidden states at these positions of a packed row, [M, H]."""
    with read_only(backbone(model), input_ids_1T.shape[1], at_M):
        output = backbone(model)(
            input_ids=input_ids_1T, position_ids=position_ids_1T, attention_context=segments, use_cache=False
        )
    hidden_TH: Tensor = output.last_hidden_state[0]
    return hidden_TH.index_select(0, at_M)


def head_weight(model: "PreTrainedModel | PeftModel") -> Tensor:
    """The output embedding [V, H], with trained token rows in place; its gradient reaches whatever is trainable."""
    head: Any = plain_model(model).get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ModelError("models whose head has a bias are not supported")
    if hasattr(head, "token_adapter"):  # peft's trainable token rows
        return cast(Tensor, head.token_adapter.get_merged_weights(head.token_adapter.active_adapters))
    return cast(Tensor, head.weight)


def logit_softcap(model: "PreTrainedModel | PeftModel") -> float | None:
    """c of logits = c tanh(logits / c), where the architecture has it (Gemma 2)."""
    return getattr(plain_model(model).config, "final_logit_softcapping", None)


def check_folder(path: str | Path) -> None:
    """Raise `ModelError` when a local model folder is absent, or was only half written."""
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(f"{path}: no such model folder; give a folder, or a Hugging Face id such as org/name")
    if (folder / "adapter_config.json").exists():
        if not (folder / "adapter_model.safetensors").exists():
            raise ModelError(f"{path}: adapter_model.safetensors is missing; was the folder copied completely?")
        return
    if not (folder / "config.json").exists():
        raise ModelError(f"{path}: no config.json; this is not a Hugging Face model folder")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        wanted = set(json.loads(index.read_bytes())["weight_map"].values())
        missing = sorted(name for name in wanted if not (folder / name).exists())
        if missing:
            raise ModelError(f"{path}: weight file {missing[0]} is missing; was the folder copied completely?")
    elif not (folder / "model.safetensors").exists():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        hint = "its pickled weights are not read: convert them to safetensors" if pickled else "is it half-written?"
        raise ModelError(f"{path}: no model.safetensors; {hint}")


def _is_local(path: str) -> bool:
    """Whether a name means a folder: it exists, or it cannot be a hub id (org/name)."""
    return Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") != 1


def default_template(tokenizer: PreTrainedTokenizerBase) -> TemplateSpec:
    """How a model without a card is addressed."""
    bos = tokenizer.bos_token_id is not None
    if tokenizer.chat_template:
        return TemplateSpec(kind="chat", control="text", bos=bos)
    return TemplateSpec(kind="extra_id", control="text", bos=bos)


def load_card(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> ModelCard:
    """The folder's card, or that of a plain model."""
    if (Path(path) / cards.FILE_NAME).exists():
        return ModelCard.load(path)
    return ModelCard(template=default_template(tokenizer))


def _load_weights(
    path: str,
    dtype: torch.dtype,
    device: torch.device,
    vocabulary: int,
    outputs: Sequence[str],
    *,
    probe: bool,
    layers: int | None,
) -> "PreTrainedModel | PeftModel":
    """Weights in `dtype`, with at least `vocabulary` rows in the embeddings; with a head, if it has `outputs`."""
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": IMPLEMENTATION, "use_safetensors": True}

    def read(folder: str) -> PreTrainedModel:
        if outputs:
            return load_with_head(folder, outputs, probe=probe, layers=layers, **options)
        return from_pretrained(AutoModelForCausalLM, folder, **options)[0]

    try:
        if not (Path(path) / "adapter_config.json").exists():
            return read(path).to(device)
        base = json.loads((Path(path) / "adapter_config.json").read_bytes())["base_model_name_or_path"]
        if _is_local(base):
            check_folder(base)
        model = read(base)
        grow_embeddings(model, vocabulary)
        return read_adapter(model, path, judges=bool(outputs)).to(device)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: a file is damaged ({error}); fetch the folder again") from None
    except OSError as error:
        place = "" if _is_local(path) else "no such folder here, and as a hub id it "
        raise ModelError(f"{path}: {place}cannot be loaded: {str(error).splitlines()[0]}") from None


def load_model(
    path: str | Path,
    *,
    precision: Precision = "auto",
    device: torch.device | None = None,
    from_scratch_seed: int | None = None,
    outputs: Sequence[str] = (),
    layers: int | None = None,
) -> LoadedModel:
    """A model folder or hub id in evaluation mode.

    Args:
        path: Hugging Face folder or id, or a folder with a LoRA adapter (its base is loaded too).
        precision: of the weights; `auto` is bfloat16 where that is fast.
        device: CUDA when present, by default.
        from_scratch_seed: initialise random weights from the folder's config instead of reading weights.
        outputs: give it a head of these (see `heads.output_names`) in place of the language model's; a model that was
            trained with one keeps it.
        layers: with a head, keep so many of the model's first layers.

    Raises:
        ModelError: absent, half-written, damaged, pickled, or with a head of another size.
    """
    path = str(path)
    device = device or default_device()
    dtype = resolve_dtype(precision, device)
    if _is_local(path) and from_scratch_seed is None:
        check_folder(path)
    tokenizer = load_tokenizer(path)
    card = load_card(path, tokenizer)
    outputs = outputs or output_names(card.head, card.attributes)
    if from_scratch_seed is None:
        model = _load_weights(path, dtype, device, len(tokenizer), outputs, probe=card.head == "probe", layers=layers)
    else:
        config = AutoConfig.from_pretrained(path)
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": IMPLEMENTATION}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(from_scratch_seed)
            if outputs:
                model = new_with_head(config, outputs, **options)
            else:
                model = AutoModelForCausalLM.from_config(config, **options)
        model = model.to(device)
    lighten(model)
    return LoadedModel(model.eval(), Encoder(tokenizer, card.template), card, path)


def grow_embeddings(model: PreTrainedModel, vocabulary: int) -> None:
    """Give the embeddings (and an untied head) at least `vocabulary` rows."""
    if model.get_input_embeddings().weight.shape[0] < vocabulary:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)


def _embeddings(model: "PreTrainedModel | PeftModel") -> list[Any]:
    """What maps tokens in, and out where there is such a head; a shared module once."""
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    return list({id(module): module for module in both if module is not None}.values())


@torch.no_grad()
def _set_rows_to_mean(model: PreTrainedModel, rows: Sequence[int]) -> None:
    """Start the rows of new tokens, in and out, at the mean of the others."""
    for embedding in _embeddings(model):
        weight_VH = embedding.weight
        others_V = torch.ones(weight_VH.shape[0], dtype=torch.bool)
        others_V[list(rows)] = False
        weight_VH[list(rows)] = weight_VH[others_V].mean(0, dtype=torch.float32).to(weight_VH.dtype)


def prepare_for_training(
    loaded: LoadedModel, spec: TemplateSpec, lora: LoraConfig | None = None, freeze: Sequence[str] = ()
) -> LoadedModel:
    """The model made ready to learn a template: missing control tokens added with mean rows, LoRA wrapped around it.

    A model that carries an adapter already keeps it, made trainable (`lora` must then be None).

    Args:
        loaded: the model.
        spec: the template.
        lora: wrap an adapter around it.
        freeze: regular expressions for the beginnings of names of parameters that are not to be trained.

    Raises:
        ModelError: an adapter that cannot be given the tokens, a second adapter, or a pattern that freezes nothing,
            new tokens or everything.
    """
    model, tokenizer = loaded.model, loaded.encoder.tokenizer
    added = add_control_tokens(tokenizer, spec)
    if added:
        new_ids = [int(i) for i in cast(list[int], tokenizer.convert_tokens_to_ids(added))]
        if has_adapter(model):
            raise ModelError(f"{loaded.path}: an adapter cannot be given new tokens {added}; merge it first")
        grow_embeddings(model, len(tokenizer))
        _set_rows_to_mean(model, new_ids)
    else:
        new_ids = []
    if has_adapter(model):
        if lora is not None:
            raise ModelError(f"{loaded.path} has an adapter already; merge it, or train without the lora section")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(part in name for part in TRAINED_PARTS))
    elif lora is not None:
        model = add_lora(model, lora, new_ids)
    _freeze(model, freeze, added)
    encoder = Encoder(tokenizer, spec)
    if model.get_output_embeddings() is None:
        _set_padding(plain_model(model), encoder)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            module.sparse = True  # its gradient has a row for each token of the batch, not for the whole vocabulary
    card = loaded.card.model_copy(update={"template": spec})
    return replace(loaded, model=model, encoder=encoder, card=card)


def _set_padding(model: PreTrainedModel, encoder: Encoder) -> None:
    """Name a padding token that no judged text ends with: `transformers` reads the head at the last other token."""
    tokenizer, template = encoder.tokenizer, encoder.template
    ends = {encoder.encode(text).ids[-1] for text in (template.answer_end, encoder.spec.label_start)}
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    padding = next((token for token in candidates if token is not None and token not in ends), None)
    model.config.get_text_config().pad_token_id = padding
    if padding is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)


def _freeze(model: "PreTrainedModel | PeftModel", patterns: Sequence[str], added: Sequence[str]) -> None:
    """Stop training the parameters that the patterns match."""
    embeddings = [embedding.weight for embedding in _embeddings(model)]
    for pattern in patterns:
        matched = [parameter for name, parameter in model.named_parameters() if re.match(pattern, name)]
        if not matched:
            names = ", ".join(name for name, _ in itertools.islice(model.named_parameters(), 3))
            raise ModelError(f"freeze: {pattern!r} matches no parameter; their names are such as {names}")
        if added and any(parameter is embedding for parameter in matched for embedding in embeddings):
            raise ModelError(f"freeze: {pattern!r} would keep {added} from being learnt; use `control: text`")
        for parameter in matched:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("freeze: nothing is left to train")


def _sync(folder: Path) -> None:
    """Flush a folder's files to the disk before the folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def save_model(loaded: LoadedModel, folder: str | Path) -> Path:
    """Write a normal Hugging Face folder with the card and a chat template that takes `attributes`.

    The folder appears whole or not at all; one that is there already is replaced in the end.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        adapted = has_adapter(loaded.model)
        # peft would add the whole embedding because it has grown; the rows that were trained are in the adapter.
        loaded.model.save_pretrained(temporary, **({"save_embedding_layers": False} if adapted else {}))
        loaded.encoder.tokenizer.save_pretrained(temporary)
        card = loaded.card
        template = export_chat_template(card.template, loaded.encoder.tokenizer, card.attributes, card.system)
        (temporary / "chat_template.jinja").write_text(template)
        card.save(temporary)
        (temporary / "README.md").unlink(missing_ok=True)  # peft's empty form; the card says what there is to say
        _sync(temporary)
        replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(temporary, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(f"{folder}: the model could not be saved ({error}); free some space and run again") from None
    return folder
