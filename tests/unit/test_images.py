"""Pictures of every kind against their right pixels, and the limits of what is read."""

import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fbjax.data.sources.image_folder import ImageFolder, read_image_file
from fbjax.data.sources.images import encode_array, encoded, normalise_image
from tests.support.tables import encode

GRAY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.array([[[200, 30, 40], [30, 140, 60]], [[40, 70, 200], [0, 0, 0]]], np.uint8).repeat(8, 0).repeat(8, 1)
UNCLEAR = "numbers that are not in 0..1, 0..255 or 0..65535"


def pixels_of(raw):
    with Image.open(io.BytesIO(normalise_image(raw, 64))) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


def tiff(pixels, bits, photometric=1, kind=1, width=0):
    """A little-endian TIFF of one strip; `kind` 1: unsigned, 3: float."""
    data, samples = pixels.tobytes(), pixels.shape[2] if pixels.ndim == 3 else 1
    depths, end = struct.pack("<3H", bits, bits, bits), 8 + len(data)
    tags = {256: width or pixels.shape[1], 257: pixels.shape[0], 258: bits if samples == 1 else end, 259: 1}
    tags |= {262: photometric, 273: 8, 277: samples, 278: pixels.shape[0], 279: len(data), 339: kind}
    entries = [struct.pack("<HHII", tag, 3, samples if tag == 258 else 1, value) for tag, value in tags.items()]
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", end + len(depths)) + data + depths + directory


def packed(gray):
    """Rows of 12 bits a pixel."""
    left, right = (gray.astype(int) * 4095 // 255).reshape(-1, 2).T
    return np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], axis=1).astype(np.uint8).reshape(16, 24)


def written(gray, form="TIFF"):
    return encode(Image.fromarray(gray), form)


@pytest.mark.parametrize(
    "raw",
    [
        written(GRAY / np.float32(255)),
        written(GRAY.astype(np.float32)),
        written(GRAY * np.float32(257)),
        written(GRAY.astype(np.int32)),
        written(GRAY * np.int32(257)),
        written(GRAY * np.uint16(257)),
        written(GRAY * np.uint16(257), "PNG"),
        b"P5 16 16 65535\n" + (GRAY * np.uint16(257)).astype(">u2").tobytes(),
        tiff(packed(GRAY), 12, width=16),
        tiff(65535 - GRAY * np.uint16(257), 16, photometric=0),
        tiff((1 - GRAY / 255).astype("<f4"), 32, photometric=0, kind=3),
        tiff(255 - GRAY, 8, photometric=0),
        tiff(np.stack([GRAY * np.uint16(257)] * 3, axis=-1), 16, photometric=2),
    ],
    ids="F1 F255 F65535 I255 I65535 I16 PNG16 PGM16 12bit inverted16 invertedF inverted8 RGB16".split(),
)
def test_levels_of_any_depth_are_kept(raw):
    np.testing.assert_allclose(pixels_of(raw), np.stack([GRAY] * 3, axis=-1).astype(int), atol=1)


def test_sharpened_fractions_are_clipped_and_dark_pictures_stay_dark():
    beyond = np.linspace(-0.2, 1.2, 256, dtype=np.float32).reshape(16, 16)
    expected = (beyond * 255).round().clip(0, 255)
    np.testing.assert_allclose(pixels_of(written(beyond))[..., 0], expected, atol=1)
    assert (pixels_of(written(np.full((4, 4), 0.1, np.float32))) == 26).all()
    assert (pixels_of(written(np.full((4, 4), 1000, np.uint16), "PNG")) == 4).all()
    assert (pixels_of(written(np.zeros((4, 4), np.float32))) == 0).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 5, 1000, -1, 1e9])
def test_numbers_of_an_unclear_range_are_refused(wrong):
    gray = (GRAY / 255).astype(np.float32)
    gray[3, 3] = wrong
    with pytest.raises(ValueError, match=UNCLEAR):
        normalise_image(written(gray), 64)
    with pytest.raises(ValueError, match=UNCLEAR):
        encode_array(np.stack([gray] * 3, axis=-1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64, np.float16, np.float32, ">f8"])
def test_an_array_keeps_its_levels_whatever_type_it_has(dtype):
    levels = np.stack([GRAY] * 3, axis=-1)
    arrays = [levels.astype(dtype)]
    arrays += [(levels / 255).astype(dtype)] if np.dtype(dtype).kind == "f" else []
    arrays += [levels.astype(dtype) * 257] if dtype in (np.uint16, np.int64, np.float32) else []
    for array in arrays:
        np.testing.assert_allclose(pixels_of(encode_array(array)), levels.astype(int), atol=1)
    np.testing.assert_array_equal(pixels_of(encode_array(levels > 99)), (levels > 99) * 255)
    with pytest.raises(ValueError, match="image array of complex128, not of numbers"):
        encode_array(levels * 1j)


