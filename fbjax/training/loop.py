"""`fbjax train`: the one loop, from a config and a workdir to checkpoints.

Order of the loop: evaluate and save at the state of `step`, stop if it is the last, next batch, step, log. The batch
is the only transfer to the device; metrics come back at log steps only.
"""

import contextlib
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from fbjax.config.schema import Config
from fbjax.core.console import say
from fbjax.data.batches.sampler import Sampler
from fbjax.data.batches.split import Split
from fbjax.data.log.batches import train_batches
from fbjax.inference.catalogue.links import check_guide, mask_links
from fbjax.inference.pair_scorer import make_scorer
from fbjax.monitoring.doubts import doubts
from fbjax.monitoring.flops import step_work
from fbjax.monitoring.goodput import CHECKPOINT, COMPILE
from fbjax.monitoring.logger import Log
from fbjax.monitoring.telemetry import Telemetry
from fbjax.parallel.distributed import Preempted, is_first, preemption
from fbjax.parallel.mesh import HostShard, check_fit, make_mesh, put_batch, replicated
from fbjax.runs import run as workdirs
from fbjax.runs.checkpoints import Checkpoints
from fbjax.runs.claim import claimed
from fbjax.runs.feature_cache import describe, features_of
from fbjax.runs.loaded import load_teacher
from fbjax.runs.state import TrainState, abstract_state, batch_shapes, init_state
from fbjax.runs.vocabulary import unknown_of
from fbjax.training.cross_fitting import check_towers, tower_vectors
from fbjax.training.device_images import put_images, with_rows
from fbjax.training.events import open_events
from fbjax.training.memory import available_memory, check_memory, out_of_memory_named
from fbjax.training.step import compiled, make_step, with_seed
from fbjax.training.validation import ValidationSample
from fbjax.training.warm_start import calibrate_match_bias, check_start, initial_params, trains_match_head


def train(config: Config, workdir: str | Path, begun: float | None = None) -> TrainState:
    """Trains `config` in `workdir`, resuming from its newest readable checkpoint; the state after the last step.

    `begun`: Unix time at which the command began, which its time counts from; default: now.
    """
    begun = begun or time.time()
    mesh = make_mesh(config.mesh)
    check_fit(config, mesh)
    with claimed(workdir):
        run = workdirs.create_or_resume(config, workdir, say)
        with Telemetry(workdir, begun, writes=is_first()) as telemetry:
            return _train(run, workdir, mesh, telemetry)


def _train(run: workdirs.Run, workdir: str | Path, mesh: Mesh, telemetry: Telemetry) -> TrainState:
    config = run.config
    check_start(run, workdir, mesh)
    towers, guide = check_towers(run, mesh), check_guide(run, workdir, mesh)
    run, lessons = load_teacher(run, mesh)
    with telemetry.spent("records"):
        splits = run.splits()
    records, validation = splits["train"], splits["validation"]
    events = open_events(run, splits)
    workdirs.check_data(workdir, records, events.digest)
    sampler = Sampler.of(records, config.train, config.model, run.objective.random_share, *events.drawn)
    check_products(sampler, validation, config)
    products = np.unique(sampler.rows)
    run = workdirs.with_ngrams(run, records, products, workdir)
    run, labels = workdirs.with_classes(run, records, products, workdir)
    objective, optimizer = run.objective, run.optimizer
    with telemetry.spent("patch features"):
        features = features_of(run, records)
    describe_run(run, records, features, sampler)
    vectors = tower_vectors(towers, records, products)
    links = mask_links(guide, run, records, products, workdir)
    images = put_images(config, records.stored if features is None else features, mesh)

    shape = abstract_state(objective, optimizer, config, mesh)
    frozen = jax.device_put(run.frozen | ({"teacher": lessons} if lessons else {}), replicated(mesh))
    constants = jax.device_put(with_seed(frozen, config), replicated(mesh))
    scorer = make_scorer(run, mesh)
    sample = events.sample(validation, scorer) or ValidationSample(
        run, validation, scorer, config.train.evaluate_products
    )

    with Checkpoints(workdir, config.train.keep_last, say) as checkpoints, contextlib.ExitStack() as stack:
        stack.enter_context(out_of_memory_named(config))
        # 1. an interrupted run continues from its newest readable checkpoint
        # 2. else a fresh one starts from another run, the pretrained BERT, or random weights
        restored = checkpoints.restore_newest(shape)
        if restored:
            start, state = restored
            done = start == config.train.num_steps
            say(f"trained already: step {start}" if done else f"resuming at step {start} of {config.train.num_steps}")
        else:
            start, state = 0, init_state(objective, optimizer, config, mesh)
            state = state.with_all(initial_params(state.all_params, run, records, products, mesh))
            if config.train.start_from and trains_match_head(run, state.params) and not objective.aligns_queries:
                calibrated = calibrate_match_bias(state.all_params, run, records, sampler, scorer)
                state = state.with_all(calibrated, base=False)  # what does not train stays what it was
            checkpoints.save_base(state.base)
            say(describe_trained(state))

        # the data position is the step: nothing else has to be restored
        share = HostShard.of(mesh, config.train.batch_size)
        batches = train_batches(
            records,
            sampler,
            run.vocabulary,
            events.queries,
            num_steps=config.train.num_steps,
            image_size=config.patches.image_size,
            fit=config.patches.fit,
            with_negatives=config.needs_negative,
            start=start,
            features=features,
            share=share.rows,
            only_rows=images is not None,
        )
        stack.enter_context(contextlib.closing(batches))
        log = stack.enter_context(contextlib.closing(Log(workdir, config, start, telemetry)))

        if start < config.train.num_steps:
            used = sampler.text_tokens_used(config.train.num_steps)
            say(f"compiling the step for texts of {', '.join(map(str, used))} tokens ..")
            tower_size = 0 if vectors is None else vectors.shape[-1]
            shapes = [batch_shapes(config, run.feature_input, length, tower_size) for length in used]
            log.work = step_work(objective, shape.params, frozen, shapes, shape.base)
            with telemetry.spent(COMPILE):
                shapes = [with_rows(batch, images) for batch in shapes]
                train_step = compiled(make_step(objective, optimizer, config, mesh, shape), shape, constants, shapes)
            check_memory(train_step.programs, shape, config, mesh, available_memory(mesh))
        stopped = stack.enter_context(preemption())
        for step in range(start, config.train.num_steps + 1):
            last = step == config.train.num_steps
            stop = 0 if last else stopped(step)
            if step > start and (last or stop or step % config.train.save_every == 0):
                log.flush(step)
                figures = partial(sample.figures, {**frozen, **state.all_params})
                metrics = None if stop else log.evaluate(step, figures, must=last)
                with telemetry.spent(CHECKPOINT):
                    checkpoints.save(step, state, metrics)
                    if last or stop:
                        checkpoints.wait()
            if stop:
                say(f"stopped at step {step} of {config.train.num_steps}, which is saved: run again to go on")
                raise Preempted(stop)
            if last:
                break
            with log.waiting():
                batch = next(batches).with_rows_of(towers=vectors, attributes=labels, links=links)
                batch = put_batch(batch, mesh, share)._replace(pictures=images)
            state, metrics = train_step(state, constants, batch)
            log.add(step + 1, metrics, batch.ids.shape[1])
    log.summary()
    if doubt := doubts(log.last, sample.size, config.train):
        say(f"NOTE: {doubt}")
    say(f"trained to step {config.train.num_steps}; next: fbjax evaluate --workdir {workdir}")
    return state


