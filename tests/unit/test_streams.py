"""ViLBERT's two streams and VL-BERT's words with the image, against torch, transformers and sums by hand."""

import dataclasses
import math
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.config.checks import contradictions
from fbjax.config.schema import Config, ModelConfig, PatchConfig, TrainConfig
from fbjax.model import bert_weights
from fbjax.model.encoder import Encoder
from fbjax.model.fashionbert import build_model
from fbjax.model.rivals.regions import boxes
from fbjax.model.rivals.vilbert import CoAttentionEncoder
from fbjax.model.rivals.vlbert import geometry
from fbjax.tasks.distillation import Distillation
from tests.support.objectives import CONFIG, MODEL, PATCHES, make_batch, make_objective, make_state, make_tasks

torch = pytest.importorskip("torch")
import transformers  # noqa: E402  (its models need torch)

torch.set_num_threads(1)  # on a busy machine its threads wait for each other
V, T, P, C, D, H, F = 40, 9, 5, 7, 24, 4, 48
SIZES = {"width": D, "num_heads": H, "mlp_dim": F, "text_tokens": T, "hidden_dropout": 0.0, "attention_dropout": 0.0}
VILBERT = ModelConfig(architecture="vilbert", num_layers=3, co_attention_blocks=2, **SIZES)
VLBERT = ModelConfig(architecture="vlbert", num_layers=2, **SIZES)
TOKENS = SimpleNamespace(num_patches=P, feature_size=C, whole_image=True, scales=(), num_variants=0, num_images=1)
LENGTHS = np.array([9, 5, 2])
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(3, P, C)).astype(np.float32)
IDS = RNG.integers(5, V, (3, T)) * (np.arange(T) < LENGTHS[:, None])
WHOLE = dataclasses.replace(PATCHES, whole_image=True)
PRODUCT = {"tia": {"head": "product"}, **{name: {"on_negatives": False} for name in ("mlm", "mpm")}}


def made(config, head="cls", noise=0.1):
    """A model with the paper's tasks, and its parameters moved away from their start by `noise`."""
    model = build_model(config, make_tasks(tia={"head": head}).values(), TOKENS, V, mask_id=4)
    inputs = jnp.ones((1, T), jnp.int32), jnp.ones((1, T), bool), jnp.ones((1, P, C))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), *inputs)["params"])
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda x: x + noise * rng.standard_normal(x.shape, np.float32), params)


def scored(model, params, ids, features):
    """(hidden states, match logits) of texts with images."""
    apply = partial(model.apply, {"params": params})
    text, image = apply(ids, method="embed_text"), apply(features, method="embed_image")
    hidden, means = apply(text, ids != 0, image, method="encode_pair")
    return hidden, apply(hidden[:, 0], means, method="match_logits")


def torch_layer(params):
    """``(queries, keys, mask) -> queries`` by PyTorch's own attention, LayerNorm and GELU."""
    tensor = lambda array: torch.tensor(np.asarray(array))  # noqa: E731
    attention = torch.nn.MultiheadAttention(D, H, batch_first=True)
    parts = [params["attention"][name] for name in ("query", "key", "value")]
    stacked = (torch.cat([tensor(np.transpose(part[leaf])) for part in parts]) for leaf in ("kernel", "bias"))
    out = params["attention"]["out"]
    arrays = (*stacked, tensor(out["kernel"]).T, tensor(out["bias"]))
    names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    attention.load_state_dict(dict(zip(names, arrays, strict=True)))

    def norm(x, name):
        scale, bias = (tensor(params[name][leaf]) for leaf in ("scale", "bias"))
        return torch.nn.functional.layer_norm(x, (D,), scale, bias, 1e-12)

    def linear(x, name):
        return x @ tensor(params[name]["kernel"]) + tensor(params[name]["bias"])

    def run(x, keys, mask):
        attended, _ = attention(x, keys, keys, key_padding_mask=~torch.tensor(mask))
        x = norm(x + attended, "attention_norm")
        return norm(x + linear(torch.nn.functional.gelu(linear(x, "mlp_in")), "mlp_out"), "mlp_norm")

    return run


