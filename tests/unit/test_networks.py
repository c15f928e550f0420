"""ResNet, ResNeXt and InceptionV3 against Hugging Face's, and against references in PyTorch operations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from fbjax.config.schema import PatchConfig, TrainConfig  # noqa: E402
from fbjax.model.backbones import inception, products, resnet  # noqa: E402
from fbjax.model.backbones.inception import InceptionV3  # noqa: E402
from fbjax.model.backbones.layers import Conv, ConvNorm  # noqa: E402
from fbjax.model.backbones.resnet import (  # noqa: E402
    ResNet,
    caffe_centred,
    resnet50,
    resnet50_v1,
    resnext101_32x8d,
    standardised,
)
from fbjax.model.patch_features import build_patch_network  # noqa: E402
from fbjax.runs.state import make_optimizer  # noqa: E402
from tests.support import inceptions  # noqa: E402
from tests.support.resnets import (  # noqa: E402
    IMAGENET,
    as_arrays,
    assert_equal_to_reference,
    feature_map,
    hugging_face_resnet50,
    pictures,
    run,
    shapes_of,
    small_hugging_face,
)

SMALL = {"depths": (1, 2, 1), "stem": 8, "bottleneck": 8}


def standardise(images):
    return (images - IMAGENET[0]) / IMAGENET[1]


@pytest.mark.parametrize("size", [20, 32, 64, 97])
@pytest.mark.parametrize("strided, downsample_in_bottleneck", [(1, False), (0, True)], ids=["v1.5", "v1"])
def test_a_small_resnet_is_hugging_faces_at_many_sizes(strided, downsample_in_bottleneck, size):
    model = small_hugging_face(downsample_in_bottleneck)
    images = pictures(size)
    ours = run(ResNet(**SMALL, strided=strided), (resnet.HUGGING_FACE,), as_arrays(model.state_dict()), images)
    assert_equal_to_reference(ours, feature_map(model, standardise(images)))


def test_v1_and_v1_5_differ_where_the_stride_is():
    arrays, images = as_arrays(small_hugging_face(False).state_dict()), pictures(64)
    found = [run(ResNet(**SMALL, strided=i), (resnet.HUGGING_FACE,), arrays, images) for i in (0, 1)]
    assert found[0].shape == found[1].shape and np.abs(found[0] - found[1]).max() > 0.1 * np.abs(found[0]).max()


@pytest.mark.parametrize(
    "network, strided, epsilon, prepare",
    [(resnet50(), 1, 1e-5, standardised), (resnet50_v1(), 0, 1.001e-5, caffe_centred)],
    ids=["resnet50", "resnet50_v1"],
)
def test_the_two_resnets_are_what_their_names_say(network, strided, epsilon, prepare):
    assert (network.strided, network.epsilon, network.prepare) == (strided, epsilon, prepare)
    pixel = np.array([[[[10.0, 20.0, 30.0]]]])
    by_hand = {
        standardised: [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225],
        caffe_centred: [30 - 103.939, 20 - 116.779, 10 - 123.68],
    }
    np.testing.assert_allclose(np.ravel(prepare(jnp.asarray(pixel))), by_hand[prepare], rtol=1e-5)


def test_resnet50_from_a_saved_hugging_face_model_gives_its_pooled_features(tmp_path):
    model = hugging_face_resnet50()
    model.float().save_pretrained(tmp_path)
    config = PatchConfig(str(tmp_path / "model.safetensors"), "resnet50", "per_patch", 64, 32, patch_input_size=32)
    network = build_patch_network(config)
    images = pictures(64, count=1)
    features = np.asarray(jax.jit(network.apply)(network.params, images))
    cut = np.stack([images[0, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)])
    assert_equal_to_reference(features[0], feature_map(model, standardise(cut)).mean(axis=(1, 2)))
    assert (network.num_patches, network.feature_size) == (4, 2048)


def test_inception_v3_is_a_reference_in_torch_operations():
    state, images = inceptions.random_state(), pictures(107)
    ours = run(InceptionV3(), (inception.TORCHVISION,), as_arrays(state), images)
    assert ours.shape == (2, 2, 2, 2048)
    assert_equal_to_reference(ours, inceptions.reference(state, images))


@pytest.mark.parametrize(
    "network, count",
    [
        (resnet50(), 23_508_032),
        (resnet50_v1(), 23_508_032),
        (resnext101_32x8d(), 86_742_336),
        (InceptionV3(), 21_785_568),
    ],
    ids=["resnet50", "resnet50_v1", "resnext101_32x8d", "inception_v3"],
)
def test_parameters_are_as_many_as_published(network, count):
    assert sum(np.prod(shape) for name, shape in shapes_of(network).items() if "moving_" not in name) == count


def test_the_reference_of_inception_v3_has_the_published_count_too():
    trained = ("conv.weight", "bn.weight", "bn.bias")
    sizes = {n: t.numel() for n, t in inceptions.random_state().items() if n.endswith(trained) and "Aux" not in n}
    assert sum(sizes.values()) == 21_785_568


def test_training_moves_kernels_and_scales_but_no_stored_moment():
    network, images = ConvNorm(4, 3, 1e-5), jnp.asarray(pictures(8), jnp.float32)
    optimizer = make_optimizer(TrainConfig(num_steps=10, warmup_steps=1, learning_rate=0.1, weight_decay=0.5))

    @jax.jit
    def trained():
        start = params = network.init(jax.random.key(0), images)
        state = optimizer.init(params)
        for _ in range(2):  # the first step's learning rate is 0
            gradient = jax.grad(lambda p: (network.apply(p, images) ** 2).sum())(params)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return jax.tree.map(lambda old, new: jnp.abs(old - new).max(), start, params)["params"]

    moved = trained()
    assert moved["bn"]["moving_mean"] == moved["bn"]["moving_variance"] == 0
    assert min(moved["conv"]["kernel"], moved["bn"]["gamma"], moved["bn"]["beta"]) > 0


@pytest.mark.parametrize("size, stride", [(3, 1), (3, 2), ((1, 7), 1), (7, 2)])
def test_a_map_smaller_than_the_kernel_is_convolved_like_any_other(size, stride):
    for cells in ((1, 1), (2, 2), (2, 5), (1, 9)):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *cells, 3)), jnp.float32)
        height, width = np.broadcast_to(size, 2).tolist()
        conv = Conv(4, (height, width), stride, padded=True, groups=1)
        kernel = np.random.default_rng(1).normal(size=(height, width, 3, 4)).astype(np.float32)
        expected = F.conv2d(
            torch.tensor(np.asarray(x)).permute(0, 3, 1, 2),
            torch.tensor(kernel).permute(3, 2, 0, 1),
            stride=stride,
            padding=(height // 2, width // 2),
        ).permute(0, 2, 3, 1)
        np.testing.assert_allclose(conv.apply({"params": {"kernel": kernel}}, x), expected, rtol=1e-4, atol=1e-4)


def same_pads(cells, size, stride):
    """TensorFlow's SAME padding of one axis, before and after."""
    missing = max((-(-cells // stride) - 1) * stride + size - cells, 0)
    return missing // 2, missing - missing // 2


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("cells", [(8, 8), (7, 9), (1, 2), (11, 6)])
@pytest.mark.parametrize("kind", ["depthwise", "gathered"])
def test_convolutions_as_products_and_their_gradients_are_torchs(kind, cells, size, stride):
    draw = np.random.default_rng(0).normal
    x = draw(size=(3, *cells, 4)).astype(np.float32)
    kernel = draw(size=(size, size, 4) if kind == "depthwise" else (size, size, 4, 6)).astype(np.float32)
    as_torch = kernel[..., None] if kind == "depthwise" else kernel
    as_torch = torch.tensor(as_torch.transpose(2, 3, 0, 1) if kind == "depthwise" else as_torch.transpose(3, 2, 0, 1))
    map_, as_torch = torch.tensor(x.transpose(0, 3, 1, 2)).requires_grad_(), as_torch.requires_grad_()
    padded = F.pad(map_, (*same_pads(cells[1], size, stride), *same_pads(cells[0], size, stride)))
    expected = F.conv2d(padded, as_torch, stride=stride, groups=4 if kind == "depthwise" else 1)
    upstream = draw(size=expected.shape).astype(np.float32)
    expected.backward(torch.tensor(upstream))

    ours, pull = jax.vjp(lambda x, kernel: getattr(products, kind)(x, kernel, stride), x, kernel)
    by_x, by_kernel = pull(jnp.asarray(upstream.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(ours, expected.detach().permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_x, map_.grad.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    own = as_torch.grad.permute(2, 3, 0, 1)[..., 0] if kind == "depthwise" else as_torch.grad.permute(2, 3, 1, 0)
    np.testing.assert_allclose(by_kernel, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradient_of_depthwise_products_is_jaxs_own_also_for_many_at_once(stride):
    x, kernel = jax.random.normal(jax.random.key(0), (2, 9, 8, 4)), jax.random.normal(jax.random.key(1), (3, 3, 4))

    def grouped(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel[:, :, None], (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=4
        )

    made, pull = jax.vjp(lambda *args: products.depthwise(*args, stride), x, kernel)
    upstream = jax.random.normal(jax.random.key(2), (3, *made.shape))  # as the K gradients of Eq. 6 are taken
    theirs = jax.vmap(jax.vjp(grouped, x, kernel)[1])(upstream)
    for one, other in zip(jax.vmap(pull)(upstream), theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
