"""Recipes: overrides, strict validation with the nearest key, round trip through the saved file."""

from pathlib import Path

import pytest

from steersman import config
from steersman.errors import ConfigError


class Source(config.Config):
    path: str
    weight: float = 1.0


class Optim(config.Config):
    lr: float
    weight_decay: float = 0.01


class Recipe(config.Config):
    model: str
    optim: Optim
    train: tuple[Source, ...] = ()
    validation: dict[str, Source]
    lora: Optim | None = None


TEXT = """
model: llama
optim: {lr: 5e-6}
train:
  - {path: a.jsonl, weight: 2}
  - path: ${model}.jsonl
validation:
  oasst: {path: v.jsonl}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT)
    return path


def test_overrides_reach_every_depth(recipe: Path) -> None:
    loaded = config.load(recipe, Recipe, ["optim.lr=1e-4", "model=gemma", "train.0.path=b.jsonl", "lora={lr: 1}"])
    assert loaded.optim == Optim(lr=1e-4)
    assert [source.path for source in loaded.train] == ["b.jsonl", "gemma.jsonl"]
    assert loaded.train[0].weight == 2
    assert loaded.lora == Optim(lr=1)


def test_the_saved_config_loads_to_the_same_config(recipe: Path, tmp_path: Path) -> None:
    loaded = config.load(recipe, Recipe)
    saved = tmp_path / "config.yaml"
    saved.write_text(config.dump(loaded))
    assert config.load(saved, Recipe) == loaded


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.wieght_decay=0", "unknown key 'optim.wieght_decay'; did you mean 'weight_decay'?"),
        ("modle=x", "unknown key 'modle'; did you mean 'model'?"),
        ("train=[{path: a, colour: 1}]", "unknown key 'train.0.colour'; valid keys: path, weight"),
        ("validation.oasst.pth=a", "unknown key 'validation.oasst.pth'; did you mean 'path'?"),
        ("lora={lr: 1, weight: 0}", "unknown key 'lora.weight'; did you mean 'weight_decay'?"),
        ("optim.lr=fast", "optim.lr: Input should be a valid number"),
        ("optim={lr: null}", "optim.lr: Input should be a valid number"),
        ("train=[{weight: 1}]", "train.0.path is required"),
        ("optim.lr", "write key=value, such as optim.lr=5e-6"),
        ("=3", "write key=value"),
        ("model={", "recipe.yaml"),
        ("train.7.path=a", "list index out of range"),
        ("train.first=a", "invalid literal"),
        ("model=${nothing}", "'nothing' not found"),
    ],
)
def test_a_bad_override_is_named(recipe: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(recipe, Recipe, [override])
    assert words in str(caught.value)


def test_every_bad_key_is_reported_at_once(recipe: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(recipe, Recipe, ["modle=x", "optim.rate=3", "optim.lr=x"])
    assert all(word in str(caught.value) for word in ("modle", "optim.rate", "optim.lr"))


def test_a_recipe_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such recipe"):
        config.load(tmp_path / "absent.yaml", Recipe)
    with pytest.raises(ConfigError, match="is a folder"):
        config.load(tmp_path, Recipe)
    for text in ("- 1\n", "a: [", "a: 1\na: 2"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            config.load(tmp_path / "bad.yaml", Recipe)


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Optim(lr=1).lr = 2  # type: ignore[misc]
