"""The drawn catalogue: which products it has, and its two Parquet files.

`garments` draws the products and `words` describes them. A group is one combination of attributes with one to three
pictures and texts.
"""

import dataclasses
import functools
import hashlib
import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from fbjax.core.paths import atomic_write
from fbjax.data.synthetic import garments
from fbjax.data.synthetic.words import describe

VERSION = 4  # of pictures and texts; files of another version are drawn again
MIN_PRODUCTS = 100
VALIDATION_SHARE = 0.2
NUM_EXAMPLES = 8  # validation pictures also written as files
GROUP_SIZES = (0.65, 0.25, 0.10)  # of one, two and three products
PLAIN_WEIGHT = 6.0  # of a plain garment; a patterned one has 1
_FIELDS = ("id", "title", "caption", "category", "subcategory", "colour", "pattern", "group")


@dataclasses.dataclass(frozen=True)
class Order:
    """One product before it is drawn."""

    id: str
    kind: str
    group: str
    garment: dict[str, str]
    validation: bool


def write_catalogue(folder: str | Path, num_products: int, seed: int, progress: Callable) -> dict[str, Path]:
    """Draws train.parquet, validation.parquet (disjoint groups) and examples/ in `folder`, unless they exist already.

    `progress(iterable, total, label)` passes the products through. One process per core draws, so a script that calls
    this needs ``if __name__ == "__main__"``.
    """
    orders = plan(num_products, seed)
    files = _files(folder)
    if is_drawn(folder, num_products, seed):
        return files
    Path(folder).mkdir(parents=True, exist_ok=True)
    rows = {"train": [], "validation": []}
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"), initializer=_leave_interrupts) as pool:
        drawn = pool.map(functools.partial(draw_product, seed=seed), orders, chunksize=16)
        for order, row in progress(zip(orders, drawn, strict=True), len(orders), "drawing"):
            rows["validation" if order.validation else "train"].append(row)
    for number, row in enumerate(rows["validation"][:NUM_EXAMPLES], start=1):
        example = Path(folder) / "examples" / f"{number}.jpg"
        example.parent.mkdir(exist_ok=True)
        example.write_bytes(row["image"]["bytes"])
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([(name, pa.string()) for name in _FIELDS] + [("image", image)])
    schema = schema.with_metadata(_provenance(num_products, seed))
    for split, file in files.items():
        with atomic_write(file) as partial:
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows[split], schema), partial)
    return files


def _leave_interrupts() -> None:
    """Leaves Ctrl-C to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def is_drawn(folder: str | Path, num_products: int, seed: int) -> bool:
    """Whether both files exist and have this size, seed and version."""
    wanted = _provenance(num_products, seed).items()
    try:
        stored = [pyarrow.parquet.read_schema(file).metadata or {} for file in _files(folder).values()]
    except (OSError, pa.ArrowInvalid):
        return False
    return all(wanted <= metadata.items() for metadata in stored)


def plan(num_products: int, seed: int) -> list[Order]:
    """All products in shuffled order, kinds equally often. Raises ValueError if the number is out of range."""
    kinds = list(garments.CATEGORIES)
    most = len(kinds) * min(map(garments.num_combinations, kinds))
    if not MIN_PRODUCTS <= num_products <= most:
        raise ValueError(f"cannot draw {num_products} products: set a number from {MIN_PRODUCTS} to {most}")
    rng = np.random.default_rng([seed, 0])
    orders = []
    for place, kind in enumerate(kinds):
        left = num_products // len(kinds) + (place < num_products % len(kinds))
        size = garments.num_combinations(kind)
        weights = [1 if "accent" in garments.combination(kind, number) else PLAIN_WEIGHT for number in range(size)]
        numbers = np.argsort(rng.exponential(size=size) / weights)  # without replacement, heavy ones early
        sizes = []
        while left:
            sizes.append(min(left, 1 + int(rng.choice(len(GROUP_SIZES), p=GROUP_SIZES))))
            left -= sizes[-1]
        validation = rng.permutation(len(sizes)) < VALIDATION_SHARE * len(sizes)
        for index, copies in enumerate(sizes):
            group, garment = f"{kind}-{index:04d}", garments.combination(kind, int(numbers[index]))
            for copy in range(copies):
                orders.append(Order(f"{group}-{'abc'[copy]}", kind, group, garment, bool(validation[index])))
    return [orders[place] for place in rng.permutation(len(orders))]


def draw_product(order: Order, seed: int) -> dict:
    """The row of one product; `image` holds a JPEG of 192 x 256."""
    digest = hashlib.sha256(f"{seed} {order.id}".encode()).digest()
    own = [int.from_bytes(digest[:8], "little"), VERSION]
    texts = describe(order.kind, order.garment, np.random.default_rng([*own, 1]))
    category, fabric = garments.CATEGORIES[order.kind], (order.garment["colour"], order.garment["pattern"])
    row = dict(zip(_FIELDS, (order.id, *texts, category, order.kind, *fabric, order.group), strict=True))
    return row | {"image": {"bytes": garments.draw(order.kind, order.garment, [*own, 2]), "path": f"{order.id}.jpg"}}


def _files(folder: str | Path) -> dict[str, Path]:
    return {split: Path(folder) / f"{split}.parquet" for split in ("train", "validation")}


def _provenance(num_products: int, seed: int) -> dict[bytes, bytes]:
    return {b"fbjax_drawn": f"version {VERSION}, {num_products} products, seed {seed}".encode()}
