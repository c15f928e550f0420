"""Tables as shops and data sets export them: the check proposes the mapping, and `prepare` makes the products."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from fbjax.config.data import DataConfig
from fbjax.data.inspection.check import check
from fbjax.data.inspection.understand import as_columns, understand
from fbjax.data.records.builder import build_records
from fbjax.data.sources import tables
from fbjax.data.sources.base import open_source
from fbjax.data.sources.readers import find_tables
from fbjax.data.text.wordpiece import Vocabulary
from tests.support.tables import COLOURS, SHAPES, encode, make_products

PRODUCTS = make_products(24)
VOCABULARY = Vocabulary.train([f"{p['title']} {p['caption']}" for p in PRODUCTS], 300)
PAGE = '<meta charset="utf-8"><p><span style="font-weight: 400;">A {}&nbsp;&amp; co.</span></p>\n'
PAGE += "<ul><li>{}</li><li>Wash</li></ul>"
SHOPIFY = "Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Published,Option1 Name,Option1 Value,Variant SKU,"
SHOPIFY += "Variant Price,Image Src,Image Position,Image Alt Text,Status"
WOOCOMMERCE = "ID,Type,SKU,GTIN,Name,Published,Is featured?,Visibility in catalog,Short description,Description,"
WOOCOMMERCE += "Tax status,In stock?,Stock,Regular price,Categories,Tags,Images,Parent,Position"


def write(path, header, rows):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, header.split(","))
        writer.writeheader()
        writer.writerows(rows)
    return path


def picture(folder, name, product):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(encode(product["image"], "PNG"))
    return name


def prepared(path, folder):
    """The products of a table under the mapping that the check proposes, what was skipped, and the mapping."""
    files = find_tables(str(path))
    columns = as_columns(understand(files).mapping)
    data = DataConfig(train=str(path), columns=columns, holdout=0.0)
    records = build_records(open_source(data, 64), VOCABULARY, folder / "prepared", lambda rows, total, label: rows)
    return records["train"].products(range(len(records["train"]))), records["train"].report()["skipped"], columns


def said(path):
    lines = []
    check(str(path), None, lines.append)
    return "\n".join(lines)


def shopify(folder):
    """A row for each of three sizes; the second and the third picture of a product stand on rows of their own."""
    rows = []
    for number, product in enumerate(PRODUCTS):
        handle = f"{product['title'].replace(' ', '-')}-{number}"
        first = {"Handle": handle, "Title": product["title"], "Body (HTML)": PAGE.format(product["title"], "Lined")}
        first |= {"Type": product["category"].title(), "Vendor": "Alba", "Option1 Name": "Size", "Published": "true"}
        for place, size in enumerate(("S", "M", "L")):
            row = {"Handle": handle, "Option1 Value": size, "Variant SKU": f"{number}-{size}", "Variant Price": "39.00"}
            rows.append(row | (first if place == 0 else {}))
            if place < 2:
                rows[-1] |= {"Image Src": picture(folder, f"images/{number}_{place}.png", PRODUCTS[number - place])}
                rows[-1] |= {"Image Position": place + 1}
    return write(folder / "products_export.csv", SHOPIFY, rows)


def test_the_rows_of_a_shopify_product_become_one_product_with_its_words_and_first_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 4)  # no multiple of a product's rows
    path = shopify(tmp_path)
    products, skipped, columns = prepared(path, tmp_path)
    assert columns.id == "Handle" and columns.text == ("Title", "Body (HTML)") and columns.category == "Type"
    assert [product.text for product in products] == [f"{p['title']} A {p['title']} & co. Lined Wash" for p in PRODUCTS]
    assert [product.category.lower() for product in products] == [p["category"] for p in PRODUCTS]
    assert [product.image for product in products] == [encode(p["image"], "PNG") for p in PRODUCTS]
    assert skipped == {tables.FURTHER_PICTURE: 24, tables.FURTHER_ROW: 24}
    assert "24 rows of further pictures are not used" in said(path)


def test_a_woocommerce_product_has_the_first_of_its_pictures_that_is_there(tmp_path):
    rows = []
    for number, product in enumerate(PRODUCTS):
        names = ["images/lost.png"] * (number % 2) + [picture(tmp_path, f"images/{number}.png", product)]
        names.append(picture(tmp_path, f"images/{number}_back.png", PRODUCTS[0]))
        row = {"ID": 100 + number, "Type": "simple", "SKU": f"S{number}", "Name": product["title"], "Published": 1}
        row |= {"Short description": f"<p>{product['caption']}</p>", "Images": ", ".join(names)}
        rows.append(
            row | {"Categories": f"Shop &gt; {product['category'].title()}", "Visibility in catalog": "visible"}
        )
    path = write(tmp_path / "wc-product-export.csv", WOOCOMMERCE, rows)
    products, skipped, columns = prepared(path, tmp_path)
    assert columns.text == ("Name", "Short description") and columns.image == "Images"
    assert [product.id for product in products] == [str(100 + number) for number in range(24)]
    assert [product.text for product in products] == [f"{p['title']} {p['caption']}" for p in PRODUCTS]
    assert [product.category for product in products] == [f"Shop > {p['category'].title()}" for p in PRODUCTS]
    assert [product.image for product in products] == [encode(p["image"], "PNG") for p in PRODUCTS] and not skipped
    assert "24 products have more than one picture" in said(path)


def hugging_face(**columns):
    """A table as `datasets` writes it: pictures as structs, classes as integers, their names in the metadata."""
    features = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
    features |= {"label": {"names": list(SHAPES), "_type": "ClassLabel"}}
    table = {
        "image": [{"bytes": encode(p["image"], "PNG"), "path": None} for p in PRODUCTS],
        "text": [p["caption"] for p in PRODUCTS],
        "label": [SHAPES.index(p["category"]) for p in PRODUCTS],
    }
    table = pyarrow.table(table | columns)
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def hugging_face_parquet(folder):
    (folder / "train").mkdir()
    pyarrow.parquet.write_table(hugging_face(), folder / "train/0000.parquet", row_group_size=7)
    return folder / "train", "train/0000.parquet"


def saved_to_disk(folder):
    """Two Arrow streams of several record batches, named by state.json, as `Dataset.save_to_disk` leaves them."""
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    for i, name in enumerate(names):
        part = hugging_face().slice(12 * i, 12)
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, part.schema) as stream:
            stream.write_table(part, max_chunksize=5)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder, f"{folder.name}/{names[0]}"


@pytest.mark.parametrize("make", [hugging_face_parquet, saved_to_disk])
def test_a_hugging_face_data_set_has_named_classes_and_rows_for_ids(tmp_path, make):
    path, first = make(tmp_path)
    products, skipped, columns = prepared(path, tmp_path / "here")
    assert (columns.id, columns.text, columns.image, columns.category) == ("", ("text",), "image", "label")
    assert [product.category for product in products] == [p["category"] for p in PRODUCTS]
    assert [product.image for product in products] == [encode(p["image"], "PNG") for p in PRODUCTS] and not skipped
    assert products[0].id == f"{first}:1" and len({product.id for product in products}) == 24


def test_an_image_folder_is_read_by_its_metadata(tmp_path):
    rows = [{"file_name": picture(tmp_path, f"train/{i}.png", p), "text": p["caption"]} for i, p in enumerate(PRODUCTS)]
    rows = [row | {"label": p["category"]} for row, p in zip(rows, PRODUCTS, strict=True)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    products, skipped, columns = prepared(tmp_path, tmp_path / "here")
    assert (columns.image, columns.text, columns.category) == ("file_name", ("text",), "label") and not skipped
    assert [product.image for product in products] == [encode(p["image"], "PNG") for p in PRODUCTS]


def test_class_folders_of_pictures_are_categories_and_their_files_names_texts(tmp_path):
    for number, product in enumerate(PRODUCTS):
        (tmp_path / "shop" / product["category"]).mkdir(parents=True, exist_ok=True)
        picture(tmp_path, f"shop/{product['category']}/{product['title'].replace(' ', '_')}-{number:02d}.png", product)
    products, skipped, columns = prepared(tmp_path / "shop", tmp_path)
    assert (columns.id, columns.text, columns.image, columns.category) == ("id", ("name",), "file_name", "label")
    expected = {(p["category"], f"{p['title']} {number:02d}") for number, p in enumerate(PRODUCTS)}
    assert {(product.category, product.text) for product in products} == expected and not skipped
    assert {product.text.split()[0] for product in products} <= set(COLOURS)
    name = next(iter(sorted((tmp_path / "shop" / "bag").iterdir()))).stem
    assert products[0].id == f"bag/{name}"
    picture(tmp_path, f"shop/bag/{name}.png", PRODUCTS[5])
    assert prepared(tmp_path / "shop", tmp_path)[0][0].image == encode(PRODUCTS[5]["image"], "PNG")
    source = open_source(DataConfig(train=str(tmp_path / "shop")), 64)
    before = source.fingerprint(VOCABULARY)
    picture(tmp_path, "shop/bag/one_more.png", PRODUCTS[0])
    assert source.fingerprint(VOCABULARY) != before
