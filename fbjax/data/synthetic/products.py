"""The drawn catalogue: products of known attributes, each with a picture and a text that name all of them.

Owns which products there are, their wording and their two Parquet files; how they look is `garments`'. A group is one
combination of attributes, photographed and worded one to three times.
"""

import dataclasses
import functools
import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from fbjax.core.paths import atomic_write
from fbjax.data.synthetic import garments

VERSION = 4  # of pictures and wording: another one is drawn anew
MIN_PRODUCTS = 100
VALIDATION_SHARE = 0.2
NUM_EXAMPLES = 8  # validation pictures also written as files
GROUP_SIZES = (0.65, 0.25, 0.10)  # of one, two and three products
PLAIN_WEIGHT = 6.0  # a plain garment is drawn as often as so many patterned ones
_FIELDS = ("id", "title", "caption", "category", "subcategory", "colour", "pattern", "group")

# value -> "adjectives / what it is with"; no phrase stands under two values of one attribute
_BELT, _CROPPED = "belted / a belt, a leather belt", "cropped, waist-length"
_ACCENTS = [("cream", "ivory"), ("jet", "ebony"), ("coral", "tangerine"), ("gold", "mustard"), ("mint", "seafoam")]
_ACCENTS += [("cobalt", "ultramarine"), ("fuchsia", "magenta"), ("lilac", "lavender")]
WORDS = {
    "colour": {
        "black": "black, raven",
        "white": "white, bright white",
        "grey": "grey, gray, slate",
        "navy": "navy, dark blue, midnight blue",
        "light blue": "light blue, sky blue, pale blue",
        "green": "green, emerald, forest green",
        "red": "red, crimson",
        "burgundy": "burgundy, maroon, wine",
        "pink": "pink, blush",
        "yellow": "yellow, lemon",
        "purple": "purple, violet",
        "beige": "beige, camel, sand",
    },
    "accent": {value: f"{value}, {synonym}" for value, synonym in _ACCENTS},
    "pattern": {
        "plain": "plain, solid, unpatterned",
        "striped": "striped, stripy / stripes, bands",
        "checked": "checked, gingham / checks, squares",
        "dotted": "dotted, spotted, polka-dot / dots, spots",
        "floral": "floral, flowered / flowers, blossoms",
        "zigzag": "zigzag, chevron / zigzags, chevrons",
    },
    "dress": {
        "length": {"mini": "mini, thigh-length", "midi": "midi, calf-length", "maxi": "maxi, ankle-length"},
        "sleeve": {
            "sleeveless": "sleeveless / bare arms",
            "short": "short-sleeved / short sleeves",
            "long": "long-sleeved / long sleeves",
            "puff": "puff-sleeved / puff sleeves, puffed sleeves",
        },
        "neckline": {
            "round": "round-neck / a round neckline, a scoop neck",
            "v": "v-neck / a v neckline, a plunging neckline",
            "square": "square-neck / a square neckline",
        },
        "cut": {"fitted": "fitted, bodycon / a slim skirt", "flared": "flared, swing / a full skirt"},
    },
    "skirt": {
        "length": {"mini": "mini, thigh-length", "midi": "midi, calf-length", "maxi": "maxi, ankle-length"},
        "cut": {
            "pencil": "pencil, narrow",
            "a-line": "a-line, flaring",
            "pleated": "pleated / pleats",
            "tiered": "tiered / tiers, ruffles",
        },
        "waist": {"belt": _BELT, "bow": "bow-tied / a bow, a sash bow", "buttons": "buttoned / buttons, front buttons"},
    },
    "trousers": {
        "fit": {
            "skinny": "skinny, skin-tight",
            "straight": "straight, straight-leg / straight legs",
            "wide": "wide, wide-leg / wide legs",
            "flared": "flared, bootcut / flared legs",
        },
        "length": {"cropped": "cropped, calf-length", "full": "full-length, ankle-length"},
        "waist": {
            "belt": _BELT,
            "drawstring": "drawstring / a drawstring, a drawstring waist",
            "paperbag": "paperbag / a paperbag waist, a gathered waist",
        },
    },
    "t-shirt": {
        "neckline": {
            "round": "crew-neck / a crew neck, a round neck",
            "v": "v-neck / a v neckline, a plunging neckline",
            "boat": "boat-neck / a boat neckline, a wide neckline",
        },
        "sleeve": {
            "sleeveless": "sleeveless / bare arms",
            "short": "short-sleeved / short sleeves",
            "long": "long-sleeved / long sleeves",
        },
        "length": {"cropped": _CROPPED, "regular": "regular, hip-length", "longline": "longline, tunic-length"},
    },
    "shirt": {
        "collar": {
            "pointed": "point-collar / a pointed collar, a classic collar",
            "band": "band-collar / a band collar, a mandarin collar",
            "bow": "pussy-bow / a bow at the neck, a tied bow",
        },
        "sleeve": {"short": "short-sleeved / short sleeves", "long": "long-sleeved / long sleeves"},
        "pockets": {
            "none": "pocketless / no pockets",
            "one": "one-pocket / one pocket, a single pocket",
            "two": "two-pocket / two pockets, twin pockets",
        },
    },
    "sweater": {
        "neckline": {
            "round": "crew-neck / a crew neck, a round neck",
            "v": "v-neck / a v neckline, a plunging neckline",
            "turtle": "turtleneck / a roll neck, a high neck",
        },
        "sleeve": {
            "straight": "slim-sleeved / straight sleeves, slim sleeves",
            "balloon": "balloon-sleeved / balloon sleeves, full sleeves",
        },
        "length": {"cropped": _CROPPED, "regular": "regular, hip-length", "longline": "longline, tunic-length"},
    },
    "coat": {
        "closure": {
            "buttons": "single-breasted / one row of buttons",
            "double": "double-breasted / two rows of buttons",
            "zip": "zipped, zip-up / a zip, a front zip",
            "belt": "belted / a belt, a tied belt",
        },
        "length": {"hip": "hip-length, short", "knee": "knee-length", "long": "long, ankle-length"},
        "collar": {
            "lapels": "lapelled / lapels, wide lapels",
            "stand": "high-collared / a stand-up collar, a funnel neck",
            "hood": "hooded / a hood",
        },
    },
    "bag": {
        "shape": {
            "tote": "tote, shopper",
            "satchel": "satchel, flap-over",
            "bucket": "bucket, drawcord",
            "round": "round, circular",
        },
        "strap": {
            "handle": "top-handle / a top handle, a short handle",
            "strap": "shoulder-strap / a leather strap, a shoulder strap",
            "chain": "chain-strap / a chain, a chain strap",
        },
        "trim": {
            "buckle": "buckled / a buckle, a big buckle",
            "zip": "zipped / a zip, a front zip",
            "tassel": "tasselled / a tassel, a leather tassel",
        },
    },
}
NOUNS = {
    "dress": ("dress", "frock"),
    "skirt": ("skirt",),
    "trousers": ("trousers", "pants"),
    "t-shirt": ("t-shirt", "tee"),
    "shirt": ("shirt", "blouse"),
    "sweater": ("sweater", "jumper", "pullover"),
    "coat": ("coat", "overcoat"),
    "bag": ("bag", "handbag"),
}
_FILLERS = ("", "", "", ", for everyday wear", ", from our spring range", ", made for the city", ", a new arrival")
_FILLERS += (", easy to combine", ", our favourite this season", ", a wardrobe staple")


