"""Stacked cross attention against loops over the papers' formulas, and what must not change its loss or its step."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.config.load import load_config
from fbjax.config.schema import AdaptiveConfig, MeshConfig
from fbjax.model.towers.block_positions import BlockPositions
from fbjax.model.towers.stacked_attention import StackedAttention
from tests.support.objectives import CONFIG, MODEL, TRAIN, make_batch, make_objective, make_state, make_tasks
from tests.unit.test_objective import assert_same_step, losses_of, stepped

FORMS = [
    (direction, pooling) for direction in ("text_to_image", "image_to_text") for pooling in ("logsumexp", "average")
]
ONE_LAYER = dataclasses.replace(MODEL, num_layers=1)


def make_scan(**settings):
    return make_tasks("scan", scan={"embedding_dim": 8} | settings)


def config_of(**settings):
    return dataclasses.replace(
        CONFIG, model=ONE_LAYER, tasks=make_scan(**settings), adaptive=AdaptiveConfig(method="fixed")
    )


def cosine(a, b):
    return a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)


def score_by_loops(words, regions, direction, pooling, lambda1, lambda2):
    """S(I, T) of Lee et al. 2018, section 3.1, of ``words [n, E], regions [k, E]``, none of them padding."""
    k, n, relevance = len(regions), len(words), []
    s = np.array([[cosine(v, e) for e in words] for v in regions])
    above = np.maximum(s, 0)
    if direction == "image_to_text":
        for i in range(k):
            normed = [above[i, j] / np.sqrt(sum(above[x, j] ** 2 for x in range(k)) or 1.0) for j in range(n)]
            weights = np.exp(lambda1 * np.array(normed))
            weights /= weights.sum()
            relevance.append(cosine(regions[i], sum(weights[j] * words[j] for j in range(n))))
    else:
        for j in range(n):
            normed = [above[i, j] / np.sqrt(sum(above[i, x] ** 2 for x in range(n)) or 1.0) for i in range(k)]
            weights = np.exp(lambda1 * np.array(normed))
            weights /= weights.sum()
            relevance.append(cosine(words[j], sum(weights[i] * regions[i] for i in range(k))))
    if pooling == "average":
        return sum(relevance) / len(relevance)
    return np.log(sum(np.exp(lambda2 * r) for r in relevance)) / lambda2


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("direction, pooling", FORMS)
def test_scores_of_all_pairs_are_those_of_loops_over_words_that_are_there(direction, pooling):
    rng = np.random.default_rng(0)
    words, regions, lengths = unit(rng, 3, 6, 4), unit(rng, 2, 5, 4), (6, 2, 4)
    mask = np.arange(6) < np.array(lengths)[:, None]
    attention = StackedAttention(direction, pooling, 9.0, 6.0)
    found = attention.scores(jnp.array(words)[:, None], jnp.array(mask)[:, None], jnp.array(regions)[None])
    expected = [
        [score_by_loops(w[:n], r, direction, pooling, 9.0, 6.0) for r in regions.astype(float)]
        for w, n in zip(words.astype(float), lengths, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    pairs = attention.scores(jnp.array(words[:2]), jnp.array(mask[:2]), jnp.array(regions))
    np.testing.assert_allclose(pairs, np.diagonal(expected), rtol=1e-5)


def loss_by_loops(scores, group, ids, hardest):
    """Eq. 10 over the pairs that are mistakes, a mean over the batch."""
    total = 0.0
    for i in range(len(scores)):
        for s in (scores[i], scores[:, i]):
            others = [j for j in range(len(scores)) if group[i] != group[j] and (ids[i] != ids[j]).any()]
            hinges = [max(0.0, 0.2 - s[i] + s[j]) for j in others]
            total += max(hinges) if hardest else sum(hinges)
    return total / len(scores)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_scale": 4.0, "direction": "image_to_text", "hardest_from": 1},
        {"pooling": "logsumexp", "positions": True},
    ],
    ids=["image to text, all", "text to image, hardest, positions"],
)
def test_the_loss_is_that_of_loops_over_the_whole_batch(settings):
    """Two products share each group, and products 0 and 5 share their text."""
    objective, batch = make_objective(ONE_LAYER, make_scan(**settings)), make_batch()._replace(negative=None)
    ids, word_ids = batch.ids.copy(), batch.word_ids.copy()
    ids[5], word_ids[5] = ids[0], word_ids[0]
    batch = batch._replace(ids=ids, word_ids=word_ids)
    (task,), params = objective.tasks, make_state(objective, config_of(**settings)).params
    apply = partial(objective.model.apply, {"params": params["fashionbert"]})
    features = objective.patches.apply({}, batch.image)
    words = apply(apply(ids, method="embed_text"), ids != 0, method="words")
    words, regions = (np.asarray(x, float) for x in (words, apply(features, method="regions")))
    scales = task.direction, task.pooling, task.attention_scale, task.pooling_scale
    scores = np.array(
        [[score_by_loops(w[i != 0], r, *scales) for r in regions] for w, i in zip(words, ids, strict=True)]
    )
    expected = loss_by_loops(scores, batch.group, ids, task.hardest_from == 0)
    assert float(losses_of(objective, params, batch)[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("direction, pooling", FORMS)
def test_gradients_are_finite_where_nothing_is_alike_and_where_all_is_equal(direction, pooling):
    attention = StackedAttention(direction, pooling, 9.0, 6.0)
    same, opposite = jnp.ones((1, 3, 4)) / 2, -jnp.ones((1, 2, 4)) / 2
    for regions in (opposite, -opposite, 0 * opposite):
        loss = lambda w, r: attention.scores(w, jnp.ones(w.shape[:2], bool), r).sum()  # noqa: E731
        value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(same, regions)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, gradients)))


def test_only_its_own_layers_and_those_of_the_text_learn():
    objective, batch = make_objective(ONE_LAYER, make_scan(positions=True)), make_batch()._replace(negative=None)
    params = make_state(objective, config_of(positions=True)).params
    assert params["fashionbert"].keys() == {
        *("text_embeddings", "encoder", "scan_words", "scan_regions", "scan_positions")
    }
    loss = lambda p: objective.losses(p, {"patches": {}}, batch, jax.random.key(3))[0][0]  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)
    largest = jax.tree.map(lambda x: float(np.abs(x).max()), gradient)
    assert all(np.isfinite(jax.tree.leaves(largest))) and largest["fashionbert"]["scan_positions"]["blocks"] > 0
    assert objective.shared(gradient)["fashionbert"].keys() == {"text_embeddings", "encoder"}


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
def test_padding_changes_no_loss_and_no_gradient_of_scan(direction):
    objective, padded = make_objective(ONE_LAYER, make_scan(direction=direction)), make_batch()._replace(negative=None)
    shortened = padded.ids.copy()
    shortened[:, 8:] = 0
    padded = padded._replace(ids=shortened)
    trimmed = padded._replace(ids=shortened[:, :8], word_ids=padded.word_ids[:, :8])
    params = make_state(objective, config_of(direction=direction)).params

    def loss_and_gradient(batch):
        loss = lambda p: objective.losses(p, {"patches": {}}, batch, jax.random.key(3))[0][0]  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        loss_and_gradient(trimmed),
        loss_and_gradient(padded),
    )


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
def test_eight_devices_and_micro_batches_change_no_step_of_scan(direction):
    config = config_of(direction=direction, positions=True, hardest_from=1)
    in_parts = dataclasses.replace(config, train=dataclasses.replace(TRAIN, micro_batches=2))
    assert_same_step(stepped(config), stepped(in_parts, mesh=MeshConfig(8, 1, 1)))


def test_positions_are_those_of_loops_over_blocks():
    """A whole image and nine cells: blocks that a cell covers in part, 15 of them at most, or all equally."""
    rng, module = np.random.default_rng(0), BlockPositions(MODEL, num_patches=10, first_patch=1)
    features = rng.normal(size=(2, 10, 6)).astype(np.float32)
    table, kernel = rng.normal(size=(257, 200)), rng.normal(size=(6, 200))
    params = {"blocks": table.astype(np.float32), "query": {"kernel": kernel.astype(np.float32)}}
    found = module.apply({"params": params}, features)
    boxes = [(0.0, 0.0, 1.0, 1.0)] + [(x / 3, y / 3, (x + 1) / 3, (y + 1) / 3) for y in range(3) for x in range(3)]
    for b in range(2):
        for p, (left, top, right, bottom) in enumerate(boxes):
            overlaps = []
            for block in range(256):
                y, x = divmod(block, 16)
                width = max(0.0, min(right, (x + 1) / 16) - max(left, x / 16))
                height = max(0.0, min(bottom, (y + 1) / 16) - max(top, y / 16))
                overlaps.append(round(width * height / (right - left) / (bottom - top), 9))
            chosen = sorted(range(256), key=lambda block, of=overlaps: -of[block])[:15]
            fit = np.exp(np.tanh([features[b, p] @ kernel @ table[block] for block in chosen]))
            weights = np.exp(np.array([overlaps[block] for block in chosen]) * fit / fit.sum())
            expected = (weights / weights.sum()) @ table[chosen]
            np.testing.assert_allclose(found[b, p], expected, rtol=1e-3, atol=1e-4)


def test_all_negatives_count_until_the_hardest_count_alone():
    """Two steps of one batch: the loss falls to that of the hardest negatives, of scores that hardly moved."""
    _, _, (first, second) = stepped(config_of(hardest_from=1), steps=2)
    _, _, (hardest, _) = stepped(config_of(), steps=2)
    assert first["scan/loss"] > 3 * hardest["scan/loss"] and second["scan/loss"] < 2 * hardest["scan/loss"]


def test_settings_that_do_not_go_together_are_told():
    with pytest.raises(ValueError, match="tasks scan and tia each score the run's pairs: take one of them"):
        load_config("catalogue_scan", ["tasks=scan,tia"])
    with pytest.raises(
        ValueError, match="tasks.itc.hardest_from 5 is for form 'hardest', not 'softmax' .leave it at 0"
    ):
        load_config("catalogue_towers", ["tasks.itc.hardest_from=5"])
    with pytest.raises(ValueError, match="tasks.scan.pooling 'mean'.*use 'logsumexp' or 'average'"):
        load_config("catalogue_scan", ["tasks.scan.pooling=mean"])
