"""The pretraining objective and the step: hand-computed losses, and what must not change them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fbjax.config.schema import AdaptiveConfig, MeshConfig, PatchConfig, TrainConfig
from fbjax.model.encoder import attend
from fbjax.parallel.mesh import make_mesh, put_batch
from fbjax.runs.state import batch_shapes, clip_by_global_norm, make_optimizer, make_schedule
from fbjax.tasks.mpm import patch_divergence
from fbjax.training.micro_batches import split
from fbjax.training.step import compiled, make_step, with_seed
from fbjax.training.task_weights import weighted_gradient
from tests.support.objectives import (
    CONFIG,
    COSINE,
    MODEL,
    PATCHES,
    TRAIN,
    B,
    T,
    make_batch,
    make_events,
    make_objective,
    make_state,
    make_tasks,
    make_tower_vectors,
)
from tests.support.runs import make_one_device_mesh, write_mobilenet

STEPPED = {}
ON_TRUE_PAIRS = {"mlm": {"on_negatives": False}, "mpm": {"on_negatives": False}}


def losses_of(objective, params, batch):
    return np.asarray(jax.jit(objective.losses)(params, {"patches": {}}, batch, jax.random.key(3))[0])


def logits_of(objective, params, ids, text_mask, features):
    """What mlm says at every piece, mpm at every patch, and tia, from the encoder's whole sequence."""

    @jax.jit
    def heads(params, ids, text_mask, features):
        apply = partial(objective.model.apply, {"params": params["fashionbert"]})
        embedded = apply(ids, method="embed_text"), text_mask, apply(features, method="embed_image")
        hidden, means = apply(*embedded, method="encode_pair")
        reads = {"mlm": ("logits", hidden[:, : ids.shape[1]]), "mpm": ("logits", hidden[:, ids.shape[1] :])}
        reads["tia"] = ("match_logits", hidden[:, 0], means)
        return {name: apply(name, *reads[name], method="run_head") for name in objective.names if name in reads}

    found = jax.device_get(heads(params, ids, text_mask, features))
    return [found.get(name) for name in ("mlm", "mpm", "tia")]


def test_patch_divergence_by_hand():
    target, prediction = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.log(jnp.array([0.25, 0.5, 0.25]))
    # .5 ln(.5/.25) + .25 ln(.25/.5) + 0 = .25 ln 2
    assert float(patch_divergence(target, prediction)) == pytest.approx(0.25 * np.log(2), rel=1e-5)
    assert float(patch_divergence(target, target + 3.0)) == pytest.approx(0, abs=1e-6)


def test_losses_equal_a_recomputation_from_the_whole_sequence():
    """Every head on every position of the unshortened encoder, picked and averaged with NumPy."""
    objective, batch = make_objective(), make_batch()
    params = make_state(objective).params
    key = jax.random.key(3)
    masked = objective.draw_masks(batch, jax.random.split(key)[0])
    ids, text_at, patch_at = (
        np.asarray(x) for x in (masked.examples.ids, masked.targets["mlm"].positions, masked.targets["mpm"])
    )
    valid = np.asarray(masked.targets["mlm"].weight) > 0
    mlm, mpm, tia = [], [], []
    for pair, images in enumerate([batch.image, batch.negative]):
        features = np.array(objective.patches.apply({}, images))
        hidden = features.copy()
        for b in range(B):
            hidden[b, patch_at[b, pair]] = 0.0
        mlm_logits, mpm_logits, tia_logits = logits_of(objective, params, ids, batch.ids != 0, hidden)
        for b in range(B):
            for m in np.flatnonzero(valid[b]):
                at = text_at[b, m]
                mlm.append(-np.asarray(jax.nn.log_softmax(mlm_logits[b, at]))[batch.ids[b, at]])
            for p in patch_at[b, pair]:
                goal, guess = (np.asarray(jax.nn.log_softmax(x[b, p])) for x in (features, mpm_logits))
                mpm.append((np.exp(goal) * (goal - guess)).sum())
            tia.append(-np.asarray(jax.nn.log_softmax(tia_logits[b]))[1 - pair])
    expected = [np.mean(mlm), np.mean(mpm), np.mean(tia)]
    np.testing.assert_allclose(losses_of(objective, params, batch), expected, rtol=2e-5)


