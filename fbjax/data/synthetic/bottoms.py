"""Sketches of skirt, trousers and bag from their attributes."""

import numpy as np

from fbjax.data.synthetic.renderer import DARK, GOLD, INSIDE, SHELL, Sketch, both, flip


def skirt(sketch: Sketch, garment: dict):
    hem = {"mini": 128, "midi": 180, "maxi": 234}[garment["length"]]
    sketch.lift = 0.4 * (234 - hem)
    spread, cut = (hem - 40) / 194, garment["cut"]
    hem_width = {
        "pencil": 41 - 4 * spread,
        "a-line": 52 + 26 * spread,
        "pleated": 56 + 30 * spread,
        "tiered": 54 + 32 * spread,
    }[cut]
    side = f"C47,68 47,{hem - 50 * spread}" if cut == "pencil" else f"C38,62 {hem_width - 12},{hem - 30}"
    sketch.cloth(both(f"M0,32 L33,30 L34,42 {side} {hem_width},{hem} Q{hem_width * 0.5},{hem + 8} 0,{hem + 8}"))
    if cut == "pleated":
        for place in np.linspace(-0.93, 0.93, 13):
            x0, x1, y = place * 32, place * hem_width, hem + 6 * (1 - place * place)
            path = f"M{x0:.1f},42 Q{x0 * 1.15:.1f},{hem * 0.5:.1f} {x1:.1f},{y:.1f}"
            sketch.seam(path, 1, 74, fold=(-120, 3.4))
    elif cut == "tiered":
        sketch.drape(44, hem, 32, hem_width, 7, 20)
        for share in (0.36, 0.68):
            y, x = 40 + (hem - 40) * share, 33 + (hem_width - 35) * share**1.1
            sketch.seam(f"M{-x:.1f},{y:.1f} Q0,{y + 9:.1f} {x:.1f},{y:.1f}", 2.2, 64, fold=(-130, 4))
            for place in np.linspace(-0.9, 0.9, 12):
                fall = sketch.rng.uniform(10, 18)
                sketch.fold(f"M{place * x:.1f},{y + 7:.1f} L{place * x * 1.06:.1f},{y + fall:.1f}", -60, 2)
    elif cut == "a-line":
        sketch.drape(48, hem, 30, hem_width, 6, 40)
    else:
        sketch.creases([(36, 70, 3.0), (-36, 70, 0.15), (20, 50, 1.8), (-20, 50, 1.3)], 20)
        sketch.drape(80, hem, 30, hem_width - 6, 3, 18)
    sketch.seam(f"M{2 - hem_width},{hem - 4} Q0,{hem + 5} {hem_width - 2},{hem - 4}", 0.6)
    waist(sketch, garment["waist"], 30, 33, hem)


def waist(sketch: Sketch, sort: str, y: float, width: float, hem: float):
    """The waistband of a skirt and its fastening."""
    lower = f"L{width + 1},{y + 11} Q{width * 0.6},{y + 14} 0,{y + 14}"
    sketch.cloth(both(f"M0,{y + 3} Q{width * 0.6},{y + 3} {width},{y} {lower}"), 140)
    if sort == "belt":
        sketch.band(y + 2, width, width + 1, 9, sketch.leather)
    elif sort == "bow":
        end = f"M1,{y + 12} C5,{y + 30} 13,{y + 44} 12,{y + 62} L24,{y + 56} C20,{y + 38} 12,{y + 22} 4,{y + 8} Z"
        loop = (
            f"M1,{y + 8} C8,{y - 8} 28,{y - 14} 31,{y - 3} C33,{y + 12} 28,{y + 26} 20,{y + 23} Q8,{y + 18} 1,{y + 9} Z"
        )
        knot = both(f"M0,{y + 2} L6,{y + 3} L6,{y + 15} L0,{y + 16}")
        for path, height in ((end, 190), (flip(end), 190), (loop, 200), (flip(loop), 200), (knot, 230)):
            sketch.cloth(path, height, tone=92, plain=True)
    else:
        sketch.seam(f"M-7,{y + 14} L-7,{hem + 6}", 1, 76)
        for place in np.linspace(y + 8, hem - 6, 4 + (hem > 150) + (hem > 200)):
            sketch.button(0, round(place, 1), 4.4, SHELL if sum(sketch.colour) < 560 else DARK)