def check_products(sampler: Sampler, validation: Split, config: Config) -> None:
    """Raises ValueError where there are too few products to fill a batch, or to tell apart in validation."""
    number, batch, drawn = len(sampler.rows), config.train.batch_size, "events" if config.log.table else "products"
    if number < batch:
        smaller = 2 ** (number.bit_length() - 1)
        raise ValueError(
            f"{number:,} training {drawn} are fewer than a batch of {batch:,} (config.train.batch_size={smaller} fits)"
        )
    if len(np.unique(validation.groups)) < 2:
        more = "another table" if config.data.validation else f"config.data.holdout above {config.data.holdout:g}"
        raise ValueError(
            f"all {len(validation)} validation products are of one group: there is nothing to tell apart ({more} would "
            "give more groups)"
        )


def describe_trained(state: TrainState) -> str:
    """How many of the parameters train."""
    trained, base = (sum(x.size for x in jax.tree.leaves(part)) for part in (state.params, state.base))
    return f"training {trained:,} parameters" + f", beside {base:,} that stay as they are" * bool(base)


def describe_run(run: workdirs.Run, records: Split, features: np.ndarray | None, sampler: Sampler) -> None:
    """Says what training is about to see."""
    report = records.report()
    splits = ", ".join(f"{count:,} {split}" for split, count in report["splits"].items())
    say(f"products: {splits}; {report['categories']['train']} categories, {report['groups']['train']:,} groups")
    if report["skipped"]:
        say("skipped: " + ", ".join(f"{count:,} {reason}" for reason, count in report["skipped"].items()))
    if half := run.config.train.half:
        num_groups = len(np.unique(records.groups[sampler.rows]))
        say(f"training on the {half} half of the groups alone: {len(sampler.rows):,} products, {num_groups:,} groups")
    lonely = sampler.negatives.no_in_category_negative
    if lonely.any():
        say(f"{lonely.sum():,} products are the only group of their category: negatives from any category")
    limit = run.config.model.text_tokens
    cut = (records.num_pieces > limit - 2).mean()
    say(f"text: a vocabulary of {run.vocabulary.size:,}; {cut:.0%} of the texts exceed {limit} tokens and are cut")
    say(f"text: {unknown_of(records, run.vocabulary)}")
    if features is None:
        rows = np.linspace(0, len(records) - 1, min(len(records), 32)).astype(int)
        patches = run.config.patches
        images = next(records.images(rows, patches.image_size, len(rows), patches.fit))
        features = np.asarray(jax.jit(run.patches.apply)(run.patches.params, images))
    say(describe(features))