@dataclasses.dataclass(frozen=True)
class Order:
    """One product before it is drawn."""

    id: str
    kind: str
    group: str
    garment: dict[str, str]
    validation: bool


def draw_catalogue(num_products: int, seed: int) -> Iterator[dict]:
    """All products in shuffled order, sub-categories equally often; `image` holds a JPEG of 192 x 256."""
    for order in plan(num_products, seed):
        yield _row(order, seed)


def write_catalogue(folder: str | Path, num_products: int, seed: int, progress: Callable) -> dict[str, Path]:
    """train.parquet and validation.parquet in `folder`, groups disjoint; drawn only where they are not there yet.

    In examples/ lie a few pictures of validation products.

    `progress(iterable, total, label)` passes the products through. Every core draws, in a process of its own: a script
    that calls this needs ``if __name__ == "__main__"``.
    """
    orders = plan(num_products, seed)
    files = _files(folder)
    if is_drawn(folder, num_products, seed):
        return files
    Path(folder).mkdir(parents=True, exist_ok=True)
    rows = {"train": [], "validation": []}
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"), initializer=_leave_interrupts) as pool:
        drawn = pool.map(functools.partial(_row, seed=seed), orders, chunksize=16)
        for order, row in progress(zip(orders, drawn, strict=True), len(orders), "drawing"):
            rows["validation" if order.validation else "train"].append(row)
    for number, row in enumerate(rows["validation"][:NUM_EXAMPLES], start=1):
        example = Path(folder) / "examples" / f"{number}.jpg"
        example.parent.mkdir(exist_ok=True)
        example.write_bytes(row["image"]["bytes"])
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([(name, pa.string()) for name in _FIELDS] + [("image", image)])
    schema = schema.with_metadata(_provenance(num_products, seed))
    for split, file in files.items():
        with atomic_write(file) as partial:
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows[split], schema), partial)
    return files


