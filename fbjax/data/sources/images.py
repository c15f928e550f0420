"""Converts images of any format to JPEG or PNG, RGB and upright."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fbjax.core import resampling

STORED_AS_IS = ("JPEG", "PNG")
MAX_PIXELS = 100_000_000  # in the header, checked before decoding: 300 MB of RGB
FAST = 1  # zlib level: on 256 x 256 drawn garments .63 of the default's time and 1.16 of its size
TURNED = range(2, 9)  # EXIF orientations that are not upright
Image.MAX_IMAGE_PIXELS = None  # Pillow's limit, at which it only warns at first
Image.init()
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO")  # EPS would run Ghostscript
FORMATS = [name for name in FORMATS if name in Image.OPEN]  # the ones of this build of Pillow


def normalise_image(encoded: bytes, max_side: int) -> bytes:
    """An encoded image as JPEG or PNG, RGB, upright, its shorter side at most `max_side`.

    Returns the same bytes if nothing has to change. Transparency becomes white. Raises ValueError on invalid images.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _TooLarge(f"image of more than {MAX_PIXELS:,} pixels")
            image.load()
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
    except _TooLarge:
        raise
    except Exception as error:  # Pillow raises a dozen kinds on broken files
        raise ValueError("undecodable image") from error


def encode_array(pixels: np.ndarray) -> bytes:
    """Pixels [H, W, 3] as a PNG, exact for uint8. Clips other numbers to 0..255, and scales fractions up to 1.

    Raises ValueError on another shape.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"image array of shape {list(pixels.shape)}, not [H, W, 3]")
    if pixels.dtype != np.uint8:
        pixels = np.nan_to_num(pixels.astype(np.float64))
        pixels = (pixels * (255 if pixels.max() <= 1 else 1)).round().clip(0, 255).astype(np.uint8)
    return _saved(Image.fromarray(np.ascontiguousarray(pixels)), format="PNG", compress_level=FAST)


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
        return Path(image).read_bytes()
    raise TypeError(f"an image is a path, encoded bytes, a PIL image or an array of pixels, not {type(image).__name__}")


def read_pixels(image, size: int, fit: str = "squash") -> np.ndarray:
    """uint8 [S, S, 3] of an argument of `encoded`, decoded and resized as in the pipelines, without TensorFlow.

    `fit`: "squash" resizes both sides to S; "pad" keeps the proportions and fills the rest with white. The values are
    the same except for rounding halves. JPEGs differ by up to 4, since TensorFlow uses libjpeg's fast integer DCT and
    Pillow the accurate one.
    """
    try:
        plain = normalise_image(encoded(image), size)
    except ValueError as error:
        raise ValueError(f"{image if isinstance(image, str | Path) else 'image'}: {error}") from None
    with Image.open(io.BytesIO(plain)) as opened:
        pixels = np.asarray(opened.convert("RGB"), np.float32)
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
    """Any mode as RGB: 16 bits scaled to 8, transparency on white."""
    if image.mode.startswith("I"):  # 16 bits: convert() would clip instead of scale
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


class _TooLarge(ValueError):
    pass


def _upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation; the same object if there is none or it is broken."""
    try:
        return ImageOps.exif_transpose(image) if image.getexif().get(0x0112) in TURNED else image
    except Exception:
        return image
