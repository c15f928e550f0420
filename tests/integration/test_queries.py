"""Text queries over a whole catalogue, and new products among trained ones, against brute force and by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fbjax
from fbjax.cli.main import main
from fbjax.data.batches.halves import half_of
from fbjax.evaluation import metrics
from fbjax.evaluation.evaluate import evaluate
from fbjax.evaluation.galleries import mixed, queries
from fbjax.evaluation.galleries.hubness import bank_rows, hub_penalties
from fbjax.evaluation.protocols import print_figures
from fbjax.runs.loaded import LoadedRun
from fbjax.training.loop import train
from tests.support.runs import tiny_config
from tests.support.tables import make_products, write_parquet

few_values = st.sampled_from([-1.0, 0.0, 0.5, 1.0])  # so that ties abound, and products are exact
vectors = lambda num: arrays(np.float32, (num, 3), elements=few_values)  # noqa: E731


@st.composite
def asked_galleries(draw):
    """Vectors of queries and pictures, the relevant rows of each query, and penalties or None."""
    num_queries, num = draw(st.integers(1, 4)), draw(st.integers(1, 14))
    rows = [
        np.array(sorted(draw(st.sets(st.integers(0, num - 1), min_size=1, max_size=3)))) for _ in range(num_queries)
    ]
    penalties = draw(st.none() | arrays(np.float32, num, elements=few_values))
    return draw(vectors(num_queries)), draw(vectors(num)), rows, penalties


def order_against_us(scores, relevant):
    """The gallery's rows, best first, where a relevant one comes after all others of its score."""
    return sorted(range(len(scores)), key=lambda row: (-scores[row], row in relevant))


@settings(max_examples=30)
@given(asked_galleries(), st.integers(0, 2))
def test_recall_and_reciprocal_rank_are_those_of_a_sorted_list(case, num_absent):
    asked, gallery, rows, penalties = case
    named = np.array([len(mine) + num_absent for mine in rows])  # some relevant products are not in the gallery
    figures = queries.query_figures(asked, gallery, queries.Asked([], rows, named, {}), penalties)
    recalls, reciprocal = {1: [], 10: []}, []
    for q, relevant in enumerate(rows):
        scores = asked[q] @ gallery.T - (0 if penalties is None else penalties)
        order = order_against_us(scores.tolist(), set(relevant.tolist()))
        for k, found in recalls.items():
            found.append(len(set(order[:k]) & set(relevant.tolist())) / named[q])
        best = min(order.index(row) for row in relevant) + 1
        reciprocal.append(1 / best if best <= 10 else 0)
    for k, found in recalls.items():
        assert figures[f"recall@{k}"] == pytest.approx(np.mean(found))
        low, high = figures[f"recall@{k}.ci"]
        assert min(found) - 1e-9 <= low <= high <= max(found) + 1e-9
    assert figures["mrr@10"] == pytest.approx(np.mean(reciprocal))


def write_queries(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_queries_are_read_chosen_and_counted(tmp_path):
    path = write_queries(
        tmp_path / "log.jsonl",
        {"query": "red dress", "relevant": ["b", "b", "gone"]},
        "\n",
        {"query": "  ", "relevant": ["a"]},
        {"query": "a hat", "relevant": ["gone"]},
        {"query": "nothing", "relevant": []},
        {"query": "seven", "relevant": [7, "t"]},
        {"query": "bag", "relevant": [7]},
    )
    file, ids, has_words = queries.read_queries(path), np.array(["a", "b", "7"]), lambda text: bool(text.strip())
    asked = queries.choose(file, ids, has_words, trained={"t"})
    assert asked.texts == ["red dress", "bag"] and [rows.tolist() for rows in asked.rows] == [[1], [2]]
    assert asked.num_relevant.tolist() == [2, 1]  # "gone" is relevant and never found
    assert asked.skipped == {queries.NO_WORDS: 1, queries.NOT_THERE: 2, queries.TRAINED: 1}
    assert queries.read_queries(path, 1).texts == ("red dress",)
    with pytest.raises(ValueError, match=r"none of the 6 queries of .*log.jsonl .* \(5 without .*, 1 without words\)"):
        queries.choose(file, np.array(["z"]), has_words)


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "JSONDecodeError"),
        ('{"query": "x"}', "KeyError"),
        ('["x"]', "TypeError"),
        ('{"query": 3, "relevant": ["a"]}', "query 3"),
        ('{"query": "x", "relevant": "a"}', "relevant 'a'"),
        ('{"query": "x", "relevant": [null]}', r"relevant \[None\]"),
    ],
)
def test_a_malformed_line_is_told_by_its_number(tmp_path, line, said):
    path = write_queries(tmp_path / "log.jsonl", {"query": "red", "relevant": ["a"]}, line)
    with pytest.raises(ValueError, match=f"log.jsonl line 2 is no query .*{said}"):
        queries.read_queries(path)


