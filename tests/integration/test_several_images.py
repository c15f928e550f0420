"""Products with several pictures: prepared, trained, evaluated and embedded; one that is missing changes nothing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ImageOps

from fbjax.cli.main import main
from fbjax.data.batches.batch import Batch
from fbjax.data.records.pipeline import decode_image
from fbjax.data.sources.images import normalise_image
from fbjax.evaluation.evaluate import evaluate
from fbjax.export.package import export
from fbjax.inference.catalogue.embed_catalogue import embed_records
from fbjax.inference.embedder import make_embedder
from fbjax.inference.model import Model
from fbjax.model.grids.pictures import mean_picture
from fbjax.report.report import write_report
from fbjax.runs.feature_cache import features_of
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.run import Run
from fbjax.tasks import masking
from fbjax.training.loop import train
from tests.support.runs import make_one_device_mesh, tiny_config
from tests.support.tables import encode, make_products, write_csv, write_parquet

FEW = ("train.num_steps=4", "train.save_every=4", "model.num_layers=1", "adaptive.method=fixed")
CACHED = ("patches.mode=cached", "data.max_images=2")
P = 16  # patches of a picture
BROKEN = b"no picture"


def with_mirrored(products, every=2):
    """Each second product also has its picture mirrored; the picture is what a list column holds."""
    found = []
    for number, product in enumerate(products):
        pictures = [product["image"]] + [ImageOps.mirror(product["image"])] * (number % every == 0)
        found.append(product | {"image": [encode(p, product["format"]) for p in pictures]})
    return found


def write_lists(path, products):
    """Parquet whose image column is list<binary>."""
    columns = ("id", "title", "caption", "category", "group")
    table = pa.table({name: [p[name] for p in products] for name in columns})
    pq.write_table(table.append_column("image", pa.array([p["image"] for p in products], pa.list_(pa.binary()))), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    tiny_config(folder)
    train_products, validation = with_mirrored(make_products(48, seed=0)), with_mirrored(make_products(24, seed=1))
    train_products[2]["image"][1] = BROKEN
    train_products[4]["image"] = [BROKEN, *train_products[4]["image"][:1]]
    train_products[6]["image"] = [BROKEN, BROKEN]
    write_lists(folder / "train.parquet", train_products)
    write_lists(folder / "validation.parquet", [p | {"group": "v" + p["group"]} for p in validation])
    return folder


@pytest.fixture(scope="module")
def run(folder, trains_on_one_device):
    train(tiny_config(folder, *FEW, *CACHED, "tasks=mlm,mpm,tia,itc", "tasks.itc.embedding_dim=16"), folder / "run")
    return folder / "run"


def splits_of(config, folder):
    from fbjax.runs.splits import open_splits
    from fbjax.runs.vocabulary import make_vocabulary

    return open_splits(config, make_vocabulary(config, lambda line: None))


def test_broken_pictures_are_counted_and_a_product_stays_while_it_has_one(folder, run):
    records = Run.open(run).splits()["train"]
    report = records.report()
    assert report["splits"]["train"] == 47
    assert report["skipped"] == {"one of several pictures: undecodable image": 2, "undecodable image": 1}
    lines = [json.loads(line) for line in (records.home / "skipped.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["p0-0002", "p0-0004", "p0-0006"]


def test_features_are_those_of_each_picture_and_absent_ones_are_nan(folder, run):
    opened = Run.open(run)
    records = opened.splits()["train"]
    features, lone = features_of(opened, records), of_one_picture(opened)
    assert features.shape == (47, 2 * P, 48) and features.dtype == np.float16
    products = {p["id"]: p for p in with_mirrored(make_products(48, seed=0))}
    for row, pictures in ((0, (0, 1)), (1, (0,)), (2, (0,)), (4, (0,))):  # p0-0002 and p0-0004 have a broken one
        for place, number in enumerate(pictures):
            encoded = products[f"p0-{row:04d}"]["image"][number]
            image = decode_image(normalise_image(encoded, 32), 32)[None]
            expected = np.asarray(lone.patches.apply(lone.patches.params, image))[0].astype(np.float16)
            np.testing.assert_array_equal(features[row, place * P : (place + 1) * P], expected)
        assert np.isnan(features[row, len(pictures) * P :]).all()


def of_one_picture(run):
    """The same run, had it one picture of a product."""
    config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, max_images=1))
    return Run.build(config, run.vocabulary, None, run.ngrams)


def pieces(run, num=3):
    """The model's parameters, moved off their start, and inputs with features of two pictures."""
    loaded = LoadedRun.load(run)
    rng = np.random.default_rng(0)
    moved = lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(moved, loaded.params["fashionbert"])
    ids = rng.integers(5, 100, (num, 12)).astype(np.int32)
    ids[0, 9:] = 0
    features = rng.uniform(0, 1, (num, 2 * P, 48)).astype(np.float32)
    return loaded.run, params, ids, features


def one_picture(run, params):
    """The run with one picture and the same parameters."""
    image = {name: part for name, part in params["image_embeddings"].items() if name != "picture"}
    return of_one_picture(run), params | {"image_embeddings": image}


