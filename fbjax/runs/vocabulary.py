"""The vocabulary that a config names, made from the catalogue where it says so."""

import hashlib
import itertools
from collections.abc import Callable, Iterable

import numpy as np

from fbjax.config.schema import Config
from fbjax.core import paths
from fbjax.core.checksums import blocks_damage, summed_write
from fbjax.data.arrays.reader import read_vocabulary
from fbjax.data.batches.split import Split
from fbjax.data.sources.base import DataSource, contents, open_source
from fbjax.data.text.unknown import Unknown, measure_unknown
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.model import bert_weights

FEWEST_PIECES, MOST_PIECES = 50, 1_000_000  # of a trained vocabulary
LOOKED_AT = 2000  # texts, to measure how much a vocabulary knows


def make_vocabulary(config: Config, say: Callable[[str], None]) -> Vocabulary:
    """The vocabulary a config names: its BERT's, what the catalogue uses of that ("used"), one trained on the catalogue
    ("train:8000"), or a file's. Arrays of a catalogue have brought its vocabulary along.

    Raises ValueError where it knows hardly anything of most of the catalogue's first texts.
    """
    vocabulary = _named(config, say)
    if not config.data.arrays:  # which were made with it
        _check_known(config, vocabulary)
    return vocabulary


def ready_vocabulary(config: Config) -> Vocabulary | None:
    """The vocabulary that a config takes pieces from, None where it trains its own. Reads no table."""
    name = config.model.vocabulary
    if _trained_size(name):
        return None
    of_bert = name in ("", "used")
    return Vocabulary.from_file(bert_weights.find(config.model.pretrained) / "vocab.txt" if of_bert else name)


def _check_known(config: Config, vocabulary: Vocabulary) -> None:
    source = open_source(config.data, config.patches.image_size)
    if source.gives_features:  # the authors' release: its texts are pieces already
        return
    unknown = measure_unknown(vocabulary, list(itertools.islice(source.texts(), LOOKED_AT)))
    if unknown.too_many:
        remedy = "model.vocabulary='train:8000' makes one of these texts"
        remedy += ", with model.pretrained=''" if config.model.pretrained and config.reads_encoder else ""
        raise ValueError(f"{config.data.train}: {unknown}. There is next to nothing to learn from them ({remedy})")


def unknown_of(records: Split, vocabulary: Vocabulary) -> Unknown:
    """What `vocabulary` does not know of prepared texts, by a sample spread over the rows."""
    rows = np.unique(np.linspace(0, len(records) - 1, min(len(records), LOOKED_AT)).astype(int))
    return measure_unknown(vocabulary, records.strings(rows))


def _named(config: Config, say: Callable[[str], None]) -> Vocabulary:
    name = config.model.vocabulary
    size = _trained_size(name)
    if config.data.arrays and (name == "used" or size):
        return read_vocabulary(config)
    if size:
        doing = f"training a vocabulary of {size} pieces on {config.data.train}"
        return _from_catalogue(config, f"train {size}", lambda texts: Vocabulary.train(texts, size), say, doing)
    whole = ready_vocabulary(config)
    if name != "used":
        return whole
    doing = f"finding which of the {whole.size:,} pieces {config.data.train} uses"
    return _from_catalogue(config, f"used {whole.fingerprint}", whole.restricted_to, say, doing)


def _trained_size(name: str) -> int:
    """``"train:8000" -> 8000``; 0 of another name. Raises ValueError on a size that is out of range."""
    if not name.startswith("train:"):
        return 0
    size = name.removeprefix("train:")
    number = int(size) if size.isascii() and size.isdigit() and len(size) < 10 else 0
    if not FEWEST_PIECES <= number <= MOST_PIECES:
        raise ValueError(
            f"model.vocabulary {name!r}: write 'train:8000' for 8000 pieces, from {FEWEST_PIECES} to {MOST_PIECES:,}"
        )
    return number


def _from_catalogue(
    config: Config, recipe: str, make: Callable[[Iterable[str]], Vocabulary], say: Callable[[str], None], doing: str
) -> Vocabulary:
    """What `make` makes of the training table's texts, kept among the prepared files under table and `recipe`."""
    source = open_source(config.data, config.patches.image_size)
    read = (config.data.source, source.version, config.data.columns.text, config.data.encoding, config.data.extra_cells)
    source_of_texts = (read, contents(source.files()["train"], config.data.prepared))
    key = hashlib.sha256(repr((source_of_texts, recipe)).encode()).hexdigest()[:12]
    path = paths.as_path(config.data.prepared) / f"vocabulary-{key}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with paths.lock(path.with_suffix(".lock")):  # two processes may want it at once: the second finds it made
            if not path.is_file():
                say(doing)
                vocabulary = make(_texts(config, source))
                with summed_write(path) as file:
                    vocabulary.save(file)
    if found := blocks_damage(path):
        raise ValueError(f"{found}, by its checksum: delete it, the next run makes it anew")
    return Vocabulary.load(path)


def _texts(config: Config, source: DataSource) -> Iterable[str]:
    texts = source.texts()
    first = next(texts, None)
    if first is None:
        columns = ", ".join(map(repr, config.data.columns.text))
        raise ValueError(
            f"{config.data.train} has no text in {columns} to make model.vocabulary {config.model.vocabulary!r} of "
            "(map columns that have some in config.data.columns.text)"
        )
    return itertools.chain([first], texts)
