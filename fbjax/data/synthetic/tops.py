"""Sketches of dress, t-shirt, shirt, sweater and coat from their attributes."""

import numpy as np

from fbjax.data.synthetic.renderer import DARK, GOLD, INSIDE, LEFT, RIGHT, SHELL, Sketch, both, flip


def neckline(sort: str, y: float) -> tuple[str, float]:
    """The right half of the front edge, from the middle to where the shoulder starts, and how wide it is there."""
    return {
        "round": (f"M0,{y + 24} C13,{y + 24} 21,{y + 15} 21,{y}", 21),
        "v": (f"M0,{y + 50} Q13,{y + 24} 19,{y}", 19),
        "square": (f"M0,{y + 30} L23,{y + 29} L24,{y}", 24),
        "boat": (f"M0,{y + 13} Q22,{y + 12} 37,{y + 2}", 37),
        "high": (f"M0,{y + 9} C9,{y + 9} 16,{y + 6} 17,{y}", 17),  # under a collar
    }[sort]


def inside(sketch: Sketch, y: float, width: float, depth: float, label=True):
    """The back of the neck as seen through the neckline, with its label."""
    back = both(f"M0,{y + 4} Q{width * 0.6},{y + 4} {width},{y - 1} L{width},{y + depth} L0,{y + depth}")
    sketch.cloth(back, 40, tone=INSIDE, plain=True, edge=60)
    if label:
        sketch.seam(f"M-5,{y + 9} L5,{y + 9}", 5, 236, plain=True)


def sleeves(sketch: Sketch, sort: str, shoulder: tuple, armpit: tuple, length=150, ribbed=False):
    (sx, sy), (ax, ay) = shoulder, armpit
    if sort == "sleeveless":
        return
    sketch.turn = 26.0 if sort == "short" else 15.0
    low, cuff = sy + length, ""
    match sort:
        case "short":
            path = f"M{sx - 9},{sy - 3} Q{sx + 11},{sy + 3} {sx + 29},{sy + 44} L{ax + 9},{ay + 12} Q{ax},{ay + 4}"
            cuff = f"M{sx + 27},{sy + 40} L{ax + 8},{ay + 8}"
        case "puff":
            path = (
                f"M{sx - 9},{sy - 1} C{sx - 3},{sy - 15} {sx + 35},{sy - 12} {sx + 37},{sy + 22} "
                f"C{sx + 38},{sy + 38} {sx + 30},{sy + 46} {sx + 24},{sy + 45} "
                f"L{ax + 6},{ay + 8} Q{ax},{ay + 4}"
            )
        case "balloon":
            path = (
                f"M{sx - 9},{sy - 3} Q{sx + 14},{sy + 3} {sx + 21},{sy + 50} C{sx + 46},{sy + 84} {sx + 50},{low - 34} "
                f"{sx + 30},{low} L{sx + 16},{low + 2} C{sx - 4},{low - 26} {ax + 6},{ay + 56}"
            )
        case _:
            path = (
                f"M{sx - 9},{sy - 3} Q{sx + 13},{sy + 3} {sx + 22},{sy + 54} L{sx + 34},{low} L{sx + 16},{low + 4} "
                f"Q{ax + 8},{ay + 44}"
            )
            cuff = "" if ribbed else f"M{sx + 33},{low - 12} L{sx + 15},{low - 8}"
    for side, turned in ((RIGHT, lambda p: p), (LEFT, flip)):
        sketch.cloth(turned(f"{path} {ax - 6},{ay} Z"), 104, part=side)
        if cuff:
            sketch.seam(turned(cuff), 0.8, fold=(-50, 2))
        if sort == "puff":
            for spread in (6, 16, 26):
                gather = f"M{sx + spread + 6},{sy - 4} Q{sx + spread + 7},{sy + 22} {sx + spread * 0.7},{sy + 44}"
                sketch.fold(turned(gather), -44, 3)
            band = f"M{sx + 26},{sy + 43} L{ax + 5},{ay + 6} L{ax + 6},{ay + 13} L{sx + 28},{sy + 51} Z"
            sketch.rib(turned(band), 120, 112)
        if sort in ("long", "straight", "balloon"):
            wide = 12 if sort == "balloon" else 0
            for y, x in ((sy + 62, 12), (sy + 76, 15), (sy + 104, 19), (low - 22, 24)):
                y += sketch.rng.uniform(-5, 5)
                bend = f"M{sx + x - 8},{y + 5:.1f} Q{sx + x},{y:.1f} {sx + x + 9 + wide},{y - 7:.1f}"
                sketch.fold(turned(bend), -36, 3.5)
            if ribbed:
                rib = f"M{sx + 31},{low - 1} L{sx + 15},{low + 3} L{sx + 17},{low + 14} L{sx + 33},{low + 10} Z"
                sketch.rib(turned(rib))
        if sort == "short":
            sketch.fold(turned(f"M{ax + 2},{ay} L{sx + 12},{sy + 20}"), -40, 4)


