"""Every recipe that is shipped can be loaded, and says what it is meant to say."""

from pathlib import Path

import pytest

from steersman import config
from steersman.errors import ConfigError
from steersman.pipelines.cai_config import CaiConfig
from steersman.pipelines.jobs import TrainConfig
from steersman.pipelines.ppo import PPORecipe
from steersman.pipelines.steerlm_config import SteerLMConfig

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("steerlm-*.yaml")), ids=lambda path: path.stem)
def test_recipe_loads(recipe: Path) -> None:
    loaded = config.load(recipe, SteerLMConfig)
    assert loaded.output == Path("runs") / recipe.stem or loaded.output == Path("runs/quickstart")
    assert recipe.name in recipe.read_text(), "the comment on top shows how it is run"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("ppo-*.yaml")), ids=lambda path: path.stem)
def test_ppo_recipe_loads(recipe: Path) -> None:
    loaded = config.load(recipe, PPORecipe)
    assert loaded.output == Path("runs") / recipe.stem
    assert recipe.name in recipe.read_text(), "the comment on top shows how it is run"


def test_the_mistral_ppo_recipe_has_the_tutorials_hyper_parameters() -> None:
    recipe = config.load(RECIPES / "ppo-mistral-7b.yaml", PPORecipe)
    rollout = recipe.ppo.rollout
    assert (rollout.samples, rollout.micro_batch, rollout.max_tokens) == (512, 8, 1024)
    assert (rollout.temperature, rollout.top_k, rollout.top_p) == (1.0, 0, 1.0)
    assert (recipe.ppo.global_batch, recipe.ppo.kl, recipe.ppo.kl_penalty) == (64, "abs", 0.02)
    assert (recipe.ppo.gamma, recipe.ppo.lam, recipe.ppo.clip, recipe.ppo.entropy) == (1, 0.95, 0.2, 0)
    assert (recipe.optim.lr, recipe.optim.min_lr, recipe.optim.betas) == (9e-8, 9e-9, (0.9, 0.98))
    assert recipe.critic.url == "http://127.0.0.1:5567"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("reward-*.yaml")), ids=lambda path: path.stem)
def test_recipe_of_a_reward_model_loads(recipe: Path) -> None:
    loaded = config.load(recipe, TrainConfig)
    assert (loaded.role, loaded.output) == ("reward", Path("runs") / recipe.stem)
    assert f"steersman train reward recipes/{recipe.name}" in recipe.read_text()


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("dpo-*.yaml")), ids=lambda path: path.stem)
def test_dpo_recipe_loads(recipe: Path) -> None:
    loaded = config.load(recipe, TrainConfig)
    assert (loaded.role, loaded.output) == ("dpo", Path("runs") / recipe.stem)
    assert f"steersman train dpo recipes/{recipe.name}" in recipe.read_text()


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("cai-*.yaml")), ids=lambda path: path.stem)
def test_cai_recipe_loads_and_a_word_chooses_dpo(recipe: Path) -> None:
    assert config.load(recipe, CaiConfig, ["policy=dpo"]).dpo
    loaded = config.load(recipe, CaiConfig)
    assert (loaded.policy, loaded.ppo is not None) == ("ppo", True)
    assert loaded.output == Path("runs") / recipe.stem
    assert f"steersman run cai recipes/{recipe.name}" in recipe.read_text()


def test_no_recipe_is_left_out() -> None:
    names = {recipe.stem for recipe in RECIPES.iterdir()}
    wanted = ("sandbox", "gemma-270m", "llama2-7b", "llama3-8b", "qwen")
    assert names >= {*(f"steerlm-{name}" for name in wanted), "ppo-gemma-270m", "ppo-mistral-7b"}
    assert names >= {f"cai-{name}" for name in ("sandbox", "gemma-270m", "mistral-7b")}


def test_the_sandbox_recipes_share_their_base() -> None:
    """So that the quickstart trains it once."""
    steering = config.load(RECIPES / "steerlm-sandbox.yaml", SteerLMConfig)
    harmless = config.load(RECIPES / "cai-sandbox.yaml", CaiConfig)
    assert steering.base == harmless.base
    assert steering.sandbox
    assert harmless.sandbox
    assert steering.sandbox.num_base == harmless.sandbox.num_base


