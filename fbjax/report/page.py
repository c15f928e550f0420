"""Shared by the pages: rendering of templates, pictures as data URIs, formats of numbers."""

import base64
import datetime
import io
import textwrap
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from fbjax import __version__
from fbjax.core.console import duration
from fbjax.core.paths import as_path, atomic_write
from fbjax.data.sources.base import Product
from fbjax.data.sources.images import encode_array, normalise_image

HEIGHT = 160  # pixels of a picture at most, and at most twice as wide
SHORT = 150  # letters of a text


def write_page(path: str | Path, template: str, **values) -> Path:
    """Renders `template` and writes it to `path` atomically."""
    path = as_path(path)
    today = datetime.date.today()
    values |= {"version": __version__, "today": f"{today.day} {today:%B %Y}"}
    text = _environment().get_template(template).render(values)
    with atomic_write(path) as file:
        file.write_text(text, encoding="utf-8")
    return path


def picture(encoded: bytes, height: int = HEIGHT) -> str:
    """An encoded image as the data URI of a small JPEG; a grey square for b"" (no picture)."""
    encoded = encoded or encode_array(np.full((height, height, 3), 0xDD, np.uint8))
    with Image.open(io.BytesIO(normalise_image(encoded, 2 * height))) as image:
        image.thumbnail((2 * height, height))
        out = io.BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def card(product: Product, score: float, place: int, right: bool = False) -> dict:
    """A ranked product as the templates show it; `right` marks the query's own product."""
    return {"product": product, "picture": picture(product.image), "score": score, "place": place, "right": right}


def shorten(text: str, letters: int = SHORT) -> str:
    return textwrap.shorten(text, letters, placeholder="\N{NO-BREAK SPACE}…") if " " in text else text[:letters]


def percent(share: float) -> str:
    """``16.6 %``, and ``100 %`` without decimals."""
    return f"{share:.{0 if share >= 1 else 1}%}".replace("%", "\N{NARROW NO-BREAK SPACE}%")


def _environment() -> jinja2.Environment:
    options = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.PackageLoader("fbjax.report"), **options)
    environment.filters |= {
        "percent": percent,
        "points": lambda value: f"{value:.3f}".removeprefix("0"),
        "count": lambda value: f"{value:,}",
        "score": lambda value, digits=2: f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "\N{MINUS SIGN}"),
        "duration": duration,
        "shorten": shorten,
    }
    return environment