def torso(sketch: Sketch, front: str, shoulder, armpit, waist, hem, curve=6):
    (sx, sy), (ax, ay), (wx, wy), (hx, hy) = shoulder, armpit, waist, hem
    half = (
        f"{front} L{sx},{sy} C{sx - 3},{sy + 14} {ax - 6},{ay - 16} {ax},{ay} Q{wx - 1},{(ay + wy) / 2} {wx},{wy} "
        f"Q{wx},{(wy + hy) / 2} {hx},{hy} Q{hx * 0.5},{hy + curve} 0,{hy + curve}"
    )
    sketch.cloth(both(half))
    armhole = f"M{sx},{sy} C{sx - 3},{sy + 14} {ax - 6},{ay - 16} {ax},{ay}"
    for edge in (armhole, flip(armhole)):
        sketch.fold(edge, -60, 2)
    sketch.creases([(ax - 3, ay + 3, 2.4), (3 - ax, ay + 3, 0.75), (wx - 2, wy, 2.9), (2 - wx, wy, 0.25)])


def dress(sketch: Sketch, garment: dict):
    hem = {"mini": 166, "midi": 205, "maxi": 243}[garment["length"]]
    sketch.lift = 0.35 * (242 - hem)
    spread = (hem - 96) / 146
    hem_width = {"fitted": 38 - 9 * spread, "flared": 44 + 34 * spread}[garment["cut"]]
    front, width = neckline(garment["neckline"], 16)
    shoulder = sx, sy = (max(width + 7, 30), 20) if garment["sleeve"] == "sleeveless" else (39, 22)
    inside(sketch, 16, width, {"round": 28, "v": 54, "square": 34}[garment["neckline"]])
    sleeves(sketch, garment["sleeve"], shoulder, (33, 62), 118)
    flared = garment["cut"] == "flared"
    fall = hem - 96
    hips = f"C28,{96 + 0.35 * fall} {hem_width * 0.8},{hem - 0.3 * fall} {hem_width},{hem}"
    if not flared:
        hips = f"C28,106 38,{96 + 0.35 * fall} {hem_width},{hem}"
    half = f"{front} L{sx},{sy} C{sx - 5},{sy + 18} 28,50 33,62 Q25,80 24,96 {hips} "
    half += f"Q{hem_width * 0.5},{hem + 7} 0,{hem + 7}"
    sketch.cloth(both(half))
    sketch.creases([(28, 66, 2.5), (-28, 66, 0.65), (22, 96, 2.8), (-22, 96, 0.3)], 14)
    if flared:
        sketch.drape(98, hem, 22, hem_width, 9, 46)
    else:
        sketch.drape(104, hem, 24, hem_width - 4, 4, 24)
        sketch.seam(f"M0,{hem - 26} L0,{hem + 6}", 1.4, 70)
    sketch.seam("M-24,97 Q0,101 24,97", 1.6, 80, fold=(-60, 2))
    sketch.seam(f"M{2 - hem_width},{hem - 4} Q0,{hem + 5} {hem_width - 2},{hem - 4}", 0.6)


def t_shirt(sketch: Sketch, garment: dict):
    hem = {"cropped": 128, "regular": 176, "longline": 236}[garment["length"]]
    sketch.lift = 0.35 * (236 - hem)
    front, width = neckline(garment["neckline"], 28)
    bare = garment["sleeve"] == "sleeveless"
    inside(sketch, 28, width, {"round": 27, "v": 54, "boat": 16}[garment["neckline"]])
    sleeves(sketch, garment["sleeve"], (50, 38), (47, 86), 150)
    shoulder, armpit = ((max(width + 9, 36), 32), (46, 90)) if bare else ((50, 38), (47, 86))
    torso(sketch, front, shoulder, armpit, (46, min(140, hem - 14)), (47 + (hem > 200) * 3, hem))
    sketch.drape(100, hem, 40, 42, 4, 26)
    sketch.seam(f"M-45,{hem - 4} Q0,{hem + 4} 45,{hem - 4}", 0.7)
    for edge in (front, flip(front)):
        sketch.seam(edge, 5, 108, plain=True, fold=(60, 3))


