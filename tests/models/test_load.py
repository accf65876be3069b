"""Model folders: what loads, what is refused in words, and that saving loses nothing."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from steersman.attributes import OASST
from steersman.card import ModelCard, TemplateSpec
from steersman.errors import ModelError, OutputError
from steersman.models.adapters import LoraConfig, merge_adapter
from steersman.models.attention import Segments
from steersman.models.convert import merge
from steersman.models.load import backbone, head_weight, load_model, prepare_for_training, save_model

SPEC = TemplateSpec()


def logits(loaded, ids):
    """Logits [T, V] of one sequence by backbone and head, the way that training and generation call them."""
    hidden = backbone(loaded.model)(
        input_ids=torch.tensor([ids]),
        position_ids=torch.arange(len(ids))[None],
        attention_context=Segments([0, len(ids)]),
        use_cache=False,
    ).last_hidden_state[0]
    return hidden @ head_weight(loaded.model).T


def test_new_control_tokens_start_at_the_mean_row(tiny_model_folder):
    loaded = load_model(tiny_model_folder, precision="float32")
    before = loaded.model.get_input_embeddings().weight.detach().clone()
    ready = prepare_for_training(loaded, SPEC)
    after = ready.model.get_input_embeddings().weight
    assert after.shape[0] == before.shape[0] + 3
    torch.testing.assert_close(after[: len(before)], before)
    torch.testing.assert_close(after[len(before) :], before.mean(0).expand(3, -1))
    # The output rows of an untied head too: a new token starts with the average logit, not with a random one.
    head = ready.model.get_output_embeddings().weight
    torch.testing.assert_close(head[len(before) :], head[: len(before)].mean(0).expand(3, -1))
    assert ready.encoder.tokenizer.convert_tokens_to_ids("<extra_id_1>") == len(before) + 1


def test_a_second_preparation_adds_nothing(tiny_model_folder, tmp_path):
    ready = prepare_for_training(load_model(tiny_model_folder, precision="float32"), SPEC)
    save_model(ready, tmp_path / "saved")
    again = prepare_for_training(load_model(tmp_path / "saved", precision="float32"), SPEC)
    for old, new in zip(ready.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_frozen_parameters_are_not_trained(tiny_model_folder):
    spec, lower = TemplateSpec(control="text"), r"model\.(embed_tokens|layers\.0\.)"
    ready = prepare_for_training(load_model(tiny_model_folder, precision="float32"), spec, freeze=[lower])
    trained = {name for name, parameter in ready.model.named_parameters() if parameter.requires_grad}
    assert {"model.norm.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"} <= trained
    assert not any(name.startswith(("model.embed_tokens", "model.layers.0.")) for name in trained)


@pytest.mark.parametrize(
    ("pattern", "control", "message"),
    [
        ("layers", "text", "'layers' matches no parameter; their names are such as model.embed_tokens.weight"),
        (".*", "text", "nothing is left to train"),
        (".*embed_tokens", "special", "keep .*extra_id_0.* from being learnt"),
    ],
)
def test_patterns_that_freeze_nothing_everything_or_new_tokens_are_refused(
    tiny_model_folder, pattern, control, message
):
    with pytest.raises(ModelError, match=message):
        prepare_for_training(load_model(tiny_model_folder), TemplateSpec(control=control), freeze=[pattern])


def test_save_and_load_round_trip(tiny_model_folder, tmp_path):
    ready = prepare_for_training(load_model(tiny_model_folder, precision="float32"), SPEC)
    card = ready.card.model_copy(update={"role": "sft", "attributes": OASST, "seq_len": 64})
    save_model(replace(ready, card=card), tmp_path / "saved")
    again = load_model(tmp_path / "saved", precision="float32")
    assert again.card == card
    ids = [3, 77, 5, 120]
    assert torch.equal(logits(again, ids), logits(ready, ids))
    assert "attributes" in (tmp_path / "saved" / "chat_template.jinja").read_text()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_saving_over_a_folder_replaces_it_whole(tiny_model_folder, tmp_path):
    ready = prepare_for_training(load_model(tiny_model_folder, precision="float32"), SPEC)
    save_model(ready, tmp_path / "saved")
    (tmp_path / "saved" / "left-over").touch()
    save_model(ready, tmp_path / "saved")
    assert not (tmp_path / "saved" / "left-over").exists()


def test_a_failed_save_leaves_the_old_folder(tiny_model_folder, tmp_path, monkeypatch):
    ready = prepare_for_training(load_model(tiny_model_folder, precision="float32"), SPEC)
    save_model(ready, tmp_path / "saved")
    before = sorted(p.name for p in (tmp_path / "saved").iterdir())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(ready.model), "save_pretrained", full)
    with pytest.raises(OutputError, match="No space left"):
        save_model(ready, tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "no such model folder"),
        (lambda f: (f / "model.safetensors").unlink(), r"no model\.safetensors; is it half-written"),
        (lambda f: (f / "config.json").unlink(), r"no config\.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 100), "damaged"),
        (lambda f: (f / "steersman.json").write_text('{"role": "captain"}'), r"steersman\.json: role"),
    ],
)
def test_broken_folders_are_refused_in_words(tiny_model_folder, damage, message):
    damage(tiny_model_folder)
    with pytest.raises(ModelError, match=message):
        load_model(tiny_model_folder)


def test_pickled_weights_are_never_read(tiny_model_folder):
    (tiny_model_folder / "model.safetensors").unlink()
    torch.save({}, tiny_model_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        load_model(tiny_model_folder)


def test_a_missing_shard_is_named(tiny_model_folder):
    (tiny_model_folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tiny_model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (tiny_model_folder / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(ModelError, match="model-00002-of-00002"):
        load_model(tiny_model_folder)


def test_from_scratch_weights_depend_on_the_seed_alone(tiny_model_folder):
    (tiny_model_folder / "model.safetensors").unlink()
    torch.manual_seed(5)
    one = load_model(tiny_model_folder, precision="float32", from_scratch_seed=1)
    torch.manual_seed(6)
    same = load_model(tiny_model_folder, precision="float32", from_scratch_seed=1)
    other = load_model(tiny_model_folder, precision="float32", from_scratch_seed=2)
    ids = [3, 77, 5]
    assert torch.equal(logits(one, ids), logits(same, ids))
    assert not torch.equal(logits(one, ids), logits(other, ids))


def test_a_plain_model_is_addressed_in_plain_text(tiny_model_folder):
    card = load_model(tiny_model_folder).card
    assert card == ModelCard(template=TemplateSpec(control="text", bos=True))


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def lora(request, tmp_path, tiny_llama, tiny_tokenizer):
    """(whether head and embedding are one, a small model with a fresh adapter)."""
    folder = tmp_path / "base"
    tiny_llama(vocab_size=len(tiny_tokenizer), tie_word_embeddings=request.param).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    loaded = load_model(folder, precision="float32")
    return request.param, prepare_for_training(loaded, SPEC, LoraConfig(rank=4, targets=["q_proj", "v_proj"]))


class TestLora:
    def shake(self, loaded):
        """Give the adapter and the new rows values, as training would."""
        torch.manual_seed(0)
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)

    def test_only_the_adapter_and_the_new_rows_learn(self, lora):
        tied, ready = lora
        names = {name for name, parameter in ready.model.named_parameters() if parameter.requires_grad}
        assert names
        assert all("lora_" in name or "trainable_tokens" in name for name in names)
        new_id = ready.encoder.tokenizer.convert_tokens_to_ids("<extra_id_1>")
        logits(ready, [3, new_id])[-1, new_id].backward()
        rows = [p for n, p in ready.model.named_parameters() if "trainable_tokens" in n and p.grad is not None]
        assert len(rows) == (1 if tied else 2)  # a tied row is one parameter, in and out
        assert all(p.grad.abs().sum() > 0 for p in rows)

    def test_saved_merged_and_live_agree(self, lora, tmp_path):
        _, ready = lora
        ready.model.eval()
        self.shake(ready)
        ids = [3, 77, ready.encoder.tokenizer.convert_tokens_to_ids("<extra_id_1>"), 8]
        with torch.no_grad():
            live = logits(ready, ids)
            save_model(ready, tmp_path / "adapter")
            with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as stored:
                assert not any("embed_tokens.weight" in name for name in stored.keys())  # noqa: SIM118
            torch.testing.assert_close(logits(load_model(tmp_path / "adapter", precision="float32"), ids), live)
            merge(tmp_path / "adapter", tmp_path / "merged", precision="float32")
            merged = load_model(tmp_path / "merged", precision="float32")
            torch.testing.assert_close(logits(merged, ids), live, rtol=1e-4, atol=1e-5)
            assert merge_adapter(merged.model) is merged.model

    def test_merging_a_plain_model_is_refused(self, tiny_model_folder, tmp_path):
        with pytest.raises(ModelError, match="nothing to merge"):
            merge(tiny_model_folder, tmp_path / "out")
