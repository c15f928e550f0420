"""Product tables of every form against what was put into them: records, skipped rows, splits, images, vocabularies."""

import collections
import dataclasses
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fbjax.config.data import Columns, DataConfig
from fbjax.config.schema import Config
from fbjax.data.records.builder import build_records
from fbjax.data.records.pipeline import decodable, decode_image
from fbjax.data.sources.base import open_source
from fbjax.data.sources.images import normalise_image
from fbjax.data.sources.tables import Tables
from fbjax.data.text.wordpiece import SPECIAL, Vocabulary
from fbjax.runs.vocabulary import make_vocabulary
from tests.support.tables import COLUMNS, encode, make_products, write_csv, write_jsonl, write_parquet

SIZE = 64  # of the model's images: larger than the tables' are
PRODUCTS = make_products(24)
MAPPED = Columns(text=("title", "caption"), group="group")
WORDS = sorted({word.strip(".").lower() for p in PRODUCTS for word in f"{p['title']} {p['caption']}".split()})
PIECES = [*SPECIAL, ".", "lea", "##ther", *(word for word in WORDS if word != "leather")]  # one word of two pieces


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return Vocabulary.from_file(path)


@pytest.fixture
def prepare_table(tmp_path, vocabulary):
    """prepare_table(train=path) prepares these splits in tmp_path / "prepared"."""

    def prepare_(columns=MAPPED, holdout=0.0, image_root="", progress=lambda rows, total, label: rows, **splits):
        named = {split: str(table) for split, table in splits.items()}
        data = DataConfig(**named, columns=columns, image_root=image_root, holdout=holdout)
        return build_records(open_source(data, SIZE), vocabulary, tmp_path / "prepared", progress)

    return prepare_


def read_back(records):
    """Every record as a dict of strings and arrays, its image as encoded."""
    decoders = {"image": tfds.decode.SkipDecoding()}
    examples = [records.features.deserialize_example(x, decoders=decoders) for x in records.open()(range(len(records)))]
    plain = [{name: value.numpy() for name, value in example.items()} for example in examples]
    return [{k: v.decode() if k in ("id", "group", "category") else v for k, v in x.items()} for x in plain]


def skipped_rows(records):
    """(where, id, reason) of every row that was left out."""
    lines = (Path(records.files[0]).parent / "skipped.jsonl").read_text().splitlines()
    return [(row["where"], row["id"], row["reason"]) for row in map(json.loads, lines)]


def pieces_by_hand(text):
    pieces, words = [], []
    for number, word in enumerate(text.lower().replace(".", " .").split()):
        spelled = ["lea", "##ther"] if word == "leather" else [word]
        pieces += [PIECES.index(piece) for piece in spelled]
        words += [number] * len(spelled)
    return pieces, words


def write_bytes_column(path, products):
    return write_parquet(path, [{**p, "image": encode(p["image"], p["format"])} for p in products])


def write_paths_in_structs(path, products):
    for p in products:
        (path.parent / p["id"]).write_bytes(encode(p["image"], p["format"]))
    return write_parquet(path, [{**p, "image": {"bytes": None, "path": p["id"]}} for p in products])


@pytest.mark.parametrize(
    "name, write",
    [
        ("table.parquet", write_parquet),
        ("bytes.parquet", write_bytes_column),
        ("paths.parquet", write_paths_in_structs),
        ("table.csv", write_csv),
        ("semicolon.csv", lambda path, products: write_csv(path, products, delimiter=";")),
        ("bom.csv", lambda path, products: write_csv(path, products, encoding="utf-8-sig")),
        ("table.tsv", lambda path, products: write_csv(path, products, delimiter="\t")),
        ("table.jsonl", write_jsonl),
    ],
)
def test_every_form_of_a_table_gives_back_what_was_put_in(tmp_path, prepare_table, name, write):
    records = prepare_table(train=write(tmp_path / name, PRODUCTS))["train"]
    assert records.ids.tolist() == [p["id"] for p in PRODUCTS]
    assert skipped_rows(records) == []
    for product, record in zip(PRODUCTS, read_back(records), strict=True):
        assert [record[k] for k in ("id", "group", "category")] == [product[k] for k in ("id", "group", "category")]
        pieces, words = pieces_by_hand(f"{product['title']} {product['caption']}")
        assert record["pieces"].tolist() == pieces
        assert record["word_ids"].tolist() == words
        assert record["column_ends"].tolist() == [len(pieces_by_hand(product["title"])[0]), len(pieces)]
        assert record["image"] == encode(product["image"], product["format"])


