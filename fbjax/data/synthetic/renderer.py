"""The sketch of a garment as SVG, and a photograph of it.

A sketch has three layers: the parts, their heights, and sewn-on details. Light from the upper left on the heights gives
the shading. The fabric's pattern fills the parts, and the folds bend it. A backdrop with a shadow is added last.
"""

import functools
import io
import re

import numpy as np
import resvg_py
from PIL import Image

WIDTH, HEIGHT = 192, 256
GOLD, SHELL, TAN, DARK = (222, 178, 84), (240, 232, 214), (178, 116, 62), (62, 40, 30)
LEFT, MIDDLE, RIGHT = 0, 128, 255  # how a part's pattern is turned
INSIDE, SEAM = 74, 96  # tones, of 128
_BACKDROPS = ((236, 234, 231), (229, 232, 236), (238, 232, 226), (230, 234, 230), (233, 233, 235))
_TILE = 48  # units that a pattern takes to repeat
_DOWN, _RIGHT = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
_GLOW = 1.03 - 0.05 * ((_RIGHT / 96 - 0.8) ** 2 + (_DOWN / 128 - 0.75) ** 2) - 0.02 * (_DOWN / 128 - 1)


def both(half: str) -> str:
    """The closed outline of a right half that runs from the top to the bottom of the middle line."""
    steps = re.findall(r"([MLQC])([^MLQC]*)", half)
    points = [f"{-float(x):g},{y}" for _, run in steps for x, y in re.findall(r"([-\d.]+),([-\d.]+)", run)][::-1]
    back, place = "L" + points[0], 1
    for command, _ in reversed(steps[1:]):
        taken = {"L": 1, "Q": 2, "C": 3}[command]
        back += " " + command + " ".join(points[place : place + taken])
        place += taken
    return f"{half} {back} Z"


def flip(path: str) -> str:
    return re.sub(r"([-\d.]+),", lambda x: f"{-float(x[1]):g},", path)


