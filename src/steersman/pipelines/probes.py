"""An attribute predictor without training steps: a head of values fitted to a frozen model's states.

In: a `ProbeConfig`, conversations with labels, a base model. Out: a model folder such as `train` with `head: values`
makes. The model may be cut to its first layers: they tell how good an answer is better than the last ones, which are
there to foretell the next token, and they take a part of the time.
"""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator, Field

from steersman import jsonl
from steersman.attributes import AttributeSchema
from steersman.card import ModelCard, TemplateSpec
from steersman.config import Config
from steersman.errors import DataError
from steersman.models.heads import output_names, set_head, value_sizes
from steersman.models.load import Precision, load_model, plain_model, prepare_for_training, save_model
from steersman.pipelines import run_folder
from steersman.pipelines.jobs import schema_of
from steersman.pipelines.training_files import each_labelled, labelled_turns
from steersman.scoring.heads import HeadReader
from steersman.sources.prepare import Bar, no_bar
from steersman.training.probe import fit_probe


class ProbeSettings(Config):
    """How to fit a head, whatever the model and the data.

    Attributes:
        layers: keep so many of the model's first layers; all by default.
        template: how conversations are written; by default as the model's card says, and extra_id for others.
        precision: of the model's weights; "auto" is bfloat16 where the processor is fast at it.
    """

    layers: int | None = Field(default=None, ge=1)
    template: TemplateSpec | None = None
    precision: Precision = "auto"


class ProbeConfig(ProbeSettings):
    """The recipe of one fit.

    Attributes:
        model: Hugging Face folder or id.
        output: the model folder that is written.
        attributes: the label schema: oasst, helpsteer, merged, or a list of names.
        data: conversation JSONL with labels.
    """

    model: str
    output: Path
    attributes: Annotated[AttributeSchema, BeforeValidator(schema_of)]
    data: tuple[str, ...] = Field(min_length=1)


def run_probe(config: ProbeConfig, bar: Bar = no_bar) -> dict[str, Any]:
    """Fit a predictor and save it; returns figures: how many turns it saw, and how far each attribute was shrunk.

    Raises:
        DataError, ModelError, TokenizerError: what the recipe names cannot be used.
        OutputError: the output exists, or cannot be written.
    """
    jsonl.check_absent(config.output)
    files = ", ".join(config.data)
    every = [
        turn
        for path in config.data
        for turns in each_labelled(path, config.attributes, lambda one: labelled_turns(one, config.attributes))
        for turn in turns
    ]
    if not every:
        raise DataError("no turn has a label to learn from", files)
    counts = {
        name: Counter(turn.values[name] for turn in every if name in turn.values) for name in config.attributes.names
    }
    schema = config.attributes.restrict({name for name, values in counts.items() if values})
    loaded = load_model(
        config.model, precision=config.precision, outputs=output_names("probe", schema), layers=config.layers
    )
    card = ModelCard(
        role="attributes",
        head="probe",
        attributes=schema.with_defaults({a.name: counts[a.name].most_common(1)[0][0] for a in schema.attributes}),
        system=Counter(turn.conversation.system for turn in every).most_common(1)[0][0],
        parents=run_folder.parents([config.model], config.data),
    )
    template = config.template or ModelCard.load(config.model).training_template
    loaded = prepare_for_training(replace(loaded, card=card), template)
    reader = HeadReader(loaded)
    turns = [turn for turn in every if reader.fits(turn.conversation)]
    if not turns:
        raise DataError(f"every labelled turn is longer than the {loaded.window} tokens that the model can take", files)
    with bar(f"read {config.output.parent.name}", total=len(turns), unit="turns") as progress:
        features_NF = reader.features([turn.conversation for turn in turns], progress).double().numpy()
    values_NA = np.array([[turn.values.get(a.name, math.nan) - a.low for a in schema.attributes] for turn in turns])
    _, groups_N = np.unique([turn.opening for turn in turns], return_inverse=True)
    probe = fit_probe(features_NF, values_NA, groups_N, value_sizes(schema))
    set_head(plain_model(loaded.model), torch.from_numpy(probe.weight_KF), torch.from_numpy(probe.bias_K))
    save_model(loaded, config.output)
    penalties = dict(zip(schema.names, probe.penalties, strict=True))
    return {"num_turns": len(turns), "num_too_long": len(every) - len(turns), "penalties": penalties}