def shirt(sketch: Sketch, garment: dict):
    sort = garment["collar"]
    sketch.lift = 12
    front, width = neckline("high", 26)
    inside(sketch, 13, 18, 30)
    sleeves(sketch, garment["sleeve"], (48, 38), (45, 84), 152)
    torso(sketch, front, (48, 38), (45, 84), (45, 140), (48, 188), curve=20)
    sketch.drape(96, 188, 38, 42, 4, 24)
    sketch.cloth("M-6,36 L6,36 L6,207 L-6,207 Z", 140)
    for y in range(54, 206, 25):
        sketch.button(0, y, 2.7, SHELL if sum(sketch.colour) < 600 else (120, 100, 80))
    sketch.seam("M-48,39 Q-30,30 -17,30", 0.8)
    for side in (-1, 1)[: {"none": 0, "one": 1, "two": 2}[garment["pockets"]]]:
        x = 12 if side > 0 else -38
        sketch.cloth(f"M{x},90 L{x + 26},90 L{x + 26},120 L{x + 13},126 L{x},120 Z", 165, tone=100, plain=True, edge=70)
        flap = f"M{x - 1},84 L{x + 27},84 L{x + 27},94 L{x + 13},100 L{x - 1},94 Z"
        sketch.cloth(flap, 190, tone=84, plain=True, edge=70)
        sketch.button(x + 13, 94, 2)
    if sort == "pointed":
        point = "M1,36 C8,30 15,26 18,14 Q25,22 27,34 L16,62 Z"
        for path in (point, flip(point)):
            sketch.cloth(path, 195, tone=118, plain=True)
    elif sort == "band":
        sketch.cloth(both("M0,26 Q12,24 17,14 L22,20 Q19,36 0,40"), 185, tone=104, plain=True)
        sketch.button(0, 33, 2.4)
    else:
        sketch.cloth(both("M0,26 Q12,24 17,14 L21,20 Q18,34 0,38"), 170, tone=100, plain=True)
        for turned in (lambda p: p, flip):
            sketch.cloth(turned("M1,40 C4,60 10,84 9,118 L26,110 C22,84 14,60 5,38 Z"), 200, tone=98, plain=True)
            sketch.cloth(turned("M1,38 C8,20 30,14 36,24 C40,40 36,56 26,56 Q12,52 1,40 Z"), 215, tone=98, plain=True)
            sketch.fold(turned("M4,39 Q16,36 28,38"), -60, 3)
        sketch.cloth(both("M0,31 L6,32 L6,46 L0,47"), 245, tone=98, plain=True)


def sweater(sketch: Sketch, garment: dict):
    hem = {"cropped": 128, "regular": 172, "longline": 228}[garment["length"]]
    sketch.texture = "knit"
    sketch.lift = 0.3 * (228 - hem)
    sort = garment["neckline"]
    front, width = neckline({"turtle": "high"}.get(sort, sort), 28)
    if sort != "turtle":
        inside(sketch, 28, width, {"round": 27, "v": 54}[sort])
    sleeves(sketch, garment["sleeve"], (51, 40), (47, 90), 146, ribbed=True)
    torso(sketch, front, (51, 40), (47, 90), (48, min(140, hem - 10)), (46, hem - 8))
    sketch.drape(100, hem - 8, 40, 40, 4, 26)
    sketch.rib(both(f"M0,{hem - 4} Q24,{hem - 4} 45,{hem - 10} L43,{hem + 6} Q22,{hem + 11} 0,{hem + 11}"))
    for x in range(-40, 41, 5):
        sketch.fold(f"M{x},{hem - 5} L{x * 0.97:.1f},{hem + 8}", -60, 1.6)
    if sort == "turtle":
        sketch.cloth(both("M0,2 Q12,2 19,5 Q22,22 24,32 Q14,44 0,44"), 185, tone=112, plain=True)
        sketch.fold("M-21,22 Q0,28 21,22", -90, 3)
        for x in range(-16, 17, 4):
            sketch.fold(f"M{x},5 L{x * 1.15:.1f},40", -50, 1.5)
    else:
        for edge in (front, flip(front)):
            sketch.seam(edge, 7, 104, plain=True, fold=(90, 4))


