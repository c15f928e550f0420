"""The configs of the project load, and those of the paper and of its release hold what these say (facts: section 2)."""

from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from fbjax.config.load import load_config, packaged_configs
from fbjax.config.schema import TrainConfig
from fbjax.model.fashionbert import build_model
from fbjax.tasks import masking

FOLDER = Path(__file__).parents[2] / "configs"
BOTH = {
    "data.train": "fashiongen:train",
    "data.validation": "fashiongen:validation",
    "data.columns.text": ("input_description",),
    "data.columns.category": "input_subcategory",
    "data.columns.group": "input_productID",
    "patches.geometry": "per_patch",
    "patches.image_size": 256,
    "patches.patch_size": 32,
    "patches.patch_input_size": 224,
    "patches.mode": "cached",
    "model.pretrained": "bert-base-uncased",
    "model.num_layers": 12,
    "model.width": 768,
    "model.num_heads": 12,
    "model.hidden_dropout": 0.1,
    "model.attention_dropout": 0.1,
    "tasks.mlm.on_negatives": True,
    "tasks.mpm.on_negatives": True,
    "tasks.tia.head": "cls",
    "tasks.tia.random_negatives_start": 0.0,
    "train.learning_rate": 2e-5,
    "train.clip_norm": 1.0,
    "train.epsilon": 1e-6,
}
PAPER = BOTH | {
    "patches.network": "resnext101_32x8d",
    "model.text_tokens": 448,
    "tasks.mlm.rate": 0.15,
    "tasks.mpm.rate": 0.10,
    "adaptive.method": "gradient",
    "train.batch_size": 64,
    "train.num_steps": 40_700,
    "train.warmup_steps": 5_000,
    "train.beta1": 0.95,
    "train.beta2": 0.999,
    "train.weight_decay": 1e-4,
}
RELEASE = BOTH | {
    "patches.network": "resnet50_v1",
    "model.text_tokens": 64,
    "adaptive.method": "loss_softmax",
    "train.batch_size": 256,
    "train.num_steps": 20_350,
    "train.warmup_steps": 2_035,
    "train.beta1": 0.9,
    "train.beta2": 0.98,
    "train.weight_decay": 0.0,
}


VLBERT = {
    "model.architecture": "vlbert",
    "model.num_layers": 12,
    "model.width": 768,
    "model.num_heads": 12,
    "model.mlp_dim": 3072,
    "model.hidden_dropout": 0.1,
    "model.attention_dropout": 0.1,
    "tasks.mlm.rate": 0.15,
    "tasks.mpm.rate": 0.15,
    "train.batch_size": 256,
    "train.learning_rate": pytest.approx(2.56e-5),
    "train.num_steps": 10_175,
    "train.warmup_steps": 635,
    "train.weight_decay": 1e-4,
    "train.clip_norm": 10.0,
}


PATCHES = SimpleNamespace(num_patches=64, feature_size=2048, whole_image=False, scales=(), num_variants=0, num_images=1)


def setting(config, name):
    for part in name.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


@pytest.mark.parametrize("name", packaged_configs())
def test_every_config_loads_by_its_name(name):
    assert load_config(name) == load_config(FOLDER / f"{name}.py")


@pytest.mark.parametrize(
    "name, expected", [("fashiongen_paper", PAPER), ("fashiongen_release", RELEASE), ("vlbert_paper", VLBERT)]
)
def test_the_configs_hold_what_paper_and_release_say(name, expected):
    config = load_config(FOLDER / f"{name}.py")
    assert {key: setting(config, key) for key in expected} == expected


def test_the_release_masks_ten_pieces_at_most_and_five_patches_exactly():
    config = load_config(FOLDER / "fashiongen_release.py")
    assert masking.num_mlm_slots(config.model.text_tokens, config.tasks["mlm"].rate) == 10
    for seed in range(5):
        chosen = masking.choose_patches(jax.random.key(seed), 64, config.tasks["mpm"].rate)
        assert len(set(chosen.tolist())) == 5


def test_the_paper_masks_ten_percent_of_its_patches():
    config = load_config(FOLDER / "fashiongen_paper.py")
    assert masking.num_masked_patches(64, config.tasks["mpm"].rate) == 6


@pytest.mark.parametrize("name, parameters", [("fashiongen_paper", 113_254_460), ("fashiongen_release", 112_959_548)])
def test_their_models_have_the_size_of_bert_base(name, parameters):
    config = load_config(FOLDER / f"{name}.py")
    model = build_model(config.model, config.tasks.values(), PATCHES, 30_522, mask_id=103)
    ids = jnp.ones((1, config.model.text_tokens), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), ids, ids > 0, jnp.ones((1, 64, 2048))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    assert 113_254_460 - (448 - 64) * 768 == 112_959_548  # they differ by text positions alone


def test_adams_epsilon_is_a_setting():
    import optax

    from fbjax.runs.state import make_optimizer

    def first_step(epsilon):
        train = TrainConfig(
            learning_rate=1.0, warmup_steps=0, num_steps=10, weight_decay=0.0, clip_norm=1e9, epsilon=epsilon
        )
        optimizer = make_optimizer(train)
        params = {"w": jnp.zeros((1, 1))}
        updates, _ = optimizer.update({"w": jnp.full((1, 1), 3.0)}, optimizer.init(params), params)
        return float(optax.apply_updates(params, updates)["w"][0, 0])

    # unbiased moments of one gradient g: g and g^2, so the step is -g / (|g| + epsilon)
    assert first_step(1e-6) == pytest.approx(-3 / (3 + 1e-6), rel=1e-5)
    assert first_step(0.5) == pytest.approx(-3 / 3.5, rel=1e-5)