def test_colours_of_any_mode_are_kept():
    image = Image.fromarray(COLOURS)
    for raw in (encode(image.convert("CMYK"), "TIFF"), encode(image.convert("LAB"), "TIFF")):
        np.testing.assert_allclose(pixels_of(raw), COLOURS.astype(int), atol=8)
    two = Image.fromarray(GRAY > 99).convert("1")
    for form in ("PNG", "TIFF", "BMP", "GIF"):
        np.testing.assert_array_equal(pixels_of(encode(two, form))[..., 0], (GRAY > 99) * 255)
    palette = image.quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    for form in ("PNG", "GIF"):
        whole = COLOURS.copy()
        whole[:8, :8] = 255
        np.testing.assert_array_equal(pixels_of(encode(palette, form)), whole)
    lab = encode(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF")
    np.testing.assert_allclose(pixels_of(lab), 255, atol=1)


def icon(raw):
    return struct.pack("<3H4B2H2I", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(raw), 22) + raw


def claimed(raw, form, width, height):
    """A picture whose header says another size."""
    if form == "JPEG":
        at, size = raw.index(b"\xff\xc0") + 5, struct.pack(">2H", height, width)
    elif form == "GIF":
        at, size = 6, struct.pack("<2H", width, height)
    else:  # PNG
        header = b"IHDR" + struct.pack(">2I", width, height) + raw[24:29]
        at, size = 12, header + struct.pack(">I", zlib.crc32(header))
    return raw[:at] + size + raw[at + len(size) :]


PLAIN = encode(Image.new("RGB", (8, 8)), "JPEG")
SCANS = PLAIN[PLAIN.index(b"\xff\xda") : -2]
MANY = encode(Image.new("L", (4000, 3000)), "JPEG", progressive=True)
BOMBS = {
    "icon": (icon(claimed(encode(Image.new("1", (8, 8))), "PNG", 30_000, 30_000)), "more than 100,000,000 pixels"),
    "png": (claimed(encode(Image.new("1", (8, 8))), "PNG", 12_000, 12_000), "more than 100,000,000 pixels"),
    "gif": (claimed(encode(Image.new("P", (8, 8)), "GIF"), "GIF", 65_000, 65_000), "more than 100,000,000 pixels"),
    "jpeg": (claimed(PLAIN, "JPEG", 9_000, 9_000), "undecodable image"),
    "scans": (MANY[:-2] + SCANS * 100 + MANY[-2:], "JPEG of too many scans for its size"),
    "jpeg2000": (encode(Image.new("L", (5_000, 5_000)), "JPEG2000"), "more than 20,000,000 pixels"),
    "text": (b"P3\n3000 3000\n255\n" + b"255 0 9\n" * 100, "more than 2,000,000 pixels"),
    "long": (encode(Image.new("1", (1_100_000, 1))), "a side of more than 65,500 pixels"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(name):
    raw, says = BOMBS[name]
    begin = time.process_time()
    with pytest.raises(ValueError, match=says):
        normalise_image(raw, 64)
    assert time.process_time() - begin < 0.3


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "empty.jpg").touch()
    with open(tmp_path / "huge.jpg", "wb") as stream:
        stream.truncate(2**28 + 1)
    folder = ImageFolder(tmp_path, outside=True)
    for name in ("pipe.jpg", "/dev/zero", "/dev/stdin", "."):
        with pytest.raises(OSError, match="is no file"):
            folder.find(name)
    for name, says in (("empty.jpg", "empty image file"), ("huge.jpg", "more than 256 MiB")):
        with pytest.raises(ValueError, match=says):
            read_image_file(folder.find(name))
        with pytest.raises(ValueError, match=says):
            encoded(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no image file .*pipe.jpg"):
        encoded(str(tmp_path / "pipe.jpg"))


@pytest.mark.skipif(not os.path.isfile("/proc/kmsg"), reason="a file whose reader waits for ever")
def test_an_endless_file_of_the_kernel_is_not_opened():
    with pytest.raises(ValueError, match="empty image file"):
        read_image_file(ImageFolder(Path("/proc")).find("kmsg"))


def test_a_picture_outside_its_folder_is_found_only_where_that_is_allowed(tmp_path):
    root, other = tmp_path / "shop", tmp_path / "shop two"
    for folder in (root / "deep", other):
        folder.mkdir(parents=True)
    for path in (root / "deep/a.png", other / "b.png"):
        path.write_bytes(b"picture")
    (root / "link.png").symlink_to(other / "b.png")
    (root / "away").symlink_to(other)
    (root / "within.png").symlink_to("deep/a.png")
    (tmp_path / "alias").symlink_to(root)
    inside = ["deep/a.png", "deep/../deep/a.png", "../shop/deep/a.png", str(root / "deep/a.png"), "within.png"]
    inside += [str(tmp_path / "alias/deep/a.png")]
    outside = ["../shop two/b.png", str(other / "b.png"), "link.png", "away/b.png", "deep/../../shop two/b.png"]
    for place in (root, tmp_path / "alias"):
        for name in inside:
            assert read_image_file(ImageFolder(place).find(name)) == b"picture"
        for name in outside:
            with pytest.raises(ValueError, match="outside data.image_root.* data.images_outside"):
                ImageFolder(place).find(name)
            assert read_image_file(ImageFolder(place, outside=True).find(name)) == b"picture"
        for name in ("../nowhere.png", "away/nowhere.png"):
            with pytest.raises(FileNotFoundError):
                ImageFolder(place).find(name)