def coat(sketch: Sketch, garment: dict):
    hem = {"hip": 150, "knee": 196, "long": 242}[garment["length"]]
    closure, collar = garment["closure"], garment["collar"]
    spread = 4 + (hem - 150) * 0.1
    sketch.texture, sketch.lift = "twill", 0.3 * (242 - hem)
    inside(sketch, 20, 20, 40, label=collar != "stand")
    sleeves(sketch, "long", (50, 34), (46, 82), 140)
    waist = (40 if closure == "belt" else 44, 116)
    torso(sketch, "M0,40 L19,20", (50, 34), (46, 82), waist, (46 + spread, hem), curve=5)
    sketch.drape(120, hem, 36, 42 + spread, 5, 30)
    dark = DARK if sum(sketch.colour) > 300 else (150, 120, 86)
    edge = {"buttons": 6, "double": 18, "zip": 0, "belt": 14}[closure]
    sketch.seam(f"M{edge},44 L{edge},{hem + 5}", 1.6, 64)
    sketch.fold(f"M{edge + 1.5},44 L{edge + 1.5},{hem + 5}", -110, 3)
    for side in (1, -1):
        sketch.cloth(f"M{side * 20},{132} L{side * 40},128 L{side * 41},137 L{side * 21},141 Z", 165, tone=100, edge=64)
    if closure == "buttons":
        for y in np.linspace(82, min(hem - 20, 190), 4 + (hem > 160)):
            sketch.button(0, round(y, 1), 4.4, dark)
    elif closure == "double":
        for y in np.linspace(84, min(hem - 34, 156), 3 + (hem > 160)):
            sketch.button(-13, round(y, 1), 4.6, GOLD)
            sketch.button(13, round(y, 1), 4.6, GOLD)
    elif closure == "zip":
        start = {"lapels": 88, "stand": 40, "hood": 60}[collar]
        sketch.detail(f"M0,{start} L0,{hem + 3}", None, 1, (70, 70, 74), 5.4)
        sketch.detail(f"M0,{start} L0,{hem + 3}", None, 0, (222, 222, 228), 3)
        sketch.detail(f"M-2.4,{start} L2.4,{start} L3,{start + 15} L-3,{start + 15} Z", (226, 226, 230), 1)
    else:
        sketch.cloth("M-40,110 Q0,116 40,110 L42,124 Q0,130 -42,124 Z", 190, tone=84, plain=True, edge=60)
        sketch.cloth("M6,116 L16,118 L24,170 L10,172 Z", 200, tone=84, plain=True, edge=60)
        sketch.detail("M-4,109 L14,109 L14,130 L-4,130 Z", None, 1, GOLD if dark == DARK else (200, 170, 120), 2.6)
    if collar == "lapels":
        for turned in (lambda p: p, flip):
            lapel = turned("M1,86 Q10,60 19,18 L27,22 Q34,36 38,50 L28,52 L33,60 Q20,78 1,88 Z")
            sketch.cloth(lapel, 190, tone=108, edge=60)
            sketch.seam(turned("M28,52 L17,44"), 1.4, 60)
    elif collar == "stand":
        sketch.cloth(both("M0,9 Q14,9 22,8 L22,30 L0,30"), 60, tone=INSIDE, plain=True)
        sketch.cloth(both("M0,16 Q14,16 22,8 L25,34 Q14,46 0,46"), 185, tone=96, plain=True)
        sketch.seam("M0,16 L0,46", 1.4, 60, plain=True)
    else:
        sketch.cloth(both("M0,6 C26,4 40,16 43,40 Q30,58 0,64"), 170, tone=112, plain=True)
        sketch.cloth(both("M0,18 C16,17 24,24 25,38 Q16,52 0,56"), 60, tone=52, plain=True)
        sketch.fold("M-38,36 Q0,66 38,36", -60, 4)
        for side in (1, -1):
            cord = SHELL if dark != DARK else (245, 240, 230)
            sketch.detail(f"M{side * 10},54 Q{side * 13},76 {side * 11},96", None, 1, cord, 2.2)
