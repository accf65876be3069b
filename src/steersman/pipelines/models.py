"""A model folder -> a model at work: what the stages of a pipeline generate, score and judge with."""

from dataclasses import dataclass
from pathlib import Path

from steersman.attributes import AttributeSchema
from steersman.errors import ModelError
from steersman.generation.engine import Engine
from steersman.generation.window import Window
from steersman.models.load import Precision, load_model
from steersman.scoring.attributes import AttributePredictor
from steersman.text.template import Template


@dataclass(frozen=True)
class OpenModel:
    """An engine and how its model is addressed.

    Attributes:
        schema: attributes of the card; None when it lists none.
        system: system prompt of questions that bring none.
    """

    engine: Engine
    template: Template
    window: Window
    schema: AttributeSchema | None
    system: str

    def conditioned_on(self) -> AttributeSchema:
        """The schema; `ModelError` when there is none."""
        if self.schema is None:
            raise ModelError(f"{self.engine.encoder.tokenizer.name_or_path}: its card lists no attributes")
        return self.schema


def open_model(folder: str | Path, precision: Precision, max_batch: int) -> OpenModel:
    """Load a model folder or hub id into the embedded engine."""
    loaded = load_model(folder, precision=precision)
    window = Window(loaded.encoder, loaded.window)
    engine = Engine(loaded, max_batch=max_batch)
    return OpenModel(engine, loaded.encoder.template, window, loaded.card.attributes, loaded.card.system)


def open_predictor(folder: str | Path, precision: Precision, max_batch: int) -> AttributePredictor:
    """Load an attribute predictor.

    Raises:
        ModelError: its card lists no attributes.
    """
    opened = open_model(folder, precision, max_batch)
    return AttributePredictor(opened.engine, opened.template, opened.conditioned_on(), opened.window)
