"""The attributes of garments, their values, and texts that name all of them."""

import numpy as np

_LENGTHS = {"mini": "mini, thigh-length", "midi": "midi, calf-length", "maxi": "maxi, ankle-length"}
_TOP_LENGTHS = {
    "cropped": "cropped, waist-length",
    "regular": "regular, hip-length",
    "longline": "longline, tunic-length",
}
_SHORT, _LONG = "short-sleeved / short sleeves", "long-sleeved / long sleeves"
_SLEEVES = {"sleeveless": "sleeveless / bare arms", "short": _SHORT, "long": _LONG}
_V = "v-neck / a v neckline, a plunging neckline"
_NECKLINES = {"round": "crew-neck / a crew neck, a round neck", "v": _V}
_BELT = "belted / a belt, a leather belt"
# kind -> attribute -> value -> "adjectives / what it is with"; no phrase stands for two values of one attribute
SHAPES = {
    "dress": {
        "length": _LENGTHS,
        "sleeve": _SLEEVES | {"puff": "puff-sleeved / puff sleeves, puffed sleeves"},
        "neckline": {
            "round": "round-neck / a round neckline, a scoop neck",
            "v": _V,
            "square": "square-neck / a square neckline",
        },
        "cut": {"fitted": "fitted, bodycon / a slim skirt", "flared": "flared, swing / a full skirt"},
    },
    "skirt": {
        "length": _LENGTHS,
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
        "neckline": _NECKLINES | {"boat": "boat-neck / a boat neckline, a wide neckline"},
        "sleeve": _SLEEVES,
        "length": _TOP_LENGTHS,
    },
    "shirt": {
        "collar": {
            "pointed": "point-collar / a pointed collar, a classic collar",
            "band": "band-collar / a band collar, a mandarin collar",
            "bow": "pussy-bow / a bow at the neck, a tied bow",
        },
        "sleeve": {"short": _SHORT, "long": _LONG},
        "pockets": {
            "none": "pocketless / no pockets",
            "one": "one-pocket / one pocket, a single pocket",
            "two": "two-pocket / two pockets, twin pockets",
        },
    },
    "sweater": {
        "neckline": _NECKLINES | {"turtle": "turtleneck / a roll neck, a high neck"},
        "sleeve": {
            "straight": "slim-sleeved / straight sleeves, slim sleeves",
            "balloon": "balloon-sleeved / balloon sleeves, full sleeves",
        },
        "length": _TOP_LENGTHS,
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
FABRICS = {  # attributes of every kind
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
    "pattern": {
        "plain": "plain, solid, unpatterned",
        "striped": "striped, stripy / stripes, bands",
        "checked": "checked, gingham / checks, squares",
        "dotted": "dotted, spotted, polka-dot / dots, spots",
        "floral": "floral, flowered / flowers, blossoms",
        "zigzag": "zigzag, chevron / zigzags, chevrons",
    },
    "accent": {
        "cream": "cream, ivory",
        "jet": "jet, ebony",
        "coral": "coral, tangerine",
        "gold": "gold, mustard",
        "mint": "mint, seafoam",
        "cobalt": "cobalt, ultramarine",
        "fuchsia": "fuchsia, magenta",
        "lilac": "lilac, lavender",
    },
}
_SYNONYMS = {"dress": ["frock"], "trousers": ["pants"], "t-shirt": ["tee"], "shirt": ["blouse"]}
_SYNONYMS |= {"sweater": ["jumper", "pullover"], "coat": ["overcoat"], "bag": ["handbag"]}
_FILLERS = ("", "", "", ", for everyday wear", ", from our spring range", ", made for the city", ", a new arrival")
_FILLERS += (", easy to combine", ", our favourite this season", ", a wardrobe staple")


def phrases(kind: str, attribute: str, value: str) -> tuple[list[str], list[str]]:
    """The adjectives for a value, and the noun phrases that a garment is "with"."""
    adjectives, _, nouns = (FABRICS | SHAPES[kind])[attribute][value].partition(" / ")
    return adjectives.split(", "), nouns.split(", ") if nouns else []


def describe(kind: str, garment: dict[str, str], rng: np.random.Generator) -> tuple[str, str]:
    """Title and caption, which together name every attribute once."""

    def pick(options):
        return options[rng.integers(len(options))]

    def adjective(name):
        return pick(phrases(kind, name, garment[name])[0])

    noun, colour, pattern = pick([kind, *_SYNONYMS.get(kind, ())]), adjective("colour"), adjective("pattern")
    shapes = list(SHAPES[kind])
    titled, *told = (shapes[place] for place in rng.permutation(len(shapes)))
    first = [pattern, adjective(titled)]
    title = " ".join([colour, *(first if rng.random() < 0.6 else first[::-1]), noun])
    adjectives, withs = [], []
    for name in told:
        nouns = phrases(kind, name, garment[name])[1]
        if nouns and (rng.random() < 0.6 or len(adjectives) == 2):
            withs.append(pick(nouns))
        else:
            adjectives.append(adjective(name))
    if "accent" in garment:
        accent, marks = adjective("accent"), pick(phrases(kind, "pattern", garment["pattern"])[1])
        withs.insert(int(rng.integers(len(withs) + 1)), pick([f"{accent} {marks}", f"{marks} in {accent}"]))
    thing = " ".join([*adjectives, noun])
    whole, comes = (f"pair of {thing}", "come") if kind == "trousers" else (thing, "comes")
    article = "an" if whole[0] in "aeiou" and not whole.startswith("one") else "a"
    filler, listed = pick(_FILLERS), " and ".join(filter(None, [", ".join(withs[:-1]), *withs[-1:]]))
    captions = [f"{article} {whole}{filler}.", f"our {thing}{filler}.", f"{thing}{filler}."]
    if withs:
        captions = [
            f"{article} {whole} with {listed}{filler}.",
            f"this {whole} has {listed}{filler}.",
            f"{listed} on {article} {whole}{filler}.",
            f"{thing}{filler}. With {listed}.",
            f"our {thing} {comes} with {listed}{filler}.",
        ]
    return _sentence(title), _sentence(pick(captions))


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]
