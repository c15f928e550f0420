"""A workdir holds one run: config, vocabulary, patch network weights, checkpoints, logs. Self-contained once begun.

Training begins it (`begin`); everything else opens it (`Run.open`).
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import optax

from fbjax.config.load import config_from_json, config_to_json, difference
from fbjax.config.schema import Config
from fbjax.core import paths
from fbjax.core.console import progress
from fbjax.data.records.builder import Records, build_records
from fbjax.data.sources.base import open_source
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.model import bert_weights
from fbjax.model.fashionbert import FashionBert, build_model
from fbjax.model.patch_features import PatchNetwork, build_patch_network, given_features
from fbjax.model.weights.files import write_npz
from fbjax.parallel.distributed import barrier, is_first
from fbjax.runs.state import make_optimizer
from fbjax.runs.vocabulary import make_vocabulary
from fbjax.tasks.objective import Objective

CONFIG, VOCABULARY, PATCH_WEIGHTS, DATA = "config.json", "tokenizer.json", "patches.npz", "data.sha256"


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts that a config describes, built."""

    config: Config
    vocabulary: Vocabulary
    patches: PatchNetwork
    model: FashionBert

    @classmethod
    def build(cls, config: Config, vocabulary: Vocabulary, patch_weights: Path | None) -> "Run":
        patches = given_features(config.data) or build_patch_network(config.patches, patch_weights)
        tasks = config.tasks.values()
        model = build_model(config.model, tasks, patches, vocabulary.size, vocabulary.mask_id)
        return cls(config, vocabulary, patches, model)

    @classmethod
    def open(cls, workdir: str | Path, config: Config | None = None) -> "Run":
        """The run that training left in `workdir`; with a `config` of the same run, built and computed as that says."""
        workdir = paths.as_path(workdir)
        if not (workdir / CONFIG).is_file():
            raise FileNotFoundError(f"{workdir} is no workdir: it has no {CONFIG} (fbjax train makes one)")
        config = config or config_from_json((workdir / CONFIG).read_text())
        weights, vocabulary = workdir / PATCH_WEIGHTS, Vocabulary.load(workdir / VOCABULARY)
        if not weights.is_file():
            return cls.build(config, vocabulary, None)
        with paths.local_copy(weights) as file:
            return cls.build(config, vocabulary, file)

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

    def splits(self, data: str | None = None) -> dict[str, Records]:
        """The prepared records of its own tables by split, or of the table or glob `data`, all "validation".

        Made first where they do not exist yet; raises as `build_records`.
        """
        source = open_source(self.config.data, self.config.patches.image_size, data)
        return build_records(source, self.vocabulary, self.config.data.prepared, progress)

    @property
    def feature_input(self) -> PatchNetwork:
        """The patch network as the step sees it: nothing to do where features come from the cache."""
        return self.patches.feature_input(self.config.patches.mode)

    @property
    def frozen(self) -> dict:
        """Parameters that the step takes and does not train: none where the patch network trains."""
        return self.patches.frozen(self.config.patches.mode)


def create_or_resume(config: Config, workdir: str | Path, say: Callable[[str], None]) -> Run:
    """The run of `config` in `workdir`, created, or resumed where it has a checkpoint.

    Raises ValueError with the differences where the workdir holds another config, OSError where it cannot be written.
    """
    workdir = paths.as_path(workdir)
    _check_writable(workdir)
    if (workdir / CONFIG).is_file() and any((workdir / "checkpoints").glob("[0-9]*")):
        differences = difference((workdir / CONFIG).read_text(), config)
        if differences:
            raise ValueError(
                f"{workdir} holds a run with another config:\n  " + "\n  ".join(differences) + "\n"
                "(use its config to resume it, or another --workdir)"
            )
        return Run.open(workdir, config)
    if config.model.pretrained:
        bert_weights.check_fit(bert_weights.find(config.model.pretrained), config.model)
    vocabulary = make_vocabulary(config, say)
    if config.model.pretrained:
        bert_weights.check_fit(bert_weights.find(config.model.pretrained), config.model, vocabulary.rows)
    run = Run.build(config, vocabulary, None)
    barrier("workdir")  # that all have looked for checkpoints before one is written
    if is_first():
        write_run(run, workdir)
    barrier("workdir begun")
    return run


def write_run(run: Run, workdir: Path) -> None:
    """What `Run.open` opens: vocabulary, patch weights and config."""
    (workdir / DATA).unlink(missing_ok=True)  # of a run that never saved
    run.vocabulary.save(workdir / VOCABULARY)
    if run.patches.params:
        with paths.atomic_write(workdir / PATCH_WEIGHTS) as file:
            write_npz(file, run.patches.params["network"])
    with paths.atomic_write(workdir / CONFIG) as file:  # last: a workdir with a config has the rest
        file.write_text(config_to_json(run.config))


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
