"""Foregrounds: boxes of drawn pictures that are known to the pixel, and what has none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fbjax.data.records.pipeline import decode_image
from fbjax.data.sources.foreground import find_foreground, foreground_box
from fbjax.data.sources.images import encode_array, read_pixels

WHITE, RED = 255, (200, 30, 40)


def ground(height=100, width=80, colour=WHITE):
    return np.full((height, width, 3), colour, np.uint8)


def test_the_box_of_a_garment_has_a_margin_of_a_fiftieth_of_the_longer_side():
    picture = ground()
    picture[20:70, 30:60] = RED
    picture[10:20, 40:45] = RED  # a hook
    assert find_foreground(picture) == (10 - 2, 30 - 2, 60 + 4, 30 + 4)


def test_a_box_ends_with_the_picture():
    picture = ground()
    picture[60:, 40:] = RED
    assert find_foreground(picture) == (58, 38, 42, 42)


def test_the_border_may_be_noisy_and_partly_covered():
    picture = np.random.default_rng(0).integers(236, 245, (100, 80, 3)).astype(np.uint8)  # 240, and 4 more or less
    picture[5:, 20:60] = RED
    assert find_foreground(picture) == (3, 18, 97, 44)


def test_of_two_regions_the_larger_is_taken_and_of_equal_ones_the_first():
    picture = ground()
    picture[10:30, 10:30] = RED
    picture[50:70, 10:31] = RED
    assert find_foreground(picture) == (48, 8, 24, 25)
    picture[50:70, 30] = WHITE
    assert find_foreground(picture) == (8, 8, 24, 24)


def test_regions_that_touch_at_a_corner_are_one():
    picture = ground()
    picture[10:30, 10:30] = picture[30:50, 30:50] = RED
    assert find_foreground(picture) == (8, 8, 44, 44)


@pytest.mark.parametrize("side, found", [(9, False), (10, True), (97, True), (98, False)])
def test_a_region_is_from_1_to_95_percent_of_the_picture(side, found):
    picture = ground(100, 100)
    picture[1 : 1 + side, 1 : 1 + side] = RED
    if side == 97:
        picture[1:98, 1] = WHITE  # 93 %
    assert (find_foreground(picture) is not None) == found


@pytest.mark.parametrize("apart, found", [(8, False), (9, True)])
def test_a_colour_differs_by_more_than_8_levels_of_one_channel(apart, found):
    picture = ground(colour=200)
    picture[30:60, 30:60, 1] -= apart
    assert (find_foreground(picture) is not None) == found


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 3), (50, 50)])
def test_a_picture_of_one_colour_stays_whole(shape):
    assert find_foreground(ground(*shape)) is None
    assert foreground_box(ground(*shape)) == (0, 0, *shape)


coloured = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda shape: arrays(np.uint8, (*shape, 3), elements=st.sampled_from([100, 104, 130, 200]))
)


@settings(max_examples=200)
@given(coloured, st.integers(-100, 55), st.permutations(range(3)))
def test_a_box_lies_in_its_picture_and_heeds_differences_of_colour_alone(picture, brighter, channels):
    top, left, height, width = box = foreground_box(picture)
    assert top >= 0 and left >= 0 and height >= 1 and width >= 1
    assert top + height <= picture.shape[0] and left + width <= picture.shape[1]
    assert foreground_box((picture.astype(int) + brighter).astype(np.uint8)[..., channels]) == box
    assert foreground_box(255 - picture) == box


@pytest.mark.parametrize("read", [read_pixels, decode_image])
def test_what_a_model_reads_is_the_box_in_a_square(read):
    picture, inside = ground(44, 120), np.random.default_rng(0).integers(0, 200, (40, 40, 3)).astype(np.uint8)
    picture[2:42, 72:112] = inside
    read_as = read(encode_array(picture), 44, "foreground")
    np.testing.assert_array_equal(read_as[2:42, 2:42], inside)
    assert (read_as[[0, 1, 42, 43]] == WHITE).all() and (read_as[:, [0, 1, 42, 43]] == WHITE).all()


def test_transparency_and_grey_are_no_foreground_of_their_own():
    picture = np.zeros((44, 44, 4), np.uint8)
    picture[20:40, 20:40] = (10, 10, 10, 255)
    transparent, grey = Image.fromarray(picture), Image.fromarray(np.where(picture[..., 3], 10, 255).astype(np.uint8))
    found = [read_pixels(image, 44, "foreground") for image in (transparent, grey)]
    np.testing.assert_array_equal(*found)
    assert (found[0] == 10).all(axis=2).mean() > 0.7
