"""Converts images of any format to JPEG or PNG, RGB and upright."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fbjax.core import resampling
from fbjax.data.sources.foreground import foreground_box
from fbjax.data.sources.image_folder import read_image_file

STORED_AS_IS = ("JPEG", "PNG")
MAX_PIXELS = 100_000_000  # in the header, checked before decoding: up to 8 s and 1.5 GB
MAX_SIDE = 65_500  # the most that Pillow writes as JPEG; PNG readers stop at a million
SLOW = {"jpeg2k": 5, "bmp_rle": 10, "ppm_plain": 50, "ppm": 50}  # codec of Pillow -> a pixel's time, of others' 1
START_OF_SCAN, SCANS = b"\xff\xda", 10  # marker, and number of a common progressive JPEG; each costs as a picture
MOST_PIXELS_A_BYTE = 512  # of a JPEG: one bit a block of 8 x 8
RANGES = (1, 255, 65_535)  # 0 to what the numbers of a picture go
FAST = 1  # zlib level: on 256 x 256 drawn garments .63 of the default's time and 1.16 of its size
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # of TIFF
TOO_LARGE = "image of more than {:,} pixels"
TURNED = range(2, 9)  # EXIF orientations that are not upright
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow warns from here and raises from twice this, within containers too
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
Image.init()
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO")  # EPS would run Ghostscript
FORMATS = [name for name in FORMATS if name in Image.OPEN]  # the ones of this build of Pillow


def normalise_image(encoded: bytes, max_side: int) -> bytes:
    """An encoded image as JPEG or PNG, RGB, upright, its shorter side at most `max_side`.

    Returns the same bytes if nothing has to change. Transparency becomes white. Raises ValueError on invalid images,
    and before decoding on too large ones.
    """
    with _opened(encoded) as image:
        upright = _upright(image)
        plain_rgb = image.mode == "RGB" and "transparency" not in image.info
        if upright is image and image.format in STORED_AS_IS and plain_rgb and min(image.size) <= max_side:
            return encoded
        as_jpeg = image.format in ("JPEG", "MPO")
        image = to_rgb(upright)
        if min(image.size) > max_side:
            scale = max_side / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        image.info.clear()  # the profile of CMYK, for example, is wrong for RGB
        return _saved(image, **({"format": "JPEG", "quality": 95} if as_jpeg else {"format": "PNG"}))


def rewrite(encoded: bytes) -> bytes:
    """An encoded image as a PNG of the same pixels that every reader accepts. Raises ValueError on invalid images."""
    with _opened(encoded) as image:
        image = to_rgb(image)
        image.info.clear()
        return _saved(image, format="PNG")


@contextlib.contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    """The decoded image. Raises ValueError where it cannot be opened, or the block fails."""
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _check_size(image, encoded)
            image.load()
            yield image
    except _Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(TOO_LARGE.format(MAX_PIXELS)) from error
    except Exception as error:  # Pillow raises a dozen kinds on broken files
        raise ValueError("undecodable image") from error


def _check_size(image: Image.Image, encoded: bytes) -> None:
    """Raises ValueError where the sides that an image declares are too long, or promise more than its bytes hold."""
    pixels = image.width * image.height
    most = MAX_PIXELS // SLOW.get(image.tile[0].codec_name, 1) if image.tile else MAX_PIXELS
    if pixels > most:
        raise _Refused(TOO_LARGE.format(most))
    if max(image.size) > MAX_SIDE:
        raise _Refused(f"image with a side of more than {MAX_SIDE:,} pixels")
    if image.format in ("JPEG", "MPO"):
        if pixels > len(encoded) * MOST_PIXELS_A_BYTE:
            raise ValueError("its data end early")
        if pixels * encoded.count(START_OF_SCAN) > MAX_PIXELS * SCANS:
            raise _Refused("JPEG of too many scans for its size")


def encode_array(pixels: np.ndarray) -> bytes:
    """Pixels [H, W, 3] as a PNG, exact for uint8; other numbers as `as_bytes` scales them.

    Raises ValueError on another shape, and on numbers whose range is unclear.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"image array of shape {list(pixels.shape)}, not [H, W, 3]")
    return _saved(Image.fromarray(np.ascontiguousarray(as_bytes(pixels))), format="PNG", compress_level=FAST)


