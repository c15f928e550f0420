"""A workdir holds one run: config, vocabulary, patch network weights, checkpoints, logs. Self-contained once begun.

Training begins it (`begin`); everything else opens it (`Run.open`).
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import optax

from fbjax.config.load import config_from_json, config_to_json, difference
from fbjax.config.schema import Config
from fbjax.core import paths
from fbjax.data.batches.split import Split
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.model import bert_weights
from fbjax.model.fashionbert import FashionBert, build_model
from fbjax.model.ngrams import Ngrams, make_ngrams, num_rows, piece_kinds
from fbjax.model.patch_features import PatchNetwork, build_patch_network, given_features
from fbjax.model.weights.files import write_npz
from fbjax.parallel.distributed import barrier, is_first
from fbjax.runs.splits import open_splits
from fbjax.runs.state import make_optimizer
from fbjax.runs.vocabulary import make_vocabulary
from fbjax.tasks.objective import Objective

CONFIG, VOCABULARY, PATCH_WEIGHTS, NGRAMS = "config.json", "tokenizer.json", "patches.npz", "ngrams.npz"
DATA = "data.sha256"

TEXTS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts that a config describes, built. `ngrams`: of its texts; {} where no task reads any, or not yet."""

    config: Config
    vocabulary: Vocabulary
    patches: PatchNetwork
    model: FashionBert
    ngrams: Ngrams

    @classmethod
    def build(
        cls, config: Config, vocabulary: Vocabulary, patch_weights: Path | None, ngrams: Ngrams | None = None
    ) -> "Run":
        patches = given_features(config.data) or build_patch_network(config.patches, patch_weights)
        tasks, ngrams = config.tasks.values(), ngrams or {}
        model = build_model(config.model, tasks, patches, vocabulary.size, vocabulary.mask_id, num_rows(ngrams))
        return cls(config, vocabulary, patches, model, ngrams)

    @classmethod
    def open(cls, workdir: str | Path, config: Config | None = None) -> "Run":
        """The run that training left in `workdir`; with a `config` of the same run, built and computed as that says."""
        workdir = paths.as_path(workdir)
        if not (workdir / CONFIG).is_file():
            raise FileNotFoundError(f"{workdir} is no workdir: it has no {CONFIG} (fbjax train makes one)")
        config = config or config_from_json((workdir / CONFIG).read_text())
        weights, vocabulary = workdir / PATCH_WEIGHTS, Vocabulary.load(workdir / VOCABULARY)
        ngrams = _read_arrays(workdir / NGRAMS)
        if not weights.is_file():
            return cls.build(config, vocabulary, None, ngrams)
        with paths.local_copy(weights) as file:
            return cls.build(config, vocabulary, file, ngrams)

    @classmethod
    def open_alike(cls, workdir: str | Path, run: "Run") -> "Run":
        """The run in `workdir`; ValueError where its vocabulary or image tokens are not those of `run`."""
        other = cls.open(workdir)
        if other.vocabulary.fingerprint != run.vocabulary.fingerprint:
            raise ValueError(f"the run in {workdir} has another vocabulary than this one")
        if other.patches.fingerprint != run.patches.fingerprint:
            raise ValueError(
                f"the run in {workdir} has other image tokens ({other.patches.fingerprint}) than this one "
                f"({run.patches.fingerprint})"
            )
        return other

    @property
    def objective(self) -> Objective:
        """What the run learns, over what its step is given for images."""
        return Objective(self.model, self.feature_input, tuple(self.config.tasks.values()), self.config.patches.augment)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.config.train, self.config.groups, self.patches.fixed)

    @property
    def scores_pairs(self) -> bool:
        """Whether the run learns to score a text and an image that the encoder reads together."""
        return any(task.scores_pairs for task in self.config.tasks.values())

    @property
    def has_embedder(self) -> bool:
        """Whether the run learns vectors of texts and of images."""
        return any(task.embeds for task in self.config.tasks.values())

    def splits(self, data: str | Sequence[str] | None = None) -> dict[str, Split]:
        """Its own prepared splits, or `data`, tables or globs, all "validation": `fbjax.runs.splits.open_splits`."""
        return open_splits(self.config, self.vocabulary, data)

    @property
    def feature_input(self) -> PatchNetwork:
        """The patch network as the step sees it: nothing to do where features come from the cache."""
        return self.patches.feature_input(self.config.patches.mode)

    @property
    def frozen(self) -> dict:
        """What the step takes and does not train: a patch network that does not train, and the n-grams there are."""
        return self.patches.frozen(self.config.patches.mode) | ({"ngrams": self.ngrams} if self.ngrams else {})