def test_the_mistral_cai_recipe_has_the_tutorials_hyper_parameters() -> None:
    recipe = config.load(RECIPES / "cai-mistral-7b.yaml", CaiConfig)
    revise, answers = recipe.revise, recipe.answers
    assert (revise.greedy, revise.repetition_penalty, revise.min_tokens, revise.max_tokens) == (True, 1.2, 1, 1024)
    assert (recipe.sl_cai.seq_len, recipe.sl_cai.batch.sequences, recipe.sl_cai.optim.lr) == (4096, 128, 1e-6)
    assert (recipe.sl_cai.validation.every, recipe.sl_cai.validation.batches) == (50, 40)
    assert (answers.top_k, answers.top_p, answers.temperatures, answers.max_tokens) == (50, 0.95, (1.0,), 1024)
    assert (recipe.reward.batch.pairs, recipe.reward.seq_len, recipe.reward.validation.every) == (512, 4096, 25)
    assert recipe.judging.mode == "nemo"
    assert recipe.ppo
    assert recipe.ppo.critic
    alone = config.load(RECIPES / "ppo-mistral-7b.yaml", PPORecipe)
    assert recipe.ppo.ppo == alone.ppo
    assert recipe.ppo.optim == alone.optim
    assert (recipe.ppo.critic.optim.lr, recipe.ppo.critic.optim.min_lr) == (3e-7, 9e-8)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("revise.round=1", "did you mean 'rounds'"),
        ("model=null", "exactly one of model and base"),
        ("helpful=null", "nobody answers at first"),
        ("sandbox.seed=1", "exactly one of data and sandbox"),
        ("judge.urls=[]", "give model or urls"),
        ("ppo=null", "policy is ppo, and there is no section ppo"),
        ("dpo.beta=0", "dpo.beta"),
    ],
)
def test_a_wrong_key_of_a_cai_recipe_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(RECIPES / "cai-gemma-270m.yaml", CaiConfig, [override])
    assert message in str(error.value)


@pytest.mark.parametrize("section", ["reward", "dpo", "second_reward"])
def test_what_compares_pairs_takes_pairs(section: str) -> None:
    changed = [f"{section}.batch.pairs=null", f"{section}.batch.sequences=8"]
    with pytest.raises(ConfigError, match="reward, dpo and second_reward compare pairs"):
        config.load(RECIPES / "cai-gemma-270m.yaml", CaiConfig, changed)


@pytest.mark.parametrize("name", ["steerlm-llama2-7b", "steerlm-llama3-8b"])
def test_llama_recipes_have_the_tutorials_hyper_parameters(name: str) -> None:
    recipe = config.load(RECIPES / f"{name}.yaml", SteerLMConfig)
    for job in (recipe.predictor, recipe.sft):
        assert (job.steps, job.seq_len, job.batch.sequences) == (1000, 4096, 1)
        assert (job.optim.lr, job.optim.weight_decay) == (5e-6, 0.01)
        assert (job.validation.every, job.validation.batches) == (100, 10)
        assert job.precision.startswith("bfloat16")
    assert recipe.data
    assert (recipe.data.split_ratio, recipe.data.seed, recipe.data.limit) == (0.95, 10, 5000)


def test_overrides_reach_the_data() -> None:
    overrides = ["data.labelled=[a.jsonl,b.jsonl]", "data.unlabelled=[c.jsonl]", "data.relabel=false", "sft.steps=7"]
    loaded = config.load(RECIPES / "steerlm-gemma-270m.yaml", SteerLMConfig, overrides)
    assert loaded.data
    assert (loaded.data.labelled, loaded.data.unlabelled) == (("a.jsonl", "b.jsonl"), ("c.jsonl",))
    assert loaded.sft.steps == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("predictor.optim.learning_rate=1", "unknown key 'predictor.optim.learning_rate'"),
        ("steering.atributes=[humor]", "did you mean 'attributes'"),
        ("data.relabel=false", "nothing to annotate"),
        ("model=null", "give model"),
        ("targets.predictor.low=1", "targets.predictor"),
    ],
)
def test_a_wrong_key_is_named(override: str, message: str) -> None:
    changed = [override, "targets.predictor.magnitude=1"] if "targets" in override else [override]
    with pytest.raises(ConfigError) as error:
        config.load(RECIPES / "steerlm-gemma-270m.yaml", SteerLMConfig, changed)
    assert message in str(error.value)
