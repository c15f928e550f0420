"""Proposes the role of each column of an unknown table from its name, in several languages, and from its cells."""

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fbjax.data.sources.tables import MAX_NAME, clean_name, clean_text, image_bytes, is_url

ROLES = ("id", "text", "category", "image", "group")
NAMES = {  # best first; only letters and digits, without case and accents
    "id": """id productid sku articleid itemid asin gtin ean upc handle code productcode articlenumber itemnumber uid
        artikelnummer artnr artikelnr produktnummer produktid reference ref codigo codice idproduit idproducto
        referencia referenza codigoproducto numeroarticle artikelcode varenummer artikel 商品id 品番""",
    "title": """title producttitle productname productdisplayname displayname prodname itemname name headline titel
        bezeichnung artikelbezeichnung produktname artikelname titre nom nomproduit libelle designation titulo nombre
        nombreproducto titolo nome nomeprodotto naam productnaam nazwa navn namn 商品名 标题 text""",
    "more": """caption shortdescription subtitle description desc detaildesc productdescription bodyhtml longdescription
        details kurzbeschreibung beschreibung artikelbeschreibung descriptif descripcion descrizione descricao
        omschrijving beschrijving opis 説明 描述""",
    "category": """subcategory productcategory category articletype producttype productgroup categories categoryname
        producttypename class department type taxonomy mastercategory googleproductcategory warengruppe kategorie
        unterkategorie produktgruppe produktart categorie souscategorie rayon famille categoria subcategoria
        sottocategoria reparto familia kategoria categorienaam 类别 カテゴリ""",
    "image": """image imagepath imagefile imagefilename imagename filename file img imgpath picture photo photopath
        imagelink imageurl imagesrc mainimage baseimage thumbnail pic path images url bild bilddatei bildpfad foto
        abbildung photoproduit imagen immagine imagem afbeelding zdjecie link 图片 画像""",
    "group": """group groupid itemgroupid parentid parentsku parent parentasin styleid style stylecode modelid model
        modelcode variantof variantgroup masterid mastersku productgroupid familyid gruppe modell modelnummer
        modellnummer modele modelo modello grupo gruppo inputproductid""",
}
NAMES = {role: names.split() for role, names in NAMES.items()}
NO_CATEGORY = """brand colour color gender season size year price currency availability condition marke farbe status
    geschlecht saison grosse preis couleur marque taille prix genero talla precio vendor usage stock active""".split()
SOUGHT = {
    "id": "a column whose values are all different",
    "text": "a column of words, such as a title or a description",
    "category": "a column of few values, each on many rows",
    "image": "a column of embedded images or of paths of image files",
    "group": "a column that joins the variants of one product",
}
REMEDIES = {
    "id": "add a column of numbers that never repeat",
    "text": "add the products' names to the table",
    "category": "add one (the kind of product, say); negative pairs and candidates come from the same category",
    "image": "add the path of one image file a product, relative to the table",
    "group": "",
}
IMAGE_NAME = re.compile(r".*\.(jpe?g|jfif|png|gif|webp|bmp|tiff?|avif|jp2)$", re.IGNORECASE | re.DOTALL)
NUM_TRIED = 40  # image cells of a column that are read
MAX_FOLDERS = 100  # folders next to a table that are searched for images


@dataclasses.dataclass(frozen=True)
class Column:
    """Statistics of a column; shares are of its filled cells."""

    name: str
    num_rows: int
    num_filled: int
    num_distinct: int | None  # None: bytes, not counted
    words: float  # mean
    lettered: float  # share with a letter
    longest: int  # characters
    image: str = ""  # bytes | path | url: what most cells are
    found: float = 0.0  # share of the tried image cells that are readable
    root: str = ""  # the folder of the images, if it is not the table's
    examples: tuple[str, ...] = ()

    @property
    def filled(self) -> float:
        return self.num_filled / max(self.num_rows, 1)

    @property
    def rows_a_value(self) -> float:
        return self.num_filled / self.num_distinct if self.num_distinct else 0.0


def describe_column(name: str, cells: Iterable, root: Path, roots: list[Path] = ()) -> Column:
    """Describes a column; tries image paths in `root`, then in each of `roots`."""
    num_rows = filled = words = lettered = longest = num_paths = num_urls = 0
    distinct, examples, tried, holds_bytes = set(), [], [], False
    for cell in cells:
        num_rows += 1
        if is_embedded(cell):
            filled, holds_bytes = filled + 1, True
            tried += [cell] * (len(tried) < NUM_TRIED)
            continue
        text = clean_name(cell)
        if not text:
            continue
        filled += 1
        words += text.count(" ") + 1
        longest = max(longest, len(text))
        lettered += any(map(str.isalpha, text[:200]))
        if hash(text) not in distinct:
            distinct.add(hash(text))
            examples += [text] * (len(examples) < 3)
        if is_url(text):
            num_urls += 1
        elif IMAGE_NAME.match(text):
            num_paths += 1
            tried += [cell] * (len(tried) < NUM_TRIED)
    share = max(filled, 1)
    num_distinct, image, found, elsewhere = len(distinct), "", 0.0, ""
    if holds_bytes:
        num_distinct, image, found = None, "bytes", _readable(tried, root)
    elif num_urls > share / 2:
        image = "url"
    elif num_paths > share / 2:
        image, best = "path", max([root, *roots], key=lambda place: _readable(tried, place))
        found = _readable(tried, best)
        elsewhere = str(best) if best is not root and found else ""
    about = num_rows, filled, num_distinct, words / share, lettered / share, longest
    return Column(name, *about, image, found, elsewhere, tuple(examples))