@torch.no_grad()
def test_co_attention_is_that_of_torch_layers():
    """One layer of the text alone, and two blocks that ask with the other stream's state before the block."""
    _, params = made(VILBERT)
    params, mask, seen = params["encoder"], np.arange(T) < LENGTHS[:, None], np.ones((3, P), bool)
    given = [RNG.normal(size=(3, n, D)).astype(np.float32) for n in (T, P)]
    found = CoAttentionEncoder(VILBERT).apply({"params": params}, given[0], mask, given[1], True)
    (text, image), layer = map(torch.tensor, given), lambda name: torch_layer(params[name])
    text = layer("layer_0")(text, text, mask)
    for i in range(2):
        text, image = (
            layer(f"text_over_image_{i}")(text, image, seen),
            layer(f"image_over_text_{i}")(image, text, mask),
        )
        text = layer(f"layer_{1 + i}")(text, text, mask)
        image = layer(f"image_layer_{i}")(image, image, seen)
    np.testing.assert_allclose(found, torch.cat([text, image], dim=1), atol=1e-5)


def test_a_text_alone_in_two_streams_is_berts_and_an_image_alone_is_its_own_layers():
    model, params = made(VILBERT)
    apply, mask = partial(model.apply, {"params": params}), IDS != 0
    text, image = apply(IDS, method="embed_text"), apply(FEATURES, method="embed_image")
    alone = apply(text, mask, text[:, :0], method="encode")
    np.testing.assert_array_equal(alone, Encoder(VILBERT).apply({"params": params["encoder"]}, text, mask))
    renamed = {f"layer_{i}": params["encoder"][f"image_layer_{i}"] for i in range(2)}
    seen, two = np.ones((3, P), bool), dataclasses.replace(VILBERT, num_layers=2)
    expected = Encoder(two).apply({"params": renamed}, image, seen)
    np.testing.assert_allclose(apply(None, None, image, method="encode_alone"), expected.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("config, head", [(VILBERT, "product"), (VLBERT, "cls"), (VLBERT, "product")])
def test_padding_changes_nothing(config, head):
    model, params = made(config, head)
    hidden, logits = scored(model, params, IDS, FEATURES)
    for row, length in enumerate(LENGTHS):
        own, of_own = scored(model, params, IDS[row : row + 1, :length], FEATURES[row : row + 1])
        expected = np.concatenate([hidden[row, :length], hidden[row, T:]])
        np.testing.assert_allclose(own[0], expected, atol=1e-5)
        np.testing.assert_allclose(of_own[0], logits[row], atol=1e-5)


@pytest.mark.parametrize("config", [VILBERT, VLBERT])
def test_positions_are_rows_of_all(config):
    model, params = made(config)
    apply = partial(model.apply, {"params": params})
    given = apply(IDS, method="embed_text"), IDS != 0, apply(FEATURES, method="embed_image")
    positions = np.array([[0, T + 2, 3], [T, 0, 1], [T + P - 1, 1, 0]])
    expected = np.take_along_axis(np.asarray(apply(*given, method="encode")), positions[..., None], axis=1)
    np.testing.assert_allclose(apply(*given, positions, method="encode"), expected, atol=1e-5)


@torch.no_grad()
def test_vlbert_is_bert_at_the_start():
    """BERT's own embeddings and layers over the words and, of a third segment, the word [IMG] for each region."""
    model, params = made(VLBERT, noise=0.0)
    torch.manual_seed(0)
    sizes = bert_weights.bert_settings(VLBERT, V) | {"type_vocab_size": 3, "max_position_embeddings": T + 1}
    bert = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False).eval()
    state = bert.state_dict()
    tables = {"word": "word", "position": "position", "segment": "token_type"}
    third = {
        f"embeddings.{theirs}_embeddings.weight": params["image_embeddings"][name] for name, theirs in tables.items()
    }
    for target, (source, transform) in bert_weights.parameter_names(2).items():
        if not target.startswith(("mlm", "pooler")):
            value = params
            for part in target.split("/"):
                value = value[part]
            value = np.asarray(value)
            if source in third and "word" not in source:
                value = np.concatenate([value, third[source]])
            state[source] = torch.tensor(transform(value))  # a transpose is its own inverse
    bert.load_state_dict(state)
    words = torch.cat([bert.embeddings.word_embeddings(torch.tensor(IDS)), torch.zeros(3, P, D)], dim=1)
    words[:, T:] = torch.tensor(np.asarray(params["image_embeddings"]["word"]))
    expected = bert(
        inputs_embeds=words,
        position_ids=torch.tensor([[*range(T), *[T] * P]] * 3),
        token_type_ids=torch.tensor([[0] * T + [2] * P] * 3),
        attention_mask=torch.tensor(np.concatenate([IDS != 0, np.ones((3, P), bool)], axis=1)),
    ).last_hidden_state
    hidden, _ = scored(model, params, IDS, FEATURES)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    np.testing.assert_array_equal(hidden, scored(model, params, IDS, -FEATURES)[0])  # no image matters


