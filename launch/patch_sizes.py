"""What a patch network costs, and how many of its dimensions live, for isolated patches enlarged to several sizes.

    python launch/patch_sizes.py mobilenet_v1 --sizes 32 64 96 128 224 \
        --weights ../shared/weights/mobilenet_v1_0.75_224.npz --images '../shared/data/catalogue/validation-*.parquet'
    python launch/patch_sizes.py resnet50 --count 1

Images of 256 pixels are cut into 64 patches of 32, as in the paper. Sizes that a network cannot take are left out.
GFLOP are XLA's count for one patch, a product and a sum counted apart; CPU seconds are of all threads together, which
other work beside it changes less than the clock. Without --weights they are random, without --images noise: good for
the cost alone. `live`: dimensions that vary at all between the patches (`count_live_dimensions`); `zeros`: the share of
features that are 0.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from fbjax.config.schema import DataConfig, PatchConfig
from fbjax.data.sources.image_folder import ImageFolder
from fbjax.data.sources.pictures import image_bytes
from fbjax.data.sources.readers.sampling import sample_rows
from fbjax.data.sources.tables import Tables
from fbjax.model.backbones.registry import BACKBONES
from fbjax.model.patch_features import PatchNetwork, build_patch_network, count_live_dimensions
from fbjax.model.weights.files import write_npz

IMAGE_SIZE, PATCH_SIZE = 256, 32


def random_weights(name: str, path: Path) -> Path:
    """A file of random weights, MobileNetV1's at full width."""
    network = BACKBONES[name].build({"conv1/kernel": np.zeros((3, 3, 3, 32))})
    write_npz(path, jax.jit(network.init)(jax.random.key(0), np.zeros((1, 96, 96, 3), np.float32))["params"])
    return path


def read_images(pattern: str, count: int) -> np.ndarray:
    """uint8 [count, 256, 256, 3], spread over a table's rows."""
    from fbjax.data.records.pipeline import decode_image

    source = Tables(DataConfig(), IMAGE_SIZE)
    opened = [source.open(file) for file in source.find(pattern)]
    rows = sample_rows(opened, {"image"}, count, sum(1 for table in opened for _ in table.rows(set())))
    encoded = (image_bytes(row["image"], ImageFolder(table.folder)) for table, _, row in rows)
    return np.stack([decode_image(image, IMAGE_SIZE) for image in encoded])


def measured(network: PatchNetwork, images: np.ndarray) -> str:
    """A line of figures, after one image to compile and warm up."""
    lowered = jax.jit(network.apply).lower(network.params, images[:1])
    apply = lowered.compile()
    jax.block_until_ready(apply(network.params, images[:1]))
    begin, cpu = time.perf_counter(), time.process_time()
    features = np.concatenate([np.asarray(apply(network.params, image[None])) for image in images])
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    patches = len(images) * network.num_patches
    return (
        f"{lowered.cost_analysis()['flops'] / network.num_patches / 1e9:.3f} GFLOP a patch, {patches / seconds:.1f} "
        f"patches/s, {1000 * cpu / patches:.1f} CPU milliseconds a patch, {count_live_dimensions(features)} of "
        f"{network.feature_size} live, {(features == 0).mean():.1%} zeros"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=[name for name, backbone in BACKBONES.items() if backbone.needs_weights])
    parser.add_argument("--weights", default="")
    parser.add_argument("--images", default="", help="a table, or a glob of tables, with a column `image`")
    parser.add_argument("--count", type=int, default=64, help="images")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128, 224])
    args = parser.parse_args()
    images = np.random.default_rng(0).integers(0, 256, (args.count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    if args.images:
        images = read_images(args.images, args.count)
    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights or random_weights(args.network, Path(folder) / "random.npz")
        for size in args.sizes:
            if size < BACKBONES[args.network].smallest or size % BACKBONES[args.network].multiple:
                continue
            config = PatchConfig(str(weights), args.network, "per_patch", IMAGE_SIZE, PATCH_SIZE, patch_input_size=size)
            print(f"{args.network} at {size}: {measured(build_patch_network(config), images)}", flush=True)


if __name__ == "__main__":
    main()