def _leave_interrupts() -> None:
    """Ctrl-C is for the process that waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def is_drawn(folder: str | Path, num_products: int, seed: int) -> bool:
    """Whether both files are there, of this size, seed and version."""
    wanted = _provenance(num_products, seed).items()
    try:
        stored = [pyarrow.parquet.read_schema(file).metadata or {} for file in _files(folder).values()]
    except (OSError, pa.ArrowInvalid):
        return False
    return all(wanted <= metadata.items() for metadata in stored)


def plan(num_products: int, seed: int) -> list[Order]:
    """Which products there are; raises ValueError where the number is out of range."""
    kinds = list(garments.CATEGORIES)
    most = len(kinds) * min(map(garments.num_combinations, kinds))
    if not MIN_PRODUCTS <= num_products <= most:
        raise ValueError(f"cannot draw {num_products} products: set a number from {MIN_PRODUCTS} to {most}")
    rng = np.random.default_rng([seed, 0])
    orders = []
    for place, kind in enumerate(kinds):
        left = num_products // len(kinds) + (place < num_products % len(kinds))
        size = garments.num_combinations(kind)
        weights = [1 if "accent" in garments.combination(kind, number) else PLAIN_WEIGHT for number in range(size)]
        numbers = np.argsort(rng.exponential(size=size) / weights)  # without replacement, heavy ones early
        sizes = []
        while left:
            sizes.append(min(left, 1 + int(rng.choice(len(GROUP_SIZES), p=GROUP_SIZES))))
            left -= sizes[-1]
        validation = rng.permutation(len(sizes)) < VALIDATION_SHARE * len(sizes)
        for index, copies in enumerate(sizes):
            group, garment = f"{kind}-{index:04d}", garments.combination(kind, int(numbers[index]))
            for copy in range(copies):
                orders.append(Order(f"{group}-{'abc'[copy]}", kind, group, garment, bool(validation[index])))
    return [orders[place] for place in rng.permutation(len(orders))]


def phrases(kind: str, attribute: str, value: str) -> tuple[list[str], list[str]]:
    """The adjectives for a value, and the noun phrases that a garment is "with"."""
    table = WORDS[attribute] if attribute in WORDS else WORDS[kind][attribute]
    adjectives, _, nouns = table[value].partition(" / ")
    return adjectives.split(", "), nouns.split(", ") if nouns else []


def describe(kind: str, garment: dict[str, str], rng: np.random.Generator) -> tuple[str, str]:
    """Title and caption, which together name every attribute once."""

    def pick(options):
        return options[rng.integers(len(options))]

    noun = pick(NOUNS[kind])
    colour, pattern = (pick(phrases(kind, name, garment[name])[0]) for name in ("colour", "pattern"))
    shapes = [name for name in garment if name not in ("colour", "pattern", "accent")]
    shapes = [shapes[place] for place in rng.permutation(len(shapes))]
    titled, told = shapes[:1], shapes[1:]
    first = [pattern, *(pick(phrases(kind, name, garment[name])[0]) for name in titled)]
    title = " ".join([colour, *(first if rng.random() < 0.6 else first[::-1]), noun])
    adjectives, withs = [], []
    for name in told:
        plain, nouns = phrases(kind, name, garment[name])
        if nouns and (rng.random() < 0.6 or len(adjectives) == 2):
            withs.append(pick(nouns))
        else:
            adjectives.append(pick(plain))
    if "accent" in garment:
        accent, marks = (
            pick(phrases(kind, "accent", garment["accent"])[0]),
            pick(phrases(kind, "pattern", garment["pattern"])[1]),
        )
        withs.insert(int(rng.integers(len(withs) + 1)), pick([f"{accent} {marks}", f"{marks} in {accent}"]))
    thing = " ".join([*adjectives, noun])
    whole = f"pair of {thing}" if kind == "trousers" else thing
    article = "an" if whole[0] in "aeiou" and not whole.startswith("one") else "a"
    filler, listed = pick(_FILLERS), " and ".join(filter(None, [", ".join(withs[:-1]), *withs[-1:]]))
    if not withs:
        return _sentence(title), _sentence(pick([f"{article} {whole}", f"our {thing}", thing]) + filler) + "."
    comes = "come" if kind == "trousers" else "comes"
    caption = pick(
        [
            f"{article} {whole} with {listed}{filler}.",
            f"this {whole} has {listed}{filler}.",
            f"{listed} on {article} {whole}{filler}.",
            f"{thing}{filler}. With {listed}.",
            f"our {thing} {comes} with {listed}{filler}.",
        ]
    )
    return _sentence(title), _sentence(caption)


def _row(order: Order, seed: int) -> dict:
    digest = hashlib.sha256(f"{seed} {order.id}".encode()).digest()
    own = [int.from_bytes(digest[:8], "little"), VERSION]
    title, caption = describe(order.kind, order.garment, np.random.default_rng([*own, 1]))
    return {
        "id": order.id,
        "title": title,
        "caption": caption,
        "category": garments.CATEGORIES[order.kind],
        "subcategory": order.kind,
        "colour": order.garment["colour"],
        "pattern": order.garment["pattern"],
        "group": order.group,
        "image": {"bytes": garments.draw(order.kind, order.garment, [*own, 2]), "path": f"{order.id}.jpg"},
    }


def _files(folder: str | Path) -> dict[str, Path]:
    return {split: Path(folder) / f"{split}.parquet" for split in ("train", "validation")}


def _provenance(num_products: int, seed: int) -> dict[bytes, bytes]:
    return {b"fbjax_drawn": f"version {VERSION}, {num_products} products, seed {seed}".encode()}


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]