def test_every_word_of_vlbert_carries_the_whole_images_feature_and_a_region_its_own():
    """Sums before the embeddings' LayerNorm, which is shut here."""
    model, params = made(VLBERT)
    bound = model.bind({"params": params})
    image = bound.embed_image(FEATURES)
    part = params["image_embeddings"]
    waves = geometry(boxes(P, 1)) @ part["geometry"]["kernel"]
    visual = np.maximum(FEATURES @ part["projection"]["kernel"] + part["projection"]["bias"] + waves, 0)
    np.testing.assert_allclose(image, visual, atol=1e-4)

    def normed(x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        return part[name]["scale"] * centred / centred.std(axis=-1, keepdims=True) + part[name]["bias"]

    of_words, of_regions = (bound.image_embeddings.of_words(image), bound.image_embeddings.of_regions(image))
    np.testing.assert_allclose(of_words, normed(visual[:, :1], "word_norm"), atol=1e-4)
    expected = normed(visual, "region_norm") + part["word"] + part["position"] + part["segment"]
    np.testing.assert_allclose(of_regions, expected, atol=1e-4)
    text = bound.embed_text(IDS)
    finished = (bound.text_embeddings.finished(x, True) for x in (text + of_words, of_regions))
    both, mask = jnp.concatenate([*finished], axis=1), np.concatenate([IDS != 0, np.ones((3, P), bool)], axis=1)
    hidden = Encoder(VLBERT).apply({"params": params["encoder"]}, both, mask)
    np.testing.assert_allclose(bound.encode(text, IDS != 0, image), hidden, atol=1e-5)


def test_geometry_by_hand():
    """The right upper cell of 2 x 2: its centre lies at 75 and 25 percent, its sides are 50."""
    (found,) = geometry(np.array([[0.5, 0.0, 1.0, 0.5]]))
    assert found.shape == (2048,)
    for number, value in enumerate((75, 25, 50, 50)):
        for k in (0, 1, 100, 255):
            angle = value / 1000 ** (k / 256)
            assert found[512 * number + k] == pytest.approx(math.sin(angle), abs=1e-5)
            assert found[512 * number + 256 + k] == pytest.approx(math.cos(angle), abs=1e-5)


def test_regions_of_vilbert_are_sums_of_a_feature_and_a_place():
    model, params = made(VILBERT)
    part = params["image_embeddings"]
    halves = [(0, 0, 1, 1, 1), (0, 0, 0.5, 0.5, 0.25), (0.5, 0, 1, 0.5, 0.25), (0, 0.5, 0.5, 1, 0.25)]
    places = np.array([*halves, (0.5, 0.5, 1, 1, 0.25)])
    x = FEATURES @ part["projection"]["kernel"] + part["projection"]["bias"]
    x = x + places @ part["location"]["kernel"] + part["location"]["bias"]
    x = (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True)
    expected = x * part["norm"]["scale"] + part["norm"]["bias"]
    np.testing.assert_allclose(model.apply({"params": params}, FEATURES, method="embed_image"), expected, atol=1e-4)


def test_the_head_product_multiplies_what_is_pooled_of_both_first_states():
    model, params = made(VILBERT, "product")
    hidden, logits = scored(model, params, IDS, FEATURES)

    def pooled(x, name):
        return np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)

    product = pooled(hidden[:, 0], "text_pooler") * pooled(hidden[:, T], "image_pooler")
    np.testing.assert_allclose(logits, product @ params["tia"]["kernel"] + params["tia"]["bias"], atol=1e-5)
    assert "pooler" not in params


