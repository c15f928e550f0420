"""What `prepare --check` understands of strange tables, and that their rows come through reading."""

import csv
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fbjax.config.load import load_config
from fbjax.config.schema import Columns, Config, DataConfig
from fbjax.data.inspection.check import check
from fbjax.data.inspection.understand import as_columns, understand
from fbjax.data.sources.base import Product, Skipped, open_source
from fbjax.data.sources.images import normalise_image
from fbjax.data.sources.table_readers import column_names, form_of, read_rows, sample_rows
from fbjax.data.sources.tables import Tables, image_bytes
from tests.support.tables import COLUMNS, encode, make_products, write_csv, write_jsonl, write_parquet

PRODUCTS = make_products(60)
MAPPED = Columns(text=("title", "caption"), group="group")


def write_rows(path, header, rows, encoding="utf-8", delimiter=","):
    with open(path, "w", encoding=encoding, newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([header, *rows])
    return path


def lines_of(path, config=None):
    lines = []
    check(str(path), config, lines.append)
    return "\n".join(lines)


def read(path, columns=MAPPED, image_root=""):
    data = DataConfig(columns=columns, image_root=image_root)
    return list(open_source(data, 32, str(path)).products([path], None))


def german(folder, where="Bilder"):
    """A semicolon export with other names; pictures lie in a folder that the paths do not name."""
    (folder / where).mkdir()
    rows = []
    for number, product in enumerate(PRODUCTS):
        (folder / where / f"{number}.JPG").write_bytes(encode(product["image"], "JPEG"))
        rows.append([product["id"], product["title"], product["category"].upper() + "Ä", "9,90", f"{number}.JPG"])
    header = ("Artikelnummer", "Bezeichnung", "Warengruppe", "Preis", "Bild")
    return write_rows(folder / "Katalog.CSV", header, rows, "utf-8-sig", ";")


def test_the_proposed_mapping_reads_every_row_of_a_table_of_other_names(tmp_path):
    found = understand([german(tmp_path)])
    assert as_columns(found.mapping) == Columns("Artikelnummer", ("Bezeichnung",), "Bild", "Warengruppe", "")
    assert found.image_root == str(tmp_path / "Bilder")
    products = read(tmp_path / "Katalog.CSV", as_columns(found.mapping), found.image_root)
    assert [type(product) for product in products] == [Product] * 60
    assert sum(count for _, count, _ in found.categories) == found.num_products == found.num_rows == 60


def test_the_proposed_flags_are_understood_by_a_config(tmp_path):
    said = lines_of(german(tmp_path))
    flags = [line.strip(" \\").removeprefix("--config.") for line in said.splitlines() if "--config." in line][1:]
    config = load_config(Path(__file__).parents[2] / "configs/my_catalogue.py", flags)
    assert config.data.columns == Columns("Artikelnummer", ("Bezeichnung",), "Bild", "Warengruppe", "")
    assert config.data.image_root == str(tmp_path / "Bilder")


@pytest.mark.parametrize("write", [write_parquet, write_jsonl])
def test_embedded_images_and_groups_are_found(tmp_path, write):
    found = understand([write(tmp_path / f"t.{'parquet' if write is write_parquet else 'jsonl'}", PRODUCTS)])
    assert as_columns(found.mapping) == MAPPED
    assert found.num_groups == len({product["group"] for product in PRODUCTS})
    assert found.pictures.num_tried == 60 and not found.pictures.skips


@pytest.mark.parametrize(
    "header, says",
    [
        ("sku,productDisplayName,articleType,image_url", "image_url holds URLs, which are not fetched"),
        ("sku,productDisplayName,brand,file", "category  -  none: looked for a column of few values"),
    ],
)
def test_a_role_that_no_column_can_take_is_named_with_what_to_do(tmp_path, header, says):
    rows = [[f"s{i}", f"fine thing {i}", "abc"[i % 3], f"https://x.example/{i}.jpg"] for i in range(30)]
    said = lines_of(write_rows(tmp_path / "t.csv", header.split(","), rows))
    assert says in said and "no training yet: no column for" in said


def test_a_config_s_mapping_is_checked_against_the_table(tmp_path):
    path = write_csv(tmp_path / "t.csv", PRODUCTS)
    columns = dataclasses.replace(MAPPED, text=("name",))
    config = dataclasses.replace(Config(), data=dataclasses.replace(Config().data, columns=columns))
    said = lines_of(path, config)
    assert "config.data.columns.text: there is no column 'name'; taken here: title, caption" in said


def test_what_would_be_skipped_is_what_reading_skips(tmp_path):
    rows = [{**PRODUCTS[0], "image": b""}, {**PRODUCTS[1], "image": "none.png"}, {**PRODUCTS[2], "image": "NULL"}]
    rows += [{**PRODUCTS[4], "category": "nan"}, {**PRODUCTS[5], "id": PRODUCTS[0]["id"]}, *PRODUCTS[6:]]
    path = write_csv(tmp_path / "t.csv", rows)
    found = understand([path])
    expected = [product.reason for product in read(path) if isinstance(product, Skipped)]
    said = {skip.reason: skip.count for skip in (*found.skips, *found.pictures.skips)}
    assert said == {reason: expected.count(reason) for reason in expected} and len(said) == 5


@pytest.mark.parametrize("form", ["products.csv", "products.parquet"])
@pytest.mark.parametrize("num, taken", [(20, 20), (60, 60), (200, 60)])
def test_a_sample_falls_in_step_with_no_rhythm_of_the_table(tmp_path, form, num, taken):
    path = (write_csv if form.endswith("csv") else write_parquet)(tmp_path / form, PRODUCTS)
    sampled = [(number, row["id"]) for _, number, row in sample_rows([path], {"id"}, num, len(PRODUCTS))]
    assert len(sampled) == taken
    assert all(PRODUCTS[number - 1]["id"] == id_ for number, id_ in sampled)
    for rhythm in (2, 3, 5):
        assert {number % rhythm for number, _ in sampled} == set(range(rhythm))


def test_checking_needs_no_heavy_import(tmp_path):
    code = (
        "import sys, fbjax.data.inspection.check; print([m for m in ('jax', 'tensorflow', 'flax') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "raw", [b"", b"\n\n", b"\0", b"id,title,category,image\n", b'"', b"id;id;;\n;;;\n", b"\xff\xfe"]
)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_no_text_is_too_strange_to_check(tmp_path, raw, suffix):
    (tmp_path / f"t.{suffix}").write_bytes(raw)
    assert "no training yet" in lines_of(tmp_path / f"t.{suffix}")


def test_cells_of_every_kind_are_described(tmp_path):
    cells = [None, [], {}, [[1, [2]]], {"bytes": 3}, "\ud83d\0", 1e999, True, 10**30, "x" * 10_000, "//", "data:,", "~"]
    rows = [dict.fromkeys(COLUMNS, cell) for cell in cells]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert f"{len(cells)} rows" in lines_of(tmp_path / "t.jsonl")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1"])
def test_an_encoding_is_recognised(tmp_path, encoding):
    rows = [
        {**product, "title": f"Kleid in Größe {number} – Ausverkauf"} for number, product in enumerate(PRODUCTS[:9])
    ]
    rows = rows if encoding != "latin-1" else [{**row, "title": row["title"].replace("–", "-")} for row in rows]
    path = write_csv(tmp_path / "t.csv", rows, encoding=encoding)
    assert [product.text for product in read(path, Columns())] == [row["title"] for row in rows]


def test_a_damaged_byte_does_not_turn_utf_8_into_another_encoding(tmp_path):
    path = write_csv(tmp_path / "t.csv", [{**product, "title": "Größe"} for product in PRODUCTS[:9]])
    path.write_bytes(path.read_bytes().replace("ö".encode(), b"\xc3", 1))
    assert form_of(path).damaged
    assert [product.text for product in read(path, Columns())] == ["Gr\ufffdße"] + ["Größe"] * 8


def test_an_open_quote_costs_its_own_line_only(tmp_path):
    (tmp_path / "t.csv").write_text('id,title\n1,"one\n2,two\n3,"three, or\nmore"\n4,"four"\n5,5" heel\n6,"six')
    rows = list(read_rows(tmp_path / "t.csv"))
    texts = ["two", "three, or\nmore", "four", '5" heel', "six"]
    assert rows == ["malformed row", *({"id": str(i), "title": text} for i, text in enumerate(texts, start=2))]


def test_a_header_as_spreadsheets_write_it(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\n id ;title;title;;\n1;a;b;;;;\n")
    assert column_names(tmp_path / "t.csv") == ["id", "title", "title.2", "column 4", "column 5"]
    assert list(read_rows(tmp_path / "t.csv")) == [
        {"id": "1", "title": "a", "title.2": "b", "column 4": "", "column 5": ""}
    ]


def test_a_parquet_table_may_repeat_columns_and_hold_text_that_is_no_utf_8(tmp_path):
    raw = pyarrow.array([b"a", b"Gr\xf6\xdfe"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    table = pyarrow.Table.from_arrays([pyarrow.array([1, 2]), text, text], [" id", "title", "title"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert list(read_rows(tmp_path / "t.parquet", {"id", "title"})) == [
        {"id": 1, "title": "a", "title.2": "a"},
        {"id": 2, "title": b"Gr\xf6\xdfe", "title.2": b"Gr\xf6\xdfe"},
    ]


@pytest.mark.parametrize(
    "name", ["images\\a b.JPG", "./images/a b.JPG", "{}/images/a b.JPG", "file://{}/images/a%20b.JPG"]
)
def test_a_path_is_found_however_it_is_written(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a b.JPG").write_bytes(b"picture")
    assert image_bytes(name.format(tmp_path), tmp_path) == b"picture"
    assert image_bytes([None, {"path": name.format(tmp_path)}], tmp_path) == b"picture"


@pytest.mark.parametrize(
    "name, kind", [("/dev/zero", OSError), ("a\0b", OSError), ("https://x.example/a.jpg", ValueError)]
)
def test_what_is_no_file_is_not_read(tmp_path, name, kind):
    with pytest.raises(kind):
        image_bytes(name, tmp_path)


def test_a_picture_of_too_many_pixels_is_refused_by_its_header():
    raw = bytearray(encode(Image.new("RGB", (8, 8))))
    raw[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(ValueError, match="100,000,000 pixels|undecodable"):  # the header's checksum is not right
        normalise_image(bytes(raw), 32)
    with pytest.raises(ValueError, match="100,000,000 pixels"):
        normalise_image(encode(Image.new("1", (20_000, 20_000))), 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_picture():
    raw = encode(PRODUCTS[0]["image"], "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)
    assert normalise_image(raw, 64) == raw
    with Image.open(io.BytesIO(normalise_image(encode(Image.new("RGB", (1, 1)), "WEBP"), 64))) as image:
        assert image.size == (1, 1)


def test_a_file_name_may_look_like_a_pattern(tmp_path):
    path = write_csv(tmp_path / "products [new].csv", PRODUCTS[:4])
    assert Tables(DataConfig(), 32).find(str(path)) == [path]


def test_an_excel_file_under_another_name_is_recognised(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(ValueError, match="t.csv is a ZIP or Excel file, not text: export it as CSV"):
        lines_of(tmp_path / "t.csv")


def test_names_that_swallowed_other_cells_are_skipped(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{**PRODUCTS[0], "id": "x" * 501}, {**PRODUCTS[1], "id": "a\0"}])
    skipped, product = read(path)
    assert skipped.reason == "id of more than 500 characters" and product.id == "a"
