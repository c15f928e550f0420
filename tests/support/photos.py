"""Rows of a Fashion-Gen file: one per photo."""

import numpy as np

SIDE = 16  # pixels


def make_rows(num_products, first=0):
    """Three photos of every product, Latin-1 in every description."""
    rng = np.random.default_rng(first)
    for number in range(first, first + num_products):
        for pose in (1, 2, 3):
            yield {
                "input_productID": number,
                "input_pose": f"id_gridfs_{pose}",
                "input_name": f"Robe {number}",
                "input_description": f"Robe d'été n° {number}, façon café",
                "input_subcategory": ("DRESSES", "BAGS")[number % 2],
                "input_msrpUSD": 99.5,
                "input_image": rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
            }