def test_the_index_agrees_with_the_table(tmp_path, prepare_table):
    records = prepare_table(train=write_parquet(tmp_path / "table.parquet", PRODUCTS))["train"]
    for codes, column in ((records.groups, "group"), (records.categories, "category")):
        values = np.array([p[column] for p in PRODUCTS])
        np.testing.assert_array_equal(codes[:, None] == codes, values[:, None] == values)
    columns = [[len(pieces_by_hand(p[name])[0]) for name in MAPPED.text] for p in PRODUCTS]
    assert records.column_ends.tolist() == np.cumsum(columns, axis=1).tolist()
    assert records.num_pieces.tolist() == np.sum(columns, axis=1).tolist()


def test_without_a_group_column_every_product_is_a_group(tmp_path, prepare_table):
    columns = dataclasses.replace(MAPPED, group="")
    records = prepare_table(train=write_parquet(tmp_path / "table.parquet", PRODUCTS), columns=columns)["train"]
    assert len(set(records.groups.tolist())) == len(PRODUCTS)


def test_a_glob_is_read_in_order_of_file_names(tmp_path, prepare_table):
    write_csv(tmp_path / "part-1.csv", PRODUCTS[8:])
    write_parquet(tmp_path / "part-0.parquet", PRODUCTS[:8])
    records = prepare_table(train=tmp_path / "part-*")["train"]
    assert records.ids.tolist() == [p["id"] for p in PRODUCTS]


def test_image_paths_are_relative_to_the_image_root_where_there_is_one(tmp_path, prepare_table):
    table = write_csv(tmp_path / "table.csv", PRODUCTS)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").rename(tmp_path / "elsewhere/images")
    with pytest.raises(ValueError, match="24 image file not found"):
        prepare_table(train=table)
    assert len(prepare_table(train=table, image_root=str(tmp_path / "elsewhere"))["train"]) == 24


def test_images_and_texts_are_read_in_the_order_asked_for(tmp_path, prepare_table, vocabulary):
    sized = [{**p, "image": p["image"].resize((SIZE, SIZE)), "format": "PNG"} for p in PRODUCTS]
    records = prepare_table(train=write_parquet(tmp_path / "table.parquet", sized))["train"]
    rows = np.array([3, 0, 7, 3, 5])
    batches = list(records.images(rows, SIZE, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), [np.asarray(sized[row]["image"]) for row in rows])
    texts = [pieces_by_hand(f"{sized[row]['title']} {sized[row]['caption']}")[0] for row in rows]
    expected = [[2, *pieces[:6], 3] for pieces in texts]  # eight tokens: cut, [CLS] and [SEP] included
    np.testing.assert_array_equal(records.framed_texts(rows, vocabulary, 8), expected)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def written_slightly_wrong(image):
    """Pictures that Pillow reads and TensorFlow refuses."""
    png, photo = encode(image), encode(image, "JPEG")
    return {
        "no end": png[:-12],
        "a wrong checksum": png[:-16] + bytes(4) + png[-12:],
        "a repeated header": png[:33] + png[8:],
        "an unknown critical chunk": png[:33] + chunk(b"ABCD", b"x") + png[33:],
        "an iPhone's chunk": png[:8] + chunk(b"CgBI", bytes(4)) + png[8:],
        "a JPEG with another end": photo[:-1] + b"\xdc",
    }


def test_a_picture_that_tensorflow_refuses_is_written_anew(tmp_path, prepare_table):
    kinds = written_slightly_wrong(PRODUCTS[0]["image"])
    rows = [broken(0, id=name, image=raw) for name, raw in kinds.items()]
    records = prepare_table(train=write_csv(tmp_path / "table.csv", rows))["train"]
    assert records.ids.tolist() == list(kinds)
    stored, row = read_back(records), np.arange(len(records))
    for (name, raw), pixels, record in zip(
        kinds.items(), next(records.images(row, SIZE, len(row))), stored, strict=True
    ):
        assert record["image"] != raw, f"{name}: TensorFlow refuses it no longer"
        with Image.open(io.BytesIO(raw)) as image, Image.open(io.BytesIO(record["image"])) as kept:
            np.testing.assert_array_equal(np.asarray(kept), np.asarray(image), err_msg=name)
        np.testing.assert_array_equal(pixels, decode_image(raw, SIZE), err_msg=name)