def test_flags_that_do_not_fit_the_protocols_are_errors(tmp_path):
    path = write_queries(tmp_path / "log.jsonl", "\n")
    for protocols, flags, said in [
        (("queries",), {}, "needs --relevant FILE.jsonl"),
        (("full",), {"relevant": path}, "add queries or mixed or marqo to --protocol"),
        (("queries",), {"relevant": path}, "has no query"),
        (("full",), {"correct_hubs": 5}, "add queries or mixed to --protocol"),
        (("mixed",), {"correct_hubs": 0}, "take at least 1 text"),
        (("mixed",), {"data": "t.csv"}, "leave --data out"),
        (("mixed",), {"rerank": 3}, "add full to --protocol"),
        (("draws",), {"towers": "w"}, "add full or queries or mixed"),
    ]:
        with pytest.raises(ValueError, match=said):
            evaluate("nowhere", protocols=protocols, **flags)
    with pytest.raises(FileNotFoundError, match="no queries at"):
        evaluate("nowhere", protocols=("queries",), relevant=tmp_path / "none.jsonl")


def test_penalties_of_hubs_by_hand():
    images = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    bank = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8]], np.float32)
    np.testing.assert_allclose(hub_penalties(images, bank, nearest=2), [0.9, 0.7, 0.98], atol=1e-6)
    np.testing.assert_allclose(hub_penalties(images, bank), [0.8, 1.4 / 3, (0.6 + 0.96 + 1) / 3], atol=1e-6)
    # the hub, picture 2, is nearest to a query that means picture 1, until it is corrected
    query, asked = np.array([[0.4, 0.9165]], np.float32), queries.Asked([""], [np.array([0])], np.array([1]), {})
    assert queries.query_figures(query, images[1:], asked)["recall@1"] == 0.0
    assert queries.query_figures(query, images[1:], asked, np.array([0.7, 0.98], np.float32))["recall@1"] == 1.0
    with pytest.raises(ValueError, match="the bank is empty"):
        hub_penalties(images, bank[:0])
    rows = np.arange(5, 55)
    assert set(bank_rows(rows, 20)) < set(rows) and len(set(bank_rows(rows, 20))) == 20 == len(bank_rows(rows, 20))
    assert bank_rows(rows, 99).tolist() == rows.tolist()


@st.composite
def mixed_galleries(draw):
    """Queries, pictures, the relevant rows of each query, groups of the validation pictures, penalties or None."""
    num_queries, num, more = draw(st.integers(1, 4)), draw(st.integers(1, 8)), draw(st.integers(1, 8))
    groups = draw(arrays(np.int32, num, elements=st.integers(0, 3)))
    rows = [
        np.array(sorted(draw(st.sets(st.integers(0, num - 1), min_size=1, max_size=2)))) for _ in range(num_queries)
    ]
    pictures = mixed.Pictures(draw(vectors(num)), draw(vectors(more)), draw(vectors(more)))
    penalties = draw(st.none() | arrays(np.float32, num + 2 * more, elements=few_values))
    return draw(vectors(num_queries)), pictures, rows, groups, penalties


@given(mixed_galleries())
def test_ranks_among_trained_and_unseen_pictures_are_those_of_a_double_loop(case):
    asked, pictures, rows, groups, penalties = case
    ranks = mixed.ranks_by_gallery(asked, pictures, rows, groups, penalties)
    num, more = len(groups), len(pictures.trained)
    taken = {"alone": [], "trained": range(num, num + more), "unseen": range(num + more, num + 2 * more)}
    everything = np.concatenate([pictures.validation, pictures.trained, pictures.unseen])
    for q, relevant in enumerate(rows):
        scores = everything @ asked[q] - (0 if penalties is None else penalties)
        best = max(scores[row] for row in relevant)
        own = {groups[row] for row in relevant}
        rivals = [row for row in range(num) if groups[row] not in own]
        for name, beside in taken.items():
            assert ranks[name][q] == 1 + sum(scores[row] >= best for row in [*rivals, *beside])