@pytest.mark.parametrize("architecture, tasks", [("vilbert", PRODUCT), ("vlbert", {})])
def test_every_parameter_learns(architecture, tasks):
    blocks = {"co_attention_blocks": 1} if architecture == "vilbert" else {}
    model = dataclasses.replace(MODEL, architecture=architecture, **blocks)
    objective = make_objective(model, make_tasks(**tasks), WHOLE)
    config = dataclasses.replace(CONFIG, model=model, patches=WHOLE, tasks=make_tasks(**tasks))
    params = make_state(objective, config).params
    loss = lambda p: objective.losses(p, {"patches": {}}, make_batch(), jax.random.key(3))[0].sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)["fashionbert"]
    # a key's bias shifts all logits of a query alike; no query is read
    still = {path for path, x in _flat(gradient).items() if np.abs(x).max() < 1e-7 and not path.endswith("key/bias")}
    assert still == set()


def _flat(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in jax.tree.leaves_with_path(tree)}


def test_remat_changes_no_gradient():
    kept, again = (make_objective(dataclasses.replace(MODEL, architecture="vilbert", co_attention_blocks=2, remat=how),
                                  make_tasks(**PRODUCT), WHOLE) for how in ("none", "layers"))  # fmt: skip
    params = make_state(kept, dataclasses.replace(CONFIG, model=kept.model.config, tasks=make_tasks(**PRODUCT))).params
    grads = [
        jax.jit(jax.grad(lambda p, o=o: o.losses(p, {"patches": {}}, make_batch(), jax.random.key(3))[0].sum()))(params)
        for o in (kept, again)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), *grads)


def test_text_layers_of_two_streams_are_a_pretrained_berts(tmp_path):
    sizes = bert_weights.bert_settings(VILBERT, V) | {"num_hidden_layers": 4}
    bert = transformers.BertModel(transformers.BertConfig(**sizes))
    bert.save_pretrained(tmp_path)
    _, params = made(VILBERT)
    imported = bert_weights.load_bert(tmp_path, VILBERT, params, [])
    layers = {name.split("/")[1] for name in imported.taken if name.startswith("encoder/")}
    assert layers == {"layer_0", "layer_1", "layer_2"}
    fresh = {name.split("/")[1] for name in imported.initialised if name.startswith("encoder/")}
    assert fresh == {f"{name}_{i}" for name in ("image_layer", "text_over_image", "image_over_text") for i in range(2)}


def config_of(model=VILBERT, whole_image=True, train=None, **tasks):
    return Config(
        patches=PatchConfig(whole_image=whole_image),
        model=dataclasses.replace(model, vocabulary="train:100"),
        tasks=make_tasks(**tasks),
        train=train or TrainConfig(),
    )


@pytest.mark.parametrize(
    "config, words",
    [
        (config_of(whole_image=False), "'vilbert' reads the token of the whole image: set patches.whole_image"),
        (config_of(VLBERT, whole_image=False), "'vlbert' reads the token of the whole image: set patches.whole_image"),
        (config_of(dataclasses.replace(VILBERT, num_layers=1)), "co_attention_blocks 2 is above model.num_layers 1"),
        (config_of(dataclasses.replace(VLBERT, co_attention_blocks=2)), "is for model.architecture 'vilbert', not 'vl"),
        (config_of(dataclasses.replace(VILBERT, cross_attention="gated")), "takes no cross_attention 'gated'"),
        (config_of(train=TrainConfig(layer_decay=0.9)), "takes no train.layer_decay 0.9"),
        (config_of(distillation={"teacher": "runs/teacher"}), "model.architecture 'vilbert' has two"),
        (
            config_of(ModelConfig(num_layers=1), whole_image=False, tia={"head": "product"}),
            "tasks.tia.head 'product' reads the token of the whole image",
        ),
    ],
)
def test_what_does_not_go_together_is_told_with_a_remedy(config, words):
    (found,) = contradictions(config)
    assert words in found


def test_two_streams_do_not_teach_hidden_states():
    assert "has two" in Distillation(teacher="x").check_teacher(ModelConfig(**SIZES), VILBERT)[0]
