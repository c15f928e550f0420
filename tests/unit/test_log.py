"""The events of a log: joined to products, drawn in batches, contrasted and ranked, each against brute force."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from fbjax.config.data import GROUPS, DataConfig, LogConfig
from fbjax.data.log.batches import Queries
from fbjax.data.log.events import (
    CROSSING,
    LEAKED,
    NO_PIECES,
    REPEATED,
    UNKNOWN,
    Events,
    framed_queries,
    join_log,
    pairs_of_groups,
)
from fbjax.data.synthetic.queries import Described, queries_of
from fbjax.data.text.wordpiece import SPECIAL, Vocabulary
from fbjax.evaluation.baselines.bm25 import bm25_scores
from fbjax.evaluation.galleries import log
from fbjax.inference.query_scorer import match_triples
from fbjax.tasks.towers import contrast
from fbjax.tasks.towers.style import distinctiveness, locality, other_styles
from tests.support.objectives import CONFIG, MODEL, B, make_events, make_objective, make_state, make_tasks

ONE_LAYER = dataclasses.replace(MODEL, num_layers=1)
SPLITS = {
    "train": SimpleNamespace(ids=np.array(["a", "b", "c"]), groups=np.array([0, 0, 1])),
    "validation": SimpleNamespace(ids=np.array(["v", "w"]), groups=np.array([0, 1])),
}
ROWS = """query,product,other,n,match
red dress,a,b,4,1
Red  DRESS,a,b,2,1
blue dress,b,c,1,0
,b,b,1,1
dress,nowhere,a,1,1
dress,a,v,0,1
red hat,a,c,many,1
red dress,v,w,1,1
blue hat,v,w,1,maybe
green hat,w,v,3,yes
☃,w,v,1,1
"""


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, "red", "blue", "green", "dress", "hat"]))
    return Vocabulary.from_file(path)


def joined(tmp_path, vocabulary, **settings):
    (tmp_path / "log.csv").write_text(ROWS)
    config = LogConfig(table=str(tmp_path / "log.csv"), **settings)
    return join_log(config, DataConfig(), SPLITS, vocabulary)


def test_queries_join_their_products_and_what_cannot_is_counted(tmp_path, vocabulary):
    found = joined(tmp_path, vocabulary)
    train, validation = found.splits["train"], found.splits["validation"]
    assert train.rows.tolist() == [0, 1, 0, 0] and train.others is None
    assert train.queries.tolist() == ["red dress", "blue dress", "dress", "red hat"]
    assert validation.queries.tolist() == ["blue hat", "green hat"] and validation.rows.tolist() == [0, 1]
    assert found.reasons == {"empty query": 1, UNKNOWN: 1, NO_PIECES: 1, LEAKED: 1, REPEATED: 1}
    assert {(one.where, one.reason) for one in found.skipped} >= {
        ("log.csv row 8", LEAKED),
        ("log.csv row 11", NO_PIECES),
    }


def test_counts_add_up_labels_are_kept_and_bad_ones_skipped(tmp_path, vocabulary):
    found = joined(tmp_path, vocabulary, count="n", label="match")
    train = found.splits["train"]
    assert train.counts.tolist() == [6, 1] and train.labels.tolist() == [1, 0]
    assert train.matching().queries.tolist() == ["red dress"]
    assert train.repeated().rows.tolist() == [0] * 3 + [1]  # 1 + log2(6), rounded down
    assert found.splits["validation"].queries.tolist() == ["green hat"]
    assert found.reasons["count is no number above 0"] == 2 and found.reasons["label is neither 0 nor 1"] == 1


def test_pairs_of_products_stay_within_a_split(tmp_path, vocabulary):
    found = joined(tmp_path, vocabulary, other="other")
    assert found.splits["train"].rows.tolist() == [0, 1, 0] and found.splits["train"].others.tolist() == [1, 2, 2]
    assert found.splits["validation"].others.tolist() == [1, 0]
    reasons = {"a product paired with itself": 1, UNKNOWN: 1, CROSSING: 1, REPEATED: 3}
    assert found.reasons == reasons


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"product": "produkt"}, ValueError, "has no column 'produkt'; did you mean 'product'?"),
        ({"table": "none.csv"}, FileNotFoundError, "no log at 'none.csv'"),
        ({"product": "query"}, ValueError, "no event is of a training product"),
    ],
)
def test_a_log_that_cannot_be_read_is_a_clear_error(tmp_path, vocabulary, settings, error, message):
    (tmp_path / "log.csv").write_text(ROWS)
    config = dataclasses.replace(LogConfig(table=str(tmp_path / "log.csv")), **settings)
    with pytest.raises(error, match=message.replace("?", r"\?")):
        join_log(config, DataConfig(), SPLITS, vocabulary)


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 8))
def test_pairs_of_groups_are_those_of_brute_force(groups, most):
    events = pairs_of_groups(np.array(groups, np.int32), most)
    pairs = set(zip(events.rows.tolist(), events.others.tolist(), strict=True))
    assert len(pairs) == len(events)
    everything = {(i, j) for i, a in enumerate(groups) for j, b in enumerate(groups) if a == b and i != j}
    assert pairs <= everything
    for i, group in enumerate(groups):
        assert sum(first == i for first, _ in pairs) == min(most, groups.count(group) - 1)


def test_groups_need_no_table(vocabulary):
    found = join_log(LogConfig(table=GROUPS), DataConfig(), SPLITS | {"train": SPLITS["train"]}, vocabulary)
    assert found.splits["train"].rows.tolist() == [0, 1] and not found.skipped


def test_queries_are_framed_as_texts(vocabulary):
    framed = framed_queries(["red hat", "blue dress hat", "red hat"], vocabulary, 4)
    assert framed.tolist() == [
        vocabulary.encode([text], 4)[0].tolist() for text in ("red hat", "blue dress", "red hat")
    ]


def test_the_contrast_of_queries_is_that_of_their_own_vectors():
    tasks = make_tasks("qpc", qpc={"embedding_dim": 8})
    objective, batch = make_objective(ONE_LAYER, tasks), make_events()
    params = make_state(objective, dataclasses.replace(CONFIG, model=ONE_LAYER, tasks=tasks)).params
    apply = partial(objective.model.apply, {"params": params["fashionbert"]})
    features = objective.patches.apply({}, batch.image)
    queries = np.asarray(apply(apply(batch.query, None, None, is_query=True, method="read"), method="vector"))
    products = np.asarray(apply(apply(batch.ids, None, features, method="read"), method="vector"))
    logits = float(apply(method="logit_scale")) * queries @ products.T
    expected = []
    for i in range(B):
        for scores in (logits[i], logits[:, i]):
            others = [
                j for j in range(B) if batch.group[j] != batch.group[i] and (batch.query[j] != batch.query[i]).any()
            ]
            expected.append(np.logaddexp.reduce(scores[[i, *others]]) - scores[i])
    loss = jax.jit(objective.losses)(params, {"patches": {}}, batch, jax.random.key(0))[0][0]
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)


def test_words_of_a_query_and_of_a_text_differ_by_the_segment_alone():
    objective, batch = make_objective(tasks=make_tasks("qpc")), make_events()
    params = make_state(objective).params["fashionbert"]
    segment = params["text_embeddings"]["segment"]
    same = params | {"text_embeddings": params["text_embeddings"] | {"segment": segment.at[1].set(segment[0])}}
    for values, equal in ((params, False), (same, True)):
        text, query = (
            objective.model.apply({"params": values}, batch.query, is_query=is_query, method="embed_text")
            for is_query in (False, True)
        )
        assert np.array_equal(text, query) == equal


def triple_logits(objective, params, batch, query):
    """Of [CLS], from the encoder's whole sequence: title, query, image."""
    apply = partial(objective.model.apply, {"params": params["fashionbert"]})
    text = apply(batch.ids, method="embed_text"), apply(query, is_query=True, method="embed_text")
    image = apply(objective.patches.apply({}, batch.image), method="embed_image")
    mask = np.concatenate([batch.ids != 0, query != 0], axis=1)
    hidden = apply(np.concatenate(text, axis=1), mask, image, method="encode")
    return np.asarray(apply(hidden[:, 0], method="match_logits"))