def test_a_ratio_is_paired_and_unknown_without_hits():
    below = np.arange(200) % 2 == 0
    above = np.arange(200) % 4 == 0  # half of the same queries
    figures = metrics.ratio_of("r", above, below)
    low, high = figures["r.ci"]
    assert figures["r"] == 0.5 and 0.38 < low < 0.46 and 0.54 < high < 0.62
    draws = np.random.default_rng(1).integers(200, size=(4000, 2, 200))
    apart = [above[a].mean() / below[b].mean() for a, b in draws]
    assert high - low < np.subtract(*np.quantile(apart, [0.975, 0.025]))  # unpaired, it is wider
    assert metrics.ratio_of("r", below, below) == {"r": 1.0, "r.ci": [1.0, 1.0]}
    assert metrics.ratio_of("r", below, below & False) == {"r": None, "r.ci": [None, None]}
    one = np.arange(20) == 3
    assert metrics.ratio_of("r", one, one) == {"r": 1.0, "r.ci": [None, None]}


def test_both_halves_give_as_many_pictures():
    groups = np.repeat(np.arange(40), 2)
    first = half_of(groups)
    trained, unseen = mixed.choose_rows(groups, "second")
    assert len(trained) == len(unseen) == min(first.sum(), (~first).sum())
    assert not first[trained].any() and first[unseen].all()
    assert len({*trained}) == len(trained) and len({*unseen}) == len(unseen)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trains_on_one_device):
    """A folder with a run of two towers on all groups, on the first half, and on this one from the weights of all."""
    folder = tmp_path_factory.mktemp("halves")
    few = ("train.num_steps=4", "train.save_every=4", "model.num_layers=1", "adaptive.method=fixed")
    few += ("tasks=itc", "tasks.itc.embedding_dim=16")
    train(tiny_config(folder, *few), folder / "whole")
    train(tiny_config(folder, *few, "train.half=first"), folder / "half")
    train(tiny_config(folder, *few, "train.half=first", f"train.start_from={folder / 'whole'}"), folder / "from_whole")
    return folder


def cosines_by_hand(workdir, texts, records):
    """Of `texts` with the pictures of `records`, each [N, E] by the public methods of the model."""
    model = fbjax.load(workdir)
    images = [product.image for product in records.products(range(len(records)))]
    return model.embed_text(texts), model.embed_image(images)


def test_queries_are_asked_of_several_tables_together(runs, tmp_path, capsys):
    log = [
        {"query": "red cotton dress", "relevant": ["p0-0003", "p1-0002"]},
        {"query": "  A BLUE\tleather bag ", "relevant": ["p1-0001"]},
        {"query": "\u200b", "relevant": ["p1-0004"]},
        {"query": "a hat", "relevant": ["nowhere"]},
    ]
    tables = [str(runs / "trai*.parquet"), str(runs / "validation.parquet")]
    path, out = write_queries(tmp_path / "log.jsonl", *log), tmp_path / "metrics.json"
    asked = ["--protocol", "queries", "--relevant", str(path), "--out", str(out), "--correct-hubs", "20"]
    assert main(["evaluate", "--workdir", str(runs / "whole"), "--data", *tables, *asked]) == 0, capsys.readouterr().err
    figures, printed = json.loads(out.read_text())["queries"], capsys.readouterr().out
    assert "2 queries, 72 products" in printed and "hubs corrected" in printed
    assert "skipped: 1 queries without words, 1 queries without a relevant product in the data" in printed
    assert (figures["num_queries"], figures["gallery"], sum(figures["skipped"].values())) == (2, 72, 2)

    records = LoadedRun.load(runs / "whole").records(tables)
    texts, images = cosines_by_hand(runs / "whole", ["red cotton dress", "a blue leather bag"], records)
    rows = [[records.ids.tolist().index(identity) for identity in line["relevant"]] for line in log[:2]]
    training = LoadedRun.load(runs / "whole").records(split="train")
    bank = fbjax.load(runs / "whole").embed_text(
        [product.text for product in training.products(bank_rows(np.arange(48), 20))]
    )
    penalties = np.sort(images @ bank.T, axis=1)[:, -10:].mean(axis=1)
    for found, scores in ((figures, texts @ images.T), (figures["corrected"], texts @ images.T - penalties)):
        orders = [order_against_us(mine.tolist(), {*relevant}) for mine, relevant in zip(scores, rows, strict=True)]
        for k in (1, 10):
            recalls = [len({*order[:k]} & {*mine}) / len(mine) for order, mine in zip(orders, rows, strict=True)]
            assert found[f"recall@{k}"] == pytest.approx(np.mean(recalls))
        best = np.array([min(order.index(r) for r in mine) + 1 for order, mine in zip(orders, rows, strict=True)])
        assert found["mrr@10"] == pytest.approx(np.mean(np.where(best <= 10, 1 / best, 0)))
        assert {name for name in found if "@" in name} == {
            f"{name}{ending}" for name in ("recall@1", "recall@10", "mrr@10") for ending in ("", ".ci")
        }


