"""The vocabulary that a config names, made from the catalogue where it says so."""

import hashlib
import itertools
from collections.abc import Callable, Iterable

from fbjax.config.schema import Config
from fbjax.core import paths
from fbjax.data.arrays.reader import read_vocabulary
from fbjax.data.sources.base import DataSource, file_stats, open_source
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.model import bert_weights


def make_vocabulary(config: Config, say: Callable[[str], None]) -> Vocabulary:
    """The vocabulary a config names: its BERT's, what the catalogue uses of that ("used"), one trained on the catalogue
    ("train:8000"), or a file's. Arrays of a catalogue have brought its vocabulary along."""
    name = config.model.vocabulary
    if config.data.arrays and (name == "used" or name.startswith("train:")):
        return read_vocabulary(config)
    if name.startswith("train:"):
        size = name.removeprefix("train:")
        if not size.isdigit():
            raise ValueError(f"model.vocabulary {name!r}: write 'train:8000' for 8000 pieces")
        doing = f"training a vocabulary of {size} pieces on {config.data.train}"
        return _from_catalogue(config, size, lambda texts: Vocabulary.train(texts, int(size)), say, doing)
    if name not in ("", "used"):
        return Vocabulary.from_file(name)
    whole = Vocabulary.from_file(bert_weights.find(config.model.pretrained) / "vocab.txt")
    if not name:
        return whole
    doing = f"finding which of the {whole.size:,} pieces {config.data.train} uses"
    return _from_catalogue(config, f"used {whole.fingerprint}", whole.restricted_to, say, doing)


def _from_catalogue(
    config: Config, recipe: str, make: Callable[[Iterable[str]], Vocabulary], say: Callable[[str], None], doing: str
) -> Vocabulary:
    """What `make` makes of the training table's texts, kept among the prepared files under table and `recipe`."""
    source = open_source(config.data, config.patches.image_size)
    source_of_texts = (config.data.source, file_stats(source.files()["train"]), config.data.columns.text)
    key = hashlib.sha256(repr((source_of_texts, recipe)).encode()).hexdigest()[:12]
    path = paths.as_path(config.data.prepared) / f"vocabulary-{key}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with paths.lock(path.with_suffix(".lock")):  # two processes may want it at once: the second finds it made
            if not path.is_file():
                say(doing)
                vocabulary = make(_texts(config, source))
                with paths.atomic_write(path) as file:
                    vocabulary.save(file)
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
