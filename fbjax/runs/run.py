"""A workdir holds one run: config, vocabulary, patch network weights, checkpoints, logs. Self-contained once begun.

Training begins it (`begin`); everything else opens it (`Run.open`).
"""

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import optax

from fbjax.config.load import config_to_json, difference, read_config, read_values
from fbjax.config.schema import Config
from fbjax.core import paths
from fbjax.core.checksums import SUMS, damage, write_sums
from fbjax.core.console import say
from fbjax.data.batches.classes import Classes
from fbjax.data.batches.split import Split
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.model import bert_weights
from fbjax.model.fashionbert import FashionBert, build_model
from fbjax.model.grids.pictures import several
from fbjax.model.ngrams import Ngrams, make_ngrams, num_rows, piece_kinds
from fbjax.model.patch_features import PatchNetwork, build_patch_network, given_features
from fbjax.model.weights.files import write_npz
from fbjax.parallel.distributed import barrier, is_first
from fbjax.runs.checkpoints import check_not_all_set_aside
from fbjax.runs.splits import attributes_of, open_splits
from fbjax.runs.state import make_optimizer
from fbjax.runs.vocabulary import make_vocabulary
from fbjax.tasks.objective import Objective
from fbjax.tasks.teacher import Teacher

CONFIG, VOCABULARY, PATCH_WEIGHTS, NGRAMS = "config.json", "tokenizer.json", "patches.npz", "ngrams.npz"
CLASSES = "classes.json"
FILES = (
    VOCABULARY,
    PATCH_WEIGHTS,
    NGRAMS,
    CLASSES,
)  # of which checksums are kept; a config may be edited, for moved tables
DATA = "data.json"

