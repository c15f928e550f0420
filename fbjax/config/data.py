"""The settings of what a run reads: product tables, and a log of events on their products."""

import dataclasses
from typing import Literal

from fbjax.config.settings import setting

GROUPS = "groups"  # in place of a log's table


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column of the product table holds what."""

    id: str = setting(
        "id", "identifies a product; the first row of each id counts; '': the name of the file and the row's number do"
    )
    text: tuple[str, ...] = setting(("title",), "one or more columns, joined by a space")
    image: str = setting(
        "image",
        "a path, bytes, or a {bytes, path} struct (Hugging Face's); of several the first that is there; or a path made "
        "of columns in braces, images/{id:.3}/{id}.jpg, where :.3 takes the first three letters",
    )
    category: str = setting("category", "negatives and candidates come from the same value")
    group: str = setting("", "products never to be told apart (variants, duplicates); '': every product on its own")
    more_images: tuple[str, ...] = setting(
        (), "further columns of the same kind, for data.max_images above 1: a product's other pictures"
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The product tables and how they are read."""

    source: str = setting(
        "tables",
        "tables: product tables; release: files of the authors' release, with patch features for images; or a source "
        "that is registered elsewhere",
    )
    train: str = setting(
        "",
        "a table, a glob of tables (.parquet, .csv, .tsv, .jsonl, .xlsx, ..) or a folder of them, a folder of class "
        "folders of pictures, or 'fashiongen:train'",
        is_path=True,
        may_change=True,
    )
    validation: str = setting("", "the same; '': a part of `train` is held out", is_path=True, may_change=True)
    holdout: float = setting(0.05, "share of the groups held out where there is no validation table")
    encoding: str = setting("", "of text tables, such as 'gb18030'; '': found out")
    extra_cells: Literal["skip", "text"] = setting(
        "skip",
        "rows of a text table with more cells than its header (an unquoted comma); skip: they are skipped; text: the "
        "last text column takes the cells too many",
    )
    image_root: str = setting("", "folder of image paths; '': the table's folder", is_path=True, may_change=True)
    images_outside: bool = setting(
        False,
        "image files outside image_root are read too: by absolute paths, by .. and by links; false: their rows are "
        "skipped",
        may_change=True,
    )
    manual_dir: str = setting(
        "",
        "folder of Fashion-Gen's HDF5 files, which 'fashiongen:train' and 'fashiongen:validation' name; '': TFDS's "
        "own, $TFDS_DATA_DIR or ~/tensorflow_datasets, + /downloads/manual",
        is_path=True,
        may_change=True,
    )
    columns: Columns = Columns()
    max_images: int = setting(
        1,
        "pictures of a product, at most: the first that can be read, of several rows, of several columns, or of a cell "
        "that names several; each has its own patches among the image's",
        "[1, inf)",
    )
    num_patches: int = setting(0, "P of features that the source gives for images (the release: 64)", "[0, inf)")
    feature_size: int = setting(0, "C of them (the release: 2048); both 0: it gives images", "[0, inf)")
    prepared: str = setting(
        "prepared", "folder for records, may be gs://.., and cached features, may not", is_path=True, may_change=True
    )
    arrays: str = setting(
        "",
        "folder that fbjax prepare --arrays has written: training and evaluation read it in place of records, and "
        "import no TensorFlow; '': records",
        is_path=True,
        may_change=True,
    )
    on_device: bool = setting(
        False,
        "pictures of data.arrays, or cached features, are put on the devices once, sharded by row over the devices "
        "that share a batch; a batch is then a list of rows",
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """A log of events: queries and the products that were clicked, or products that belong together."""

    table: str = setting(
        "",
        "a table, a glob of tables or a folder of them; groups: every two products of one group; '': none",
        is_path=True,
        or_name=True,
        may_change=True,  # to where the table was moved: its events are compared
    )
    query: tuple[str, ...] = setting(
        ("query",), "one or more columns, joined by a space: the query, and perhaps queries that go with it"
    )
    product: str = setting("product", "the id of the product that was clicked")
    other: str = setting("", "the id of a second product: an event is then two products, and has no query")
    count: str = setting("", "how often it happened; '': once. An epoch has an event 1 + log2(count) times")
    label: str = setting("", "1: query and product match, 0: they do not; '': all match")
    query_tokens: int = setting(16, "tokens of a query, [CLS] and [SEP] included", "[4, inf)")

    @property
    def has_pairs(self) -> bool:
        """Whether an event is two products."""
        return self.table == GROUPS or self.other != ""
