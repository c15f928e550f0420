"""What a model keeps: the bound, the order in which arrays go, the counts, and threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fbjax.inference.cache import Cache, content_key


def make_array(key: bytes) -> np.ndarray:
    return np.full(4, key[0], np.float32)  # 16 bytes


def look_up(cache, keys, kind="text"):
    computed = []

    def compute(places):
        computed.extend(keys[place] for place in places)
        return np.stack([make_array(keys[place]) for place in places])

    found = cache.look_up(kind, keys, compute)
    assert all(np.array_equal(array, make_array(key)) for array, key in zip(found, keys, strict=True))
    return computed


def test_the_least_recently_used_goes_first():
    cache = Cache(3 * 16 + 15)
    assert look_up(cache, [b"a", b"b", b"c", b"b"]) == [b"a", b"b", b"c"]
    assert look_up(cache, [b"a"]) == []
    assert look_up(cache, [b"d"]) == [b"d"]  # in place of b
    assert look_up(cache, [b"a", b"c", b"d"]) == [] and look_up(cache, [b"b"]) == [b"b"]
    assert look_up(cache, [b"b"], kind="image") == [b"b"]  # another kind is another array
    info = cache.info()
    assert (info.text_hits, info.text_misses, info.image_hits, info.image_misses) == (4, 5, 0, 1)
    assert (info.entries, info.bytes, info.max_bytes) == (3, 48, 63)


@given(st.lists(st.lists(st.binary(min_size=1, max_size=1), min_size=1, max_size=8), max_size=20), st.integers(0, 100))
def test_the_bound_holds_and_every_key_is_a_hit_or_a_miss(calls, max_bytes):
    cache, asked = Cache(max_bytes), 0
    for keys in calls:
        look_up(cache, keys)
        asked += len(set(keys))
        info = cache.info()
        assert info.bytes == 16 * info.entries <= max_bytes and info.text_hits + info.text_misses == asked


def test_an_array_that_is_given_out_is_no_part_of_a_larger_one():
    cache, large = Cache(1000), np.zeros((50, 4), np.float32)
    (kept,) = cache.look_up("text", [b"a"], lambda places: large[:1])
    assert kept.base is None and not np.shares_memory(kept, large)


def test_threads_may_share_it():
    cache, rng = Cache(16 * 20), np.random.default_rng(0)
    calls = [[bytes([key]) for key in rng.integers(0, 40, 5)] for _ in range(400)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda keys: look_up(cache, keys), calls))
    info = cache.info()
    assert info.bytes == 16 * info.entries <= 16 * 20
    assert info.text_hits + info.text_misses == sum(len(set(keys)) for keys in calls)


def test_content_names_itself():
    assert content_key(b"a") == content_key(bytes([97])) != content_key(b"b")
