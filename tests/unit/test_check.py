"""What `prepare --check` understands of strange tables, and that their rows come through reading."""

import csv
import dataclasses
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fbjax.config.data import Columns, DataConfig
from fbjax.config.load import load_config
from fbjax.config.schema import Config
from fbjax.data.inspection.check import check
from fbjax.data.inspection.understand import as_columns, understand
from fbjax.data.sources import tables
from fbjax.data.sources.base import Product, Skipped, hashed, open_source
from fbjax.data.sources.image_folder import ImageFolder
from fbjax.data.sources.images import normalise_image
from fbjax.data.sources.pictures import image_bytes
from fbjax.data.sources.readers import open_table
from fbjax.data.sources.readers.encodings import find_encoding
from fbjax.data.sources.readers.sampling import sample_rows
from fbjax.data.sources.tables import Tables
from tests.support.tables import COLUMNS, encode, make_products, write_csv, write_jsonl, write_parquet

PRODUCTS = make_products(60)
PICTURE = encode(PRODUCTS[0]["image"], "JPEG")
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


def moved(folder, name):
    """A table in folder/shop whose paths, written as `name`, lead to folder/pictures."""
    (folder / "shop").mkdir()
    (folder / "pictures/deep").mkdir(parents=True)
    for number, product in enumerate(PRODUCTS):
        (folder / f"pictures/deep/{number}.png").write_bytes(encode(product["image"]))
    if name.startswith("link"):
        (folder / "shop/link").symlink_to(folder / "pictures")
    rows = [{**product, "image": name.format(folder, number)} for number, product in enumerate(PRODUCTS)]
    return write_csv(folder / "shop/t.csv", rows)


@pytest.mark.parametrize(
    "name, flag",
    [
        ("{}/pictures/deep/{}.png", "--config.data.image_root={}/pictures/deep"),
        ("file://{}/pictures/deep/{}.png", "--config.data.image_root={}/pictures/deep"),
        ("../pictures/deep/{1}.png", "--config.data.images_outside=true"),
        ("link/deep/{1}.png", "--config.data.images_outside=true"),
    ],
)
def test_pictures_outside_the_table_s_folder_are_reached_by_the_proposed_flag(tmp_path, name, flag):
    path = moved(tmp_path, name)
    flag = flag.format(tmp_path)
    said = lines_of(path)
    assert flag in said and "skipped" not in said and "60 PNG RGB" in said
    plain = Config(data=DataConfig(columns=MAPPED))
    assert f"{flag.partition('=')[0][2:]}: " in lines_of(path, plain)  # a warning, since prepare would skip them
    config = load_config(Path(__file__).parents[2] / "configs/my_catalogue.py", [flag.removeprefix("--config.")])
    for data, kind in ((config.data, Product), (plain.data, Skipped)):
        data = dataclasses.replace(data, columns=MAPPED)
        assert {type(found) for found in open_source(data, 32, str(path)).products([path], None)} == {kind}


