"""Huge catalogues: Apache Beam's workers make the same records on Dataflow, Flink or Spark, or on this machine.

One process remembers the earlier rows; workers group instead. Of the rows with one id the first counts, and a group
belongs to the first table that has it. A first pass without images finds the rows to refuse. Then each part of a file
is processed alone. The key of a record is its row number, by which TFDS sorts: records, their order and the skipped
rows are those of `builder.CatalogueBuilder`.
"""

import contextlib
import dataclasses
import io
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
from fbjax.data.sources.base import DUPLICATE, OTHER_SPLIT, DataSource, Part, Product, Skipped
from fbjax.data.text.wordpiece import Vocabulary

try:
    import apache_beam as beam
    from apache_beam.options import pipeline_options
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"--beam needs Apache Beam ({error}): pip install 'fbjax[beam]'") from None

NOTES = "notes"  # a folder of the workers' notes on every row; the index is made of them
ROWS_A_NOTE = 2**16
LOCAL, DATAFLOW = ("directrunner", "direct", "fnapirunner"), ("dataflowrunner", "dataflow")
NUMBERS, REFUSED, NOTED = "numbers", "refused", "noted"  # further outputs of a step
NO_EXAMPLES = re.compile(r"generated examples is 0 for split (\w+)")  # TFDS's words
FINAL_ERROR = re.compile(r"^[\w.]*(?:Error|Exception): (.*)", re.MULTILINE)  # of a worker's traceback

Address = tuple[int, int, int]  # of a part: table, file in it, number of its first row


class BeamBuilder(CatalogueBuilder, skip_registration=True):
    """Builds the same records with Beam's workers."""

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
    """Beam's options from its own flags, "--runner=.. --.."; the default runner is the local one.

    Raises ValueError on an unknown runner, a wrong value, or a flag that Beam does not know. The local runner is the
    one in Python: "DirectRunner" would download a program in Go from GitHub. Several local workers are processes by
    default: threads of one process are no faster.
    """
    given, said = shlex.split(flags), io.StringIO()
    if given and not given[0].startswith("--"):
        raise ValueError(f"--beam-options {flags!r}: these are no flags, such as --runner=DirectRunner")
    try:
        with contextlib.redirect_stderr(said):
            options = pipeline_options.PipelineOptions(given)
            known = pipeline_options.PipelineOptions([]).get_all_options()
            unknown = options.get_all_options(retain_unknown_options=True).keys() - known.keys()
            runner = options.view_as(pipeline_options.StandardOptions)
            name = (runner.runner or LOCAL[0]).lower()
            if name in LOCAL:
                runner.runner = "FnApiRunner"
                direct = options.view_as(pipeline_options.DirectOptions)
                if direct.direct_num_workers != 1 and not any("direct_running_mode" in flag for flag in given):
                    direct.direct_running_mode = "multi_processing"
            beam.Pipeline(options=options)  # lets the runner check the options; runs nothing
    except SystemExit:
        problem = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise ValueError(f"--beam-options: {problem}") from None
    except (ValueError, ImportError) as error:
        raise ValueError(f"--beam-options: {' '.join(str(error).split())}") from None
    if unknown and name in LOCAL + DATAFLOW:  # a job server may know more flags
        raise ValueError(f"--beam-options: unknown to Beam: {', '.join('--' + flag for flag in sorted(unknown))}")
    return options


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of Beam's workers, which receive this object."""

    source: DataSource
    vocabulary: Vocabulary
    tables: tuple[tuple[str, tuple[Path, ...]], ...]  # each split's files
    notes: Path

    def records(self, pipeline: beam.Pipeline) -> dict[str, beam.PCollection]:
        """(key, example) of each split, keys in the order of the rows. Also writes the notes on all rows."""
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
        """The parts of a file with their addresses."""
        table, place = file
        for part in self.source.cut(self.tables[table][1][place], self.vocabulary):
            yield (table, place, part.first), part

    def look(self, addressed: tuple[Address, Part]) -> Iterator:
        """((table, id), (file, row, part, group)) of each possible product, and the number of the part's last row."""
        (table, place, first), part = addressed
        last = 0
        for last, found, _ in self.source.described(part, self.vocabulary, images=False):
            if isinstance(found, Product):
                yield (table, found.id), (place, last, first, found.group)
        yield beam.pvalue.TaggedOutput(NUMBERS, ((table, place), last))

    def make(self, joined: tuple[Address, dict[str, Iterable]], starts: dict[tuple[int, int], int]) -> Iterator:
        """The examples of a part, tagged by split, and a note on every row."""
        (table, place, _), found = joined
        (part,), refused, before = found["part"], dict(found[REFUSED]), starts[table, place]
        described = self.source.described(part, self.vocabulary)
        rows = ((before + number, row(refused.get(number), found, complete)) for number, found, complete in described)
        for key, example in encode_rows(rows, self.vocabulary):
            skipped = isinstance(example, Skipped)
            split = self._split(table, example.group if skipped else example["group"])
            note = dataclasses.asdict(example) if skipped else index_entry(example)
            if not skipped:
                yield beam.pvalue.TaggedOutput(split, (key, example))
            yield beam.pvalue.TaggedOutput(NOTED, ((split, key // ROWS_A_NOTE), (key, note)))

    def _split(self, table: int, group: str) -> str:
        """The split of a row of `table`. With a held-out share, rows without a group belong to train."""
        if self.source.holdout and group and self.source.held_out(group):
            return "validation"
        return self.tables[table][0]

    def note(self, noted: tuple[tuple[str, int], Iterable]) -> None:
        """Writes notes in the order of their rows. Beam may call this twice with the same result."""
        (split, number), notes = noted
        path = self.notes / f"{split}-{number:08d}.json"
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        partial.write_text(json.dumps(sorted(notes, key=lambda note: note[0])))
        partial.replace(path)


def row(refused: str | None, described: Product | Skipped, complete: Callable) -> Product | Skipped:
    """The product with its image, or the reason for skipping it."""
    if isinstance(described, Skipped):
        return described
    if refused:
        group = described.group if refused == OTHER_SPLIT else ""
        return Skipped(described.where, described.id, refused, group)
    return complete()


def starts_of_files(numbers: list[tuple[tuple[int, int], int]]) -> dict[tuple[int, int], int]:
    """{(table, file): number of rows in the table's earlier files} from the number of rows of each file."""
    starts, before = {}, {}
    for (table, file), last in sorted(numbers):
        starts[table, file] = before.get(table, 0)
        before[table] = starts[table, file] + last
    return starts


def first_of_id(found: tuple[tuple[int, str], Iterable]) -> Iterator:
    """(group, address) of the first row of an id; refuses the other rows."""
    (table, _), rows = found
    (place, number, first, group), *others = sorted(rows)
    yield group, ((table, place, first), number)
    for place, number, first, _ in others:
        yield beam.pvalue.TaggedOutput(REFUSED, ((table, place, first), (number, DUPLICATE)))


def in_other_tables(found: tuple[str, Iterable]) -> Iterator[tuple[Address, tuple[int, str]]]:
    """Refuses the rows of a group that are not in its first table."""
    rows = list(found[1])
    home = min(table for (table, _, _), _ in rows)
    for address, number in rows:
        if address[0] != home:
            yield address, (number, OTHER_SPLIT)
