"""The model card: what is saved is what is loaded; a plain Hugging Face folder has the defaults."""

from pathlib import Path

import pytest

from steersman.attributes import OASST, Attribute
from steersman.card import FILE_NAME, ModelCard, Parent, TemplateSpec
from steersman.errors import ModelError


def test_a_card_survives_saving(tmp_path: Path) -> None:
    card = ModelCard(
        role="sft",
        template=TemplateSpec(kind="chat", label_start="<|attributes|>", bos=True),
        attributes=OASST.extend(Attribute(name="verbosity", derived=True, default=2)),
        system="",
        seq_len=4096,
        parents=(Parent(kind="data", name="oasst_train.jsonl", fingerprint="00ff"),),
    )
    card.save(tmp_path)
    assert ModelCard.load(tmp_path) == card


def test_a_folder_without_a_card_gets_the_defaults(tmp_path: Path) -> None:
    card = ModelCard.load(tmp_path)
    assert (card.role, card.attributes, card.template) == ("base", None, TemplateSpec())
    assert card.system.endswith("polite answers to the user's questions.\n\n")


def test_control_strings_follow_the_template() -> None:
    assert TemplateSpec().control_strings == ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
    assert TemplateSpec(kind="chatml").control_strings == ("<|im_start|>", "<|im_end|>", "<extra_id_2>")
    assert TemplateSpec(kind="chat", label_start="<l>").control_strings == ("<l>",)


@pytest.mark.parametrize("text", ['{"role": "sft", "colour": 1}', '{"role": "cook"}', '{"role": "sft"', ""])
def test_an_invalid_card_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ModelError, match=FILE_NAME):
        ModelCard.load(tmp_path)