def test_query_alignment_reads_query_title_and_image():
    tasks = make_tasks("qta", qta={"match_weight": 3.0})
    objective, batch = make_objective(ONE_LAYER, tasks), make_events()
    params = make_state(objective, dataclasses.replace(CONFIG, model=ONE_LAYER, tasks=tasks)).params
    own, other = (triple_logits(objective, params, batch, ids) for ids in (batch.query, batch.negative_query))
    matches, mismatches = (np.asarray(jax.nn.logsumexp(x, axis=1)) for x in (own, other))
    there = (batch.negative_query != 0).any(axis=1)
    each = 3.0 * (matches - own[:, 1]) + np.where(there, mismatches - other[:, 0], 0)
    loss, metrics = jax.jit(objective.losses)(params, {"patches": {}}, batch, jax.random.key(0))
    assert float(loss[0]) == pytest.approx(each.mean() / 2, rel=1e-5)
    right = (own[:, 1] > own[:, 0]) + there * (other[:, 0] > other[:, 1])
    assert float(metrics["qta_accuracy"]) == pytest.approx((right / (1 + there)).mean())


def test_query_alignment_learns_labels():
    tasks = make_tasks("qta", qta={"labelled": True})
    objective, batch = make_objective(ONE_LAYER, tasks), make_events()._replace(negative_query=None)
    params = make_state(objective, dataclasses.replace(CONFIG, model=ONE_LAYER, tasks=tasks)).params
    logits = triple_logits(objective, params, batch, batch.query)
    expected = np.asarray(jax.nn.logsumexp(logits, axis=1)) - logits[np.arange(B), batch.label]
    loss = jax.jit(objective.losses)(params, {"patches": {}}, batch, jax.random.key(0))[0][0]
    assert float(loss) == pytest.approx(expected.mean(), rel=1e-5)


