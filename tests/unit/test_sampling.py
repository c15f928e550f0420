"""Order, negatives and batches against brute force, and as pure functions of the step."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbjax.config.load import load_config
from fbjax.config.schema import TASKS, Config, ModelConfig, TrainConfig
from fbjax.core.batching import padded_lengths
from fbjax.data.batches.columns import WHOLE, ColumnSampler
from fbjax.data.batches.halves import half_of, rows_of_half
from fbjax.data.batches.negatives import NegativeSampler
from fbjax.data.batches.sampler import WINDOW, Sampler
from fbjax.data.records.builder import build_records
from fbjax.data.sources.base import open_source
from fbjax.data.text.wordpiece import Vocabulary
from tests.support.tables import make_products, write_parquet

SIDE, NUM_PRODUCTS, NUM_STEPS = 32, 20, 8  # 8 steps of 8 products: three epochs and a bit
TEXT_TOKENS, TEXT_BUCKET = 10, 3
catalogues = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=2, max_size=14)  # (category, group)


orders = given(st.integers(2, 300), st.integers(1, 50), st.integers(0, 3))  # products, batch size, seed


def make_sampler(categories, groups, batch_size, seed=0, lengths=None, **tasks) -> Sampler:
    negatives = NegativeSampler(np.asarray(categories), np.asarray(groups))
    lengths = np.full(len(categories), 64) if lengths is None else lengths
    return Sampler(negatives, lengths, batch_size, seed, TASKS["tia"](**tasks).random_share)


def make_order(num_products, batch_size, seed, lengths=None) -> Sampler:
    """A sampler whose negatives do not matter."""
    return make_sampler(np.zeros(num_products, int), np.arange(num_products), batch_size, seed, lengths)


def draw_lengths(num_products, seed):
    return np.random.default_rng(seed).choice([16, 32, 48, 64], num_products, p=[0.3, 0.5, 0.15, 0.05])


def allowed_negatives(row, categories, groups, easy) -> set[int]:
    others = {j for j in range(len(groups)) if groups[j] != groups[row]}
    same = {j for j in others if categories[j] == categories[row]}
    return others if easy or not same else same


@orders
def test_every_epoch_visits_each_product_once(num_products, batch_size, seed):
    sampler = make_order(num_products, batch_size, seed, draw_lengths(num_products, seed))
    num_steps = -(-3 * num_products // batch_size)
    rows = np.concatenate([sampler.batch(step)[0] for step in range(num_steps)])
    for epoch in range(3):
        assert sorted(rows[epoch * num_products : (epoch + 1) * num_products]) == list(range(num_products))


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = {tuple(make_order(30, 30, seed).batch(epoch)[0]) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@orders
def test_texts_of_equal_lengths_come_in_a_plain_permutation(num_products, batch_size, seed):
    sampler = make_order(num_products, batch_size, seed)
    rows = np.concatenate([sampler.batch(step)[0] for step in range(-(-2 * num_products // batch_size))])
    plain = np.concatenate([np.random.default_rng([seed, epoch, 1]).permutation(num_products) for epoch in range(2)])
    np.testing.assert_array_equal(rows[: len(plain)], plain)


@orders
def test_a_window_of_batches_keeps_its_products_and_is_padded_as_little_as_can_be(num_products, batch_size, seed):
    lengths = draw_lengths(num_products, seed)
    plain, sampler = make_order(num_products, batch_size, seed), make_order(num_products, batch_size, seed, lengths)
    for epoch in range(2):
        first, end = -(-epoch * num_products // batch_size), (epoch + 1) * num_products // batch_size  # whole batches
        for start in range(first, end, WINDOW):
            steps = range(start, min(start + WINDOW, end))
            drawn, regrouped = (np.stack([s.batch(step)[0] for step in steps]) for s in (plain, sampler))
            tokens = lengths[regrouped].max(axis=1)
            by_length = np.array(sorted(drawn.ravel(), key=lambda row: lengths[row])).reshape(regrouped.shape)
            np.testing.assert_array_equal(regrouped[np.argsort(tokens, kind="stable")], by_length)
            assert sorted(tokens) == lengths[by_length[:, -1]].tolist()
        if end * batch_size < (epoch + 1) * num_products:  # a batch of two epochs
            np.testing.assert_array_equal(sampler.batch(end)[0], plain.batch(end)[0])


@orders
def test_the_step_is_compiled_for_the_lengths_that_batches_have_and_no_other(num_products, batch_size, seed):
    sampler, num_steps = make_order(num_products, batch_size, seed, draw_lengths(num_products, seed)), 1 + seed % 7
    batches = [sampler.batch(step)[0] for step in range(num_steps)]
    assert sampler.text_tokens_used(num_steps) == tuple(
        sorted({sampler.text_tokens(step) for step in range(num_steps)})
    )
    assert [sampler.text_tokens(step) for step in range(num_steps)] == [sampler.lengths[rows].max() for rows in batches]


def test_a_batch_of_rare_length_comes_at_any_time_of_its_window():
    num_batches, num_epochs = 8, 800
    sampler = make_order(4 * num_batches, 4, 0, np.repeat([16, 64], [4 * num_batches - 4, 4]))
    tokens = np.array([sampler.text_tokens(step) for step in range(num_batches * num_epochs)])
    counts = (tokens.reshape(num_epochs, num_batches) == 64).sum(axis=0)
    assert counts.sum() == num_epochs
    assert ((counts - 100) ** 2 / 100).sum() < 24.3  # 7 degrees of freedom, 0.1 %


def test_lengths_count_the_frame_and_are_rounded_up_to_buckets_below_the_limit():
    num_pieces = np.array([1, 14, 15, 30, 31, 38, 39, 500], np.int32)
    lengths = padded_lengths(num_pieces + 2, bucket=16, longest=40)
    assert lengths.tolist() == [16, 16, 32, 32, 40, 40, 40, 40]
    assert padded_lengths(num_pieces + 2, bucket=40, longest=40).tolist() == [40] * 8


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 25))
def test_a_batch_depends_on_its_step_alone(steps, batch_size):
    arguments = (np.arange(18) % 3, np.arange(18) // 2, batch_size, 0, np.arange(18) % 5)
    used = make_sampler(*arguments, random_negatives_start=1.0, random_negatives_steps=30)
    for step in steps:
        batch, fresh = used.batch(step), make_sampler(*arguments, random_negatives_start=1.0, random_negatives_steps=30)
        np.testing.assert_array_equal(batch, fresh.batch(step))
        for array in batch:
            array[:] = -1  # a caller's changes must not reach later batches


numbers_of_pieces = st.lists(st.integers(0, 2), min_size=3, max_size=3).filter(any)


@given(st.lists(numbers_of_pieces, min_size=1, max_size=6))
def test_each_column_with_pieces_is_drawn_equally_often_over_a_grid_and_no_empty_one_ever(num_pieces):
    columns, each = ColumnSampler(np.cumsum(num_pieces, axis=1), 0.25), 4
    for row, numbers in enumerate(num_pieces):
        filled = [column for column, number in enumerate(numbers) if number]
        num = len(filled) * each
        grid, rows = (np.arange(num) + 0.5) / num, np.full(num, row)
        drawn = columns.draw(rows, np.stack([np.full(num, 0.2499), grid]))
        assert dict(zip(*np.unique(drawn, return_counts=True), strict=True)) == dict.fromkeys(filled, each)
        assert (columns.draw(rows, np.stack([np.full(num, 0.25), grid])) == WHOLE).all()


@pytest.mark.parametrize("half", ["", "second"])
def test_a_column_is_a_function_of_seed_epoch_and_row_and_changes_no_other_draw(half):
    records = records_of([(number % 4, number) for number in range(2000)])
    records.column_ends = np.tile([5, 9], (2000, 1))
    drawn = {}
    for batch_size, column_dropout in ((7, 0.3), (64, 0.3), (64, 0.0)):
        train = TrainConfig(batch_size=batch_size, half=half, column_dropout=column_dropout)
        sampler = Sampler.of(records, train, ModelConfig(), lambda step: 0.5)
        epochs = [{}, {}]
        for place in range(2 * len(sampler.rows)):
            step, example = divmod(place, batch_size)
            if not example:
                (rows, negatives), columns = sampler.batch(step), sampler.columns(step)
            epochs[place // len(sampler.rows)][rows[example]] = columns[example], negatives[example]
        drawn[batch_size, column_dropout] = [dict(sorted(epoch.items())) for epoch in epochs]
    one, other, without = ([np.array([*epoch.values()]) for epoch in epochs] for epochs in drawn.values())
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(np.array(other)[..., 1], np.array(without)[..., 1])
    assert (np.array(without)[..., 0] == WHOLE).all()
    first, second = (epoch[:, 0] for epoch in one)
    for columns in (first, second):
        shares = [(columns == column).mean() for column in (WHOLE, 0, 1)]
        assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.05)
    assert ((first >= 0) & (second >= 0)).mean() == pytest.approx(0.09, abs=0.03)


def test_texts_of_one_column_cannot_be_reduced_to_it():
    records = records_of([(0, 0), (0, 1)])
    records.column_ends = np.array([[4], [6]])
    with pytest.raises(ValueError, match="train.column_dropout 0.2: the texts of this data have one column"):
        Sampler.of(records, TrainConfig(column_dropout=0.2), ModelConfig(), lambda step: 0.5)
    with pytest.raises(ValueError, match=r"train.column_dropout 0.2 needs .* in data.columns.text, not \('title',\)"):
        load_config("my_catalogue", ["train.column_dropout=.2"])


@given(catalogues, st.booleans())
def test_each_allowed_negative_is_drawn_equally_often_over_a_grid_and_no_other_ever(products, easy):
    categories, groups = np.array(products).T
    if len(set(groups)) == 1:
        with pytest.raises(ValueError, match=f"all {len(groups)} products are of one group"):
            NegativeSampler(categories, groups)
        return
    negatives, each = NegativeSampler(categories, groups), 3
    for row in range(len(products)):
        allowed = allowed_negatives(row, categories, groups, easy)
        num = len(allowed) * each
        drawn = negatives.draw(np.full(num, row), (np.arange(num) + 0.5) / num, np.full(num, easy))
        assert dict(zip(*np.unique(drawn, return_counts=True), strict=True)) == dict.fromkeys(sorted(allowed), each)


@given(catalogues.filter(lambda products: len({group for _, group in products}) > 1), st.integers(0, 5))
def test_a_negative_is_never_of_the_same_group(products, seed):
    categories, groups = np.array(products).T
    sampler = make_sampler(categories, groups, 16, seed, random_negatives_start=0.5, random_negatives_end=0.5)
    for step in range(4):
        rows, negatives = sampler.batch(step)
        assert (groups[rows] != groups[negatives]).all()


def test_a_product_alone_in_its_category_gets_negatives_of_any_category():
    categories, groups = np.array([0, 0, 0, 7]), np.arange(4)
    sampler = make_sampler(categories, groups, 4)
    drawn = {row: set() for row in range(4)}
    for epoch in range(50):
        for row, negative in zip(*sampler.batch(epoch), strict=True):
            drawn[int(row)].add(int(negative))
    assert drawn == {0: {1, 2}, 1: {0, 2}, 2: {0, 1}, 3: {0, 1, 2}}


def records_of(products):
    """What `Sampler.of` reads of prepared records."""
    categories, groups = np.array(products, np.int32).T
    return SimpleNamespace(categories=categories, groups=groups, num_pieces=draw_lengths(len(products), 0) - 2)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=20, max_size=60), st.integers(1, 30))
def test_each_half_is_drawn_once_an_epoch_and_the_other_never(products, batch_size):
    records = records_of(products)
    train, model = TrainConfig(batch_size=batch_size), ModelConfig()
    drawn = {}
    for half in ("first", "second"):
        halved = dataclasses.replace(train, half=half)
        mine = {group for group in records.groups if bool(half_of(np.array([group]))[0]) == (half == "first")}
        if len(mine) < 2:
            with pytest.raises(ValueError, match=f"train.half '{half}': none" if not mine else "of one group"):
                Sampler.of(records, halved, model, lambda step: 0.5)
            continue
        sampler = Sampler.of(records, halved, model, lambda step: 0.5)
        num_steps = -(-2 * len(sampler.rows) // batch_size)
        rows, negatives = np.concatenate([sampler.batch(step) for step in range(num_steps)], axis=1)
        for epoch in range(2):
            once = rows[epoch * len(sampler.rows) : (epoch + 1) * len(sampler.rows)]
            assert sorted(once) == [row for row, group in enumerate(records.groups) if group in mine]
        assert {*records.groups[negatives]} <= mine and (records.groups[rows] != records.groups[negatives]).all()
        lengths = {sampler.text_tokens(step) for step in range(num_steps)}
        assert sampler.text_tokens_used(num_steps) == tuple(sorted(lengths))
        drawn[half] = {*sampler.rows}
    if len(drawn) == 2:
        assert drawn["first"].isdisjoint(drawn["second"])
        assert drawn["first"] | drawn["second"] == {*rows_of_half(records.groups, "")} == {*range(len(products))}


def test_halves_have_about_as_many_groups_and_never_change():
    assert half_of(np.arange(10_000)).mean() == pytest.approx(0.5, abs=0.02)
    assert np.flatnonzero(half_of(np.arange(12, dtype=np.int32))).tolist() == [
        3,
        4,
        5,
        7,
        10,
        11,
    ]
    codes = np.repeat(np.arange(50), 3)
    assert (half_of(codes).reshape(50, 3) == half_of(np.arange(50))[:, None]).all()


def test_negatives_are_redrawn_every_epoch_and_uniform_over_epochs():
    size, num_epochs = 6, 600
    sampler = make_sampler(np.zeros(size, int), np.arange(size), size)
    counts = np.zeros((size, size))
    last = np.full(size, -1)
    num_repeated = 0
    for epoch in range(num_epochs):
        rows, negatives = sampler.batch(epoch)
        np.add.at(counts, (rows, negatives), 1)
        now = negatives[np.argsort(rows)]
        num_repeated += (now == last).sum()
        last = now
    expected = num_epochs / (size - 1)
    chi_squared = ((counts - expected) ** 2 / expected)[~np.eye(size, dtype=bool)].sum()
    assert chi_squared < 51.2  # 24 degrees of freedom, 0.1 %
    assert num_repeated / (size * num_epochs) == pytest.approx(1 / 5, abs=0.03)


@pytest.mark.parametrize(
    "steps, step, share",
    [(100, 0, 0.8), (100, 25, 0.65), (100, 50, 0.5), (100, 100, 0.2), (100, 1000, 0.2), (0, 0, 0.2), (0, 7, 0.2)],
)
def test_the_random_share_falls_linearly_and_then_stays(steps, step, share):
    sampler = make_sampler(
        [0, 0], [0, 1], 1, random_negatives_start=0.8, random_negatives_end=0.2, random_negatives_steps=steps
    )
    assert sampler.random_share(step) == pytest.approx(share)


@pytest.mark.parametrize("easy, crossing", [(0.0, 0.0), (0.4, 0.4 * 3 / 4), (1.0, 3 / 4)])
def test_as_many_negatives_are_of_any_category_as_the_random_share_says(easy, crossing):
    categories = np.arange(4000) % 4
    rows, negatives = make_sampler(
        categories, np.arange(4000), 4000, random_negatives_start=easy, random_negatives_end=easy
    ).batch(0)
    assert (categories[rows] != categories[negatives]).mean() == pytest.approx(crossing, abs=0.025 if crossing else 0)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """Products whose images are SIDE x SIDE PNGs, prepared; so that decoding has to give their very pixels."""
    folder = tmp_path_factory.mktemp("sampling")
    products = [
        {**p, "title": " ".join([p["title"]] * repeats), "image": p["image"].resize((SIDE, SIDE)), "format": "PNG"}
        for p, repeats in zip(make_products(NUM_PRODUCTS), [1, 1, 1, 2, 3] * 4, strict=True)
    ]
    base = Config()
    config = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, columns=dataclasses.replace(base.data.columns, group="group")),
        patches=dataclasses.replace(base.patches, image_size=SIDE),
        model=dataclasses.replace(base.model, text_tokens=TEXT_TOKENS),
        train=dataclasses.replace(base.train, batch_size=8, num_steps=NUM_STEPS),
    )
    vocabulary = Vocabulary.train([p["title"] for p in products], 200)
    source = open_source(config.data, SIDE, str(write_parquet(folder / "table.parquet", products)))
    records = build_records(source, vocabulary, folder / "prepared", lambda rows, total, label: rows)["validation"]
    lengths = padded_lengths(records.num_pieces + 2, TEXT_BUCKET, TEXT_TOKENS)
    sampler = make_sampler(records.categories, records.groups, 8, lengths=lengths)
    pixels = np.stack([np.asarray(p["image"]) for p in products])

    def stream(start=0, share=None, features=None):
        read = {"num_steps": NUM_STEPS, "image_size": SIDE, "with_negatives": True}
        return list(records.train_batches(sampler, vocabulary, **read, start=start, share=share, features=features))

    return sampler, vocabulary, products, pixels, stream


def test_a_batch_holds_the_sampled_texts_images_and_negatives(catalogue):
    sampler, vocabulary, products, pixels, stream = catalogue
    batches = stream()
    assert len(batches) == NUM_STEPS
    for step, batch in enumerate(batches):
        rows, negatives = sampler.batch(step)
        np.testing.assert_array_equal(batch.index, rows)
        np.testing.assert_array_equal(batch.image, pixels[rows])
        np.testing.assert_array_equal(batch.negative, pixels[negatives])
        for row, ids, word_ids in zip(rows, batch.ids, batch.word_ids, strict=True):
            ((pieces, words),) = vocabulary.pieces([products[row]["title"]])
            pieces, words = pieces[: TEXT_TOKENS - 2], words[: TEXT_TOKENS - 2]
            padding = sampler.text_tokens(step) - 2 - len(pieces)
            assert ids.tolist() == [vocabulary.cls_id, *pieces, vocabulary.sep_id] + [0] * padding
            assert word_ids.tolist() == [-1, *words, -1] + [-1] * padding
    assert {batch.ids.shape[1] for batch in batches} == {6, 10}


def test_the_stream_from_a_step_is_the_tail_of_the_stream_from_the_first(catalogue):
    *_, stream = catalogue
    whole, tail = stream(), stream(start=5)
    assert len(tail) == NUM_STEPS - 5
    for expected, batch in zip(whole[5:], tail, strict=True):
        for name in ("index", "ids", "word_ids", "image", "negative"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 1, 4, 5], [7]], ids=str)
def test_a_process_gets_its_rows_of_the_global_batch(catalogue, rows):
    *_, stream = catalogue
    for batch, part in zip(stream(), stream(share=np.array(rows)), strict=True):
        for name in ("index", "group", "ids", "word_ids", "image", "negative"):
            np.testing.assert_array_equal(getattr(part, name), getattr(batch, name)[rows], err_msg=name)


def test_cached_features_take_the_place_of_images(catalogue):
    sampler, *_, stream = catalogue
    features = np.arange(NUM_PRODUCTS * 4 * 3, dtype=np.float16).reshape(NUM_PRODUCTS, 4, 3)
    for step, batch in enumerate(stream(features=features)):
        rows, negatives = sampler.batch(step)
        np.testing.assert_array_equal(batch.index, rows)
        np.testing.assert_array_equal(batch.image, features[rows])
        np.testing.assert_array_equal(batch.negative, features[negatives])