def outputs(run, params, ids, features):
    apply = lambda *a, **k: run.model.apply({"params": params}, *a, **k)  # noqa: E731
    image = apply(features, method="embed_image")
    hidden, _ = apply(apply(ids, method="embed_text"), ids != 0, image, method="encode_pair")
    vectors = apply(apply(None, None, features, method="read"), method="vector")
    return hidden, vectors, apply(hidden[:, 0], method="match_logits")


def test_a_missing_second_picture_is_no_picture(run):
    opened, params, ids, features = pieces(run)
    lone, theirs = one_picture(opened, params)
    features[:, P:] = np.nan
    found = outputs(opened, params, ids, features)
    expected = outputs(lone, theirs, ids, features[:, :P])
    t = ids.shape[1]
    np.testing.assert_allclose(found[0][:, : t + P], expected[0], rtol=1e-4, atol=1e-5)
    for ours, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-5)


def test_a_second_picture_counts_and_their_order_is_known_by_their_numbers_alone(run):
    opened, params, ids, features = pieces(run)
    swapped = np.concatenate([features[:, P:], features[:, :P]], axis=1)
    numbered, other = outputs(opened, params, ids, features)[1:], outputs(opened, params, ids, swapped)[1:]
    assert np.abs(np.asarray(numbered[1]) - np.asarray(other[1])).max() > 1e-4
    alike = params | {"image_embeddings": params["image_embeddings"] | {"picture": jnp.zeros((1, 32))}}
    for ours, theirs in zip(*(outputs(opened, alike, ids, x)[1:] for x in (features, swapped)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    without = features.copy()
    without[:, P:] = np.nan
    assert np.abs(np.asarray(outputs(opened, params, ids, without)[2]) - np.asarray(numbered[1])).max() > 1e-4


def test_hidden_patches_are_a_share_of_those_there():
    there = np.arange(40) < 20
    for seed in range(20):
        chosen, counts = masking.choose_of_there(jax.random.key(seed), jnp.asarray(there), 0.2)
        assert counts.sum() == 4 and len(chosen) == 8 and len(set(chosen[:4].tolist())) == 4
        assert there[np.asarray(chosen)].all() and set(chosen[4:].tolist()) == {int(chosen[0])}
    chosen, counts = masking.choose_of_there(jax.random.key(0), jnp.ones(40, bool), 0.2)
    assert counts.all() and len(set(chosen.tolist())) == 8


def batch_of(opened, records, rows, negatives):
    features, ids = features_of(opened, records), records.framed_texts(rows, opened.vocabulary, 24)
    words = np.where((ids > 0) & (np.arange(24) > 0), np.arange(24) - 1, -1).astype(np.int32)
    groups = records.groups[rows]
    return Batch(rows.astype(np.int32), groups, ids.astype(np.int32), words, features[rows], features[negatives])


def test_losses_and_gradients_are_finite_and_negatives_have_their_own_pictures(run):
    loaded = LoadedRun.load(run)
    opened, records = loaded.run, loaded.run.splits()["train"]
    batch = batch_of(opened, records, np.arange(8), np.arange(8)[::-1])
    objective = opened.objective
    masked = objective.draw_masks(batch, jax.random.key(0))
    slots = masked.targets["mpm"]
    there = ~np.isnan(np.stack([batch.image, batch.negative], axis=1)[..., 0])
    assert np.take_along_axis(there, np.asarray(slots.positions), axis=2).all()
    np.testing.assert_array_equal(np.asarray(slots.counts).sum(-1), np.where(there.sum(-1) == P, 2, 3))

    params = jax.tree.map(jnp.asarray, loaded.params)
    total = lambda p: objective.losses(p, {"patches": {}}, batch, jax.random.key(1))[0].sum()  # noqa: E731
    loss, gradients = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["fashionbert"]["image_embeddings"]["picture"]).max() > 0


def test_the_mean_picture_is_over_those_there():
    features = np.arange(24, dtype=np.float32).reshape(2, 6, 2)
    features[1, 3:] = np.nan
    expected = [(features[0, :3] + features[0, 3:]) / 2, features[1, :3]]
    np.testing.assert_array_equal(mean_picture(jnp.asarray(features), 2), expected)


def test_a_run_is_evaluated_embedded_and_asked_by_a_picture(run, tmp_path):
    figures = evaluate(run, protocols=("candidates", "full"), num_queries=6)
    assert np.isfinite(figures["full"]["text_to_image"]["rank@1"])
    loaded = LoadedRun.load(run)
    records = loaded.run.splits()["validation"]
    vectors = embed_records(loaded, make_embedder(loaded.run, loaded.mesh), records, "image", np.arange(4))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    model = Model.load(run)
    (product,) = records.products([1])  # it has one picture
    np.testing.assert_allclose(model.embed_image([product.image])[0], vectors[1], atol=2e-3)  # cached: float16
    write_report(run, tmp_path / "report.html", num_queries=4)


def test_linear_towers_read_the_mean_and_one_picture_alone_as_before(folder, trains_on_one_device):
    linear = ("tasks=itc", "tasks.itc.embedding_dim=16", "tasks.itc.branches=linear", *FEW)
    train(tiny_config(folder, *linear, *CACHED), folder / "linear")
    loaded = LoadedRun.load(folder / "linear")
    lone = of_one_picture(loaded.run)
    features = np.random.default_rng(0).uniform(0, 1, (3, 2 * P, 48)).astype(np.float32)
    features[1:, P:] = np.nan
    params = loaded.params["fashionbert"]

    def vector(run, features):
        apply = lambda *a, **k: run.model.apply({"params": params}, *a, **k)  # noqa: E731
        return np.asarray(apply(apply(None, None, features, method="read"), method="vector"))

    both, one = vector(loaded.run, features), vector(lone, features[:, :P])
    np.testing.assert_array_equal(both[1:], one[1:])
    np.testing.assert_allclose(both[0], vector(lone, (features[:1, :P] + features[:1, P:]) / 2)[0], rtol=1e-5)
    figures = evaluate(folder / "linear", protocols=("full",), num_queries=6)
    assert np.isfinite(figures["full"]["text_to_image"]["rank@1"])


def test_eight_devices_train_as_one(folder, run, tmp_path):
    from fbjax.parallel.mesh import make_mesh, put_batch

    loaded = LoadedRun.load(run)
    records = loaded.run.splits()["train"]
    batch = batch_of(loaded.run, records, np.arange(8), np.arange(8)[::-1])

    def losses(mesh):
        placed = put_batch(batch, mesh)
        total = jax.jit(lambda p, b: loaded.run.objective.losses(p, {"patches": {}}, b, jax.random.key(1))[0])
        return np.asarray(total(jax.device_get(loaded.params), placed))

    assert len(jax.devices()) == 8
    np.testing.assert_allclose(losses(make_mesh(loaded.run.config.mesh)), losses(make_one_device_mesh()), rtol=2e-5)


def columns_case(folder):
    """CSV: pictures in two columns, the second empty for each second product."""
    path = folder / "columns.csv"
    products = make_products(12)
    write_csv(path, products)
    lines = path.read_text().splitlines()
    (folder / "images").mkdir(exist_ok=True)
    for number, product in enumerate(products):
        (folder / f"images/side-{number}.png").write_bytes(encode(ImageOps.mirror(product["image"])))
        lines[number + 1] += f",images/side-{number}.png" if number % 2 == 0 else ","
    path.write_text("\n".join([lines[0] + ",side", *lines[1:]]) + "\n")
    return path, ("data.columns.more_images=side",)


def rows_case(folder):
    """Parquet: each second product in two rows."""
    rows = []
    for number, product in enumerate(make_products(12)):
        rows += [product] + [product | {"image": ImageOps.mirror(product["image"])}] * (number % 2 == 0)
    return write_parquet(folder / "rows.parquet", rows), ()


@pytest.mark.parametrize("case", [columns_case, rows_case])
def test_pictures_stand_in_several_columns_or_rows(case, tmp_path):
    path, settings = case(tmp_path)
    tables = (f"data.train={path}", "data.validation=", "data.holdout=0.3")
    config = tiny_config(tmp_path, *CACHED, *settings, *tables)
    splits = splits_of(config, tmp_path)
    found = {}
    for records in splits.values():
        _, there = zip(*records.several_images(np.arange(len(records)), 32, 5, "squash", 2), strict=True)
        found |= dict(zip(records.ids.tolist(), np.concatenate(there).sum(axis=1).tolist(), strict=True))
    assert found == {f"p0-{n:04d}": 2 - n % 2 for n in range(12)}
    assert splits["train"].report()["skipped"] == {}


def test_what_reads_one_picture_is_refused_in_words(folder, run, tmp_path, capsys):
    def told(*overrides):
        with pytest.raises(ValueError) as error:
            tiny_config(folder, "data.max_images=2", *overrides)
        return str(error.value)

    assert "data.max_images 2 needs patches.mode 'cached', not 'frozen'" in told()
    assert "task scan reads one picture" in told("patches.mode=cached", "tasks=scan")
    whole = ("patches.mode=cached", "patches.whole_image=true")
    assert "branches 'dual' read one picture" in told(*whole, "tasks=itc", "tasks.itc.branches=dual")
    assert "for model.architecture 'fashionbert', not 'vlbert'" in told(*whole, "model.architecture=vlbert")
    assert "needs records" in told("patches.mode=cached", "data.arrays=somewhere")
    with pytest.raises(ValueError, match="further pictures, and data.max_images 1 reads one"):
        tiny_config(folder, "data.columns.more_images=side")
    with pytest.raises(ValueError, match="up to 2 pictures of a product"):
        export(run, "stablehlo", tmp_path / "out", say=print)
    with pytest.raises(ValueError, match="several pictures of a product"):
        Model.load(run).explain("a red dress", make_products(1)[0]["image"])
    flags = [f"--config.{value}" for value in CACHED]
    assert main(["prepare", "--config", str(folder / "tiny.py"), *flags, "--arrays", str(tmp_path / "a")]) == 1
    assert "prepares one picture of a product" in capsys.readouterr().err