def test_mask_negatives_off_leaves_mlm_and_mpm_to_the_true_pairs():
    batch = make_batch()
    both, only_true = make_objective(), make_objective(tasks=make_tasks(**ON_TRUE_PAIRS))
    params = make_state(both).params
    changed = batch._replace(negative=255 - batch.negative)
    np.testing.assert_array_equal(losses_of(only_true, params, batch)[:2], losses_of(only_true, params, changed)[:2])
    assert (losses_of(both, params, batch)[:2] != losses_of(both, params, changed)[:2]).all()
    assert losses_of(only_true, params, batch)[2] != losses_of(only_true, params, changed)[2]


def test_tia_reads_the_cosine_of_the_modalities_beside_cls():
    """From the unshortened encoder: the logit of [CLS] alone plus the scaled cosine of both projected means."""
    objective, batch = make_objective(tasks=make_tasks("itc", "tia", **COSINE)), make_batch()
    params = make_state(objective).params["fashionbert"]
    apply = partial(objective.model.apply, {"params": params})
    features = objective.patches.apply({}, batch.image)
    logits = logits_of(objective, {"fashionbert": params}, batch.ids, batch.ids != 0, features)[2]
    text, image = apply(batch.ids, method="embed_text"), apply(features, method="embed_image")
    hidden = np.asarray(apply(text, batch.ids != 0, image, method="encode"))
    pooled = np.tanh(hidden[:, 0] @ params["pooler"]["kernel"] + params["pooler"]["bias"])
    plain = pooled @ params["tia"]["kernel"] + params["tia"]["bias"]
    means = np.stack([hidden[b, :T][batch.ids[b] != 0].mean(axis=0) for b in range(B)]), hidden[:, T:].mean(axis=1)
    text, image = (mean @ np.asarray(params["projection"]["kernel"]) for mean in means)
    cosines = (text * image).sum(axis=1) / np.linalg.norm(text, axis=1) / np.linalg.norm(image, axis=1)
    expected = plain + np.exp(params["log_scale"]) * np.stack([0 * cosines, cosines], axis=1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    negatives = objective.patches.apply({}, batch.negative)
    other = logits_of(objective, {"fashionbert": params}, batch.ids, batch.ids != 0, negatives)[2]
    each = [-np.asarray(jax.nn.log_softmax(x))[:, label] for x, label in ((logits, 1), (other, 0))]
    found = losses_of(objective, {"fashionbert": params}, batch)
    np.testing.assert_allclose(found[1], np.mean(each), rtol=1e-4)


def test_gated_cross_attention_starts_as_the_two_towers_and_adds_the_other_modality():
    batch = make_batch()
    objective = make_objective(dataclasses.replace(MODEL, cross_attention="gated"), make_tasks(**COSINE))
    params = make_state(objective).params["fashionbert"]

    def with_gates(value):
        is_gate = lambda path: "gate" in jax.tree_util.keystr(path)  # noqa: E731
        return jax.tree_util.tree_map_with_path(lambda path, p: 0 * p + value if is_gate(path) else p, params)

    def read(params, ids, image, **options):
        apply = partial(objective.model.apply, {"params": params})
        text = None if ids is None else apply(ids, method="embed_text")
        image = None if image is None else apply(objective.patches.apply({}, image), method="embed_image")
        return apply(text, None if ids is None else ids != 0, image, **options)

    shut, ajar = with_gates(0.0), with_gates(0.03)
    _, means = read(shut, batch.ids, batch.image, method="encode_pair")
    towers = read(shut, batch.ids, None, method="encode_alone"), read(shut, None, batch.image, method="encode_alone")
    np.testing.assert_allclose(means, np.stack(towers, axis=1), atol=1e-5)
    for ids, image in ((batch.ids, batch.negative), (np.roll(batch.ids, 1, axis=0), batch.image)):
        one, other = (read(ajar, *pair, method="encode_pair")[1] for pair in ((batch.ids, batch.image), (ids, image)))
        assert (np.abs(one - other).max(axis=(0, 2)) > 1e-3).all()  # either mean depends on the other modality

    positions = jnp.tile(jnp.array([0, 3, T + 2]), (B, 1))  # of the last layer, from both
    whole, picked = (read(ajar, batch.ids, batch.image, method="encode", positions=p) for p in (None, positions))
    np.testing.assert_allclose(picked, np.take_along_axis(whole, positions[..., None], axis=1), atol=1e-6)


def test_attention_with_a_gate_by_hand():
    """Two keys of the own kind, two of the other, one of them padding."""
    q, k = np.full((1, 1, 1, 1), 2.0, np.float32), np.log(np.array([1.0, 3.0, 1.0, 5.0], np.float32)) / 2
    v = np.array([1.0, 2.0, 10.0, 1000.0], np.float32)
    mask, crosses = np.array([[True, True, True, False]]), np.array([[[False, False, True, True]]])
    k, v = (x.reshape(1, 4, 1, 1) for x in (k, v))
    mixed = attend(q, k, v, mask, crosses=crosses, gate=jnp.array([0.5]))
    assert float(mixed[0, 0, 0, 0]) == pytest.approx((1 * 1 + 3 * 2) / 4 + 0.5 * 10)


MINED = make_tasks("itc", "tia", itc={"embedding_dim": 8}, tia={"negatives": "batch"})
ON_TOWERS = make_tasks("itc", itc={"embedding_dim": 8, "towers": "runs/other_half"})


def test_mined_negatives_are_drawn_by_a_softmax_over_the_towers_logits():
    """How often each image is drawn in 3,000 steps, against the cosines of the model's own vectors."""
    objective, batch = make_objective(tasks=MINED), make_batch()._replace(negative=None)
    batch.image[:, 0, 0, 0] = np.arange(B)  # which image it is
    params = make_state(objective).params
    apply = partial(objective.model.apply, {"params": params["fashionbert"]})
    features = objective.patches.apply({}, batch.image)
    readings = apply(batch.ids, None, None, method="read"), apply(None, None, features, method="read")
    texts, images = (np.asarray(apply("itc", "vector", x, method="run_head")) for x in readings)
    logits = float(apply(method="logit_scale")) * texts @ images.T
    logits[batch.group[:, None] == batch.group] = -np.inf  # the product's own image too
    expected = np.asarray(jax.nn.softmax(logits))

    mined = jax.vmap(lambda key: objective.with_mined(params, {"patches": {}}, batch, key).negative[:, 0, 0, 0])
    drawn = np.asarray(jax.jit(mined)(jax.random.split(jax.random.key(0), 3000)))
    found = (drawn[..., None] == np.arange(B)).mean(axis=0)
    assert (found[expected == 0] == 0).all() and expected.max() > 0.5 > expected[expected > 0].min()
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(0.25 / 3000))


