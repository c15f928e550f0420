"""Garments drawn from known attributes: eight kinds, their shapes, colours and patterns."""

import colorsys
import functools
import io
import itertools

import numpy as np
from PIL import Image

from fbjax.data.synthetic import bottoms, tops
from fbjax.data.synthetic.renderer import Sketch, photograph
from fbjax.data.synthetic.words import FABRICS, SHAPES

COLOURS = {
    "black": (38, 38, 42),
    "white": (244, 243, 239),
    "grey": (140, 143, 148),
    "navy": (34, 48, 96),
    "light blue": (142, 190, 228),
    "green": (38, 112, 72),
    "red": (204, 36, 44),
    "burgundy": (106, 26, 46),
    "pink": (240, 152, 182),
    "yellow": (240, 196, 56),
    "purple": (118, 66, 158),
    "beige": (196, 162, 116),
}
ACCENTS = {
    "cream": (250, 240, 216),
    "jet": (28, 27, 30),
    "coral": (240, 92, 66),
    "gold": (232, 176, 40),
    "mint": (150, 226, 190),
    "cobalt": (38, 84, 226),
    "fuchsia": (224, 44, 158),
    "lilac": (196, 164, 234),
}
_KINDS = {
    "dress": ("one-piece", tops.dress),
    "skirt": ("bottoms", bottoms.skirt),
    "trousers": ("bottoms", bottoms.trousers),
    "t-shirt": ("tops", tops.t_shirt),
    "shirt": ("tops", tops.shirt),
    "sweater": ("tops", tops.sweater),
    "coat": ("outerwear", tops.coat),
    "bag": ("bags", bottoms.bag),
}
CATEGORIES = {kind: category for kind, (category, _) in _KINDS.items()}


@functools.cache
def fabrics() -> list[tuple[str, str, str]]:
    """Every (colour, pattern, accent) whose accent differs enough from the ground; a plain fabric has no accent."""
    cloths = [(colour, "plain", "") for colour in COLOURS]
    for colour, pattern, accent in itertools.product(COLOURS, list(FABRICS["pattern"])[1:], ACCENTS):
        if np.linalg.norm(np.subtract(COLOURS[colour], ACCENTS[accent])) > 120:
            cloths.append((colour, pattern, accent))
    return cloths


def num_combinations(kind: str) -> int:
    return len(fabrics()) * int(np.prod([len(values) for values in SHAPES[kind].values()]))


def combination(kind: str, number: int) -> dict[str, str]:
    """The `number`-th garment of a kind: attribute -> value; `accent` only where there is a pattern."""
    number, fabric = divmod(number, len(fabrics()))
    colour, pattern, accent = fabrics()[fabric]
    garment = {"colour": colour, "pattern": pattern} | ({"accent": accent} if accent else {})
    for attribute, values in SHAPES[kind].items():
        number, place = divmod(number, len(values))
        garment[attribute] = list(values)[place]
    return garment


def draw(kind: str, garment: dict[str, str], seed) -> bytes:
    """A JPEG of 192 x 256; `seed` varies the photograph: position, light, folds and dye."""
    rng = np.random.default_rng(seed)
    ground = _dyed(COLOURS[garment["colour"]], rng)
    accent = _dyed(ACCENTS[garment.get("accent", "cream")], rng)
    folds, camera = rng.spawn(2)  # the shape does not change the photograph
    sketch = Sketch(ground, folds)
    _KINDS[kind][1](sketch, garment)
    second = tuple(0.45 * a + 0.55 * g for a, g in zip(accent, (52, 92, 62), strict=True))
    image = photograph(sketch, (ground, accent, second), garment["pattern"], camera)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=92)
    return out.getvalue()


def _dyed(colour: tuple, rng: np.random.Generator) -> tuple:
    """`colour` with the variation of one dye bath and one camera."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(part / 255 for part in colour))
    lightness *= rng.uniform(0.96, 1.03)
    saturation *= rng.uniform(0.92, 1.05)
    hue = (hue + rng.uniform(-0.008, 0.008)) % 1
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, min(lightness, 1), min(saturation, 1)))