def test_scores_of_triples_are_those_of_the_step():
    tasks = make_tasks("qta")
    objective, batch = make_objective(ONE_LAYER, tasks), make_events()
    params = make_state(objective, dataclasses.replace(CONFIG, model=ONE_LAYER, tasks=tasks)).params
    model, features = objective.model, objective.patches.apply({}, batch.image)
    image = model.apply({"params": params["fashionbert"]}, features, method="embed_image")
    found = match_triples(model, params["fashionbert"], batch.query, batch.ids, image)
    np.testing.assert_allclose(found, triple_logits(objective, params, batch, batch.query), rtol=1e-5, atol=1e-5)


@given(st.integers(0, 10**6))
def test_a_negative_query_never_led_to_the_product(seed):
    rng = np.random.default_rng(seed)
    rows, codes = rng.integers(0, 4, 12), rng.integers(0, 5, 12)
    queries = Queries(1 + codes[:, None].astype(np.int32), rows, codes, draws_negatives=True)
    places, negatives = rng.integers(0, 12, (2, 8))
    batch = queries.added_to(make_events(), places, negatives)
    known = set(zip(rows.tolist(), codes.tolist(), strict=True))
    expected = [0 if (rows[p], codes[n]) in known else 1 + codes[n] for p, n in zip(places, negatives, strict=True)]
    assert batch.negative_query[:, 0].tolist() == expected
    assert batch.query[:, 0].tolist() == (1 + codes[places]).tolist()


@given(st.integers(0, 10**6))
def test_lists_hold_a_relevant_product_and_others_of_its_category(seed):
    rng = np.random.default_rng(seed)
    categories, groups = rng.integers(0, 3, 30), rng.integers(0, 12, 30)
    asked = log.Asked(["q"] * 5, None, [rng.permutation(30)[: 1 + i] for i in range(5)])
    for mine, relevant in zip(log.draw_lists(asked, categories, groups, num_others=4), asked.relevant, strict=True):
        others = mine[1:][mine[1:] >= 0]
        same = categories == categories[relevant[0]]
        allowed = np.flatnonzero(same & ~np.isin(groups, groups[relevant]))
        assert mine[0] == relevant[0] and len(set(others)) == len(others) == min(4, len(allowed))
        assert set(others) <= set(allowed.tolist())


