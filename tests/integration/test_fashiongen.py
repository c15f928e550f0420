"""Fashion-Gen's HDF5: read as a table, photo by photo, and a clear word where a file is missing or damaged."""

import io

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fbjax.cli.main import main
from fbjax.config.load import load_config
from fbjax.data.records.builder import build_records
from fbjax.data.records.pipeline import decode_image
from fbjax.data.sources import fashiongen
from fbjax.data.sources.base import open_source
from fbjax.data.sources.images import encode_array
from fbjax.data.sources.readers import open_table
from fbjax.data.sources.readers.sampling import sample_rows
from fbjax.data.synthetic.hdf5 import write_hdf5
from fbjax.data.text.wordpiece import Vocabulary
from tests.support.photos import SIDE, make_rows

COLUMNS = ["id=photo", "text=input_description", "category=input_subcategory", "image=input_image"]
COLUMNS = [f"data.columns.{name}" for name in (*COLUMNS, "group=input_productID")]


def write(path, rows):
    rows = list(rows)
    return fashiongen.write(path, rows, len(rows), SIDE)


@pytest.fixture
def folder(tmp_path):
    """A manual_dir with both files, in the subfolder."""
    home = tmp_path / "manual" / "fashiongen"
    home.mkdir(parents=True)
    write(home / fashiongen.FILES["train"], make_rows(6))
    write(home / fashiongen.FILES["validation"], make_rows(4, first=100))
    return tmp_path


def make_config(folder, *overrides):
    (folder / "c.py").write_text("from fbjax.config import defaults\n\n\ndef get_config():\n    return defaults()\n")
    named = [f"data.train={fashiongen.PREFIX}train", f"data.validation={fashiongen.PREFIX}validation"]
    named += [f"data.manual_dir={folder / 'manual'}", "model.vocabulary=train:200", "patches.image_size=32"]
    return load_config(folder / "c.py", [*named, *COLUMNS, *overrides])


def prepared(folder, *overrides):
    vocabulary = Vocabulary.train(["robe d'été n° façon café 0 1 2 3 4 5"], 100)
    config = make_config(folder, *overrides)
    source = open_source(config.data, config.patches.image_size)
    return source, build_records(source, vocabulary, folder / "prepared", lambda rows, total, label: rows)


def test_every_photo_becomes_a_record_with_its_products_description_and_its_very_pixels(folder):
    _, splits = prepared(folder)
    assert {split: len(records) for split, records in splits.items()} == {"train": 18, "validation": 12}
    products = splits["train"].products(range(18))
    for product, row in zip(products, make_rows(6), strict=True):
        assert product.id == f"{row['input_productID']}_{row['input_pose']}"
        assert (product.group, product.category) == (str(row["input_productID"]), row["input_subcategory"])
        assert product.text == row["input_description"]  # é and ° went through Latin-1 bytes
        np.testing.assert_array_equal(decode_image(product.image, SIDE), row["input_image"])


def test_the_manual_folder_is_no_part_of_what_the_records_are_named_by(folder):
    source, _ = prepared(folder)
    moved = folder / "manual" / "fashiongen"
    for file in moved.iterdir():
        file.rename(folder / "manual" / file.name)  # directly in manual_dir
    vocabulary = Vocabulary.train(["robe"], 100)
    assert open_source(make_config(folder).data, 32).fingerprint(vocabulary) == source.fingerprint(vocabulary)


def test_corrupt_rows_are_skipped_and_counted_and_a_black_photo_is_none(folder):
    rows = list(make_rows(6))
    rows[1]["input_description"] = "  "
    rows[4]["input_subcategory"] = ""
    rows[7] = rows[6]
    rows[9]["input_image"] = np.zeros((SIDE, SIDE, 3), np.uint8)
    write(folder / "manual" / "fashiongen" / fashiongen.FILES["train"], rows)
    _, splits = prepared(folder)
    assert len(splits["train"]) == 15
    assert splits["train"].report()["skipped"] == {"empty text": 1, "missing category": 1, "duplicate id": 1}


def test_images_are_read_only_where_they_are_asked_for_and_only_some_at_a_time(folder, monkeypatch):
    file, sizes = fashiongen.find("fashiongen:train", str(folder / "manual")), []
    cells = fashiongen._cells
    monkeypatch.setattr(fashiongen, "IMAGES_AT_ONCE", 5)
    monkeypatch.setattr(fashiongen, "_cells", lambda d, places: sizes.append((d.ndim, len(places))) or cells(d, places))
    assert len(list(fashiongen.read_rows(file, {"input_description"}))) == 18
    assert sizes == [(2, 18)]
    sizes.clear()
    photos = list(fashiongen.read_rows(file, {"input_image"}))
    assert sizes == [(4, 5), (4, 5), (4, 5), (4, 3)]
    some = [(number, row["input_image"]) for _, number, row in sample_rows([open_table(file)], {"input_image"}, 4, 18)]
    assert len(some) == 4
    assert all((photos[number - 1]["input_image"] == image).all() for number, image in some)


