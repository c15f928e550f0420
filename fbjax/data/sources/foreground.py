"""The foreground of a picture: the largest connected region whose colour differs from the border's.

Kaleido-BERT (Zhuge et al. 2021, arXiv 2103.16110) cuts its patches from the box of the main object, which a saliency
network finds. Departs from the paper: that network is not public, and neither are its threshold, its margin and what
it does without an object. The rule here needs no network, and fits photographs on a flat ground.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

THRESHOLD = 8  # grey levels in one channel: more cuts pieces off white garments, see docs/guides/rivals.md
MARGIN = 0.02  # of the picture's longer side, on each side of the box
LEAST, MOST = 0.01, 0.95  # of the picture's pixels: a region beyond is no object


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def foreground_box(pixels: np.ndarray) -> Box:
    """The box of `find_foreground`; the whole picture where there is none."""
    return find_foreground(pixels) or Box(0, 0, *pixels.shape[:2])


def find_foreground(pixels: np.ndarray) -> Box | None:
    """The box, with a margin, of the foreground of a picture [H, W, 3] with values 0..255; None where there is none.

    The border is one pixel wide, and its colour the median of each channel. Pixels that touch at a corner are
    connected; of regions of one size the first in reading order counts. A region of less than 1 % or more than 95 % of
    the picture is no foreground.
    """
    height, width = pixels.shape[:2]
    regions, count = ndimage.label(_differs(pixels), np.ones((3, 3)))
    sizes = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    if not count or not LEAST <= sizes.max() / (height * width) <= MOST:
        return None
    rows, columns = ndimage.find_objects(regions)[sizes.argmax()]
    margin = round(MARGIN * max(height, width))
    top, left = max(0, rows.start - margin), max(0, columns.start - margin)
    bottom, right = min(height, rows.stop + margin), min(width, columns.stop + margin)
    return Box(top, left, bottom - top, right - left)


def _differs(pixels: np.ndarray) -> np.ndarray:
    """bool [H, W]: whether a channel of the pixel is not that of the border's colour."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    apart = np.abs(pixels.astype(np.float32) - np.median(border, axis=0).astype(np.float32))
    return (apart > THRESHOLD).any(axis=2)