class Sketch:
    """Parts, heights and details of one garment, as SVG elements."""

    def __init__(self, colour: tuple, rng: np.random.Generator):
        self.rng, self.colour = rng, colour
        self.parts, self.heights, self.details = [], [], []
        self.black = np.dot(colour, (0.3, 0.59, 0.11)) < 43
        self.turn = 20.0  # degrees between a sleeve's pattern and the body's
        self.lift = 0.0  # units down that put a short garment into the middle
        self.shift = rng.uniform(0, _TILE, 2)
        self.texture = "weave"
        self.leather = TAN if np.dot(colour, (0.3, 0.59, 0.11)) < 105 else DARK
        self._wave = rng.uniform(-1.6, 1.6, 2), rng.uniform(0, 6, 2)

    def warped(self, path: str) -> str:
        size, phase = self._wave

        def warp(match):
            x, y = float(match[1]), float(match[2])
            dx, dy = size * np.sin((y / 45 + phase[0], (x + y / 3) / 40 + phase[1]))
            return f"{x + dx:.1f},{y + dy:.1f}"

        return re.sub(r"([-\d.]+),([-\d.]+)", warp, path)

    def cloth(self, path, height=130, part=MIDDLE, tone=128, plain=False, edge=106):
        path, pattern = self.warped(path), 0 if plain else 255
        if self.black and plain and tone < 128:  # on black, a lighter tone shows and a darker one does not
            tone = min(255, 128 + 23 * (128 - tone) // 10)
            edge = 64
        seam = f'stroke="rgb({edge * tone // 128},{part},{pattern})" stroke-width=".8"'
        self.parts.append(f'<path d="{path}" fill="rgb({tone},{part},{pattern})" {seam}/>')
        self.heights.append(f'<path d="{path}" fill="rgb({height},{height},{height})"/>')

    def rib(self, path, height=120, tone=114):
        """A ribbed edge: a little darker and without pattern."""
        self.cloth(path, height, tone=tone, plain=True)

    def seam(self, path, width=0.9, tone=SEAM, plain=False, dash="", fold=None):
        """A line; `fold`, depth and width, puts a fold under it."""
        pattern, dash = 0 if plain else 255, f'stroke-dasharray="{dash}"' * bool(dash)
        line = f'fill="none" stroke="rgb({tone},128,{pattern})" stroke-width="{width}" {dash}'
        self.parts.append(f'<path d="{self.warped(path)}" {line}/>')
        if fold:
            self.fold(path, *fold)

    def fold(self, path, depth=-40, width=4.0):
        ink, path = "#fff" if depth > 0 else "#000", self.warped(path)
        self.heights.append(
            f'<path d="{path}" fill="none" stroke="{ink}" stroke-opacity="{min(1, abs(depth) / 180):.2f}" '
            f'stroke-width="{width:.1f}" stroke-linecap="round"/>'
        )

    def detail(self, path, fill, height=0, line=None, width=1.0):
        """A sewn-on detail with its own colour: filled, or drawn as a line if `line` is given."""
        path = self.warped(path)
        paint = f'fill="rgb{fill}"' if fill else 'fill="none"'
        paint += f' stroke="rgb{line}" stroke-width="{width}"' if line else ""
        self.details.append(f'<path d="{path}" {paint} stroke-linejoin="round" stroke-linecap="round"/>')
        if height:
            inner = 'fill="#fff" fill-opacity=".4"' if fill else 'fill="none"'
            outer = f'stroke="#fff" stroke-opacity=".4" stroke-width="{width}"' if line else ""
            self.heights.append(f'<path d="{path}" {inner} {outer}/>')

    def button(self, x, y, radius=2.6, fill=SHELL):
        r = radius
        circle = f"M{-r + x},{y} C{-r + x},{y - 1.35 * r} {r + x},{y - 1.35 * r} {r + x},{y} "
        circle += f"C{r + x},{y + 1.35 * r} {-r + x},{y + 1.35 * r} {-r + x},{y}"
        self.detail(circle, fill, height=1, line=tuple(int(0.6 * c) for c in fill), width=0.6)
        self.detail(f"M{x - 0.8},{y} L{x + 0.8},{y}", None, line=(70, 60, 50), width=0.7)

    def band(self, y, left, right, height, fill):
        """A belt with its buckle."""
        lower = f"L{right},{y + height} Q{right * 0.6},{y + height + 1} 0,{y + height + 1}"
        self.detail(both(f"M0,{y + 1} Q{right * 0.6},{y + 1} {right},{y} {lower}"), fill, height=1)
        self.detail(both(f"M0,{y - 1.5} L6.5,{y - 1.5} L6.5,{y + height + 3} L0,{y + height + 3}"), None, 1, GOLD, 2.4)

    def drape(self, top, bottom, width_top, width_bottom, count, depth=34):
        """Folds that hang from `top` to `bottom`."""
        for place in (np.arange(count) + self.rng.uniform(0.2, 0.8, count)) / count * 2 - 1:
            start = top + (bottom - top) * self.rng.uniform(0, 0.45)
            x0, x1 = place * width_top * 0.85, place * width_bottom * 0.92
            sway, size = self.rng.uniform(-3, 3), self.rng.uniform(0.6, 1.2)
            path = f"M{x0:.1f},{start:.1f} Q{(x0 + x1) / 2 + sway:.1f},{(start + bottom) / 2:.1f} {x1:.1f},{bottom - 3}"
            self.fold(path, -depth * size, self.rng.uniform(4, 7))
            self.fold(path, 0.5 * depth * size, 2)

    def creases(self, points, length=16, depth=30):
        """Short folds that start at (x, y) and run in the direction of an angle."""
        for x, y, angle in points:
            for turn in self.rng.uniform(-0.35, 0.35, 2):
                dx, dy = length * np.cos(angle + turn), length * np.sin(angle + turn)
                bend = self.rng.uniform(-3, 3)
                curve = f"M{x},{y} Q{x + dx / 2 + bend:.1f},{y + dy / 2 + bend:.1f} {x + dx:.1f},{y + dy:.1f}"
                self.fold(curve, -depth * self.rng.uniform(0.5, 1.2), self.rng.uniform(2.5, 4))


# ---- cloth: tiles of _TILE x _TILE units; red is the accent's share, green a second colour's


def _petals(x, y, size, turn) -> str:
    petal = f'<ellipse cx="0" cy="{-size * 0.56:.2f}" rx="{size * 0.36:.2f}" ry="{size * 0.5:.2f}" fill="#f00" '
    flower = "".join(f'{petal}transform="rotate({72 * number})"/>' for number in range(5))
    edge = f"M0,0 Q{size},{size * 0.5} {size * 1.5},{size * 1.1} Q{size * 0.4},{size * 1.3} 0,0 Z"
    leaf = f'<path d="{edge}" fill="#0f0"/>'
    heart = f'<circle r="{size * 0.26:.2f}" fill="#0f0"/>'
    return f'<g transform="translate({x},{y}) rotate({turn})">{leaf}{flower}{heart}</g>'


_CENTRES = ((8, 8), (24, 8), (40, 8), (0, 24), (16, 24), (32, 24), (48, 24), (8, 40), (24, 40), (40, 40))
_TILES = {
    "striped": '<path d="M0,0H48V11H0Z M0,24H48V35H0Z" fill="#f00"/>',
    "checked": '<path d="M0,0H12V48H0Z M24,0H36V48H24Z" fill="#800000"/>'
    '<path d="M0,0H48V12H0Z M0,24H48V36H0Z" fill="#f00" fill-opacity=".5"/>',
    "dotted": "".join(f'<circle cx="{x}" cy="{y}" r="5.4" fill="#f00"/>' for x, y in _CENTRES),
    "floral": _petals(12, 13, 11, 10) + _petals(36, 36, 10, 130) + _petals(36, 11, 6, 250) + _petals(11, 38, 6.5, 60),
    "zigzag": '<path d="M-12,18 L0,6 L12,18 L24,6 L36,18 L48,6 L60,18 '
    'M-12,42 L0,30 L12,42 L24,30 L36,42 L48,30 L60,42" '
    'fill="none" stroke="#f00" stroke-width="8"/>',
}


def _raster(elements: list[str], scale: int = 1, place: str = "", size=(WIDTH, HEIGHT)) -> np.ndarray:
    """RGBA [4, height / scale, width / scale] of SVG elements, each 0 to 1."""
    width, height = size
    document = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width // scale}" height="{height // scale}" '
        f'viewBox="0 0 {width} {height}"><g transform="{place}">{"".join(elements)}</g></svg>'
    )
    with Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=document, skip_system_fonts=True))) as image:
        planes = np.asarray(image.convert("RGBA")).transpose(2, 0, 1)
    return planes.astype(np.float32, order="C") / np.float32(255)


