"""Alignment-guided masking: one side of each pair is hidden, as much as without a guide, alike in all tasks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.config.checks import contradictions
from fbjax.config.schema import AdaptiveConfig, MeshConfig
from fbjax.model.fashionbert import InputSpec
from fbjax.tasks import masking
from fbjax.tasks.alignment.guide import NO_LINK, guide, image_tokens, num_grids
from tests.support.objectives import CONFIG, TRAIN, B, T, make_batch, make_objective, make_tasks
from tests.unit.test_kaleido import FINE, KALEIDO, PICTURES
from tests.unit.test_objective import ONE_LAYER, assert_same_step, stepped

KEYS = jax.random.split(jax.random.key(0), 64)
WORDS = jnp.array([-1, 0, 1, -1, -1, -1])  # [CLS] w0 w1 [SEP] [PAD] [PAD]
TWO = jnp.array([NO_LINK, 2, 0, NO_LINK, NO_LINK, NO_LINK])[:, None]  # w0 goes to patch 2, w1 to patch 0, of four


def hidden_of(key, links, rate=0.5):
    """(words [2], patches [4]) that mlm and mpm hide of two words and four patches."""
    found = guide(key, links, WORDS, 4)
    mlm, mpm = jax.random.split(jax.random.fold_in(key, 7))  # of their own: only the guide is shared
    words = masking.choose_words(mlm, WORDS, rate, found.words)[1:3]
    return words, jax.nn.one_hot(masking.choose_patches(mpm, 4, rate, found.patches), 4, dtype=bool).any(axis=0)


def test_of_two_words_and_their_patches_one_side_each_is_hidden():
    words, patches = map(np.asarray, jax.vmap(lambda key: hidden_of(key, TWO))(KEYS))
    assert (words.sum(axis=1) == 1).all() and (patches.sum(axis=1) == 2).all()  # half of each
    paired = patches[:, [2, 0]]
    seen = set()
    for word, patch in zip(words.tolist(), paired.tolist(), strict=True):
        by_word, by_patch = sum(word), sum(patch)
        if by_patch == 1:  # one coin each way: the word of the one, the patch of the other, and an unpaired patch
            assert [a != b for a, b in zip(word, patch, strict=True)] == [True, True]
        else:  # both coins alike: both patches, or one word and the unpaired patches
            assert by_patch == 2 or (by_patch, by_word) == (0, 1)
        seen.add((tuple(word), tuple(patch)))
    assert {((True, False), (False, True)), ((False, True), (True, False))} <= seen
    assert any(patch == (True, True) for _, patch in seen) and any(patch == (False, False) for _, patch in seen)


def test_words_that_share_a_patch_are_on_one_side():
    links = jnp.array([NO_LINK, 1, 1, NO_LINK, NO_LINK, NO_LINK])[:, None]
    found = jax.vmap(lambda key: guide(key, links, WORDS, 4))(KEYS)
    words, patches = np.asarray(found.words), np.asarray(found.patches)
    assert (words[:, 0] == words[:, 1]).all() and {*words[:, 0].tolist()} == {0, 2}
    np.testing.assert_array_equal(patches[:, 1], 2 - words[:, 0])
    assert (patches[:, [0, 2, 3]] == 1).all()


def test_a_patch_of_a_finer_grid_is_not_hidden_where_one_of_its_words_may_be():
    words = jnp.array([-1, 0, 1, -1])
    links = jnp.array([[NO_LINK] * 2, [0, 5], [1, 5], [NO_LINK] * 2])  # cells 0 and 1 of one grid, both 5 of the other
    for key in KEYS:
        found = guide(key, links, words, 6)
        sides = np.asarray(found.words)[:2]
        assert found.patches[5] == (2 if (sides == 0).any() else 0)


def test_links_lie_at_the_centre_of_their_cell_in_each_grid():
    one = InputSpec(60, 4, 16, 1 + 16, 7, first_patch=1)
    links = np.array([[NO_LINK, 0, 3, 15]])
    assert image_tokens(links, 4, one)[..., 0].tolist() == [[NO_LINK, 1, 4, 16]]
    scales = InputSpec(60, 4, 16, 55, 7, scales=(1, 2, 3, 4, 5))
    found = image_tokens(
        np.array([[NO_LINK, 0, 8, 5]]), 3, scales
    )  # centres (1/6, 1/6), (5/6, 5/6), (1/2, 5/6) of 3 x 3
    assert found.dtype == np.int16 and found.shape[2] == num_grids(scales.scales) == 3
    # first cells: 5, 14, 30
    expected = [[-1] * 3, [5, 14, 30], [5 + 8, 14 + 15, 30 + 24], [5 + 5, 14 + 2 * 4 + 3, 30 + 2 * 5 + 4]]
    assert found[0].tolist() == expected


def kaleido_batch(links=None):
    images = np.random.default_rng(0).integers(0, 255, (2, B, 20, 20, 3), dtype=np.uint8)
    return make_batch()._replace(image=images[0], negative=images[1], links=links)


def random_links(num_patches, grids=1, seed=0):
    """[B, T, K], the same for all pieces of a word."""
    rng, words = np.random.default_rng(seed), make_batch().word_ids
    of_word = rng.integers(0, num_patches, (B, T, grids)) * (rng.random((B, T, 1)) < 0.5)
    of_word[of_word[..., 0] == 0] = NO_LINK
    links = np.take_along_axis(of_word, np.maximum(words, 0)[..., None], axis=1)
    return np.where(words[..., None] < 0, NO_LINK, links).astype(np.int16)


@pytest.mark.parametrize("kaleido", [False, True])
def test_masks_without_links_are_the_random_ones(kaleido):
    if kaleido:
        objective, batch = make_objective(KALEIDO, make_tasks("mlm", "tia", *PICTURES), FINE), kaleido_batch()
    else:
        objective, batch = make_objective(), make_batch()
    none = np.full((B, T, 3 if kaleido else 1), NO_LINK, np.int16)
    plain, empty = (objective.draw_masks(b, jax.random.key(3)) for b in (batch, batch._replace(links=none)))
    jax.tree.map(np.testing.assert_array_equal, plain.targets, empty.targets)
    for name in ("ids", "hidden") + ("source",) * kaleido:
        np.testing.assert_array_equal(getattr(plain.examples, name), getattr(empty.examples, name))


def test_paired_patches_come_first_in_every_picture_task_and_rates_hold():
    objective = make_objective(KALEIDO, make_tasks("mlm", "tia", *PICTURES), FINE)
    links = image_tokens(random_links(25)[..., 0], 5, objective.model.spec)
    masked, plain = (
        objective.draw_masks(kaleido_batch(given), jax.random.key(3)) for given in (links, np.full_like(links, NO_LINK))
    )
    chosen = [(masked.targets["mlm"].weight > 0).sum(axis=1), (plain.targets["mlm"].weight > 0).sum(axis=1)]
    np.testing.assert_array_equal(*chosen)
    ranks = np.asarray(masked.examples.guide.patches)
    for name, first, count, number in (("camouflage", 5, 9, 1), ("grey", 14, 16, 2), ("blank", 30, 25, 3)):
        targets = masked.targets[name]
        places = np.asarray(5 + targets.answers[..., None] if name == "camouflage" else targets.places)
        assert places.shape == (B, 2, number)
        for row in range(B):
            lowest = np.sort(ranks[row, first : first + count])[:number]
            for image in range(2):  # a negative's image by the same guide, or the places would tell it apart
                np.testing.assert_array_equal(np.sort(ranks[row, places[row, image]]), lowest)


def test_padding_changes_no_guided_mask():
    found = [guide(key, TWO, WORDS[:length], 4) for key in KEYS[:8] for length in (4, 6)]
    for short, long in zip(found[::2], found[1::2], strict=True):
        np.testing.assert_array_equal(short.patches, long.patches)
        np.testing.assert_array_equal(short.words, long.words[:4])


def test_eight_devices_and_micro_batches_change_no_guided_step(monkeypatch):
    links = random_links(16)
    monkeypatch.setattr("tests.unit.test_objective.make_batch", lambda seed=0: make_batch(seed)._replace(links=links))
    config = dataclasses.replace(CONFIG, model=ONE_LAYER, adaptive=AdaptiveConfig(method="fixed"))
    in_parts = dataclasses.replace(config, train=dataclasses.replace(TRAIN, micro_batches=2))
    assert_same_step(stepped(config), stepped(in_parts, mesh=MeshConfig(8, 1, 1)))


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        (("mlm", "tia"), {}, "do not hide both (add mlm, and mpm"),
        (("mpm", "tia"), {}, "do not hide both (add mlm, and mpm"),
        (("mlm", "mpm", "tia"), {"column_dropout": 0.5}, "knows the words of whole texts"),
        (("mlm", "mpm", "tia"), {}, ""),
    ],
)
def test_what_cannot_be_guided_is_refused(tasks, settings, message):
    train = dataclasses.replace(TRAIN, guided_masks="runs/alignment", **settings)
    found = [
        x for x in contradictions(dataclasses.replace(CONFIG, tasks=make_tasks(*tasks), train=train)) if "guided" in x
    ]
    assert len(found) == bool(message) and all(message in line for line in found)
