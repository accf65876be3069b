"""LoRA adapters in peft's format: wrapping a model for training, and merging an adapter into its base.

h = W x + (alpha / rank) B A x, with W frozen (arXiv 2106.09685). Rows of tokens that were added to the vocabulary are
trained beside it, since a frozen row could never learn what a new control token means.
"""

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from steersman.config import Config


class LoraConfig(Config):
    """LoRA's hyper-parameters.

    Attributes:
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapter's input, in training.
        targets: names of the linear layers that are adapted; "all-linear" takes every one but the head.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"


def add_lora(model: PreTrainedModel, config: LoraConfig, new_token_ids: list[int]) -> PeftModel:
    """The model with a fresh adapter: only the adapter and the rows of `new_token_ids` are trainable."""
    # Tied embeddings are one weight, and go by the input's name: peft lets the head follow.
    embeddings = {id(e.weight): e for e in (model.get_output_embeddings(), model.get_input_embeddings())}
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    rows = {names[id(embedding)]: new_token_ids for embedding in embeddings.values()}
    peft_config = PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets,
        trainable_token_indices=rows if new_token_ids else None,
    )
    return get_peft_model(model, peft_config)


def merge_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The plain model with an adapter's update added to its weights; a plain model is returned as it is."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model