def is_embedded(cell) -> bool:
    """Whether a cell contains an image itself: pixels, bytes, or a struct with bytes."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    return isinstance(content, np.ndarray) or isinstance(content, bytes) and content != b""


def folders_beside(folder: Path) -> list[Path]:
    """The first `MAX_FOLDERS` folders in `folder`, then those in them."""
    try:
        outer = sorted(path for path in folder.iterdir() if path.is_dir())[:MAX_FOLDERS]
        inner = (path for top in outer for path in itertools.islice(top.iterdir(), 500) if path.is_dir())
        return [*outer, *inner][:MAX_FOLDERS]
    except OSError:
        return []


def propose(columns: list[Column]) -> dict[str, tuple[str, ...]]:
    """{role: columns}: one or two for `text`, at most one for the others; () if no column fits."""
    taken: set[str] = set()

    def best(fits, score):
        able = [column for column in columns if column.name not in taken and fits(column)]
        chosen = max(able, key=score, default=None)
        taken.update([chosen.name] if chosen else [])
        return (chosen.name,) if chosen else ()

    def known(role):
        return lambda column: _name_score(role, column.name)

    def id_score(c):
        distinct, score = _distinct_share(c), _name_score("id", c.name)
        return distinct > 0.98 and score > 0, distinct * c.filled > 0.9, score, -c.words

    def is_wordy(c):
        return not c.image and c.lettered > 0.5 and c.filled > 0.2 and c.num_distinct > 1

    proposed = {}  # in this order: a column takes one role only
    proposed["image"] = best(
        lambda c: c.image in ("bytes", "path") and c.num_filled,
        lambda c: (c.found > 0.5, c.image == "bytes", _name_score("image", c.name), c.found),
    )
    proposed["id"] = best(
        lambda c: _could_identify(c) and (_distinct_share(c) > 0.98 or _name_score("id", c.name) >= 1), id_score
    )
    proposed["group"] = best(lambda c: _could_group(c) and _name_score("group", c.name) >= 1, known("group"))
    proposed["category"] = best(
        _could_categorise, lambda c: (_name_score("category", c.name), c.lettered > 0.5, -c.words, c.num_distinct)
    )
    titles = best(
        lambda c: is_wordy(c) and (_name_score("title", c.name) or c.words >= 2),
        lambda c: (_name_score("title", c.name), _name_score("more", c.name), min(c.num_distinct, 1000), -c.words),
    )
    more = best(lambda c: is_wordy(c) and _name_score("more", c.name), known("more")) if titles else ()
    return {role: (proposed | {"text": titles + more})[role] for role in ROLES}


def _could_identify(column: Column) -> bool:
    return not column.image and bool(column.num_distinct) and column.words < 3 and column.longest <= MAX_NAME


def _could_group(column: Column) -> bool:
    return _could_identify(column) and column.num_distinct > 1 and 1 < column.rows_a_value < 50 and column.filled > 0.2


def _could_categorise(column: Column) -> bool:
    known = _name_score("category", column.name) > 0
    few = column.num_distinct and 2 <= column.num_distinct and column.rows_a_value >= (1.5 if known else 4)
    other = _tokens(column.name).intersection(NO_CATEGORY) or column.lettered < 0.5 or column.words > 5
    return bool(few) and not column.image and (known or not other) and column.longest <= MAX_NAME


def _distinct_share(column: Column) -> float:
    return (column.num_distinct or 0) / max(column.num_filled, 1)


def _readable(cells: list, root: Path) -> float:
    """The share of image cells whose bytes can be read."""
    found = 0
    for cell in cells:
        try:
            found += bool(image_bytes(cell, root))
        except (ValueError, OSError):
            continue
    return found / max(len(cells), 1)


def _tokens(name: str) -> set[str]:
    name = _folded(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name))
    return set(re.findall(r"[^\W_]+", "".join(letter for letter in name if not unicodedata.combining(letter))))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKD", name.replace("ß", "ss")).casefold()


def _name_score(role: str, name: str) -> float:
    """1 to 2 for a known name, higher for earlier ones; up to 1 if the name contains a known word; else 0."""
    known, cleaned = NAMES[role], re.sub(r"[\W_]+", "", _folded(name))
    if cleaned in known:
        return 2 - known.index(cleaned) / len(known)
    within = [known.index(token) for token in _tokens(name) if token in known]
    return (1 - min(within) / len(known)) if within else 0.0


def shorten(text: str, width: int = 48) -> str:
    """One printable line of a cell."""
    line = "".join(letter if letter.isprintable() else "?" for letter in clean_text(text[: 4 * width]))
    return line if len(line) <= width else line[: width - 2] + ".."
