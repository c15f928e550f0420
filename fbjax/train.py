"""`fbjax train`: the one loop, from a config and a workdir to checkpoints.

Order of the loop: evaluate and save at the state of `step`, stop if it is the last, next batch, step, log. The batch
is the only transfer to the device; metrics come back at log steps only.
"""

import contextlib
import math
import resource
import time
from pathlib import Path

import jax
import numpy as np
from tensorboard.summary import Writer
from tqdm import tqdm

from fbjax import workdir as workdirs
from fbjax.checkpoint import BEST_METRIC, Checkpoints
from fbjax.config import Config
from fbjax.console import duration, progress, say
from fbjax.data.catalogue import Records, Source, prepare, read_report
from fbjax.data.pipeline import read_images, train_batches
from fbjax.data.sampling import Partners, Sampler
from fbjax.evaluate import ValidationSample
from fbjax.features import describe, features_of
from fbjax.mesh import check_batch_size, make_mesh, put_batch
from fbjax.model import pretrained
from fbjax.objectives.pretraining import Pretraining
from fbjax.scoring import Scorer
from fbjax.step import TrainState, abstract_state, init_state, make_optimizer, make_schedule, make_step

EVALUATION_SHARE = 0.05  # of the wall time, at most


def train(config: Config, workdir: str | Path) -> TrainState:
    """Trains `config` in `workdir`, resuming from its newest readable checkpoint; the state after the last step."""
    mesh = make_mesh(config.mesh)
    check_batch_size(config.train.batch_size, mesh)
    run = workdirs.begin(config, workdir, say)
    splits = prepare(Source.from_config(config), run.vocabulary, config.data.prepared, progress)
    records, validation = splits["train"], splits["validation"]
    workdirs.check_data(workdir, records.digest)
    features = features_of(run, records)
    partners = Partners(records.categories, records.groups)
    describe_run(run, records, partners, features)

    objective = Pretraining(run.model, run.step_patches, config.tasks, run.vocabulary.mask_id)
    optimizer = make_optimizer(config.train)
    shape = abstract_state(objective, optimizer, config, mesh)
    frozen = jax.device_put(run.frozen)
    scorer = Scorer(run.model, run.step_patches, mesh)
    sample = ValidationSample(run, validation, scorer, config.train.evaluate_products)
    train_step = make_step(objective, optimizer, config.adaptive, config.train.seed, mesh, shape)

    with Checkpoints(workdir, config.train.keep_last, say) as checkpoints, contextlib.ExitStack() as stack:
        # 1. an interrupted run continues where its newest readable checkpoint stands
        # 2. else a fresh one starts from the pretrained BERT, or from random weights
        restored = checkpoints.restore_newest(shape)
        if restored:
            start, state = restored
            say(f"resuming at step {start} of {config.train.num_steps}")
        else:
            start, state = 0, init_state(objective, optimizer, config, mesh)
            if config.model.pretrained:
                state = _import_bert(state, config)

        # the data position is the step: nothing else has to be restored
        sampler = Sampler(partners, len(records), config.train.batch_size, config.train.seed, config.tasks)
        process = (jax.process_index(), jax.process_count())
        batches = train_batches(
            records, sampler, run.vocabulary, config, start=start, features=features, process=process
        )
        stack.enter_context(contextlib.closing(batches))
        log = stack.enter_context(contextlib.closing(Log(workdir, config, start)))

        if start < config.train.num_steps:
            say("compiling the step ..")
        for step in range(start, config.train.num_steps + 1):
            last = step == config.train.num_steps
            if step > start and (last or step % config.train.save_every == 0):
                log.flush(step)
                metrics = log.evaluate(step, sample, {**frozen, **state.params}, must=last)
                checkpoints.save(step, state, metrics)
            if last:
                break
            with log.waiting():
                batch = put_batch(next(batches), mesh)
            state, metrics = train_step(state, frozen, batch)
            log.add(step + 1, metrics)
    log.summary()
    say(f"trained to step {config.train.num_steps}; next: fbjax evaluate --workdir {workdir}")
    return state


def describe_run(run: workdirs.Run, records: Records, partners: Partners, features: np.ndarray | None) -> None:
    """Says what training is about to see."""
    report = read_report(records)
    splits = ", ".join(f"{count:,} {split}" for split, count in report["splits"].items())
    say(f"products: {splits}; {report['categories']['train']} categories, {report['groups']['train']:,} groups")
    if report["skipped"]:
        say("skipped: " + ", ".join(f"{count:,} {reason}" for reason, count in report["skipped"].items()))
    if partners.lonely.any():
        say(f"{partners.lonely.sum():,} products are the only group of their category: partners from any category")
    limit = run.config.model.text_tokens
    cut = (records.num_pieces > limit - 2).mean()
    say(f"text: a vocabulary of {run.vocabulary.size:,}; {cut:.0%} of the texts exceed {limit} tokens and are cut")
    if features is None:
        rows = np.linspace(0, len(records) - 1, min(len(records), 32)).astype(int)
        images = next(read_images(records, rows, run.config.patches.image_size, len(rows)))
        features = np.asarray(jax.jit(run.patches.apply)(run.patches.params, images))
    say(describe(features))