SEEDS = [encode(PRODUCTS[0]["image"], form) for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")]
SEEDS += [encode(PRODUCTS[0]["image"], "JPEG", progressive=True), encode(PRODUCTS[0]["image"].quantize(8))]
EDITS = st.tuples(st.integers(0, 2**16), st.integers(0, 12), st.binary(max_size=12))


@settings(max_examples=300)
@given(st.sampled_from(SEEDS), st.lists(EDITS, min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_are_refused_or_decoded_in_training(raw, edits):
    for place, removed, added in edits:
        place %= len(raw) + 1
        raw = raw[:place] + added + raw[place + removed :]
    try:
        plain = normalise_image(raw, 32)
    except ValueError:
        return
    for fit in ("squash", "pad", "crop", "foreground"):
        assert decode_image(plain, 16, fit).shape == (16, 16, 3)
    stored = decodable(plain)
    assert decodable(stored) is stored


def test_prepared_pictures_without_a_foreground_are_counted(tmp_path, prepare_table):
    flat, half = np.full((40, 50, 3), 255, np.uint8), np.full((40, 50, 3), 255, np.uint8)
    half[:, 30:] = 0  # the margin is one pixel
    rows = [row | {"image": Image.fromarray(x)} for row, x in zip(PRODUCTS, [flat, half, flat], strict=False)]
    records = prepare_table(train=write_parquet(tmp_path / "table.parquet", rows))["train"]
    (shares,) = records.foreground_shares()
    np.testing.assert_allclose(shares, [0, 0.42, 0])


@pytest.mark.parametrize("outside", [False, True])
def test_pictures_outside_the_table_s_folder_are_skipped_unless_allowed(tmp_path, vocabulary, outside):
    (tmp_path / "shop").mkdir()
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "shop/a.png").write_bytes(PNG)
    (tmp_path / "shop/link.png").symlink_to(tmp_path / "a.png")
    names = {"inside": "../shop/a.png", "above": "../a.png", "link": "link.png", "absolute": str(tmp_path / "a.png")}
    table = write_csv(tmp_path / "shop/t.csv", [broken(0, id=id_, image=name) for id_, name in names.items()])
    data = DataConfig(train=str(table), columns=MAPPED, holdout=0.0, images_outside=outside)
    records = build_records(open_source(data, SIZE), vocabulary, tmp_path / "prepared", lambda rows, *_: rows)["train"]
    assert records.ids.tolist() == (list(names) if outside else ["inside"])
    reason = "image outside data.image_root: set that to a folder that holds all images, or data.images_outside to true"
    assert records.report()["skipped"] == ({} if outside else {reason: 3})


def files_and_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_second_preparation_touches_nothing(tmp_path, prepare_table):
    table = write_parquet(tmp_path / "table.parquet", PRODUCTS)
    first = prepare_table(train=table)["train"]
    before = files_and_times(tmp_path / "prepared")
    again = prepare_table(train=table, progress=None)["train"]
    assert files_and_times(tmp_path / "prepared") == before
    assert again.ids.tolist() == first.ids.tolist() and again.files == first.files


def test_an_interrupted_preparation_is_made_anew(tmp_path, prepare_table):
    table = write_parquet(tmp_path / "table.parquet", PRODUCTS)

    def stop_half_way(rows, total, label):
        for number, row in enumerate(rows):
            if number == total // 2:
                raise KeyboardInterrupt
            yield row

    with pytest.raises(KeyboardInterrupt):
        prepare_table(train=table, progress=stop_half_way)
    records = prepare_table(train=table)["train"]
    assert [record["id"] for record in read_back(records)] == [p["id"] for p in PRODUCTS]


def test_a_preparation_that_lost_its_report_is_made_anew(tmp_path, prepare_table):
    table = write_parquet(tmp_path / "table.parquet", PRODUCTS)
    folder = Path(prepare_table(train=table)["train"].files[0]).parent
    (folder / "report.json").unlink()
    (folder / "index-train.npz").write_bytes(b"half")
    records = prepare_table(train=table)["train"]
    assert [record["id"] for record in read_back(records)] == records.ids.tolist() == [p["id"] for p in PRODUCTS]


def test_a_changed_table_is_prepared_anew(tmp_path, prepare_table):
    table = tmp_path / "table.parquet"
    assert len(prepare_table(train=write_parquet(table, PRODUCTS))["train"]) == 24
    assert len(prepare_table(train=write_parquet(table, PRODUCTS[:20]))["train"]) == 20


def broken(number, **values):
    return {**PRODUCTS[number], **values}


def test_pictures_that_changed_under_an_unchanged_table_are_prepared_anew(tmp_path, prepare_table):
    rows = []
    for number, product in enumerate(PRODUCTS):
        (tmp_path / f"{number}.png").write_bytes(encode(product["image"], "PNG"))
        rows.append({**product, "image": f"{number}.png" if number else "file://" + str(tmp_path / "0.png")})
    (tmp_path / "5.png").rename(tmp_path / "aside")
    table = write_csv(tmp_path / "t.csv", rows)

    def prepared():
        records = prepare_table(train=table)["train"]
        return records, {str(p.id): p.image for p in records.products(range(len(records)))}

    first, images = prepared()
    assert len(first) == len(PRODUCTS) - 1 and prepared()[0].home == first.home
    table.touch()  # the table has the same content
    assert prepared()[0].home == first.home

    (tmp_path / "0.png").write_bytes((tmp_path / "1.png").read_bytes())
    changed, now = prepared()
    ids = [p["id"] for p in PRODUCTS]
    assert now[ids[0]] == images[ids[1]] and now[ids[2]] == images[ids[2]] and first.home.is_dir()
    assert changed.digests["texts"] == first.digests["texts"] and changed.digests["images"] != first.digests["images"]

    (tmp_path / "2.png").touch()  # no other content: what is made of the pictures stays valid
    assert prepared()[0].digests == changed.digests
    (tmp_path / "3.png").unlink()  # the records hold it
    assert prepared()[0].digests == changed.digests
    (tmp_path / "aside").rename(tmp_path / "5.png")
    assert ids[5] in prepared()[1]


def test_rows_that_cannot_be_used_are_skipped_each_with_its_row_and_reason(tmp_path, prepare_table):
    without_category = {name: value for name, value in PRODUCTS[14].items() if name != "category"}
    rows = [
        (PRODUCTS[0], None),
        (broken(1, image=b"no image"), "undecodable image"),
        (broken(2, image=encode(PRODUCTS[2]["image"], "JPEG")[:-200]), "undecodable image"),
        (broken(3, image="images/nowhere.png"), "image file not found"),
        (broken(4, image=None), "missing image"),
        (broken(5, image=" "), "missing image"),
        (broken(6, image="images"), "unreadable image file"),  # a folder
        (broken(7, title="", caption=""), "empty text"),
        (broken(8, title=" \t", caption="\n"), "empty text"),
        (broken(9, title="\u200b", caption=""), "empty text"),  # no piece
        (broken(10, category=None), "missing category"),
        (broken(11, category=float("nan")), "missing category"),
        (broken(12, category=" "), "missing category"),
        (without_category, "missing category"),
        (broken(15, id=None), "missing id"),
        (broken(16, id=PRODUCTS[0]["id"]), "duplicate id"),
        ("{not json", "malformed row"),
        ("[1, 2]", "malformed row"),
        (PRODUCTS[17], None),
    ]
    whole = [row if isinstance(row, dict) else PRODUCTS[0] for row, _ in rows]
    table = write_jsonl(tmp_path / "table.jsonl", whole)
    lines = zip(table.read_text().splitlines(), rows, strict=True)
    table.write_text("\n".join(row if isinstance(row, str) else line for line, (row, _) in lines))
    records = prepare_table(train=table)["train"]
    assert records.ids.tolist() == [PRODUCTS[0]["id"], PRODUCTS[17]["id"]]
    expected = [
        (f"table.jsonl row {number}", (row.get("id") or "") if isinstance(row, dict) else "", reason)
        for number, (row, reason) in enumerate(rows, start=1)
        if reason
    ]
    assert sorted(skipped_rows(records)) == sorted(expected)
    report = records.report()
    assert report["splits"] == {"train": 2}
    assert report["skipped"] == collections.Counter(reason for _, reason in rows if reason)


def test_missing_values_of_a_parquet_table_are_skipped(tmp_path, prepare_table):
    nothing = [None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}]
    rows = [broken(0), *(broken(i, image=image) for i, image in enumerate(nothing, start=1)), broken(4, id=None)]
    records = prepare_table(train=write_parquet(tmp_path / "table.parquet", rows))["train"]
    assert records.ids.tolist() == [PRODUCTS[0]["id"]]
    assert records.report()["skipped"] == {"missing image": 3, "missing id": 1}
    numbers = [broken(i, category=float("nan") if i % 2 else 7.0) for i in range(8)]
    records = prepare_table(train=write_parquet(tmp_path / "numbers.parquet", numbers))["train"]
    assert [record["category"] for record in read_back(records)] == ["7"] * 4
    assert records.report()["skipped"] == {"missing category": 4}


def test_csv_rows_of_too_many_or_too_few_cells_are_skipped(tmp_path, prepare_table):
    table = write_csv(tmp_path / "table.csv", PRODUCTS[:4])
    lines = table.read_text().splitlines()
    lines[2] += ",one,more"
    lines[3] = lines[3].rpartition(",")[0]  # the image is the last column
    table.write_text("\n".join(lines))
    records = prepare_table(train=table)["train"]
    assert records.ids.tolist() == [PRODUCTS[0]["id"], PRODUCTS[3]["id"]]
    assert skipped_rows(records) == [
        ("table.csv row 2", "", "more cells than the header"),
        ("table.csv row 3", PRODUCTS[2]["id"], "missing image"),
    ]


def test_a_csv_cell_of_any_length_is_not_fatal(tmp_path, prepare_table):
    table = write_csv(tmp_path / "table.csv", [PRODUCTS[0], broken(1, caption="long " * 50_000), PRODUCTS[2]])
    ids = prepare_table(train=table)["train"].ids.tolist()
    assert [i for i in ids if i != PRODUCTS[1]["id"]] == [PRODUCTS[0]["id"], PRODUCTS[2]["id"]]


def test_a_csv_may_have_an_unnamed_column(tmp_path, prepare_table):
    table = write_csv(tmp_path / "table.csv", PRODUCTS)
    header, *lines = table.read_text().splitlines()
    table.write_text("\n".join(["," + header, *(f"{i},{line}" for i, line in enumerate(lines))]))
    assert len(prepare_table(train=table)["train"]) == len(PRODUCTS)


def test_half_a_surrogate_pair_in_a_text_is_not_fatal(tmp_path, prepare_table):
    table = write_jsonl(tmp_path / "table.jsonl", [PRODUCTS[0], broken(1, caption="cut off \ud83d"), PRODUCTS[2]])
    assert {PRODUCTS[0]["id"], PRODUCTS[2]["id"]} <= set(prepare_table(train=table)["train"].ids.tolist())


def test_a_first_json_line_without_some_field_is_skipped_as_any_other(tmp_path, prepare_table):
    first = {name: value for name, value in PRODUCTS[0].items() if name != "caption"} | {"category": None}
    records = prepare_table(train=write_jsonl(tmp_path / "table.jsonl", [first, *PRODUCTS[1:]]))["train"]
    assert skipped_rows(records) == [("table.jsonl row 1", PRODUCTS[0]["id"], "missing category")]


NO_MARKUP = st.characters(exclude_categories=["Cs"], exclude_characters="<&")


@settings(max_examples=25)
@given(texts=st.lists(st.text(NO_MARKUP, min_size=1), min_size=1, max_size=5))
@pytest.mark.parametrize("name, write", [("t.csv", write_csv), ("t.jsonl", write_jsonl), ("t.parquet", write_parquet)])
def test_any_text_survives_any_form_of_table(tmp_path_factory, name, write, texts):
    rows = [broken(0, title=text, caption="", image="none.png") for text in texts]
    table = write(tmp_path_factory.mktemp("texts") / name, rows)
    expected = [" ".join(text.split()) for text in texts if text.strip()]
    assert list(open_source(DataConfig(train=str(table), columns=MAPPED), SIZE).texts()) == expected


def test_preparing_says_which_encoding_it_guessed(tmp_path, prepare_table, capsys):
    table = write_csv(
        tmp_path / "table.csv", [broken(i, title="赤いシルクのワンピース") for i in range(9)], encoding="cp932"
    )
    records = prepare_table(train=table, columns=Columns(text=("title", "category")))["train"]
    assert records.strings(np.arange(9))[0] == f"赤いシルクのワンピース {PRODUCTS[0]['category']}"
    assert "table.csv is not UTF-8: read as cp932 (Shift-JIS, Japanese), a guess" in capsys.readouterr().err


def test_records_are_never_all_in_memory(tmp_path, prepare_table, monkeypatch):
    """TFDS's own buffer would hold a whole split."""
    monkeypatch.setattr(tfds.core.shuffle.Shuffler, "add", lambda *_: pytest.fail("a split was held in memory"))
    records = prepare_table(train=write_csv(tmp_path / "table.csv", PRODUCTS))["train"]
    assert [record["id"] for record in read_back(records)] == [product["id"] for product in PRODUCTS]


@pytest.mark.parametrize("name, write", [("t.csv", write_csv), ("t.jsonl", write_jsonl), ("t.parquet", write_parquet)])
def test_a_missing_column_is_named_with_the_columns_there_are(tmp_path, prepare_table, name, write):
    columns = dataclasses.replace(MAPPED, text=("title", "colour"), category="kind")
    there = ", ".join(COLUMNS)
    with pytest.raises(ValueError, match=rf"{name} has no column 'colour', 'kind'; it has {there} \("):
        prepare_table(train=write(tmp_path / name, PRODUCTS), columns=columns)


def test_a_misspelt_column_is_answered_with_the_nearest_of_the_table(tmp_path, prepare_table):
    columns = dataclasses.replace(MAPPED, text=("titel", "Title of it"), category="catgory")
    with pytest.raises(ValueError, match=r"'titel' \(did you mean 'title'\?\), 'Title of it', 'catgory' \(did"):
        prepare_table(train=write_csv(tmp_path / "t.csv", PRODUCTS), columns=columns)


def test_a_table_of_nothing_usable_says_why_and_which_columns_it_has(tmp_path, prepare_table):
    rows = [broken(0, image=b"no image"), broken(1, image=b"no image"), broken(2, category="")]
    says = f"nothing usable for split train .*: 2 undecodable image, 1 missing category; its columns are {COLUMNS[0]}, "
    with pytest.raises(ValueError, match=says):
        prepare_table(train=write_csv(tmp_path / "table.csv", rows))


def test_a_validation_table_of_nothing_usable_is_not_charged_with_what_training_skipped(tmp_path, prepare_table):
    train = write_csv(tmp_path / "train.csv", [*PRODUCTS[:6], broken(6, image=b"no image")])
    validation = write_csv(tmp_path / "validation.csv", [broken(7, category="")])
    with pytest.raises(ValueError, match="split validation in .*validation.csv: 1 missing category; its columns"):
        prepare_table(train=train, validation=validation)


def test_a_table_too_small_to_hold_out_from_says_so(tmp_path, prepare_table):
    with pytest.raises(ValueError, match="holdout"):
        prepare_table(train=write_parquet(tmp_path / "table.parquet", PRODUCTS[:2]), holdout=0.001)


def test_tables_that_are_none_are_refused(tmp_path, prepare_table):
    header = write_csv(tmp_path / "header.csv", [])
    with pytest.raises(ValueError, match="nothing usable .*header.csv: no rows; its columns are id, title"):
        prepare_table(train=header)
    empty = tmp_path / "empty.parquet"
    pyarrow.parquet.write_table(pyarrow.table({name: pyarrow.array([], pyarrow.string()) for name in COLUMNS}), empty)
    with pytest.raises(ValueError, match="empty.parquet: no rows"):
        prepare_table(train=empty)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="empty.jsonl has no column 'id'"):
        prepare_table(train=tmp_path / "empty.jsonl")
    (tmp_path / "wrong.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match="wrong.parquet is not a readable Parquet file"):
        prepare_table(train=tmp_path / "wrong.parquet")
    (tmp_path / "table.xml").touch()
    with pytest.raises(ValueError, match=r"table.xml is none of .*: convert it to CSV"):
        Tables(DataConfig(), SIZE).find(tmp_path / "table.xml")
    with pytest.raises(FileNotFoundError, match="no table at .*nowhere"):
        Tables(DataConfig(), SIZE).find(tmp_path / "nowhere*.parquet")


def test_holding_out_divides_the_groups(tmp_path, prepare_table):
    products = make_products(160)
    unusable = [broken(0, id=f"b{i}", group=f"b{i}", image={"bytes": b"no image", "path": None}) for i in range(8)]
    unusable += [broken(0, id=f"t{i}", group=f"t{i}", title="\u200b", caption="") for i in range(8)]
    split = prepare_table(train=write_parquet(tmp_path / "table.parquet", products + unusable), holdout=0.25)
    ids = {name: set(records.ids.tolist()) for name, records in split.items()}
    groups = {name: {p["group"] for p in products if p["id"] in ids[name]} for name in ids}
    assert sorted([*ids["train"], *ids["validation"]]) == sorted(p["id"] for p in products)
    assert not groups["train"] & groups["validation"]
    assert len(groups["validation"]) / len({p["group"] for p in products}) == pytest.approx(0.25, abs=0.1)
    assert split["train"].report()["skipped"] == {"undecodable image": 8, "empty text": 8}  # once, read for either


def test_a_group_stays_in_its_split_when_the_table_grows(tmp_path, prepare_table):
    small, grown = (
        prepare_table(train=write_parquet(tmp_path / f"{num}.parquet", make_products(num)), holdout=0.3)
        for num in (24, 48)
    )
    for name in ("train", "validation"):
        assert set(small[name].ids.tolist()) < set(grown[name].ids.tolist())


def test_a_validation_product_of_a_training_group_is_skipped(tmp_path, prepare_table):
    train, validation = PRODUCTS[:4], [PRODUCTS[4], broken(5, group=PRODUCTS[0]["group"]), PRODUCTS[6]]
    split = prepare_table(
        train=write_csv(tmp_path / "train.csv", train), validation=write_csv(tmp_path / "validation.csv", validation)
    )
    assert split["train"].ids.tolist() == [p["id"] for p in train]
    assert split["validation"].ids.tolist() == [PRODUCTS[4]["id"], PRODUCTS[6]["id"]]
    ((where, identity, reason),) = skipped_rows(split["validation"])
    assert (where, identity) == ("validation.csv row 2", PRODUCTS[5]["id"])
    assert "split" in reason and split["validation"].report()["skipped"] == {reason: 1}


def test_the_rows_of_ids_are_found_and_unknown_ids_are_named(tmp_path, prepare_table):
    records = prepare_table(train=write_parquet(tmp_path / "table.parquet", PRODUCTS))["train"]
    assert records.rows([PRODUCTS[5]["id"], PRODUCTS[0]["id"], PRODUCTS[5]["id"]]).tolist() == [5, 0, 5]
    with pytest.raises(ValueError, match=r"2 products are not in the data \(24 products\): other, x;"):
        records.rows(["other", PRODUCTS[0]["id"], "x", "other"])
    with pytest.raises(ValueError, match=r"7 products .*: u0, u1, u2, u3, u4, \.\.;"):
        records.rows([f"u{i}" for i in range(7)])


FIELDS = [[[200, 30, 40], [30, 140, 60], [40, 70, 200]], [[0, 0, 0], [255, 255, 255], [230, 200, 40]]]
PATTERN = np.array(FIELDS, np.uint8).repeat(8, axis=0).repeat(8, axis=1)  # 16 x 24
MIDDLES = (slice(4, None, 8), slice(4, None, 8))  # JPEG blurs the fields' edges
PNG, JPEG = (encode(Image.fromarray(PATTERN), form) for form in ("PNG", "JPEG"))
WHITE = (255, 255, 255)


def normalised(encoded, form="PNG"):
    with Image.open(io.BytesIO(normalise_image(encoded, SIZE))) as image:
        assert (image.format, image.mode) == (form, "RGB")
        assert "transparency" not in image.info
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("encoded", [JPEG, PNG], ids=["jpeg", "png"])
def test_a_plain_image_comes_back_byte_for_byte(encoded):
    assert normalise_image(encoded, SIZE) == encoded


@pytest.mark.parametrize("form", ["GIF", "PNG", "BMP", "WEBP", "TIFF"])
def test_other_forms_and_palettes_keep_their_pixels(form):
    image = Image.fromarray(PATTERN)
    image = image.quantize(6) if form in ("GIF", "PNG") else image
    options = {"lossless": True} if form == "WEBP" else {}
    np.testing.assert_array_equal(normalised(encode(image, form, **options)), PATTERN)


def test_cmyk_becomes_rgb():
    encoded = encode(Image.fromarray(PATTERN).convert("CMYK"), "JPEG", quality=100, subsampling=0)
    np.testing.assert_allclose(normalised(encoded, "JPEG")[MIDDLES], PATTERN[MIDDLES], atol=8)


def test_gray_becomes_rgb_in_eight_and_in_sixteen_bits():
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.stack([gray] * 3, axis=-1)
    np.testing.assert_array_equal(normalised(encode(Image.fromarray(gray))), expected)
    sixteen = encode(Image.fromarray(gray.astype(np.uint16) * 257))
    np.testing.assert_allclose(normalised(sixteen), expected, atol=1)


@pytest.mark.parametrize("alpha, colour", [(0, WHITE), (51, (244, 210, 212)), (255, (200, 30, 40))])
def test_transparency_becomes_white_by_its_share(alpha, colour):
    # 51 of 255 is a fifth: 255 + (200 - 255) / 5 = 244 and so on
    encoded = encode(Image.new("RGBA", (8, 8), (200, 30, 40, alpha)))
    np.testing.assert_allclose(normalised(encoded), np.broadcast_to(colour, (8, 8, 3)), atol=1)


@pytest.mark.parametrize(
    "image, transparency",
    [
        (Image.fromarray(PATTERN), (200, 30, 40)),
        (Image.fromarray(PATTERN).quantize(6), None),
        (Image.new("LA", (24, 16), (9, 0)), None),
    ],
)
def test_a_transparent_colour_becomes_white(image, transparency):
    if image.mode == "P":
        transparency = image.getpixel((0, 0))
    options = {} if transparency is None else {"transparency": transparency}
    pixels = normalised(encode(image, **options))
    np.testing.assert_array_equal(pixels[:8, :8], np.full((8, 8, 3), 255))
    if image.mode != "LA":
        np.testing.assert_array_equal(pixels[:, 8:], PATTERN[:, 8:])


@pytest.mark.parametrize(
    "orientation, upright",
    [(2, lambda x: x[:, ::-1]), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (8, np.rot90)],
)
def test_a_rotated_image_is_set_upright(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, expected = Image.fromarray(PATTERN), upright(PATTERN)
    np.testing.assert_array_equal(normalised(encode(image, "PNG", exif=exif)), expected)
    photo = encode(image, "JPEG", exif=exif, quality=100, subsampling=0)
    np.testing.assert_allclose(normalised(photo, "JPEG")[MIDDLES], expected[MIDDLES], atol=8)


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "PNG"):
        encoded = encode(frames[0], form, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(normalised(encoded), np.broadcast_to((255, 0, 0), (8, 8, 3)))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_large_image_is_shrunk_until_its_shorter_side_fits(form):
    large = Image.fromarray(PATTERN).resize((384, 256), Image.Resampling.NEAREST)
    pixels = normalised(encode(large, form), form)
    assert pixels.shape == (64, 96, 3)
    np.testing.assert_allclose(pixels[16::32, 16::32], PATTERN[MIDDLES], atol=8)


@pytest.mark.parametrize("encoded", [b"", b"no image", b"GIF89a", JPEG[:-100], PNG[:60]])
def test_what_is_no_image_raises(encoded):
    with pytest.raises(ValueError, match="undecodable image"):
        normalise_image(encoded, SIZE)


@given(st.lists(st.sampled_from(["dress", "leather", "zip."]), min_size=1, max_size=12), st.integers(8, 12))
def test_a_text_is_framed_and_cut_with_sep_last(vocabulary, words, num_tokens):
    pieces, _ = pieces_by_hand(" ".join(words))
    kept = pieces[: num_tokens - 2]
    padding = [0] * (num_tokens - 2 - len(kept))
    assert vocabulary.encode([" ".join(words)], num_tokens).tolist() == [[2, *kept, 3, *padding]]


@pytest.mark.parametrize(
    "texts",
    [
        [f"{p['title']} {p['caption']}" for p in make_products(64)],
        ["".join(map(chr, range(0x4E00 + 3 * i, 0x4E03 + 3 * i))) for i in range(500)],  # 1,500 letters, as rare all
    ],
    ids=["latin", "han"],
)
def test_a_trained_vocabulary_is_the_same_every_time_and_has_the_special_pieces(tmp_path, texts):
    vocabularies = [Vocabulary.train(texts, 150) for _ in range(3)]
    for number, vocabulary in enumerate(vocabularies):
        vocabulary.save(tmp_path / f"{number}.json")
    ids = [json.loads((tmp_path / f"{number}.json").read_text())["model"]["vocab"] for number in range(3)]
    assert [ids[0][piece] for piece in SPECIAL] == [0, 1, 2, 3, 4]
    assert ids[0] == ids[1] == ids[2]
    assert len({vocabulary.fingerprint for vocabulary in vocabularies}) == 1


def test_a_vocabulary_is_trained_on_the_catalogue_once(tmp_path):
    base, said = Config(), []
    config = dataclasses.replace(
        base,
        data=dataclasses.replace(
            base.data,
            train=str(write_csv(tmp_path / "table.csv", PRODUCTS)),
            columns=MAPPED,
            prepared=str(tmp_path / "prepared"),
        ),
        model=dataclasses.replace(base.model, vocabulary="train:200"),
    )
    first, second = (make_vocabulary(config, said.append) for _ in range(2))
    assert first.fingerprint == second.fingerprint and len(said) == 1
    assert first.size <= 200
    assert all(1 not in ids for ids, _ in first.pieces([p["caption"] for p in PRODUCTS]))  # no [UNK]


def write_pieces(folder, pieces):
    path = folder / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return path


def test_a_vocabulary_comes_back_from_its_own_file(tmp_path, vocabulary):
    vocabulary.save(tmp_path / "tokenizer.json")
    loaded = Vocabulary.load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == vocabulary.fingerprint
    assert loaded.pieces(["leather dress"]) == [([6, 7, PIECES.index("dress")], [0, 0, 1])]


def test_a_vocabulary_is_cased_where_a_piece_is(tmp_path):
    lower = Vocabulary.from_file(write_pieces(tmp_path, [*SPECIAL, "dress"]))
    assert lower.pieces(["Dress dress"]) == [([5, 5], [0, 1])]
    cased = Vocabulary.from_file(write_pieces(tmp_path, [*SPECIAL, "dress", "Dress"]))
    assert cased.pieces(["Dress dress"]) == [([6, 5], [0, 1])]


def test_a_vocabulary_s_rows_are_its_lines_whatever_they_hold(tmp_path):
    path = write_pieces(tmp_path, [*SPECIAL, "\u2028", "\u0085", "dress"])
    assert Vocabulary.from_file(path).pieces(["dress"]) == [([7], [0])]


@pytest.mark.parametrize(
    "pieces, says",
    [
        (["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a"], r"vocab.txt has \[PAD\] at row 1, expected 0"),
        (["[PAD]", "[CLS]", "[SEP]", "a"], r"vocab.txt lacks \[UNK\], \[MASK\]"),
        (["[PAD]", "[UNK]", "[CLS]", "a"], r"vocab.txt lacks \[SEP\], \[MASK\]"),
        ([*SPECIAL, "a", "b", "a"], "vocab.txt lists a piece twice"),
    ],
)
def test_an_unfit_vocabulary_is_refused(tmp_path, pieces, says):
    with pytest.raises(ValueError, match=says):
        Vocabulary.from_file(write_pieces(tmp_path, pieces))


def test_a_missing_vocabulary_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no vocabulary file .*nowhere.txt"):
        Vocabulary.from_file(tmp_path / "nowhere.txt")