def test_the_terms_of_same_style_by_brute_force():
    rng = np.random.default_rng(0)
    whole, alone = rng.uniform(-1, 1, (2, 12, 12)).astype(np.float32)
    group, partner, ids = rng.integers(0, 6, 12), rng.integers(0, 6, 12), rng.integers(0, 3, (2, 12, 2))
    negatives = np.zeros((12, 12), bool)
    for i in range(12):
        for j in range(12):
            related = partner[j] in (group[i], partner[i]) or group[j] == group[i]
            negatives[i, j] = not related and (ids[0][i] != ids[1][j]).any()
    np.testing.assert_array_equal(other_styles(group, partner, ids[0], ids[1]), negatives)
    for i in range(12):
        cost = [max(0, contrast.MARGIN + alone[i, j] - alone[i, i]) for j in range(12) if negatives[i, j]]
        assert float(distinctiveness(alone, negatives)[i]) == pytest.approx(sum(cost) / 12, abs=1e-6)
        nearest = np.argsort(-whole[i])[:5]
        gaps = np.maximum((whole[i, nearest] - alone[i, nearest]) ** 2 - 0.1, 0)
        assert float(locality(whole, alone, 5, 0.1)[i]) == pytest.approx(gaps.mean(), abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_ranks_and_mean_precision_are_those_of_sklearn(seed, with_own):
    rng = np.random.default_rng(seed)
    num_queries, num_products = 6, 15
    scores = rng.permutation(num_queries * num_products).reshape(num_queries, -1).astype(np.float32)
    own = rng.permutation(num_products)[:num_queries] if with_own else None
    galleries = [np.delete(np.arange(num_products), own[i] if with_own else []) for i in range(num_queries)]
    relevant = [rng.permutation(there)[: 1 + i] for i, there in enumerate(galleries)]
    asked = log.Asked([] if with_own else ["q"] * num_queries, own, relevant)
    ranks = log.ranks_of([(slice(0, 4), scores[:4].copy()), (slice(4, 6), scores[4:].copy())], asked)
    expected = []
    for i, there in enumerate(galleries):
        expected.append(average_precision_score(np.isin(there, relevant[i]), scores[i][there]))
        order = there[np.argsort(-scores[i][there])]
        assert ranks[i].tolist() == sorted(1 + order.tolist().index(row) for row in relevant[i])
    assert log.figures_of(ranks)["map"] == pytest.approx(np.mean(expected))


def test_a_query_is_asked_once_for_all_its_products():
    events = Events(
        np.array([3, 1, 3, 2]), np.array(["Red hat", "bag", "red  hat", "red hat"]), None, np.ones(4), np.ones(4, int)
    )
    asked = log.ask(events)
    assert asked.texts == ["Red hat", "bag"] and [rows.tolist() for rows in asked.relevant] == [[3, 2], [1]]


def test_bm25_finds_words_and_knows_nothing_else():
    ((_, scores),) = bm25_scores(["blue hat", "zebra"], ["a red dress", "a blue hat", "a blue dress"])
    assert scores[0].argsort()[::-1].tolist()[:2] == [1, 2] and (scores[1] == 0).all()


def test_synthetic_queries_are_of_their_product_alone_and_no_copy_of_its_title():
    product = Described(
        "1", "Topwear", ("Navy Blue", "Tshirts", "Men", "Puma"), "Puma Men Navy Blue Striped Polo Tshirt"
    )
    drawn = [queries_of(product, np.random.default_rng(seed)) for seed in range(300)]
    queries = [query for some in drawn for query, _ in some]
    assert product.text.lower() not in queries
    assert {len(named) for some in drawn for _, named in some} == {1, 2, 3}
    assert {"navy", "tees", "gents", "striped"} <= {word for query in queries for word in query.split()}
    assert drawn == [queries_of(product, np.random.default_rng(seed)) for seed in range(300)]