def trousers(sketch: Sketch, garment: dict):
    fit, low = garment["fit"], {"cropped": 182, "full": 240}[garment["length"]]
    knee, hem = {"skinny": (22, 17), "straight": (29, 28), "wide": (43, 52), "flared": (23, 46)}[fit]
    hip = 48 if fit == "wide" else 43
    knee_y = min(150, low - 44)
    sketch.texture, sketch.lift = "twill", 0.3 * (240 - low)
    middle = {"skinny": 19, "straight": 20, "wide": 26, "flared": 20}[fit] + hem * 0.33  # of a leg, at its hem
    inner, outer = middle - hem / 2, middle + hem / 2
    knee_in, knee_out = (middle + 20) / 2 - knee / 2, (middle + 25) / 2 + knee / 2
    easing = knee_y + 0.4 * (low - knee_y)
    leg = (
        f"M0,26 L34,24 C37,40 {hip},52 {hip},74 C{hip},{knee_y - 36} {knee_out},{knee_y - 28} {knee_out},{knee_y} "
        f"Q{knee_out + 0.1 * (outer - knee_out)},{easing} {outer},{low} Q{middle},{low + 4} {inner},{low} "
        f"Q{knee_in + 0.1 * (inner - knee_in)},{easing} {knee_in},{knee_y} Q{max(knee_in, 3)},110 0,94"
    )
    sketch.cloth("M-34,24 L34,24 L33,32 L-33,32 Z", 50, tone=INSIDE, plain=True)
    sketch.cloth(both(leg))
    for side in (1, -1):
        sketch.seam(f"M{side * 17},40 Q{side * 21},90 {side * middle},{low}", 0.8, 104)
        sketch.fold(f"M{side * 18},46 Q{side * 21},100 {side * middle},{low}", 40, 5)
        sketch.seam(f"M{side * 24},36 Q{side * 30},52 {side * (hip - 3)},58", 1.2, 78)
        sketch.fold(f"M{side * inner},{low} Q{side * knee_in},{knee_y + 14} {side * knee_in},{knee_y}", -50, 4)
        sketch.seam(f"M{side * inner},{low - 4} L{side * outer},{low - 4}", 0.7)
        if fit in ("wide", "flared"):
            sketch.fold(f"M{side * (middle + 5)},{knee_y} L{side * (middle + hem * 0.3)},{low}", -50, 5)
            sketch.fold(f"M{side * (middle - 3)},{knee_y} L{side * (middle - hem * 0.25)},{low}", -40, 5)
        for y in (knee_y - 8, knee_y + 2, low - 12):
            y += sketch.rng.uniform(-4, 4)
            bend = f"Q{side * (knee_in + 9)},{y + 4:.1f} {side * (knee_out - 5)},{y + 1:.1f}"
            sketch.fold(f"M{side * (knee_in + 3)},{y:.1f} {bend}", -30, 3)
    sketch.creases([(4, 92, 0.4), (-4, 92, 2.7), (4, 90, -0.5), (-4, 90, 3.6)], 22, 40)
    sketch.seam("M0,30 L0,94", 1.4, 70)
    sketch.seam("M7,34 L7,62 Q6,72 0,76", 0.8, 88)
    if garment["waist"] == "belt":
        sketch.cloth(both("M0,27 Q20,27 34,24 L36,35 Q20,39 0,39"), 140)
        sketch.band(27, 34, 36, 9, sketch.leather)
    elif garment["waist"] == "drawstring":
        sketch.rib(both("M0,26 Q20,26 34,23 L36,36 Q20,40 0,40"), 150)
        for x in np.arange(-30, 31, 5):
            sketch.fold(f"M{x},27 L{x},38", -60, 1.6)
        cord = SHELL if sum(sketch.colour) < 560 else DARK
        for side in (1, -1):
            sketch.detail(f"M{side},36 C{side * 26},22 {side * 26},60 {side * 2},40", None, 1, cord, 2.6)
            sketch.detail(f"M{side * 1},38 Q{side * 4},62 {side * 9},84", None, 1, cord, 2.8)
    else:
        sketch.cloth(both("M0,12 Q10,8 16,12 Q26,7 41,8 Q34,18 34,24 L37,38 Q20,42 0,42"), 140)
        for place in np.linspace(-0.95, 0.95, 11):
            sketch.fold(f"M{place * 40:.1f},9 Q{place * 33:.1f},24 {place * 42:.1f},62", -80, 2.4)
        sketch.cloth(both("M0,25 Q20,25 34,22 L35,31 Q20,34 0,34"), 175, tone=86, plain=True)
        sketch.cloth("M8,28 L14,28 L20,62 L11,64 Z", 180, tone=86, plain=True)
        sketch.cloth("M8,28 L13,27 L29,54 L21,59 Z", 190, tone=86, plain=True)


