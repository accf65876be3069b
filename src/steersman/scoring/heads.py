"""What a head says of conversations (see `models.heads`): one forward pass, in which those that begin alike share their
beginnings. Nothing is padded, and an answer's numbers do not depend on what is read beside it.

Shapes: N conversations, D different ones; F features of one (the hidden size H, or 2 H + 1), made of L states; K
outputs of the head.
"""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from steersman.batches.packing import pack
from steersman.batches.sequences import tokenise_valued
from steersman.errors import DataError
from steersman.generation.window import Window
from steersman.models.attention import Segments
from steersman.models.heads import scores
from steersman.models.load import LoadedModel, hidden_states, plain_model
from steersman.records import Conversation, Prompt
from steersman.scoring.attributes import up_to_last_spoken
from steersman.seams import Progress

MICRO_TOKENS = 4096
"""Most tokens of one forward pass; a longer conversation goes alone."""


class HeadReader:
    """Reads a model's head at the last spoken turn of conversations: a label's place, or, for a reward, the turn's end.

    Args:
        loaded: a model with a head that judges.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._model = plain_model(loaded.model)
        self._window = Window(loaded.encoder, loaded.window)
        self._is_probe = loaded.card.head == "probe"
        self._busy = threading.Lock()  # a server judges from several threads; one pass at a time is fastest

    def prompt(self, conversation: Conversation) -> Prompt:
        """What the head reads: the conversation without any label."""
        asked, template = up_to_last_spoken(conversation), self._loaded.encoder.template
        if self._loaded.card.head == "reward":
            return template.prompt_for_reward(asked)
        if self._is_probe:
            asked = asked.model_copy(update={"system": "", "conversations": asked.conversations[-2:]})
        return template.prompt_for_label(asked, earlier_labels=False)

    def fits(self, conversation: Conversation) -> bool:
        """Whether the window holds the conversation."""
        return self._window.holds(self.prompt(conversation), room=0)

    def read(self, conversations: Sequence[Conversation], progress: Progress | None = None) -> Tensor:
        """The head's outputs f32[N, K] on the CPU, in order; equal conversations are read once.

        Raises:
            DataError: one is longer than the model's window; see `fits`.
        """
        if not conversations:
            return torch.empty(0, self._model.config.num_labels)
        features_DF, places = self._distinct(conversations, progress)
        with torch.inference_mode():
            return scores(self._model, features_DF.to(self._loaded.device)).cpu()[places]

    def features(self, conversations: Sequence[Conversation], progress: Progress | None = None) -> Tensor:
        """What the head is a linear map of, f32[N, F] on the CPU, in order; otherwise like `read`."""
        features_DF, places = self._distinct(conversations, progress)
        return features_DF[places]

    def _distinct(self, conversations: Sequence[Conversation], progress: Progress | None) -> tuple[Tensor, list[int]]:
        """The features of D different prompts, and which of them each conversation has."""
        prompts = [self.prompt(conversation) for conversation in conversations]
        distinct = sorted(set(prompts), key=lambda prompt: prompt.text)  # those that begin alike side by side
        place = {prompt: number for number, prompt in enumerate(distinct)}
        with self._busy:
            features_DF = self._read(distinct, progress)
        if progress:
            progress(len(prompts) - len(distinct))
        return features_DF, [place[prompt] for prompt in prompts]

    @torch.inference_mode()
    def _read(self, prompts: Sequence[Prompt], progress: Progress | None) -> Tensor:
        numbered = ((prompt, (float(number),)) for number, prompt in enumerate(prompts))
        sequences = tokenise_valued(
            numbered, self._loaded.encoder, self._window.size, MICRO_TOKENS, answers=self._is_probe
        )
        if sequences.num_skipped:
            raise DataError(f"a conversation is longer than the {self._window.size} tokens that the model can take")
        rows: dict[int, Tensor] = {}
        for batch in pack([sequences[index] for index in range(len(sequences))], MICRO_TOKENS):
            batch = batch.to(self._loaded.device)
            segments = Segments(batch.bounds, batch.parents)
            states_MH = hidden_states(self._model, batch.input_ids_1T, batch.position_ids_1T, segments, batch.trained_M)
            parts = torch.split(states_MH.float(), list(batch.sizes))
            features_NF = torch.stack([self._features(states_LH) for states_LH in parts]).cpu()
            rows |= dict(zip(batch.values_BA[:, 0].long().tolist(), features_NF, strict=True))
            if progress:
                progress(len(parts))
        return torch.stack([rows[number] for number in range(len(prompts))])

    def _features(self, states_LH: Tensor) -> Tensor:
        """The state at the end; of a probe the mean of the answer's states, that one, and log(1 + its tokens)."""
        end_H = states_LH[-1]
        if not self._is_probe:
            return end_H
        size = len(states_LH) - 1
        mean_H = states_LH[:-1].mean(0) if size else end_H
        return torch.cat([mean_H, end_H, end_H.new_tensor([math.log1p(size)])])