def test_mined_negatives_are_what_tia_reads():
    objective, batch = make_objective(tasks=MINED), make_batch()
    params, key = make_state(objective).params, jax.random.split(jax.random.key(3))[0]
    mined = objective.with_mined(params, {"patches": {}}, batch._replace(negative=None), key)
    from_table = make_objective(tasks=make_tasks("itc", "tia", itc={"embedding_dim": 8}))
    np.testing.assert_array_equal(
        losses_of(objective, params, batch._replace(negative=None)), losses_of(from_table, params, mined)
    )


def test_the_logits_of_towers_are_added_to_the_encoder_s():
    objective, batch = make_objective(tasks=ON_TOWERS), make_batch()._replace(towers=make_tower_vectors())
    params = make_state(objective).params
    apply = partial(objective.model.apply, {"params": params["fashionbert"]})
    features = objective.patches.apply({}, batch.image)
    readings = apply(batch.ids, None, None, method="read"), apply(None, None, features, method="read")
    texts, images = (np.asarray(apply("itc", "vector", x, method="run_head")) for x in readings)
    logits = np.exp(float(params["fashionbert"]["log_scale"])) * texts @ images.T
    logits += batch.towers[:, 0] @ batch.towers[:, 1].T
    siblings = (batch.group[:, None] == batch.group) & ~np.eye(B, dtype=bool)
    logits[siblings] = -np.inf
    log_shares = [np.diag(jax.nn.log_softmax(logits, axis=axis)) for axis in (0, 1)]
    assert float(losses_of(objective, params, batch)[0]) == pytest.approx(-np.mean(log_shares), rel=1e-5)


def test_nothing_is_hidden_for_a_task_that_is_left_out_and_the_whole_image_never():
    batch = make_batch()
    patches = dataclasses.replace(PATCHES, whole_image=True)
    for names in (("tia",), ("mlm", "tia"), ("mpm", "tia")):
        masked = make_objective(tasks=make_tasks(*names), patches=patches).draw_masks(batch, jax.random.key(0))
        assert (np.asarray(masked.examples.ids) == batch.ids).all() == ("mlm" not in names)
        hidden = np.asarray(masked.examples.hidden)
        assert (hidden.sum(axis=-1) == (2 if "mpm" in names else 0)).all()  # of 16 patches
        assert not hidden[..., 0].any()


