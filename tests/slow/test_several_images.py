"""Training on drawn garments with two pictures, of which the first alone tells little."""

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ImageOps

from fbjax.evaluation.evaluate import evaluate
from fbjax.training.loop import train
from tests.support.runs import tiny_config
from tests.support.tables import encode, make_products

COMMON = ("tasks.itc.embedding_dim=32", "adaptive.method=fixed", "train.log_every=50", "model.hidden_dropout=0")
SETTINGS = {
    "linear": ("train.num_steps=150", "train.save_every=150", "train.learning_rate=1e-2"),
    "encoder": ("train.num_steps=300", "train.save_every=300", "train.learning_rate=2e-3", "train.batch_size=16"),
}


def write_table(path, products):
    """The first picture is grey, the second mirrored and in colour."""
    columns = ("id", "title", "caption", "category", "group")
    table = pa.table({name: [p[name] for p in products] for name in columns})
    pairs = [
        [encode(ImageOps.grayscale(p["image"]).convert("RGB")), encode(ImageOps.mirror(p["image"]))] for p in products
    ]
    pq.write_table(table.append_column("image", pa.array(pairs, pa.list_(pa.binary()))), path)


def test_a_second_picture_that_shows_the_colour_is_read(tmp_path, trains_on_one_device):
    tiny_config(tmp_path)
    write_table(tmp_path / "train.parquet", make_products(192, seed=0))
    write_table(tmp_path / "validation.parquet", [p | {"group": "v" + p["group"]} for p in make_products(48, seed=1)])
    auc = {}
    for branches in ("linear", "encoder"):
        for most in (1, 2):
            given = (f"tasks.itc.branches={branches}", f"data.max_images={most}", *SETTINGS[branches])
            workdir = tmp_path / f"{branches}-{most}"
            train(tiny_config(tmp_path, "tasks=itc", "patches.mode=cached", *COMMON, *given), workdir)
            auc[branches, most] = evaluate(workdir, protocols=("matching",))["matching"]["auc"]
    assert auc["linear", 2] > auc["linear", 1] + 0.05, auc
    assert auc["encoder", 2] > auc["encoder", 1] + 0.05, auc
