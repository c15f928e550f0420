"""A tiny run, its table and its index, for tests of the search service."""

from pathlib import Path

from fbjax.serve.index.indexing import index
from fbjax.training.loop import train
from tests.support.runs import tiny_config
from tests.support.tables import make_products, write_csv

PRODUCTS = make_products(40, seed=7)
KEY = "a key that is long enough"
TOWERS = ("train.num_steps=4", "train.save_every=4", "model.num_layers=1", "tasks=itc", "tasks.itc.embedding_dim=16")


def make_index(folder: Path, *settings: str) -> Path:
    """Trains a run in `folder` and indexes its 40 products, with their colours; the folder of the index."""
    train(tiny_config(folder, *TOWERS, *settings), folder / "run")
    with_colour = [p | {"colour": p["title"].split()[0]} for p in PRODUCTS]
    write_csv(folder / "products.csv", with_colour, more=("colour",))
    index(folder / "run", folder / "index", data=str(folder / "products.csv"), fields={"colour": "colour"})
    return folder / "index"