def test_a_further_task_leaves_the_others_draws_alone():
    batch, key = make_batch(), jax.random.key(5)
    alone = make_objective(tasks=make_tasks("mpm", "tia")).draw_masks(batch, key)
    beside = make_objective(tasks=make_tasks("itc", "mlm", "mpm", "tia")).draw_masks(batch, key)
    np.testing.assert_array_equal(alone.targets["mpm"], beside.targets["mpm"])
    np.testing.assert_array_equal(alone.examples.hidden, beside.examples.hidden)


def test_a_pass_that_no_task_reads_is_not_computed_and_one_that_several_read_is_computed_once():
    names = lambda *tasks, **settings: make_objective(tasks=make_tasks(*tasks, **settings)).pair_passes  # noqa: E731
    assert names() == (("pair", "negative_pair"),)
    assert names(**ON_TRUE_PAIRS) == (("pair",), ("negative_pair",))
    assert names("mlm", "itc", **ON_TRUE_PAIRS) == (("pair",),)
    assert names("itc") == () and names("mlm") == names("mpm") == (("pair",),)  # nobody needs a negative
    assert make_objective(tasks=make_tasks("itc", "tia")).num_readings == 3


def test_batch_order_does_not_change_losses():
    objective, batch = make_objective(), make_batch()
    params = make_state(objective).params
    order = np.random.default_rng(1).permutation(B)
    shuffled = jax.tree.map(lambda x: x[order], batch)
    np.testing.assert_allclose(losses_of(objective, params, shuffled), losses_of(objective, params, batch), rtol=1e-5)


def test_padding_does_not_change_the_alignment_scores():
    longer = make_objective(dataclasses.replace(MODEL, text_tokens=T + 8))
    params = make_state(longer).params["fashionbert"]
    batch = make_batch()
    features = longer.patches.apply({}, batch.image)
    padded = np.pad(batch.ids, ((0, 0), (0, 8)))
    scores = [logits_of(longer, {"fashionbert": params}, ids, ids != 0, features)[2] for ids in (batch.ids, padded)]
    np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, ON_TRUE_PAIRS | COSINE], ids=["all", "cosine"])
def test_padding_changes_no_loss_and_no_gradient(settings):
    """A batch of short texts as the length buckets give it, and padded to the full T."""
    objective, padded = make_objective(tasks=make_tasks(**settings)), make_batch()
    shortened = padded.ids.copy()
    shortened[:, 8:] = 0
    word_ids = np.where(shortened > 0, padded.word_ids, -1)
    padded = padded._replace(ids=shortened, word_ids=word_ids)
    trimmed = padded._replace(ids=shortened[:, :8], word_ids=word_ids[:, :8])
    params = make_state(objective).params

    def losses_and_gradient(batch):
        losses = lambda p: objective.losses(p, {"patches": {}}, batch, jax.random.key(3))[0]  # noqa: E731
        return jax.jit(lambda p: (losses(p), jax.grad(lambda p: losses(p).sum())(p)))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        losses_and_gradient(trimmed),
        losses_and_gradient(padded),
    )


def stepped(config, steps=2, mesh=None):
    """Parameters after `steps` steps of `config`, and the weights held and the metrics of every step."""
    key = repr((config, steps, mesh))
    if key not in STEPPED:
        STEPPED[key] = _stepped(config, steps, mesh)
    return STEPPED[key]


def _stepped(config, steps, mesh):
    devices = make_mesh(mesh) if mesh else make_one_device_mesh()
    objective = make_objective(config.model, config.tasks)
    state = make_state(objective, config, devices)
    step = make_step(objective, make_optimizer(TRAIN), config, devices, state)
    seen = []
    with jax.set_mesh(devices):
        for i in range(steps):
            batch = make_events(i) if config.reads_queries or config.reads_partners else make_batch(i)
            batch = batch._replace(towers=make_tower_vectors(i) if config.towers else None)
            state, metrics = step(state, with_seed({"patches": {}}, config), put_batch(batch, devices))
            seen.append(jax.device_get((state.task_weights, metrics)))
    return jax.device_get(state.params), *zip(*seen, strict=True)