def create_or_resume(config: Config, workdir: str | Path, say: Callable[[str], None]) -> Run:
    """The run of `config` in `workdir`, created, or resumed where it has a checkpoint.

    A finished run goes on where `config` raises train.num_steps alone, at the learning rates of the new number. Raises
    ValueError with the differences where the workdir holds another config, OSError where it cannot be written.
    """
    workdir = paths.as_path(workdir)
    _check_writable(workdir)
    if (workdir / CONFIG).is_file() and any((workdir / "checkpoints").glob("[0-9]*")):
        stored = (workdir / CONFIG).read_text()
        differences = difference(stored, config)
        if differences and _is_prolonged(config_from_json(stored), config, workdir):
            say(f"the run is trained on, to step {config.train.num_steps}")
            barrier("config compared")
            if is_first():
                _write_config(config, workdir)
        elif differences:
            raise ValueError(
                f"{workdir} holds a run with another config:\n  " + "\n  ".join(differences) + "\n"
                "(use its config to resume it, or another --workdir)"
            )
        return Run.open(workdir, config)
    starts_from_bert = config.model.pretrained and config.reads_encoder
    if starts_from_bert:
        bert_weights.check_fit(bert_weights.find(config.model.pretrained), config.model)
    vocabulary = make_vocabulary(config, say)
    if starts_from_bert:
        bert_weights.check_fit(bert_weights.find(config.model.pretrained), config.model, vocabulary.rows)
    run = Run.build(config, vocabulary, None)
    barrier("workdir")  # that all have looked for checkpoints before one is written
    if is_first():
        write_run(run, workdir)
    barrier("workdir begun")
    return run


def with_ngrams(run: Run, records: Split, rows: np.ndarray, workdir: str | Path) -> Run:
    """`run` with the n-grams of the training texts, `rows` of `records`, where it reads any; kept in the workdir.

    Raises ValueError where no n-gram is in two texts.
    """
    task = next((task for task in run.config.tasks.values() if task.reads_bags), None)
    if task is None or run.ngrams:
        return run
    path, started_with = paths.as_path(workdir) / NGRAMS, {}
    for start in run.config.train.starts:
        started_with = _read_arrays(paths.as_path(start) / NGRAMS) or started_with
    if is_first() and started_with:
        _write_arrays(path, started_with)  # its table has a row for each
    elif is_first() and not path.is_file():
        parts = np.array_split(rows, -(-len(rows) // TEXTS_AT_ONCE))
        texts = (records.framed_texts(rows, run.vocabulary, run.config.model.text_tokens) for rows in parts)
        _write_arrays(path, make_ngrams(texts, piece_kinds(run.vocabulary.rows, unit=task.ngrams_of)))
    barrier("n-grams counted")
    return Run.open(workdir, run.config)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, {} where there is none."""
    if not path.is_file():
        return {}
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
        return dict(arrays)


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)
    with paths.atomic_write(path) as file:
        file.write_bytes(content.getvalue())


def write_run(run: Run, workdir: Path) -> None:
    """What `Run.open` opens: vocabulary, n-grams, patch weights and config."""
    for name in (DATA, NGRAMS):
        (workdir / name).unlink(missing_ok=True)  # of a run that never saved
    run.vocabulary.save(workdir / VOCABULARY)
    if run.ngrams:
        _write_arrays(workdir / NGRAMS, run.ngrams)
    if run.patches.params:
        with paths.atomic_write(workdir / PATCH_WEIGHTS) as file:
            write_npz(file, run.patches.params["network"])
    _write_config(run.config, workdir)  # last: a workdir with a config has the rest


def _write_config(config: Config, workdir: Path) -> None:
    with paths.atomic_write(workdir / CONFIG) as file:
        file.write_text(config_to_json(config))


def _is_prolonged(old: Config, new: Config, workdir: Path) -> bool:
    """Whether `new` differs from the config of a finished run by more steps alone."""
    steps = old.train.num_steps
    same = dataclasses.replace(new, train=dataclasses.replace(new.train, num_steps=steps))
    finished = (workdir / "checkpoints" / str(steps)).is_dir()
    return finished and new.train.num_steps > steps and not difference(config_to_json(old), same)


def check_data(workdir: str | Path, digest: str) -> None:
    """Raises ValueError where the run in `workdir` began on other products than those of `digest`."""
    path = paths.as_path(workdir) / DATA
    if is_first() and not path.is_file():
        path.write_text(digest)
    barrier("data noted")
    if path.read_text() != digest:
        raise ValueError(
            f"the training table is not the one that the run in {workdir} began on: its order of products could not be "
            "continued (use the old table, or another --workdir)"
        )


def _check_writable(workdir: Path) -> None:
    if paths.is_remote(workdir) and not str(workdir).startswith("gs://"):
        raise ValueError(f"workdir {workdir}: TensorBoard writes to folders and gs:// only (use one of those)")
    probe = workdir / f".probe-{os.getpid()}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x" * 4096)
    except OSError as error:
        raise OSError(error.errno, f"cannot write to workdir {workdir}: {error.strerror or error}") from None
    except Exception as error:  # of a store's client
        raise OSError(f"cannot write to workdir {workdir}: {error}") from None
    finally:
        with contextlib.suppress(Exception):
            probe.unlink()