@pytest.mark.parametrize("form", ["flat", "variable length"])
def test_other_ways_to_store_strings_read_the_same(folder, form):
    file = fashiongen.find("fashiongen:train", str(folder / "manual"))
    before = list(fashiongen.read_rows(file, {"input_description", "photo"}))
    with h5py.File(file, "a") as stream:
        for name in ("input_description", "input_pose"):
            values = stream[name][:, 0]
            del stream[name]
            if form == "variable length":
                values = np.array([value.decode("latin-1") for value in values], object)
            stream.create_dataset(name, data=values, dtype=h5py.string_dtype() if form != "flat" else None)
        numbers = stream["input_productID"][:, 0]
        del stream["input_productID"]
        stream["input_productID"] = numbers
    assert list(fashiongen.read_rows(file, {"input_description", "photo"})) == before


@given(st.text(st.characters(max_codepoint=255, exclude_characters="\0"), max_size=40))
def test_latin_1_survives_the_file(text):
    assert fashiongen._decoded(text.encode("latin-1"), "ascii") == text


def test_absent_files_say_who_has_them_and_where_they_belong(folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
    with pytest.raises(FileNotFoundError) as error:
        prepared(folder, "data.manual_dir=")
    for part in (*fashiongen.FILES.values(), "https://fashion-gen.com", "manual_dir", "tfds/downloads/manual"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="'fashiongen:test' is unknown .use 'fashiongen:train'"):
        fashiongen.find("fashiongen:test")


def damage(path, how):
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif how == "other":
        path.write_bytes(b"index,input_name\n1,robe\n")
    else:
        with h5py.File(path, "a") as stream:
            name = {"no image": "input_image", "no description": "input_description"}.get(how, "input_pose")
            del stream[name]
            if how == "short":
                stream[name] = np.array([b"id_gridfs_1"] * 17)
            if how == "wide":
                stream[name] = np.zeros((18, 2), "S9")


@pytest.mark.parametrize(
    "how, reason",
    [
        ("truncated", "no readable HDF5 file.*truncated.*fetch it again"),
        ("other", "no readable HDF5 file"),
        ("no image", "has no dataset 'input_image'; it has index"),
        ("no description", "has no column 'input_description'.*; it has photo.*map them in config.data.columns"),
        ("short", r"disagree in the number of rows: input_productID \(18, 1\), input_pose \(17,\)"),
        ("wide", r"another shape than Fashion-Gen's: input_pose \(18, 2\)"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it_and_the_field(folder, how, reason):
    path = fashiongen.find("fashiongen:train", str(folder / "manual"))
    damage(path, how)
    with pytest.raises(ValueError, match=f"{fashiongen.FILES['train']}.*{reason}"):
        prepared(folder)


@pytest.mark.parametrize("num_rows", [17, 19])
def test_a_writer_that_gets_another_number_of_rows_leaves_no_file(num_rows, tmp_path):
    with pytest.raises(ValueError, match=f"was to hold {num_rows} rows, got 18"):
        fashiongen.write(tmp_path / "x.h5", make_rows(6), num_rows, SIDE)
    assert not list(tmp_path.iterdir())


def test_pixels_become_a_lossless_png_whatever_number_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    for form in (pixels, pixels.astype(np.int64), pixels / 255):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_array(form)))), pixels)
    with pytest.raises(ValueError, match=r"image array of shape \[5, 7\], not"):
        encode_array(pixels[..., 0])


def test_check_looks_at_the_file_and_proposes_its_mapping(folder, capsys):
    file = fashiongen.find("fashiongen:train", str(folder / "manual"))
    assert main(["prepare", "--check", str(file)]) == 0
    said = capsys.readouterr().out
    assert "HDF5 in Fashion-Gen's schema" in said and "18 PNG RGB" in said
    for line in ('id = "photo"', 'category = "input_subcategory"', 'group = "input_productID"'):
        assert f"config.data.columns.{line}" in said


def test_drawn_garments_in_this_form_are_products_of_several_photos_and_one_description(tmp_path):
    home = tmp_path / "manual"
    write_hdf5(home, 100, 0, lambda rows, total, label: rows)
    _, splits = prepared(tmp_path, "patches.image_size=256")
    assert sum(map(len, splits.values())) == 100
    photos = splits["train"].products(range(len(splits["train"])))
    told = {photo.group: photo.text for photo in photos}
    assert len(told) < len(photos) and all(told[photo.group] == photo.text for photo in photos)
    written = write_hdf5(home, 100, 0, None)["train"].stat()  # what is there stays
    assert written.st_mtime_ns == (home / fashiongen.FILES["train"]).stat().st_mtime_ns