HEADERS = {  # id, title, category, image; the title's words
    "商品编号 商品名称 类别 图片": "红色真丝连衣裙女士夏季新款 绿色羊毛衬衫男士冬季加厚 黑色真皮手提包女士通勤",
    "编号 产品标题(中文) 商品分类 图片路径": "红色真丝连衣裙女士夏季 绿色羊毛衬衫男士冬季 黑色真皮手提包",
    "商品番号 タイトル カテゴリー 画像": "シルクの赤いワンピース レザーの黒いハンドバッグ ウールの緑色シャツ",
    "상품번호 상품명 카테고리 이미지": "빨간 실크 원피스 | 검은 가죽 가방 | 초록 울 셔츠",
    "รหัสสินค้า ชื่อสินค้า หมวดหมู่ รูปภาพ": "ชุดเดรสผู้หญิงสีแดง กระเป๋าหนังสีดำ เสื้อเชิ้ตผ้าขนสัตว์",
    "Артикул Наименование Категория Изображение": "Красное шёлковое платье | Чёрная кожаная сумка | Зелёная рубашка",
    "رمز_المنتج اسم_المنتج الفئة الصورة": "فستان حرير أحمر | حقيبة جلد سوداء | قميص صوف أخضر",
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_roles_are_found_in_scripts_with_and_without_spaces(tmp_path, header, named):
    titles = HEADERS[header].split(" | ") if "|" in HEADERS[header] else HEADERS[header].split()
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(40):
        (tmp_path / f"images/{number}.png").write_bytes(encode(PRODUCTS[number]["image"]))
        kind, brand = number % 3, "耐克 阿迪达斯 优衣库 美特斯邦威".split()[number % 4]
        title = titles[kind] + titles[(number + number // 3) % 3]
        rows.append([f"{1000 + number}", title, titles[kind][-3:].strip(), f"images/{number}.png", brand])
    names = header.split() if named else ["a", "b", "c", "d"]
    found = understand([write_rows(tmp_path / "t.csv", [*names, "品牌"], rows)])
    id_, title, category, image = names
    assert as_columns(found.mapping) == Columns(id_, (title,), image, category, "")


def merchant_feed(folder, group="item_group_id", colour_in_title=True):
    """A Google Merchant feed: three sizes and two colours of each product, one picture a colour."""
    header = f"id title description link image_link availability price google_product_category brand {group}"
    header = [*header.split(), "age_group", "color", "gender", "size", "condition", "local_image"]
    (folder / "img").mkdir()
    rows, kinds = [], ["Dresses", "Shirts", "Bags", "Shoes"]
    for number in range(180):
        product, colour, size = number // 6, ("red", "navy")[number % 2], "SML"[number // 2 % 3]
        kind, material = kinds[product % 4], ("silk", "wool", "denim", "linen", "cotton")[product % 5]
        title = f"{('Corva', 'Alba', 'Brio')[product % 3]} {material} {kind.lower()} no. {product}"
        picture = f"img/{product}-{colour}.jpg"
        (folder / picture).write_bytes(encode(PRODUCTS[number % 60]["image"], "JPEG"))
        rows.append(
            [
                f"SKU{number:04}",
                f"{title}, {colour}" if colour_in_title else title,
                f"Made of {material}, to last. Machine wash at 30.",
                f"https://shop.example/p/{number}",
                f"https://shop.example/{picture}",
                "in stock",
                f"{20 + product % 3}.90 EUR",
                f"Apparel & Accessories > {kind}",
                title.split()[0],
                f"G{product:03}",
                ("adult", "kids", "toddler")[product % 3],
                colour,
                "female",
                size,
                "new",
                picture,
            ]
        )
    return write_rows(folder / "feed.tsv", header, rows, delimiter="\t")


@pytest.mark.parametrize("colour_in_title", [True, False])
@pytest.mark.parametrize("name", ["item_group_id", "modello", "column_9"])
def test_the_group_of_a_merchant_feed_is_what_joins_variants(tmp_path, name, colour_in_title):
    path = merchant_feed(tmp_path, name, colour_in_title)
    found = understand([path])
    expected = Columns("id", ("title", "description"), "local_image", "google_product_category", name)
    assert as_columns(found.mapping) == expected
    assert "joins 6.0 rows a value; 100% of repeated texts are inside one group" in lines_of(path)


@pytest.mark.parametrize(
    "name", ["age_group", "colour_group_code", "size_group", "product_group_name", "style", "group"]
)
def test_what_joins_products_of_all_kinds_is_no_group(tmp_path, name):
    rows = [[p["id"], p["title"], p["category"], f"{number % 7:03}"] for number, p in enumerate(PRODUCTS)]
    found = understand([write_rows(tmp_path / "t.csv", ["id", "title", "category", name], rows)])
    assert found.mapping["group"] == ()


def test_an_export_of_hm_is_understood(tmp_path):
    """Ten digits with a leading zero name an article and its picture, the first seven its product."""
    header = "article_id product_code prod_name product_type_no product_type_name product_group_name colour_group_code"
    header = f"{header} colour_group_name department_no index_group_no garment_group_no garment_group_name detail_desc"
    rows = []
    for number in range(240):
        product, colour = number // 3, number * 7 % 11
        kind, name = ("Dress", "Shirt", "Bag", "Shoe")[product % 4], f"{'ABCDEFGHIJ'[product % 10]}ria {product // 4}"
        code = f"0{108775 + product}"
        rows.append(
            [
                *(f"{code}{15 + number % 3:03}", code, name, 250 + product % 4, kind, f"Garment {product % 2}"),
                *(f"{colour:02}", f"Colour {colour}", 1000 + product % 16, 1 + product % 2, 1000 + product % 8),
                *(f"Jersey {product % 8}", f"{kind} in a soft weave with {name} details and a {product % 9} cm hem."),
            ]
        )
        (tmp_path / "images" / code[:3]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / code[:3] / f"{rows[-1][0]}.jpg").write_bytes(PICTURE)
    path = write_rows(tmp_path / "articles.csv", header.split(), rows)
    said = lines_of(path)
    flags = [line.split(".", 1)[1] for line in shlex.split(said) if line.startswith("--config.")]
    config = load_config(Path(__file__).parents[2] / "configs/my_catalogue.py", flags)
    picture = "images/{article_id:.3}/{article_id}.jpg"
    assert config.data.columns == Columns(
        "article_id", ("prod_name", "detail_desc"), picture, "product_type_name", "product_code"
    )
    assert "joins 3.0 rows a value" in said and "200 JPEG RGB" in said
    products = read(path, config.data.columns)
    assert products[0].id == "0108775015" and products[0].image == normalise_image(PICTURE, 32)
    assert len(products) == 240 and {type(product) for product in products} == {Product}


@pytest.mark.parametrize(
    "image, says",
    [
        ("images/{nr}.jpg", "there is no column 'nr'"),
        ("images/{id", "config.data.columns.image 'images/{id': expected '}'"),
        ("images/{id:x}.jpg", "config.data.columns.image 'images/{id:x}.jpg': Unknown format code 'x'"),
    ],
)
def test_a_path_of_columns_that_cannot_be_made_is_named(tmp_path, image, says):
    path = write_csv(tmp_path / "t.csv", PRODUCTS)
    config = dataclasses.replace(Config(), data=DataConfig(columns=dataclasses.replace(MAPPED, image=image)))
    try:
        said = lines_of(path, config)
    except ValueError as error:
        said = str(error)
    assert says in said


def groups_between(low, high, num):
    """`num` names of groups that a holdout of `high` takes, and of `low` does not."""
    return [name for name in map("g{}".format, range(3000)) if low <= hashed(name) < high][:num]


HELD, NEXT, KEPT = groups_between(0, 0.05, 9), groups_between(0.05, 0.1, 9), groups_between(0.5, 1, 600)


@pytest.mark.parametrize(
    "groups, categories, says, flags",
    [
        (
            ["one"] * 20,
            "ab",
            "all 20 products are of one group: there is nothing to tell apart",
            ["data.columns.group="],
        ),
        (HELD[:2] + KEPT[:18], "ab", "18 training products are fewer than a batch of 512", ["train.batch_size=16"]),
        (HELD[:1] + NEXT[:1] + KEPT, "ab", "1 of 602 groups are validated on, and each part", ["data.holdout=0.1"]),
        (KEPT[:3], "ab", "0 of 3 groups are validated on: too few to divide; add products, or a table", []),
        (HELD + KEPT, "", "no category holds two groups: negatives come from any category", []),
        (HELD + KEPT, "ab", "", []),
    ],
)
def test_what_is_in_the_way_of_training_is_said_with_the_smallest_change(tmp_path, groups, categories, says, flags):
    """`categories` "": every product is a category of its own."""
    rows = [
        [number, f"thing {number}", categories[number % 2] if categories else f"kind {number}", group, f"{number}.png"]
        for number, group in enumerate(groups)
    ]
    path = write_rows(tmp_path / "t.csv", ["id", "title", "category", "group", "image"], rows)
    config = load_config(Path(__file__).parents[2] / "configs/my_catalogue.py", ["data.columns.group=group"])
    said = lines_of(path, config)
    assert says in said and ("in the way of training" in said) == bool(says)
    printed = [line.split(".", 1)[1].strip(" \\") for line in said.splitlines() if line.startswith("    --config.")]
    assert [flag for flag in printed if not flag.startswith(("data.train=", "data.columns.group=group"))] == flags


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
    sampled = [(number, row["id"]) for _, number, row in sample_rows([open_table(path)], {"id"}, num, len(PRODUCTS))]
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
    assert find_encoding(path).damaged
    assert [product.text for product in read(path, Columns())] == ["Gr\ufffdße"] + ["Größe"] * 8


def test_an_open_quote_costs_its_own_line_only(tmp_path):
    (tmp_path / "t.csv").write_text('id,title\n1,"one\n2,two\n3,"three, or\nmore"\n4,"four"\n5,5" heel\n6,"six')
    rows = list(open_table(tmp_path / "t.csv").rows())
    texts = ["two", "three, or\nmore", "four", '5" heel', "six"]
    assert rows == ["malformed row", *({"id": str(i), "title": text} for i, text in enumerate(texts, start=2))]


def test_a_header_as_spreadsheets_write_it(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\n id ;title;title;;\n1;a;b;;;;\n")
    assert open_table(tmp_path / "t.csv").columns() == ["id", "title", "title.2", "column 4", "column 5"]
    assert list(open_table(tmp_path / "t.csv").rows()) == [
        {"id": "1", "title": "a", "title.2": "b", "column 4": "", "column 5": ""}
    ]


def test_a_parquet_table_may_repeat_columns_and_hold_text_that_is_no_utf_8(tmp_path):
    raw = pyarrow.array([b"a", b"Gr\xf6\xdfe"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    table = pyarrow.Table.from_arrays([pyarrow.array([1, 2]), text, text], [" id", "title", "title"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert list(open_table(tmp_path / "t.parquet").rows({"id", "title"})) == [
        {"id": 1, "title": "a", "title.2": "a"},
        {"id": 2, "title": b"Gr\xf6\xdfe", "title.2": b"Gr\xf6\xdfe"},
    ]


@pytest.mark.parametrize(
    "name", ["images\\a b.JPG", "./images/a b.JPG", "{}/images/a b.JPG", "file://{}/images/a%20b.JPG"]
)
def test_a_path_is_found_however_it_is_written(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a b.JPG").write_bytes(b"picture")
    assert image_bytes(name.format(tmp_path), ImageFolder(tmp_path)) == b"picture"
    assert image_bytes([None, {"path": name.format(tmp_path)}], ImageFolder(tmp_path)) == b"picture"


@pytest.mark.parametrize(
    "name, kind", [("/dev/zero", OSError), ("a\0b", OSError), ("https://x.example/a.jpg", ValueError)]
)
def test_what_is_no_file_is_not_read(tmp_path, name, kind):
    with pytest.raises(kind):
        image_bytes(name, ImageFolder(tmp_path))


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


def test_rows_of_more_or_fewer_cells_than_the_header_are_counted_with_the_cause(tmp_path):
    path = write_csv(tmp_path / "t.csv", [{**product, "caption": "red, blue"} for product in PRODUCTS])
    lines = path.read_text().replace('"red, blue"', "red, blue", 7).splitlines()
    path.write_text("\n".join([*lines[:-2], *(line.rpartition(",")[0] for line in lines[-2:])]))
    said = lines_of(path)
    assert "! t.csv: 7 rows have more cells than the header, mostly for an unquoted delimiter: they are skipped" in said
    assert "! t.csv: 2 rows have fewer cells than the header" in said and "skipped: 7 more cells than" in said
    data = DataConfig(columns=MAPPED, extra_cells="text")
    found = list(open_source(data, 32, str(path)).products([path], None))
    assert sum(isinstance(product, Product) for product in found) == 58
    assert {product.text.removeprefix(row["title"]) for product, row in zip(found, PRODUCTS[:58], strict=False)} == {
        " red, blue"
    }
    config = dataclasses.replace(Config(), data=data)
    assert "7 rows have more cells than the header, mostly for an unquoted delimiter: the last text" in lines_of(
        path, config
    )


def test_rounded_ids_are_told_and_a_column_of_one_value_is_no_id(tmp_path):
    columns = ("ean", "title", "category", "image")
    rows = [["4.05812E+12", p["title"], p["category"], f"{number}.jpg"] for number, p in enumerate(PRODUCTS)]
    found = understand([write_rows(tmp_path / "t.csv", columns, rows)])
    assert found.mapping["id"] == () and found.num_products == 60
    (warning,) = found.warnings
    assert "ean: 60 numbers such as 4.05812E+12 have lost their last digits" in warning
    numbered = [["sku", *columns], *([f"s{number}", *row] for number, row in enumerate(rows))]
    assert understand([write_rows(tmp_path / "u.csv", numbered[0], numbered[1:])]).mapping["id"] == ("sku",)


def test_whole_floats_are_written_as_integers_and_doubted_where_floats_skip_some(tmp_path):
    table = {"id": [19753086241975312.0 + 4 * i for i in range(60)], "title": [p["title"] for p in PRODUCTS]}
    table |= {"category": [p["category"] for p in PRODUCTS], "image": ["a.jpg"] * 60}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    found = understand([tmp_path / "t.parquet"])
    assert found.mapping["id"] == ("id",) and "id: 60 numbers such as 19753086241975312 have lost" in found.warnings[0]
    rows = tables.Tables(DataConfig(), 0).rows([tmp_path / "t.parquet"], None, images=False)
    assert [row.id for _, row, _ in rows] == [str(19753086241975312 + 4 * i) for i in range(60)]


@pytest.mark.parametrize("several", ["joined", "list", "columns"])
def test_pictures_that_are_left_out_are_counted(tmp_path, several):
    rows = []
    for number, product in enumerate(PRODUCTS):
        names = [f"{number}_{side}.png" for side in "ab"]
        for name in names:
            (tmp_path / name).write_bytes(encode(product["image"]))
        row = {"sku": f"s{number}", "title": product["title"], "category": product["category"]}
        images = {"joined": {"images": "|".join(names)}, "list": {"images": names}}
        rows.append(row | images.get(several, dict(zip(("image_1", "image_2"), names, strict=True))))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = lines_of(tmp_path / "t.jsonl")
    told = "pictures of image_2 are not used" if several == "columns" else "60 products have more than one picture"
    assert told in said and "60 PNG RGB" in said