def bag(sketch: Sketch, garment: dict):
    shape, strap, trim = garment["shape"], garment["strap"], garment["trim"]
    sketch.texture = "grain"
    top = {"tote": 112, "satchel": 128, "bucket": 112, "round": 104}[shape]
    wide = {"tote": 54, "satchel": 52, "bucket": 36, "round": 34}[shape]
    if strap == "handle":
        curve = f"M{-wide * 0.55},{top + 10} C{-wide * 0.5},{top - 66} {wide * 0.5},{top - 66} {wide * 0.55},{top + 10}"
        sketch.detail(curve, None, 1, tuple(int(c * 0.7) for c in sketch.leather), 8.5)
        sketch.detail(curve, None, 1, sketch.leather, 6.5)
    else:
        curve = f"M{-wide},{top + 12} C{-wide - 16},{top - 130} {wide + 16},{top - 130} {wide},{top + 12}"
        if strap == "strap":
            sketch.detail(curve, None, 1, sketch.leather, 4.6)
        else:
            sketch.detail(curve, None, 1, (150, 112, 40), 5.6)
            links = 'fill="none" stroke="rgb(246,214,120)" stroke-width="4" stroke-dasharray="5 3"'
            sketch.details.append(f'<path d="{sketch.warped(curve)}" {links}/>')
    body = {
        "tote": f"M0,{top + 2} L58,{top} Q58,170 66,232 Q66,240 58,240 L0,242",
        "satchel": f"M0,{top} L52,{top} Q62,{top} 63,140 L66,222 Q66,232 56,233 L0,234",
        "bucket": f"M0,{top + 4} Q30,{top + 2} 42,{top - 4} Q40,140 56,196 Q62,238 44,240 L0,242",
        "round": f"M0,{top - 2} C40,{top - 2} 72,134 72,172 C72,212 40,244 0,244",
    }[shape]
    sketch.cloth(both(body), 150, edge=70)
    match shape:
        case "tote":
            sketch.cloth(both(f"M0,{top + 2} L58,{top} L58.6,{top + 14} L0,{top + 16}"), 175, tone=104, plain=True)
            sketch.fold("M-48,150 Q-40,200 -52,236", -40, 6)
            sketch.fold("M40,140 Q46,190 40,236", -30, 6)
        case "satchel":
            sketch.cloth(both(f"M0,{top - 2} L53,{top - 2} Q60,{top} 62,140 L63,172 Q60,188 0,192"), 200, edge=60)
            sketch.seam("M-59,170 Q-56,184 0,188 Q56,184 59,170", 0.8, 150, dash="3 2")
        case "bucket":
            for x in range(-34, 35, 8):
                sketch.fold(f"M{x},{top + 2} Q{x * 0.9},{top + 30} {x * 1.2},{top + 58}", -90, 3)
            sketch.detail(f"M-41,{top + 20} Q0,{top + 28} 41,{top + 20}", None, 1, sketch.leather, 3.6)
            sketch.cloth(both("M0,212 Q34,212 60,206 Q62,238 44,240 L0,242"), 165, tone=92, plain=True)
        case _:
            piping = "M0,112 C36,112 62,140 62,172 C62,206 36,235 0,235 C-36,235 -62,206 -62,172 C-62,140 -36,112 0,112"
            sketch.seam(f"{piping} Z", 1, 78)
            sketch.fold(piping, -90, 3)
    y = {"tote": 152, "satchel": 176, "bucket": 166, "round": 166}[shape]
    if trim == "buckle":
        sketch.detail(f"M-8,{y - 26} L8,{y - 26} L8,{y + 22} Q0,{y + 30} -8,{y + 22} Z", sketch.leather, 1)
        sketch.detail(f"M-13,{y - 8} L13,{y - 8} L13,{y + 14} L-13,{y + 14} Z", None, 1, GOLD, 4)
        sketch.detail(f"M0,{y + 3} L13,{y + 3}", None, 1, GOLD, 3)
    elif trim == "zip":
        sketch.detail(f"M-42,{y} L42,{y}", None, 1, (60, 58, 60), 8)
        sketch.detail(f"M-40,{y} L40,{y}", None, 1, (224, 222, 216), 3.4)
        sketch.detail(f"M-40,{y} L-36,{y - 4} L-32,{y} L-34,{y + 20} L-40,{y + 20} Z", (230, 228, 222), 1)
    else:
        sketch.detail(f"M26,{top + 12} L27,{top + 36}", None, 1, sketch.leather, 2.6)
        sketch.detail(f"M20,{top + 34} L34,{top + 34} L34,{top + 44} L20,{top + 44} Z", GOLD, 1)
        sketch.detail(f"M19,{top + 44} L35,{top + 44} L39,{top + 92} L15,{top + 92} Z", sketch.leather, 1)
        for dx in (-5, 0, 5):
            sketch.detail(f"M{27 + dx * 0.7},{top + 48} L{27 + dx},{top + 91}", None, 0, (30, 22, 18), 0.7)