class Log:
    """Metrics on their way to the terminal and to TensorBoard, and the clock of the run."""

    def __init__(self, workdir: str | Path, config: Config, start: int):
        self._config = config.train
        self._schedule = make_schedule(config.train)
        self._writer = Writer(str(Path(workdir) / "tensorboard"))
        self._bar = tqdm(total=config.train.num_steps, initial=start, desc="train", dynamic_ncols=True, disable=None)
        self._pending: list[dict] = []
        self._start_step = self._step = start
        self._begun = self._window = time.perf_counter()
        self._waited = self._waited_before = self._evaluating = self._evaluation_cost = 0.0
        self._compiled: float | None = None

    @contextlib.contextmanager
    def waiting(self):
        """Times what the step waits for its input."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def add(self, step: int, metrics: dict) -> None:
        """Takes the metrics of the step that led to `step`; writes them out at log steps."""
        self._pending.append(metrics)
        self._bar.update(1)
        if self._compiled is None:  # the first step's time is compilation: no rate should count it
            jax.block_until_ready(metrics)
            self._compiled = time.perf_counter() - self._begun
            self._steady = self._window = time.perf_counter()
            self._waited = self._waited_before = 0.0
            say(f"compiled in {duration(self._compiled)}")
        if step % self._config.log_every == 0:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Fetches the metrics since the last time, checks that they are finite, and writes their means."""
        if not self._pending:
            return
        fetched, self._pending = jax.device_get(self._pending), []
        means = {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}
        self._check_finite(step, len(fetched), means)
        now = time.perf_counter()
        means["pairs_per_second"] = 2 * self._config.batch_size * len(fetched) / (now - self._window)
        means["input_wait_share"] = (self._waited - self._waited_before) / (now - self._window)
        means["learning_rate"] = float(self._schedule(step))
        self._window, self._waited_before, self._step = now, self._waited, step
        for name, value in means.items():
            if math.isfinite(value):  # gradient norms are unknown to methods that need none
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._show(step, means)

    def evaluate(self, step: int, sample: ValidationSample, variables, must: bool) -> dict | None:
        """The checkpoint's metrics, or None where evaluating would take more than its share of the wall time."""
        elapsed = time.perf_counter() - self._begun
        if not must and self._evaluating + self._evaluation_cost > EVALUATION_SHARE * elapsed:
            say(f"step {step}: validation skipped, it would take more than {EVALUATION_SHARE:.0%} of the time")
            return None
        begin = time.perf_counter()
        value = sample.auc(variables)
        self._evaluation_cost = time.perf_counter() - begin
        self._evaluating += self._evaluation_cost
        self._window += self._evaluation_cost
        say(f"step {step}: validation AUC {value:.3f} ({duration(self._evaluation_cost)})")
        self._writer.add_scalar("validation/auc", value, step)
        return {BEST_METRIC: value}

    def summary(self) -> None:
        steps = self._step - self._start_step
        if steps < 2:
            return
        seconds = time.perf_counter() - self._steady - self._evaluating
        say(
            f"{steps} steps in {duration(time.perf_counter() - self._begun)}: "
            f"{2 * self._config.batch_size * (steps - 1) / seconds:.0f} pairs/s, "
            f"input waiting {self._waited / seconds:.1%}, evaluation {duration(self._evaluating)}, "
            f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
        )

    def close(self) -> None:
        self._bar.close()
        self._writer.close()

    def _check_finite(self, step: int, num_steps: int, means: dict) -> None:
        losses = {name: value for name, value in means.items() if name.endswith("loss") or name == "gradient_norm"}
        if not all(map(math.isfinite, losses.values())):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            raise FloatingPointError(
                f"not finite between steps {step - num_steps} and {step}: {shown}; nothing of it was saved. "
                "Lower train.learning_rate or train.clip_norm and start a new workdir"
            )

    def _show(self, step: int, means: dict) -> None:
        tasks = [name.removesuffix("/loss") for name in means if name.endswith("/loss")]
        losses = "  ".join(f"{t} {means[f'{t}/loss']:.3f} (w {means[f'{t}/weight']:.2f})" for t in tasks)
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{losses}  {means['pairs_per_second']:.0f} pairs/s")
            return
        rate = means["pairs_per_second"] / 2 / self._config.batch_size
        left = duration((self._config.num_steps - step) / rate)
        say(
            f"step {step}/{self._config.num_steps}  {losses}  accuracy {means['tia_accuracy']:.3f}  "
            f"{means['pairs_per_second']:.0f} pairs/s  {left} left"
        )


def _import_bert(state: TrainState, config: Config) -> TrainState:
    folder = pretrained.find(config.model.pretrained)
    imported = pretrained.load_bert(folder, config.model, state.params["fashionbert"])
    say(f"BERT {config.model.pretrained}: {len(imported.taken)} arrays, its first {config.model.num_layers} layers")
    say("initialised, as BERT lacks them: " + ", ".join(imported.initialised))
    return state.replace(params=state.params | {"fashionbert": imported.params})
