"""Weight files that Keras itself writes."""

import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("torch")


from fbjax.config.schema import PatchConfig  # noqa: E402
from fbjax.model.patch_features import build_patch_network  # noqa: E402
from tests.support.resnets import pictures  # noqa: E402

KERAS = """
import os
os.environ["KERAS_BACKEND"] = "jax"
import keras, numpy as np
rng = np.random.default_rng(0)
for name, make, cut in [
    ("resnet50", keras.applications.ResNet50, "resnet50"), ("mobilenet", keras.applications.MobileNet, "mobilenet"),
]:
    model = make(weights=None, include_top=False, input_shape=(64, 64, 3))
    for weight in model.weights:
        low, high = (0.3, 0.9) if weight.name == "gamma" else (0.5, 1.5) if "variance" in weight.name else (-0.3, 0.4)
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(low, high, weight.shape))
        else:
            weight.assign(rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])) , weight.shape))
    model.save(f"{name}.h5")
    images = np.load("images.npy").astype("float32")
    prepare = getattr(keras.applications, cut).preprocess_input
    np.save(f"{name}.npy", model.predict(prepare(images.copy()), verbose=0))
"""


def test_networks_that_keras_itself_saved_give_keras_features(tmp_path):
    images = pictures(64)
    np.save(tmp_path / "images.npy", images)
    subprocess.run([sys.executable, "-c", KERAS], cwd=tmp_path, check=True)
    for name, network in [("resnet50", "resnet50_v1"), ("mobilenet", "mobilenet_v1")]:
        sizes = {"image_size": 64, "patch_size": 32, "patch_input_size": 32}
        patches = PatchConfig(str(tmp_path / f"{name}.h5"), network, geometry="feature_map", **sizes)
        ours = build_patch_network(patches)
        features = np.asarray(jax.jit(ours.apply)(ours.params, images))
        reference = np.load(tmp_path / f"{name}.npy").reshape(2, 4, -1)
        assert np.abs(features - reference).max() < 1e-4 * np.abs(reference).max()