def test_the_whole_catalogue_of_a_run_is_not_prepared_again(runs, tmp_path):
    path = write_queries(tmp_path / "log.jsonl", {"query": "a blue leather bag", "relevant": ["p1-0001"]})
    loaded = LoadedRun.load(runs / "whole")
    own = loaded.run.config.data.train, loaded.run.config.data.validation
    other = str(runs / "trai*.parquet"), own[1]
    assert [len(x) for x in loaded.catalogue(own)] == [48, 24] and [len(x) for x in loaded.catalogue(other)] == [72]
    assert loaded.catalogue(own)[0].name == loaded.records(split="train").name
    asked = {"protocols": ("queries",), "relevant": path, "correct_hubs": 20}
    figures = [evaluate(runs / "whole", data=tables, **asked)["queries"] for tables in (own, other)]
    assert figures[0] == figures[1]


def test_new_products_among_trained_ones_as_by_brute_force(runs, tmp_path, capsys):
    figures = evaluate(runs / "half", protocols=("mixed",), correct_hubs=100)["mixed"]
    loaded = LoadedRun.load(runs / "half")
    validation, training = loaded.records(), loaded.records(split="train")
    texts, images = cosines_by_hand(runs / "half", [p.text for p in validation.products(range(24))], validation)
    first = half_of(training.groups)
    _, pictures = cosines_by_hand(runs / "half", ["none"], training)
    chosen = mixed.choose_rows(training.groups, "first")
    assert first[chosen[0]].all() and not first[chosen[1]].any()
    size = min(first.sum(), (~first).sum())
    assert figures["gallery"] == {"alone": 24, "trained": 24 + size, "unseen": 24 + size}
    words = [p.text for p in training.products(np.flatnonzero(first))]  # those of its half alone
    bank = fbjax.load(runs / "half").embed_text(words)
    penalty = lambda x: np.sort(x @ bank.T, axis=1)[:, -10:].mean(axis=1)  # noqa: E731
    for found, correct in ((figures, 0), (figures["corrected"], 1)):
        hits = {}
        for name, more in {"alone": images[:0], "trained": pictures[chosen[0]], "unseen": pictures[chosen[1]]}.items():
            gallery = np.concatenate([images, more])
            scores = texts @ gallery.T - correct * penalty(gallery)
            groups = np.concatenate([validation.groups, np.full(len(more), -1)])
            ranks = np.array([1 + (mine[groups != groups[q]] >= mine[q]).sum() for q, mine in enumerate(scores)])
            hits[name] = ranks == 1
            for k in (1, 5, 10):
                assert found[name][f"rank@{k}"] == pytest.approx((ranks <= k).mean())
            assert found[name]["mrr@10"] == pytest.approx(np.where(ranks <= 10, 1 / ranks, 0).mean())
        expected = hits["trained"].mean() / hits["unseen"].mean() if hits["unseen"].any() else None
        assert found["cold_start_ratio"] == (expected and pytest.approx(expected))
    print_figures({"mixed": figures}, print)
    assert "24 text queries of validation products" in capsys.readouterr().out

    path = write_queries(
        tmp_path / "log.jsonl",
        {"query": "red cotton dress", "relevant": [str(validation.ids[3]), "gone"]},
        {"query": "a bag", "relevant": [str(training.ids[0]), str(validation.ids[1])]},
    )
    asked = evaluate(runs / "half", protocols=("mixed",), relevant=path)["mixed"]
    assert asked["num_queries"] == 1 and asked["skipped"] == {queries.TRAINED: 1}


def test_a_run_that_has_seen_the_other_half_is_told_which_setting_to_use(runs, capsys):
    arguments = ["evaluate", "--protocol", "mixed", "--workdir"]
    assert main([*arguments, str(runs / "whole")]) == 1
    assert "train one with --config.train.half=first" in capsys.readouterr().err
    assert main([*arguments, str(runs / "from_whole")]) == 1
    assert f"began with weights of {runs / 'whole'}, whose train.half is ''" in capsys.readouterr().err
    write_parquet(runs / "train.parquet", make_products(46, seed=0))
    assert main([*arguments, str(runs / "half")]) == 1
    assert "the training table is not the one" in capsys.readouterr().err