def assert_same_step(one, other):
    (params, weights, metrics), (other_params, other_weights, other_metrics) = one, other
    for name, value in metrics[-1].items():
        np.testing.assert_allclose(other_metrics[-1][name], value, rtol=2e-4, atol=1e-6, err_msg=name)
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, other_params)
    assert max(jax.tree.leaves(difference)) < 2e-3  # two steps, of 0 and 5e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), weights, other_weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"train.micro_batches": 4},
        pytest.param({"train.micro_batches": 4, "adaptive.every": 2}, marks=pytest.mark.slow),
        *(pytest.param({"model.remat": what}, marks=pytest.mark.slow) for what in ("layers", "dots")),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_what_saves_memory_does_not_change_the_step(changes):
    """Micro-batches hold different numbers of masked pieces: only a mean over the whole batch comes out the same."""

    def changed(*names):
        config = CONFIG
        for name in names:
            section, field = name.split(".")
            part = dataclasses.replace(getattr(config, section), **{field: changes[name]})
            config = dataclasses.replace(config, **{section: part})
        return config

    saving = [name for name in changes if name in ("train.micro_batches", "model.remat")]
    assert_same_step(stepped(changed(*changes.keys() - set(saving))), stepped(changed(*changes)))


ONE_LAYER = dataclasses.replace(MODEL, num_layers=1)


def with_parts(num_parts, *names, **changes):
    """The step's config with these tasks in so many micro-batches."""
    train, tasks = dataclasses.replace(TRAIN, micro_batches=num_parts), make_tasks(*names, itc={"embedding_dim": 8})
    return dataclasses.replace(CONFIG, model=ONE_LAYER, tasks=tasks, train=train, **changes)


@pytest.mark.parametrize(
    "method",
    [
        AdaptiveConfig(method="fixed"),
        pytest.param(AdaptiveConfig(every=2), marks=pytest.mark.slow),
        *(pytest.param(AdaptiveConfig(method=name), marks=pytest.mark.slow) for name in ("estimate", "loss_softmax")),
    ],
    ids=str,
)
def test_micro_batches_contrast_the_whole_batch(method):
    names = ("itc", "mlm") if method.method == "fixed" else ("itc", "mlm", "mpm", "tia")
    assert_same_step(*(stepped(with_parts(parts, *names, adaptive=method)) for parts in (1, 4)))


def test_micro_batches_on_eight_devices_contrast_the_whole_batch():
    assert_same_step(stepped(with_parts(1, "itc")), stepped(with_parts(2, "itc"), mesh=MeshConfig(8, 1, 1)))


def test_micro_batches_give_the_contrast_s_gradient_by_autodiff_with_dropout():
    """Against the derivative of one function that keeps everything: both runs of a micro-batch drop the same units."""
    model, tasks = (
        dataclasses.replace(ONE_LAYER, hidden_dropout=0.3),
        make_tasks("itc", itc={"embedding_dim": 8}),
    )
    objective, batch = make_objective(model, tasks), make_batch()
    params = make_state(objective, dataclasses.replace(CONFIG, model=model, tasks=tasks)).params
    masked = objective.draw_masks(batch, jax.random.key(1))
    keys, losses_of = jax.random.split(jax.random.key(2), 4), partial(objective.losses_of, {"patches": {}})
    whole = losses_of(masked, keys[0])

    def micro_batched(params):
        shares, shared = (split(masked, 4), keys), objective.shared
        return weighted_gradient(
            lambda share: losses_of(*share), shares, params, AdaptiveConfig(), [1.0], shared, whole=whole
        )

    def kept(params):
        shares = [losses_of(jax.tree.map(lambda x, i=i: x[i::4], masked), keys[i]) for i in range(4)]
        each = [[forward(params) for forward in share.passes] for share in shares]
        outputs = jax.tree.map(lambda *parts: jnp.stack(parts, axis=1).reshape(B, *parts[0].shape[1:]), *each)
        return whole.heads[0].loss(params, *outputs)[0]

    weighted, (loss, gradient) = jax.jit(lambda p: (micro_batched(p), jax.value_and_grad(kept)(p)))(params)
    assert float(weighted.losses[0]) == pytest.approx(float(loss), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), weighted.gradient, gradient)


