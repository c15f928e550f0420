"""Augmentation: by hand, pure, the same whatever the order of a batch and the number of devices, and off by default."""

import dataclasses

import jax
import numpy as np
import pytest

from fbjax.config.load import defaults, freeze
from fbjax.config.schema import Augment, MeshConfig
from fbjax.model.augment import augment, crop_weights
from fbjax.parallel.mesh import make_mesh, put_batch
from fbjax.tasks.mlm import MaskedLanguageModelling
from tests.support.objectives import B, make_batch, make_objective

ALL = Augment(flip=True, crop=0.6, brightness=0.3, contrast=0.3)
IMAGES = np.random.default_rng(0).integers(0, 256, (32, 12, 12, 3), dtype=np.uint8)
KEY = jax.random.key(3)


def augmented(batch, key=KEY, config=ALL):
    objective = dataclasses.replace(make_objective(), augment=config)
    return jax.jit(objective.augmented)(batch, key)


def test_off_it_is_the_identity_and_leaves_the_step_as_it_was():
    assert augment(Augment(), KEY, IMAGES) is IMAGES
    batch, objective = make_batch(), make_objective()
    assert objective.augmented(batch, KEY) is batch
    off, on = (dataclasses.replace(objective, augment=config).draw_masks(batch, KEY) for config in (Augment(), ALL))
    assert (off.examples.images != on.examples.images).any()
    np.testing.assert_array_equal(off.examples.ids, on.examples.ids)  # no draw of a task moves
    np.testing.assert_array_equal(off.examples.hidden, on.examples.hidden)


def test_half_of_the_pictures_are_mirrored_and_the_rest_are_as_they_were():
    found = np.asarray(augment(Augment(flip=True), KEY, IMAGES))
    mirrored = np.array([(f == i[:, ::-1]).all() for f, i in zip(found, IMAGES, strict=True)])
    kept = np.array([(f == i).all() for f, i in zip(found, IMAGES, strict=True)])
    assert (mirrored ^ kept).all() and 8 <= mirrored.sum() <= 24


@pytest.mark.parametrize("share, place", [(1.0, 0.3), (0.5, 0.0), (0.75, 1.0), (0.6, 0.4)])
def test_a_crop_is_numpys_interpolation_between_its_pixels(share, place):
    row = IMAGES[0, 0, :, 0].astype(np.float64)
    left, width = place * 12 * (1 - share), 12 * share
    at = left + (np.arange(12) + 0.5) / 12 * width  # where the new pixels' centres lie, in pixels
    expected = np.interp(at, np.arange(12) + 0.5, row)  # beyond the outer centres the outer pixels
    np.testing.assert_allclose(crop_weights(12, share, place) @ row, expected, atol=1e-3)


def test_crops_keep_the_share_that_was_asked_for_and_lie_in_the_picture():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 2, (200, 64, 64, 3))
    found = np.asarray(augment(Augment(crop=0.5), KEY, ramp)).astype(float)
    spans = (found[:, 0, -1, 0] - found[:, 0, 0, 0]) / 126
    assert 0.45 < spans.min() < 0.6 and spans.max() > 0.9 and (np.diff(found[:, 0, :, 0], axis=1) >= 0).all()


def test_brightness_and_contrast_stay_in_their_range():
    grey = np.full((64, 4, 4, 3), 100, np.uint8)
    bright = np.asarray(augment(Augment(brightness=0.2), KEY, grey))
    assert 80 <= bright.min() < 90 and 110 < bright.max() <= 120
    assert (np.asarray(augment(Augment(contrast=0.5), KEY, grey)) == 100).all()  # all at the mean
    halves = np.broadcast_to(np.array([50, 150], np.uint8)[:, None, None], (64, 2, 4, 3))
    found = np.asarray(augment(Augment(contrast=0.5), KEY, halves)).astype(int)
    assert (np.abs(found.sum(axis=1) - 200) <= 1).all()
    assert 25 <= found[:, 0].min() < 40 and 60 < found[:, 0].max() <= 75


def test_a_picture_depends_on_step_and_product_alone():
    batch, order = make_batch(), np.random.default_rng(1).permutation(B)
    found, again, other = augmented(batch), augmented(batch), augmented(batch, jax.random.key(4))
    np.testing.assert_array_equal(found.image, again.image)
    assert (found.image != other.image).any()
    shuffled = augmented(jax.tree.map(lambda x: x[order], batch))
    few = augmented(jax.tree.map(lambda x: x[:3], batch))
    alone = augmented(batch._replace(negative=None))
    for name in ("image", "negative"):
        whole = np.asarray(getattr(found, name))
        assert (whole != getattr(batch, name)).any(axis=(1, 2, 3)).all()
        np.testing.assert_array_equal(getattr(shuffled, name), whole[order])
        np.testing.assert_array_equal(getattr(few, name), whole[:3])
    np.testing.assert_array_equal(alone.image, found.image)
    same = augmented(batch._replace(negative=batch.image))
    assert (same.image != same.negative).any()  # a negative's draws are its own


def test_a_picture_does_not_depend_on_the_number_of_devices():
    batch, mesh = make_batch(), make_mesh(MeshConfig(data=4, fsdp=2))
    np.testing.assert_array_equal(augmented(put_batch(batch, mesh)).image, augmented(batch).image)


def test_all_passes_of_a_step_see_the_same_picture():
    masked = dataclasses.replace(make_objective(), augment=ALL).draw_masks(make_batch(), KEY)
    np.testing.assert_array_equal(masked.examples.images[:, 0], masked.batch.image)
    np.testing.assert_array_equal(masked.examples.images[:, 1], masked.batch.negative)


def test_settings_under_which_it_would_do_nothing_or_harm_are_refused(monkeypatch):
    config = defaults()
    config.model.vocabulary, config.patches.augment.flip = "train:99", True
    assert freeze(config).patches.augment.is_on
    config.patches.mode = "cached"
    with pytest.raises(ValueError, match="mode 'cached' computes their features once .use mode 'frozen' or 'trained'."):
        freeze(config)
    config.patches.mode = "frozen"
    monkeypatch.setattr(MaskedLanguageModelling, "augmentable", False)
    with pytest.raises(ValueError, match="patches.augment would make the targets of task mlm untrue"):
        freeze(config)
    config.patches.augment.flip, config.patches.augment.crop = False, 1.5
    with pytest.raises(ValueError, match=r"patches.augment.crop 1.5 must be in \[0.05, 1\]"):
        freeze(config)