def as_bytes(pixels: np.ndarray, full: int = 0) -> np.ndarray:
    """Numbers as uint8, scaled from 0..`full` to 0..255 and clipped.

    Without `full` the largest number says which of `RANGES` they are in; integers are no fractions. Numbers may lie
    beyond by a quarter, as sharpening leaves them. Raises ValueError where the range is unclear, and on NaN.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind not in "buif":
        raise _Refused(f"image array of {pixels.dtype}, not of numbers")
    full = full or _range_of(pixels)
    scaled = pixels.astype(np.float32)
    scaled *= 255 / full
    return np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled).astype(np.uint8)


def _range_of(pixels: np.ndarray) -> int:
    """The number of `RANGES` that stands for white. Raises ValueError where that is unclear, and on NaN."""
    low, high = float(pixels.min()), float(pixels.max())
    lowest, *wider = RANGES[pixels.dtype.kind in "ui" :]
    for full, least in ((lowest, -lowest), *((full, full / 16) for full in wider)):
        if least <= high <= 1.25 * full and low >= -full / 4:
            return full
    raise _Refused("image of numbers that are not in 0..1, 0..255 or 0..65535")


def _saved(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, **options)
    return out.getvalue()


def is_image(value) -> bool:
    """Whether `encoded` accepts `value`. A string counts as an image only if it is the path of a file."""
    if isinstance(value, str):
        return len(value) < 4096 and "\n" not in value and Path(value).is_file()
    return isinstance(value, bytes | Path | Image.Image | np.ndarray)


def encoded(image) -> bytes:
    """The encoded bytes of a path, bytes, PIL image or array of pixels [H, W, 3]; lossless for the last two."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        return _saved(to_rgb(image), format="PNG")
    if isinstance(image, np.ndarray):
        return encode_array(image)
    if isinstance(image, str | Path):
        if not Path(image).is_file():
            raise FileNotFoundError(f"no image file {image}")
        return read_image_file(Path(image))
    raise TypeError(f"an image is a path, encoded bytes, a PIL image or an array of pixels, not {type(image).__name__}")


def read_pixels(image, size: int, fit: str = "squash") -> np.ndarray:
    """uint8 [S, S, 3] of an argument of `encoded`, decoded and resized as in the pipelines, without TensorFlow.

    `fit`: "squash" resizes both sides to S; "pad" keeps the proportions and fills the rest with white; "crop" takes
    the square in the middle; "foreground" takes the box of `foreground_box` and resizes its sides to S. The values are
    the same except for rounding halves.
    JPEGs of other fits differ by up to 4, since TensorFlow uses libjpeg's fast integer DCT and Pillow the accurate one.
    """
    try:
        plain = normalise_image(encoded(image), size)
    except ValueError as error:
        raise ValueError(f"{image if isinstance(image, str | Path) else 'image'}: {error}") from None
    with Image.open(io.BytesIO(plain)) as opened:
        pixels = np.asarray(opened.convert("RGB"), np.float32)
    if fit == "crop":
        side = min(pixels.shape[:2])
        top, left = ((whole - side) // 2 for whole in pixels.shape[:2])
        pixels = pixels[top : top + side, left : left + side]
    elif fit == "foreground":
        top, left, height, width = foreground_box(pixels)
        pixels = pixels[top : top + height, left : left + width]
    old = pixels.shape[:2]
    new = resampling.fitted(*old, size) if fit == "pad" else (size, size)
    if old != new:
        rows, columns = map(resampling.weights, old, new)
        pixels = np.einsum("rh,cw,hwk->rck", rows, columns, pixels, optimize=True)
    pixels = pixels.round().clip(0, 255).astype(np.uint8)
    if new == (size, size):
        return pixels
    padded, (top, left) = np.full((size, size, 3), 255, np.uint8), ((size - side) // 2 for side in new)
    padded[top : top + new[0], left : left + new[1]] = pixels
    return padded


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: wider numbers scaled by `as_bytes`, transparency on white."""
    if image.mode == "F" or image.mode.startswith("I"):  # convert() would clip instead of scale
        image = Image.fromarray(_gray(image))
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _gray(image: Image.Image) -> np.ndarray:
    """uint8 [H, W] of an image of one channel of more than 8 bits, by its declared depth where there is one."""
    tags = getattr(image, "tag_v2", {})
    full = 0
    if image.mode.startswith("I;16") or image.mode == "I" and image.format == "PPM":
        full = 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1
    gray = as_bytes(np.asarray(image), full)
    return 255 - gray if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else gray


class _Refused(ValueError):
    """A reason that `normalise_image` gives as it is."""


def _upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation; the same object if there is none or it is broken."""
    try:
        return ImageOps.exif_transpose(image) if image.getexif().get(0x0112) in TURNED else image
    except Exception:
        return image