def test_weights_are_held_in_the_state_between_two_solves():
    config = dataclasses.replace(CONFIG, adaptive=AdaptiveConfig(every=2))
    _, (first, second, third), metrics = stepped(config, steps=3)
    np.testing.assert_array_equal(first, second)
    assert np.abs(second - third).max() > 1e-3
    np.testing.assert_array_equal([metrics[-1][f"{task}/weight"] for task in ("mlm", "mpm", "tia")], third)


@pytest.mark.parametrize("size", [0.0, 0.1, 10.0])
def test_clipping_is_optax_s(size):
    gradients = {"a": size * jnp.arange(3.0), "b": size * jnp.ones((2, 2))}
    ours, reference = clip_by_global_norm(2.0), optax.clip_by_global_norm(2.0)
    clipped = [clip.update(gradients, clip.init(gradients))[0] for clip in (ours, reference)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *clipped)


def test_a_compiled_step_takes_the_shapes_it_was_compiled_for_and_no_other():
    objective, mesh = make_objective(), make_one_device_mesh()
    state, batch = make_state(objective), make_batch()
    step = make_step(objective, make_optimizer(TRAIN), CONFIG, mesh, state)
    shapes = [batch_shapes(CONFIG, objective.patches, length) for length in (8, T)]
    frozen = with_seed({"patches": {}}, CONFIG)
    run = compiled(step, state, frozen, shapes)
    state, _ = run(state, frozen, put_batch(batch, mesh))
    short = batch._replace(ids=batch.ids[:, :8], word_ids=batch.word_ids[:, :8])
    state, _ = run(state, frozen, put_batch(short, mesh))
    assert step._cache_size() == 0 and int(state.step) == 2
    with pytest.raises(KeyError):
        run(state, frozen, batch._replace(ids=batch.ids[:, :12]))


def test_seeds_share_one_program_and_differ_in_their_steps():
    """Seeds past int32 too, which are taken as `jax.random.key` takes them."""
    configs = [
        dataclasses.replace(
            CONFIG, model=ONE_LAYER, tasks=make_tasks("mlm"), train=dataclasses.replace(TRAIN, seed=seed)
        )
        for seed in (0, 7, 2**40 + 3)
    ]
    objective, optimizer, mesh = (
        make_objective(ONE_LAYER, configs[0].tasks),
        make_optimizer(TRAIN),
        make_one_device_mesh(),
    )
    state, batch, losses = make_state(objective, configs[0]), make_batch(), []
    frozen = [with_seed({"patches": {}}, config) for config in configs]
    steps = [make_step(objective, optimizer, config, mesh, state) for config in configs]
    texts = {step.lower(state, seed, batch).as_text() for step, seed in zip(steps, frozen, strict=True)}
    assert len(texts) == 1
    for config, seed in zip(configs, frozen, strict=True):
        masks, dropout = jax.random.split(jax.random.fold_in(jax.random.key(config.train.seed), 0))
        expected = objective.losses_of(seed, objective.draw_masks(batch, masks), dropout).values(state.params)[0]
        _, metrics = steps[0](jax.tree.map(jnp.copy, state), seed, put_batch(batch, mesh))
        losses.append(float(metrics["mlm/loss"]))
        assert losses[-1] == pytest.approx(float(expected[0]), rel=1e-5)
    assert len(set(losses)) == 3


@pytest.mark.parametrize(
    "method, mesh",
    [
        pytest.param("gradient", MeshConfig(8, 1, 1), marks=pytest.mark.slow),
        pytest.param("gradient", MeshConfig(2, 4, 1), marks=pytest.mark.slow),
        ("gradient", MeshConfig(2, 2, 2)),
        ("loss_softmax", MeshConfig(8, 1, 1)),
    ],
    ids=["gradient-data", "gradient-data-fsdp", "gradient-data-fsdp-tensor", "loss_softmax-data"],
)
def test_device_count_does_not_change_the_step(method, mesh, monkeypatch):
    monkeypatch.setattr("fbjax.parallel.mesh.TILE", 1)  # task gradients of any width in shards
    config = dataclasses.replace(CONFIG, adaptive=AdaptiveConfig(method=method))
    assert_same_step(stepped(config), stepped(config, mesh=mesh))


@pytest.mark.parametrize("tasks", [MINED, ON_TOWERS], ids=["mined negatives", "towers"])
def test_device_count_does_not_change_the_step_of_what_towers_say_of_the_batch(tasks):
    config = dataclasses.replace(CONFIG, model=ONE_LAYER, tasks=tasks, adaptive=AdaptiveConfig(method="fixed"))
    assert_same_step(stepped(config), stepped(config, mesh=MeshConfig(data=8)))


