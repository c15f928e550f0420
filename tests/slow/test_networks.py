"""ResNeXt-101 against a reference, and the patches of an image taken in turns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

from fbjax.model import patch_features  # noqa: E402
from fbjax.model.backbones import resnet  # noqa: E402
from tests.support.resnets import (  # noqa: E402
    RESNEXT101,
    as_arrays,
    assert_equal_to_reference,
    pictures,
    run,
    torchvision_features,
    torchvision_resnet,
)


def test_resnext101_is_a_reference_in_torch_operations():
    depths, _, groups = RESNEXT101
    state, images = torchvision_resnet(*RESNEXT101), pictures(64)
    ours = run(resnet.resnext101_32x8d(), (resnet.TORCHVISION,), as_arrays(state), images)
    assert_equal_to_reference(ours, torchvision_features(state, depths, groups, images))


def test_patches_taken_in_turns_are_patches_taken_at_once(monkeypatch):
    def network(x, key):  # a patch's own features, so that a patch in a wrong place shows
        return jnp.stack([x.mean(axis=-1), x[..., 0] * x[..., 1]], axis=-1)

    images = jnp.asarray(pictures(48, count=3), jnp.float32)
    whole = patch_features.per_patch_features(network, images, 8, 12)
    for turns in (1, 2, 6, 36):  # patches of an image at a time: 36, 18, 6, 1
        monkeypatch.setattr(patch_features, "PIXELS_AT_ONCE", 3 * (36 // turns) * 12**2)
        np.testing.assert_allclose(patch_features.per_patch_features(network, images, 8, 12), whole, rtol=1e-6)
    enlarged = jax.image.resize(images[1, 8:16, 16:24], (12, 12, 3), "bilinear")
    by_hand = network(enlarged[None], None).mean(axis=(1, 2))[0]
    np.testing.assert_allclose(whole[1, 1 * 6 + 2], by_hand, rtol=1e-5)
