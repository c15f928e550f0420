"""Opens text files: unpacks them, and finds out their encoding."""

import bz2
import codecs
import contextlib
import dataclasses
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

import charset_normalizer
import pyarrow

from fbjax.core import paths
from fbjax.data.sources.readers.base import once_per_version

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, since it begins with that mark
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
FOREIGN = {
    b"PK\x03\x04": "a ZIP or Excel file, not text: export it as CSV in UTF-8, unpack it, or name it .xlsx",
    b"\xd0\xcf\x11\xe0": "an Excel file, not text: name it .xls, or export it as CSV in UTF-8",
    b"PAR1": "a Parquet file, not text: name it .parquet",
}
PACKED = {  # by the first bytes of the file, whatever its name is
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": lambda stream: io.BufferedReader(
        pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")
    ),
}
SUFFIXES = (".gz", ".bz2", ".xz", ".zst")  # of packed files
CANDIDATES = ["cp1252", "cp1251", "gb18030", "big5", "cp932", "cp949", "euc_jp", "koi8_r", "cp1250", "cp1253", "cp1254"]
WESTERN = "cp1252"
NAMES = {
    "cp1252": "cp1252 (Western Windows)",
    "cp1251": "cp1251 (Cyrillic Windows)",
    "gb18030": "gb18030 (GBK, simplified Chinese)",
    "big5": "big5 (traditional Chinese)",
    "cp932": "cp932 (Shift-JIS, Japanese)",
    "cp949": "cp949 (EUC-KR, Korean)",
    "cp1250": "cp1250 (Central European Windows)",
}
GUESSED_FROM = 2**16  # bytes of lines beyond ASCII


@dataclasses.dataclass(frozen=True)
class Encoding:
    name: str
    damaged: bool = False  # UTF-8 with some invalid bytes
    guessed: bool = False


@contextlib.contextmanager
def open_unpacked(file: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, unpacked. Raises ValueError if it is packed and damaged, or no text."""
    with paths.open_binary(file) as stream:
        head = stream.read(8)
        stream.seek(0)
        for magic, what in FOREIGN.items():
            if head.startswith(magic):
                raise ValueError(f"{file} is {what}")
        unpack = next((unpack for magic, unpack in PACKED.items() if head.startswith(magic)), None)
        if unpack is None:
            yield stream
            return
        try:
            with unpack(stream) as unpacked:
                yield unpacked
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{file} cannot be unpacked: {reason} (fetch it again: it is damaged or cut)") from None


@contextlib.contextmanager
def open_text(file: Path, encoding: str) -> Iterator[io.TextIOWrapper]:
    """The text of a file, unpacked; bytes that are invalid become U+FFFD."""
    with open_unpacked(file) as stream, io.TextIOWrapper(stream, encoding, "replace", newline="") as text:
        yield text


@once_per_version
def find_encoding(file: Path) -> Encoding:
    """The encoding by its mark, else UTF-8 if most bytes beyond ASCII are valid, else by the frequencies of letters."""
    with open_unpacked(file) as stream:
        head = stream.read(4096)
        for mark, encoding in BOMS:
            if head.startswith(mark):
                return Encoding(encoding)
        if wide := _without_mark(head):
            return Encoding(wide)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    bad = good = 0
    with open_unpacked(file) as stream:
        while chunk := stream.read(2**20):
            text = decoder.decode(chunk)
            if not text.isascii():
                bad += text.count("\ufffd")
                good += len(text) - len(text.encode("ascii", "ignore")) - text.count("\ufffd")
    return Encoding(_guess(file), guessed=True) if bad > good else Encoding("utf-8", damaged=bad > 0)


def _without_mark(head: bytes) -> str:
    """UTF-16 without a mark: the delimiters and digits of a table have a zero as their other byte, or ""."""
    even, odd = (head[first::2].count(0) for first in (0, 1))
    if even + odd <= len(head) // 50:
        return ""
    return "utf-16-le" if odd > 4 * even else "utf-16-be" if even > 4 * odd else ""


def _guess(file: Path) -> str:
    """The likeliest of `CANDIDATES` for the first lines beyond ASCII."""
    sample = b""
    with open_unpacked(file) as stream:
        for line in stream:
            if not line.isascii():
                sample += line
            if len(sample) > GUESSED_FROM:
                break
    matches = list(charset_normalizer.from_bytes(sample, cp_isolation=CANDIDATES))
    likeliest = [match for match in matches if match.chaos <= matches[0].chaos]
    names = [{match.encoding, *match.could_be_from_charset} & {*CANDIDATES} for match in likeliest]
    ranked = zip(likeliest, names, strict=True)
    best = max(ranked, key=lambda pair: (pair[0].coherence, WESTERN in pair[1]), default=None)
    return WESTERN if best is None or WESTERN in best[1] else best[0].encoding


def encoding_of(file: Path, given: str = "") -> Encoding:
    """The encoding that the user has `given`, or the one that is found. Raises ValueError on an unknown name."""
    if not given:
        return find_encoding(file)
    try:
        return Encoding(codecs.lookup(given).name)
    except LookupError:
        raise ValueError(f"config.data.encoding {given!r} is unknown to Python: write 'utf-8' or 'gb18030'") from None


def about_encoding(file: Path, given: str = "") -> tuple[str, list[str]]:
    """The encoding in words, and what to say of it."""
    encoding, warnings = encoding_of(file, given), []
    if encoding.guessed:
        warnings.append(
            f"{file.name} is not UTF-8: read as {NAMES.get(encoding.name, encoding.name)}, a guess; if letters look "
            "wrong, set config.data.encoding to 'cp1252', 'gb18030' or another, or export it as UTF-8"
        )
    if encoding.damaged:
        warnings.append(f"{file.name} is UTF-8 with some bytes that are not: each becomes \ufffd")
    marks = {"utf-8-sig": "UTF-8 with a byte order mark", "utf-8": "UTF-8"}
    return marks.get(encoding.name, encoding.name), warnings
