"""Huge catalogues: the same records, made by Apache Beam's workers on Dataflow, Flink or Spark, or on this machine.

What one process decides by having read what comes before, workers decide by grouping: of the rows of one id the first
counts, and a group belongs to the first table that has it. A first look at the rows, without images, says which are
refused; then each part of a file is worked on by itself. The key of a record is its row's place in the table, which
TFDS's writer orders by: records, their order and what is skipped are those of `catalogue.CatalogueBuilder`.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import re
import shlex
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from fbjax.core.paths import as_path, remove_tree
from fbjax.data.records.builder import CatalogueBuilder, quiet_tfds
from fbjax.data.records.schema import encode_rows, index_entry
from fbjax.data.records.shards import Part
from fbjax.data.records.source import Source
from fbjax.data.sources.tables import DUPLICATE, OTHER_SPLIT, Product, Skipped
from fbjax.data.text.wordpiece import Vocabulary

try:
    import apache_beam as beam
    from apache_beam.options import pipeline_options
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"--beam needs Apache Beam ({error}): pip install 'fbjax[beam]'") from None

NOTES = "notes"  # the folder of what workers note of every row, until the index is made of it
ROWS_A_NOTE = 2**16
LOCAL, DATAFLOW = ("directrunner", "direct", "fnapirunner"), ("dataflowrunner", "dataflow")
NUMBERS, REFUSED, NOTED = "numbers", "refused", "noted"  # outputs of a step beside its first
NO_EXAMPLES = re.compile(r"generated examples is 0 for split (\w+)")  # TFDS's words
FINAL_ERROR = re.compile(r"^[\w.]*(?:Error|Exception): (.*)", re.MULTILINE)  # of a worker's traceback

Address = tuple[int, int, int]  # of a part: table, file in it, number of its first row


class BeamBuilder(CatalogueBuilder, skip_registration=True):
    """The builder of the same records that has Beam's workers make them."""

    name = CatalogueBuilder.name

    def __init__(self, *arguments, options: pipeline_options.PipelineOptions, **keywords):
        self._options = options
        super().__init__(*arguments, **keywords)

    def _split_generators(self, dl_manager, pipeline: beam.Pipeline) -> dict[str, beam.PCollection]:
        tables = tuple((split, tuple(files)) for split, files in self._source.files().items())
        notes = as_path(self.data_dir) / NOTES
        notes.mkdir()
        return Work(self._source, self._vocabulary, tables, notes).records(pipeline)

    def _generate(self) -> None:
        try:
            with quiet_tfds():
                self.download_and_prepare(download_config=tfds.download.DownloadConfig(beam_options=self._options))
        except Exception as error:
            raise ValueError(self._explained(error)) from error
        for split in self._source.split_names:
            for path in sorted((self.home / NOTES).glob(f"{split}-*.json")):
                for _, note in json.loads(path.read_text()):
                    if isinstance(note, dict):
                        self._skipped.append((split, Skipped(**note)))
                    else:
                        self._enter(split, note)
        remove_tree(self.home / NOTES)

    def _explained(self, error: Exception) -> str:
        if empty := NO_EXAMPLES.search(str(error)):
            return (
                f"nothing usable for split {empty[1]}: fbjax prepare --check TABLE says why, and with "
                f"config.data.holdout ({self._source.holdout}) too few groups may be the reason"
            )
        found = FINAL_ERROR.findall(str(error))
        return f"preparing with Beam failed: {found[-1] if found else error}"


def parse_options(flags: str) -> pipeline_options.PipelineOptions:
    """Beam's options as its own flags write them, "--runner=.. --..": where no runner is named, the local one.

    Raises ValueError on an unknown runner, on values that are none, and on flags that Beam does not know.

    Of Beam's two local runners the one in Python is taken: "DirectRunner" would first fetch the other, a program in Go,
    from GitHub. Several local workers are processes unless direct_running_mode says otherwise: in one there is nothing
    to win.
    """
    given, said = shlex.split(flags), io.StringIO()
    if given and not given[0].startswith("--"):
        raise ValueError(f"--beam_options {flags!r}: these are no flags, such as --runner=DirectRunner")
    try:
        with contextlib.redirect_stderr(said):
            options = pipeline_options.PipelineOptions(given)
            unknown = options.get_all_options(retain_unknown_options=True).keys() - _known_options()
            runner = options.view_as(pipeline_options.StandardOptions)
            name = (runner.runner or LOCAL[0]).lower()
            if name in LOCAL:
                runner.runner = "FnApiRunner"
                direct = options.view_as(pipeline_options.DirectOptions)
                if direct.direct_num_workers != 1 and not any("direct_running_mode" in flag for flag in given):
                    direct.direct_running_mode = "multi_processing"
            beam.Pipeline(options=options)  # asks the runner what it thinks of them, and runs nothing
    except SystemExit:
        problem = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise ValueError(f"--beam_options: {problem}") from None
    except (ValueError, ImportError) as error:
        raise ValueError(f"--beam_options: {' '.join(str(error).split())}") from None
    if unknown and name in LOCAL + DATAFLOW:  # a job server knows flags that Beam here does not
        raise ValueError(f"--beam_options: unknown to Beam: {', '.join('--' + flag for flag in sorted(unknown))}")
    return options


def _known_options() -> set[str]:
    return set(pipeline_options.PipelineOptions([]).get_all_options())