TEXTS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts that a config describes, built.

    `ngrams`: of its texts; {} where no task reads any, or not yet. `classes`: of the attributes that a task predicts;
    None where none does, or not yet.
    """

    config: Config
    vocabulary: Vocabulary
    patches: PatchNetwork
    model: FashionBert
    ngrams: Ngrams
    classes: Classes | None = None
    teacher: Teacher | None = None  # of the train step, which `fbjax.runs.loaded.load_teacher` adds

    @classmethod
    def build(
        cls,
        config: Config,
        vocabulary: Vocabulary,
        patch_weights: Path | None,
        ngrams: Ngrams | None = None,
        classes: Classes | None = None,
    ) -> "Run":
        patches = given_features(config.data) or build_patch_network(config.patches, patch_weights)
        patches = several(patches, config.data.max_images)
        tasks, ngrams = config.tasks.values(), ngrams or {}
        sizes = vocabulary.size, vocabulary.mask_id, num_rows(ngrams), classes.sizes if classes else ()
        return cls(config, vocabulary, patches, build_model(config.model, tasks, patches, *sizes), ngrams, classes)

    @classmethod
    def open(cls, workdir: str | Path, config: Config | None = None) -> "Run":
        """The run that training left in `workdir`; with a `config` of the same run, built and computed as that says.

        Away from the machine that trained it, where its folder of prepared data cannot be, that is in the workdir.
        """
        workdir = paths.as_path(workdir)
        check_files(workdir)
        config = config or _prepared_here(read_config(workdir / CONFIG), workdir)
        weights, vocabulary = workdir / PATCH_WEIGHTS, Vocabulary.load(workdir / VOCABULARY)
        kept = _read_arrays(workdir / NGRAMS), _read_classes(workdir / CLASSES)
        if not weights.is_file():
            return cls.build(config, vocabulary, None, *kept)
        with paths.local_copy(weights) as file:
            return cls.build(config, vocabulary, file, *kept)

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
        tasks, augment = tuple(self.config.tasks.values()), self.config.patches.augment
        return Objective(self.model, self.feature_input, tasks, augment, self.teacher)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.config.train, self.config.groups, self.config.model.num_layers)

    @property
    def scores_pairs(self) -> bool:
        """Whether the run learns to score a text and an image that the encoder reads together."""
        return any(task.scores_pairs for task in self.config.tasks.values())

    @property
    def late_interaction(self) -> bool:
        """Whether the run learns to score a text and an image by the tokens of both, each read alone."""
        return any(task.late_interaction for task in self.config.tasks.values())

    @property
    def reranks(self) -> bool:
        """Whether it scores a pair by more than two vectors, so that it may re-rank what these find."""
        return self.scores_pairs or self.late_interaction

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
    ValueError with the differences where the workdir holds another config, or where what it holds is damaged.
    """
    workdir = paths.as_path(workdir)
    check_not_all_set_aside(workdir)
    if any((workdir / "checkpoints").glob("[0-9]*")):
        check_files(workdir)
        differences = difference(read_values(workdir / CONFIG), config)
        if differences and _is_prolonged(read_config(workdir / CONFIG), config, workdir):
            say(f"the run is trained on, to step {config.train.num_steps}")
            barrier("config compared")
            if is_first():
                _write_text(config_to_json(config), workdir / CONFIG)
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
        _write(path.parent, {NGRAMS: partial(_write_arrays, started_with)})  # its table has a row for each
    elif is_first() and not path.is_file():
        parts = np.array_split(rows, -(-len(rows) // TEXTS_AT_ONCE))
        texts = (records.framed_texts(rows, run.vocabulary, run.config.model.text_tokens) for rows in parts)
        found = make_ngrams(texts, piece_kinds(run.vocabulary.rows, unit=task.ngrams_of))
        _write(path.parent, {NGRAMS: partial(_write_arrays, found)})
    barrier("n-grams counted")
    return dataclasses.replace(Run.open(workdir, run.config), teacher=run.teacher)


def with_classes(run: Run, records: Split, rows: np.ndarray, workdir: str | Path) -> tuple[Run, np.ndarray | None]:
    """`run` with the classes of the attributes that a task predicts, kept in the workdir, and the codes of all
    `records`, int32 [N, A]; (`run`, None) where none does.

    Classes are counted over the training products, `rows`. Raises ValueError where a column is missing, or has nothing
    to tell apart.
    """
    task = next((task for task in run.config.tasks.values() if task.predicts_attributes), None)
    if task is None:
        return run, None
    names, path = run.config.attributes, paths.as_path(workdir) / CLASSES
    cells = attributes_of(run.config, records, "train", names)
    if run.classes is None:
        if is_first() and not path.is_file():
            found = Classes.of_cells(names, cells[rows], task.fewest_products)
            _write(path.parent, {CLASSES: partial(_write_text, found.to_json())})
        barrier("attributes counted")
        run = dataclasses.replace(Run.open(workdir, run.config), teacher=run.teacher)
    for line in run.classes.described():
        say(line)
    return run, run.classes.codes(cells)


def _read_classes(path: Path) -> Classes | None:
    return Classes.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, {} where there is none."""
    if not path.is_file():
        return {}
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
        return dict(arrays)


def _write_arrays(arrays: dict[str, np.ndarray], path: Path) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)
    with paths.atomic_write(path) as file:
        file.write_bytes(content.getvalue())


def _write_text(text: str, path: Path) -> None:
    with paths.atomic_write(path) as file:
        file.write_text(text, encoding="utf-8")


def _write_patches(params: dict, path: Path) -> None:
    with paths.atomic_write(path) as file:
        write_npz(file, params)


def write_run(run: Run, workdir: Path) -> None:
    """What `Run.open` opens: vocabulary, n-grams, patch weights and config."""
    workdir.mkdir(parents=True, exist_ok=True)
    for name in (DATA, NGRAMS, CLASSES):
        (workdir / name).unlink(missing_ok=True)  # of a run that never saved
    writers: dict[str, Callable[[Path], None]] = {VOCABULARY: run.vocabulary.save}
    if run.ngrams:
        writers[NGRAMS] = partial(_write_arrays, run.ngrams)
    if run.classes:
        writers[CLASSES] = partial(_write_text, run.classes.to_json())
    if run.patches.params:
        writers[PATCH_WEIGHTS] = partial(_write_patches, run.patches.params["network"])
    _write(workdir, writers)
    _write_text(config_to_json(run.config), workdir / CONFIG)  # last: a workdir with a config has the rest


def _write(workdir: Path, writers: dict[str, Callable[[Path], None]]) -> None:
    """Writes some of `FILES`, then the checksums of all; a kill in between leaves a workdir without checksums."""
    (workdir / SUMS).unlink(missing_ok=True)
    for name, write in writers.items():
        write(workdir / name)
    if not paths.is_remote(workdir):
        write_sums(workdir, [name for name in FILES if (workdir / name).is_file()])


def check_files(workdir: Path) -> None:
    """Raises FileNotFoundError where `workdir` is none, ValueError where a file is not as training wrote it."""
    if not (workdir / CONFIG).is_file():
        raise FileNotFoundError(f"{workdir} is no workdir: it has no {CONFIG} (fbjax train makes one)")
    if found := damage(workdir):
        raise ValueError(
            f"the workdir {workdir} is damaged: {found}; copy that file there again, or train in another workdir "
            f"(if you have changed it on purpose, delete {workdir / SUMS})"
        )


def _is_prolonged(old: Config, new: Config, workdir: Path) -> bool:
    """Whether `new` differs from the config of a finished run by more steps alone."""
    steps = old.train.num_steps
    same = dataclasses.replace(new, train=dataclasses.replace(new.train, num_steps=steps))
    finished = (workdir / "checkpoints" / str(steps)).is_dir()
    return finished and new.train.num_steps > steps and not difference(dataclasses.asdict(old), same)


def check_data(workdir: str | Path, records: Split, log: str = "") -> None:
    """Raises ValueError, with what differs, where the run in `workdir` began on other products than `records`.

    `log`: the digest of the events that it learns from; "" for none.
    """
    path = paths.as_path(workdir) / DATA
    if is_first() and not path.is_file():
        with paths.atomic_write(path) as file:
            file.write_text(json.dumps(records.digests | ({"log": log} if log else {})))
    barrier("data noted")
    differing = other_data(workdir, records)
    if log and json.loads(path.read_text()).get("log") != log:
        raise ValueError(
            f"the log is not the one that the run in {workdir} began on (use the old log, or another --workdir)"
        )
    if differing:
        raise ValueError(
            f"the training table is not the one that the run in {workdir} began on: other {' and '.join(differing)} "
            "(use the old table, or another --workdir)"
        )


def other_data(workdir: str | Path, records: Split) -> list[str]:
    """In what `records` differ from the products that the run in `workdir` began on; [] where these are unknown."""
    path, ours = paths.as_path(workdir) / DATA, records.digests
    if not path.is_file():
        return []
    try:
        noted = json.loads(path.read_text())
        return ["products"] if noted["ids"] != ours["ids"] else [name for name in ours if noted[name] != ours[name]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: copy it there again, or train in another workdir") from None


def _prepared_here(config: Config, workdir: Path) -> Config:
    folder = config.data.prepared
    if paths.is_remote(folder) or paths.is_remote(workdir) or paths.can_be_made(Path(folder)):
        return config
    say(f"config.data.prepared {folder} cannot be made here: prepared data is in {workdir / 'prepared'}")
    data = dataclasses.replace(config.data, prepared=str(workdir / "prepared"))
    return dataclasses.replace(config, data=data)