@functools.cache
def _tile(pattern: str) -> np.ndarray:
    """[2, 256, 256]: shares of the accent and of the second colour."""
    image = _raster([f'<g transform="scale({256 / _TILE})">{_TILES[pattern]}</g>'], size=(256, 256))
    shares = image[:2] * image[3]
    return np.mean([np.roll(shares, (y, x), (1, 2)) for y in (-2, 0, 2) for x in (-2, 0, 2)], 0, np.float32)


@functools.cache
def _texture(sort: str) -> np.ndarray:
    """[256, 192] around 0: how the surface of a cloth catches the light."""
    noise = np.random.default_rng(5).normal(0, 1, (HEIGHT, WIDTH)).astype(np.float32)
    y, x = _DOWN, _RIGHT
    match sort:
        case "knit":
            stitches = 0.05 * np.sin(2 * np.pi * (y + np.abs((x % 6) - 3)) / 4)
            return stitches + 0.03 * np.cos(np.pi * x / 3) + 0.012 * noise
        case "grain":
            return 0.022 * (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 1.7
        case "twill":
            return 0.02 * np.sin(2 * np.pi * (x + y) / 3.5) + 0.016 * noise
        case _:
            across, along = (sum(np.roll(noise, step, axis) for step in range(4)) for axis in (0, 1))
            return 0.006 * (across + along)


# ---- light


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Half-size [128, 96] to full size [256, 192], blurred by about `sigma` half-size pixels by resizing down and up.

    A convolution as a matrix product would wait for its threads 20 times as long as it computes.
    """
    height, width = image.shape
    small = Image.fromarray(image).resize((round(width / sigma), round(height / sigma)), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((2 * width, 2 * height), Image.Resampling.BICUBIC))


def _shade(heights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The light, 1 on flat cloth, from heights [128, 96] in 0 to 1, and the slopes that bend patterns."""
    sharp = _blur(heights, 1.0)
    surface = 0.4 * sharp + 1.0 * _blur(heights, 2.2) + 2.4 * _blur(heights, 6.0)
    slope_y, slope_x = np.gradient(surface)
    light = 3.0 * slope_x + 2.2 * slope_y
    hollow = np.minimum(sharp - _blur(heights, 5.0), 0)
    return 1 + 0.42 * np.tanh(light * 1.6) + 0.5 * hollow, slope_x, slope_y


def _shadow(mask: np.ndarray, sigma: float, depth: float, down: int, right: int) -> np.ndarray:
    """The share of light [256, 192] that `mask` [128, 96] blocks, moved by so many pixels down and right."""
    shadow = np.zeros((HEIGHT, WIDTH), np.float32)
    shadow[down:, right:] = depth * _blur(mask, sigma)[:-down, :-right]
    return shadow


def photograph(
    sketch: Sketch, colours: tuple[tuple, tuple, tuple], pattern: str, rng: np.random.Generator
) -> np.ndarray:
    """The garment on its backdrop, uint8 [256, 192, 3]; `colours` are ground, accent and second, RGB each."""
    turn, scale = rng.normal(0, 1.3), rng.uniform(0.93, 1.01)
    x, y = 96 + rng.uniform(-4, 4), 128 + rng.uniform(-3, 3) + sketch.lift
    place = f"translate({x:.2f},{y:.2f}) rotate({turn:.2f}) scale({scale:.3f}) translate(0,-128)"
    parts = _raster(sketch.parts, 1, place)
    heights = _raster(sketch.heights, 2, place)
    shade, slope_x, slope_y = _shade(heights[0] * heights[3])
    ground, accent, second = (np.asarray(colour, np.float32)[:, None, None] for colour in colours)
    cloth = ground
    if pattern != "plain":
        angle = np.deg2rad(turn + np.select([parts[1] > 0.75, parts[1] < 0.25], [-sketch.turn, sketch.turn], 0))
        angle = angle.astype(np.float32)
        right, down = (_RIGHT - x) / scale + 14 * slope_x, (_DOWN - y) / scale + 14 * slope_y
        u = np.cos(angle) * right + np.sin(angle) * down + sketch.shift[0]
        v = np.cos(angle) * down - np.sin(angle) * right + sketch.shift[1]
        u, v = ((axis * (256 / _TILE)).astype(np.int32) & 255 for axis in (u, v))
        shares = _tile(pattern)[:, v, u] * parts[2]
        cloth = ground + shares[0] * (accent - ground) + shares[1] * (second - ground)
    texture = np.roll(_texture(sketch.texture), tuple(rng.integers(0, 96, 2)), (0, 1))
    light = shade + texture
    cloth = cloth * (parts[0] * np.float32(255 / 128) * light) + (light - 1) * 36
    # the backdrop with the garment's shadow
    tint = np.asarray(_BACKDROPS[rng.integers(len(_BACKDROPS))], np.float32) + np.float32(rng.uniform(-3, 3))
    dark = _shadow(heights[3], 4.5, 0.26, 7, 5) + _shadow(heights[3], 1.1, 0.30, 2, 2)
    scene = tint[:, None, None] * _GLOW * (1 - dark * np.float32([1.0, 0.96, 0.9])[:, None, None])
    scene += parts[3] * (cloth - scene)
    if sketch.details:
        details = _raster(sketch.details, 1, place)
        scene += details[3] * (details[:3] * (90 + 165 * shade) - scene)
    return np.ascontiguousarray(np.clip(scene, 0, 255).astype(np.uint8).transpose(1, 2, 0))