def test_device_count_does_not_change_the_step_of_the_contrast():
    config = dataclasses.replace(CONFIG, tasks=make_tasks("itc", itc={"embedding_dim": 8}))
    mesh = MeshConfig(2, 2, 2)
    assert_same_step(stepped(config), stepped(config, mesh=mesh))


EVENTS = {
    "qpc": {"qpc": {"embedding_dim": 8}},
    "style": {"style": {"embedding_dim": 8, "distinctiveness": 0.5, "locality": 2.0, "neighbours": 5}},
    "qta": {"qta": {"match_weight": 2.0}, "mlm": {}, "mpm": {}},
}


@pytest.mark.parametrize(
    "settings",
    [EVENTS["qpc"], EVENTS["style"], pytest.param(EVENTS["qta"], marks=pytest.mark.slow)],
    ids=list(EVENTS),
)
def test_eight_devices_and_micro_batches_change_no_step_over_events(settings):
    tasks = make_tasks(*settings, **settings)
    config = dataclasses.replace(CONFIG, model=ONE_LAYER, tasks=tasks, adaptive=AdaptiveConfig(method="fixed"))
    in_parts = dataclasses.replace(config, train=dataclasses.replace(TRAIN, micro_batches=2))
    assert_same_step(stepped(config), stepped(in_parts, mesh=MeshConfig(8, 1, 1)))


def test_a_patch_network_gets_gradients_when_it_trains_and_is_no_parameter_when_not(tmp_path):
    write_mobilenet(tmp_path / "weights.npz")
    frozen = PatchConfig(
        network="mobilenet_v1",
        geometry="feature_map",
        image_size=64,
        patch_size=32,
        weights=str(tmp_path / "weights.npz"),
    )
    trained = dataclasses.replace(frozen, mode="trained")
    objective = make_objective(patches=trained)
    state = make_state(objective, dataclasses.replace(CONFIG, patches=trained))
    images = np.random.default_rng(0).integers(0, 255, (2, B, 64, 64, 3), dtype=np.uint8)
    batch = make_batch()._replace(image=images[0], negative=images[1])
    loss = jax.jit(jax.grad(lambda p: objective.losses(p, {}, batch, jax.random.key(0))[0].sum()))
    gradient = loss(state.params)
    assert float(jnp.abs(gradient["patches"]["network"]["conv1"]["kernel"]).max()) > 0
    assert float(jnp.abs(gradient["patches"]["network"]["conv1_bn"]["gamma"]).max()) > 0
    assert float(jnp.abs(gradient["patches"]["network"]["conv1_bn"]["moving_mean"]).max()) == 0
    assert objective.shared(gradient)["patches"] is gradient["patches"]
    assert objective.shared(gradient)["fashionbert"].keys() == {"text_embeddings", "image_embeddings", "encoder"}
    frozen_state = make_state(make_objective(patches=frozen), dataclasses.replace(CONFIG, patches=frozen))
    assert frozen_state.params.keys() == {"fashionbert"}


def test_bfloat16_products_move_losses_by_little_and_keep_parameters_float32():
    batch = make_batch()
    exact, coarse = make_objective(), make_objective(dataclasses.replace(MODEL, dtype="bfloat16"))
    params = make_state(coarse).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    difference = np.abs(losses_of(exact, params, batch) / losses_of(coarse, params, batch) - 1)
    assert 0 < difference.max() < 0.02


def test_schedule_warms_up_and_decays_to_zero():
    schedule = make_schedule(TrainConfig(num_steps=100, warmup_steps=10, learning_rate=1.0))
    np.testing.assert_allclose([schedule(s) for s in (0, 5, 10, 55, 100)], [0, 0.5, 1, 0.5, 0], atol=1e-6)


def test_biases_and_layer_norms_do_not_decay():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)}
    optimizer = make_optimizer(TrainConfig(num_steps=10, warmup_steps=1, learning_rate=1.0, weight_decay=0.1))
    state = optimizer.init(params)
    for _ in range(2):  # the first step's learning rate is 0
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-5)
    assert float(jnp.abs(updates["bias"]).max()) == float(jnp.abs(updates["scale"]).max()) == 0.0