@dataclasses.dataclass(frozen=True)
class Work:
    """What workers do. They are sent all of it."""

    source: Source
    vocabulary: Vocabulary
    tables: tuple[tuple[str, tuple[Path, ...]], ...]  # each split's files
    notes: Path

    def records(self, pipeline: beam.Pipeline) -> dict[str, beam.PCollection]:
        """(key, example) of each split, keys in the order of the rows; what is to be known of all rows goes to
        `notes`."""
        files = [(table, place) for table, (_, files) in enumerate(self.tables) for place in range(len(files))]
        parts = (
            pipeline
            | "Files" >> beam.Create(files, reshuffle=True)
            | "Parts" >> beam.FlatMap(self.parts)
            | "SpreadParts" >> beam.Reshuffle()
        )
        looked = parts | "Look" >> beam.FlatMap(self.look).with_outputs(NUMBERS, main="ids")
        starts = (
            looked[NUMBERS]
            | "LastOfFile" >> beam.CombinePerKey(max)
            | "Files'" >> beam.combiners.ToList()
            | "Starts" >> beam.Map(starts_of_files)
        )
        chosen = (
            looked["ids"]
            | "ById" >> beam.GroupByKey()
            | "FirstOfId" >> beam.FlatMap(first_of_id).with_outputs(REFUSED, main="groups")
        )
        others = chosen["groups"] | "ByGroup" >> beam.GroupByKey() | "OtherSplits" >> beam.FlatMap(in_other_tables)
        refused = (chosen[REFUSED], others) | "Refused" >> beam.Flatten()
        made = (
            {"part": parts, REFUSED: refused}
            | "ByPart" >> beam.CoGroupByKey()
            | "Make"
            >> beam.FlatMap(self.make, beam.pvalue.AsSingleton(starts)).with_outputs(NOTED, *self.source.split_names)
        )
        made[NOTED] | "ByNote" >> beam.GroupByKey() | "Note" >> beam.Map(self.note)
        return {split: made[split] for split in self.source.split_names}

    def parts(self, file: tuple[int, int]) -> Iterator[tuple[Address, Part]]:
        """A file, cut."""
        table, place = file
        for part in self.source.cut(self.tables[table][1][place], self.vocabulary):
            yield (table, place, part.first), part

    def look(self, addressed: tuple[Address, Part]) -> Iterator:
        """((table, id), where its row stands and its group) of each row that may be a product; the last row's number,
        of which each file's largest says how many there are."""
        (table, place, first), part = addressed
        last = 0
        for last, found, _ in self.source.described(part, self.vocabulary, images=False):
            if isinstance(found, Product):
                yield (table, found.id), (place, last, first, found.group)
        yield beam.pvalue.TaggedOutput(NUMBERS, ((table, place), last))

    def make(self, joined: tuple[Address, dict[str, Iterable]], starts: dict[tuple[int, int], int]) -> Iterator:
        """The examples of a part, each to its split, and a note of every row."""
        (table, place, _), found = joined
        (part,), refused = found["part"], dict(found[REFUSED])
        before = starts[table, place]
        rows = (
            (before + number, row(refused.get(number), described, complete))
            for number, described, complete in self.source.described(part, self.vocabulary)
        )
        for key, example in encode_rows(rows, self.vocabulary):
            if isinstance(example, Skipped):
                split, note = self._split(table, example.group), dataclasses.asdict(example)
            else:
                split, note = self._split(table, example["group"]), index_entry(example)
                yield beam.pvalue.TaggedOutput(split, (key, example))
            yield beam.pvalue.TaggedOutput(NOTED, ((split, key // ROWS_A_NOTE), (key, note)))

    def _split(self, table: int, group: str) -> str:
        """The split of a row of `table`; where one is held out, rows that never got to have a group are train's."""
        if self.source.holdout and group and self.source.held_out(group):
            return "validation"
        return self.tables[table][0]

    def note(self, noted: tuple[tuple[str, int], Iterable]) -> None:
        """Writes notes in the order of their rows. Doing it twice, as Beam may, changes nothing."""
        (split, number), notes = noted
        path = self.notes / f"{split}-{number:08d}.json"
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        partial.write_text(json.dumps(sorted(notes, key=lambda note: note[0])))
        partial.replace(path)


def row(refused: str | None, described: Product | Skipped, complete: Callable) -> Product | Skipped:
    """A row as it finally is."""
    if isinstance(described, Skipped):
        return described
    if refused:
        group = described.group if refused == OTHER_SPLIT else ""
        return Skipped(described.where, described.id, refused, group)
    return complete()


def starts_of_files(numbers: list[tuple[tuple[int, int], int]]) -> dict[tuple[int, int], int]:
    """{(table, file): how many numbers the table's files before it have} from how many each has."""
    starts = {}
    for _, files in itertools.groupby(sorted(numbers), key=lambda numbered: numbered[0][0]):
        before = 0
        for file, last in files:
            starts[file] = before
            before += last
    return starts


def first_of_id(found: tuple[tuple[int, str], Iterable]) -> Iterator:
    """(group, where the row stands) of the first row of an id; the rest are refused."""
    (table, _), rows = found
    (place, number, first, group), *others = sorted(rows)
    yield group, ((table, place, first), number)
    for place, number, first, _ in others:
        yield beam.pvalue.TaggedOutput(REFUSED, ((table, place, first), (number, DUPLICATE)))


def in_other_tables(found: tuple[str, Iterable]) -> Iterator[tuple[Address, tuple[int, str]]]:
    """The rows of a group that are not in its first table: refused."""
    rows = list(found[1])
    home = min(table for (table, _, _), _ in rows)
    for address, number in rows:
        if address[0] != home:
            yield address, (number, OTHER_SPLIT)
