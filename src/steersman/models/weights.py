"""Weights from a folder or hub id, all of them: `transformers` would fill what is absent with random numbers."""

from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from steersman.errors import ModelError


def from_pretrained(
    auto: Any, path: str, *, new: Collection[str] = (), **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model of an `AutoModel…` class, and what `transformers` says of its loading.

    Args:
        new: weights that the folder need not have.

    Raises:
        ModelError: others are missing.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of the same would come first
    try:
        model, info = auto.from_pretrained(path, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(verbosity)
    if absent := sorted(set(info["missing_keys"]) - set(new)):
        raise ModelError(f"{path}: {len(absent)} weights are missing, such as {absent[0]}; fetch the folder again")
    return model, info
