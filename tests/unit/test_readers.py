"""Every format gives the rows that were put into it; what cannot be read is refused with the remedy."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fbjax.config.data import Columns, DataConfig
from fbjax.data.sources import tables
from fbjax.data.sources.base import Product, Skipped
from fbjax.data.sources.cells import clean_id
from fbjax.data.sources.image_folder import ImageFolder
from fbjax.data.sources.images import normalise_image
from fbjax.data.sources.markup import without_markup
from fbjax.data.sources.pictures import first_picture, pictures_of
from fbjax.data.sources.readers import find_tables, jsonl, open_table
from fbjax.data.sources.readers.base import SURPLUS, Reading
from fbjax.data.sources.readers.encodings import find_encoding
from fbjax.data.sources.tables import Tables, merged
from tests.support.tables import encode, make_products

PICTURE = encode(make_products(1)[0]["image"])
ROWS = [{"id": str(i), "title": f"Kleid {i}, grün", "category": "abc"[i % 3]} for i in range(40)]
WORDS = {
    "gb18030": ("红色丝绸连衣裙", "黑色真皮手提包", "白色棉质衬衫", "羊毛针织帽 夏季新款"),
    "big5": ("紅色絲綢連衣裙", "黑色真皮手提包", "白色棉質襯衫", "羊毛針織帽 夏季新款"),
    "cp932": ("赤いシルクのワンピース", "黒い革のハンドバッグ", "白いコットンシャツ", "ウールのニット帽"),
    "cp949": ("빨간 실크 원피스", "검은색 가죽 핸드백", "흰색 면 셔츠", "울 니트 모자"),
    "cp1251": ("Красное шелковое платье", "Черная кожаная сумка", "Белая хлопковая рубашка", "Шерстяная шапка"),
    "cp1252": ("Robe de soirée élégante", "Sac à main en cuir", "Chemise d’été", "Béret bleu délavé"),
}


def text_of(rows, suffix):
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def zstd(raw):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("packed", PACK)
def test_a_packed_text_table_is_read_and_a_cut_one_is_refused(tmp_path, suffix, packed):
    path = tmp_path / f"t{suffix}{packed}"
    whole = PACK[packed](text_of(ROWS, suffix).encode())
    path.write_bytes(whole)
    assert find_tables(str(path)) == [path]
    assert list(open_table(path).rows()) == ROWS and open_table(path).columns() == [*ROWS[0]]
    (tmp_path / f"u{suffix}").write_bytes(whole)  # whatever its name is
    assert list(open_table(tmp_path / f"u{suffix}").rows()) == ROWS
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"t\..* cannot be unpacked: .*damaged or cut"):
        list(open_table(path).rows())


@pytest.mark.parametrize(
    "name, remedy",
    [("t.parquet.gz", "is packed: unpack it"), ("t.numbers", "export it as CSV"), ("t.zip", "unpack it, and name")],
)
def test_a_format_that_is_not_read_is_refused_with_the_remedy(tmp_path, name, remedy):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=remedy):
        find_tables(str(tmp_path / name))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(VALUES, max_size=6), st.sampled_from([None, 2]), st.integers(1, 9))
def test_a_json_array_of_any_values_is_read_in_chunks_of_any_size(tmp_path_factory, values, indent, chunk):
    path = tmp_path_factory.getbasetemp() / "array.json"
    path.write_text("\ufeff \n" + json.dumps(values, indent=indent), encoding="utf-8")
    expected = [{k.strip(): v for k, v in x.items()} if isinstance(x, dict) else "malformed row" for x in values]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jsonl, "CHUNK", chunk)
        assert list(open_table(path).rows()) == expected


@pytest.mark.parametrize(
    "text, says",
    [
        ('[{"id": 1}, {"id": 2}, {"id":', "its JSON array breaks off after row 2"),
        ('{"products": [{"id": 1}, {"id": 2}]}', "one JSON object, with rows in its 'products': write the products as"),
        ('{\n "id": 1,\n "title": "red dress"\n}\n', "no row that is a JSON object: write the products as"),
    ],
)
def test_json_of_another_form_is_refused_with_the_remedy(tmp_path, text, says):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        open_table(tmp_path / "t.json").columns()


def write_xlsx(path, *sheets):
    """A workbook of sheets of text and numbers, as little as the format asks for."""
    kinds = "http://schemas.openxmlformats.org"
    relations, main = f"{kinds}/officeDocument/2006/relationships", f'xmlns="{kinds}/spreadsheetml/2006/main"'
    names = "".join(f'<sheet name="S{i}" sheetId="{i}" r:id="r{i}"/>' for i in range(1, len(sheets) + 1))
    links = "".join(
        f'<Relationship Id="r{i}" Type="{relations}/worksheet" Target="worksheets/sheet{i}.xml"/>'
        for i in range(1, len(sheets) + 1)
    )
    top = f'<Relationship Id="r" Type="{relations}/officeDocument" Target="xl/workbook.xml"/>'
    around = f'<Relationships xmlns="{kinds}/package/2006/relationships">{{}}</Relationships>'
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("[Content_Types].xml", f'<Types xmlns="{kinds}/package/2006/content-types"/>')
        book.writestr("_rels/.rels", around.format(top))
        book.writestr("xl/_rels/workbook.xml.rels", around.format(links))
        book.writestr("xl/workbook.xml", f'<workbook {main} xmlns:r="{relations}"><sheets>{names}</sheets></workbook>')
        for place, rows in enumerate(sheets, start=1):
            lines = ""
            for number, row in enumerate(rows, start=1):
                cells = ""
                for column, cell in zip("ABCDEFG", row, strict=False):
                    where = f'r="{column}{number}"'
                    text = f'<c {where} t="inlineStr"><is><t>{cell}</t></is></c>'
                    cells += text if isinstance(cell, str) else "" if cell is None else f"<c {where}><v>{cell}</v></c>"
                lines += f'<row r="{number}">{cells}</row>'
            sheet = f"<worksheet {main}><sheetData>{lines}</sheetData></worksheet>"
            book.writestr(f"xl/worksheets/sheet{place}.xml", sheet)


def test_a_sheet_is_read_from_its_header_on_with_whole_numbers_for_ids(tmp_path):
    names = ["ean", "title", "category"]
    rows = [[4058123456789, "Tasche", "bag"], [17, None, "hat"], [18, "Hut", "hat"]]
    write_xlsx(tmp_path / "t.xlsx", [[], names, *rows], [["note"], ["of no use"]])
    table = open_table(tmp_path / "t.xlsx")
    assert table.columns() == ["ean", "title", "category"]
    assert [row["title"] for row in table.rows()] == ["Tasche", None, "Hut"]
    assert table.about()[1] == ["t.xlsx has several sheets: 'S1' is read, not 'S2'"]
    source = Tables(DataConfig(columns=Columns(id="ean")), 32)
    found = [row for _, row, _ in source.rows([tmp_path / "t.xlsx"], None, images=False)]
    assert [row.id for row in found] == ["4058123456789", "17", "18"] and isinstance(found[1], Skipped)


def test_a_sheet_without_its_library_names_the_command(tmp_path, monkeypatch):
    write_xlsx(tmp_path / "t.xlsx", [["id"], [1]])
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    with pytest.raises(ValueError, match=r"pip install 'fbjax\[excel\]' to read it, or export it as CSV"):
        open_table(tmp_path / "t.xlsx").columns()


def test_a_file_that_is_no_sheet_is_refused(tmp_path):
    (tmp_path / "t.xls").write_bytes(b"no sheet")
    with pytest.raises(ValueError, match="t.xls cannot be read as a spreadsheet"):
        open_table(tmp_path / "t.xls").columns()


@pytest.mark.parametrize("rows", [4, 60])
@pytest.mark.parametrize("encoding", WORDS)
def test_an_encoding_is_guessed_and_the_guess_is_said(tmp_path, encoding, rows):
    words = WORDS[encoding]
    wanted = [{"id": str(i), "title": words[i % 4], "price": "9"} for i in range(rows)]
    (tmp_path / "t.csv").write_bytes(text_of(wanted, ".csv").encode(encoding))
    assert [row["title"] for row in open_table(tmp_path / "t.csv").rows()] == [row["title"] for row in wanted]
    ((warning,)) = open_table(tmp_path / "t.csv").about()[1]
    assert f"read as {encoding}" in warning and "config.data.encoding" in warning


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
def test_utf_16_of_dense_scripts_needs_no_mark(tmp_path, encoding):
    (tmp_path / "t.tsv").write_bytes("".join(f"{i}\t{w}\n" for i, w in enumerate(WORDS["cp932"] * 9)).encode(encoding))
    assert find_encoding(tmp_path / "t.tsv").name == encoding
    assert WORDS["cp932"][0] in str(list(open_table(tmp_path / "t.tsv").rows()))


def test_a_given_encoding_stands_and_an_unknown_one_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes("id,title\n1,Größe".encode("cp850"))
    assert list(open_table(tmp_path / "t.csv", Reading("cp850")).rows()) == [{"id": "1", "title": "Größe"}]
    with pytest.raises(ValueError, match="config.data.encoding 'cp-850x' is unknown"):
        open_table(tmp_path / "t.csv", Reading("cp-850x")).columns()


CELL = st.text("ab ,;\"'", max_size=5)


@given(st.lists(CELL, min_size=2, max_size=5), st.data())
def test_the_text_column_takes_the_cells_that_an_unquoted_comma_made(tmp_path_factory, cells, data):
    """A cell with commas, written without quotes, comes back whole; the cells around it keep their columns."""
    place = data.draw(st.integers(0, len(cells) - 1))
    plain = [cell.replace('"', "").replace(",", "") for cell in cells[:-1]] + ["end"]
    plain[place] = data.draw(st.lists(st.text("ab ;", min_size=1, max_size=3), min_size=2, max_size=4).map(",".join))
    header = [f"c{i}" for i in range(len(cells))]
    path = tmp_path_factory.getbasetemp() / "surplus.csv"
    path.write_text(",".join(header) + "\n" + ",".join(plain) + "\n")
    assert list(open_table(path, Reading(rest=f"c{place}")).rows()) == [dict(zip(header, plain, strict=True))]
    assert list(open_table(path).rows()) == [SURPLUS]


def test_classes_have_their_names_in_parquet_and_arrow_as_a_whole_and_in_blocks(tmp_path):
    described = {"info": {"features": {"label": {"names": ["dress", "bag"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"label": [1, 0, None, -1, 1], "n": [5, 6, 7, 8, 9]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    with pyarrow.OSFile(str(tmp_path / "t.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    with pyarrow.OSFile(str(tmp_path / "u.arrow"), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    for name in ("t.parquet", "t.arrow", "u.arrow"):
        opened = open_table(tmp_path / name)
        assert [row["label"] for row in opened.rows()] == ["bag", "dress", None, None, "bag"]
        assert list(opened.rows({"n"})) == [{"n": n} for n in (5, 6, 7, 8, 9)]
        assert opened.blocks() == [2, 2, 1] and opened.count() == 5
        assert [[row["n"] for row in opened.read_block(i, {"n"})] for i in range(3)] == [[5, 6], [7, 8], [9]]
    (tmp_path / "t.arrow").write_bytes((tmp_path / "t.arrow").read_bytes()[:-300])
    with pytest.raises(ValueError, match="t.arrow is not a readable Arrow file"):
        list(open_table(tmp_path / "t.arrow").rows())


def test_a_folder_stands_for_the_shards_of_one_table_or_names_what_to_choose(tmp_path):
    for split in ("train", "test"):
        for i in range(2):
            (tmp_path / "data").mkdir(exist_ok=True)
            (tmp_path / "data" / f"{split}-0000{i}-of-00002.csv").write_text("id,title\n")
    with pytest.raises(ValueError, match=r"several tables: .*or a glob such as .*train\*.csv"):
        find_tables(str(tmp_path))
    for path in (tmp_path / "data").glob("test*"):
        path.unlink()
    assert [path.name for path in find_tables(str(tmp_path))] == [f"train-0000{i}-of-00002.csv" for i in range(2)]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match="holds the splits train, test: name one, such as .*/train"):
        find_tables(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds neither a table .* nor folders of pictures"):
        find_tables(str(tmp_path / "empty"))


def test_split_folders_of_pictures_are_named(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "dress").mkdir(parents=True)
        (tmp_path / split / "dress" / "1.jpg").touch()
    with pytest.raises(ValueError, match="holds the splits train, val: name one, such as .*/train"):
        find_tables(str(tmp_path))
    assert find_tables(str(tmp_path / "val")) == [tmp_path / "val"]


@pytest.mark.parametrize(
    "page, text",
    [
        ("a<br>b<p>c</p>d<li>e", "a b c d e"),
        ("<b>bo</b>ld &amp; <i>sl</i>im", "bold & slim"),
        ("<style>p {color: red}</style>red<script>if (a < b) x()</script> bag", "red bag"),
        ("&lt;p&gt;Silk&amp;nbsp;dress&lt;/p&gt;", "Silk dress"),
        ("5 < 6 and R&D > 4, L<XL", "5 < 6 and R&D > 4, L<XL"),
        ('<a href="x>y">tote</a><!-- not this -->', "tote"),
        ("caf&eacute; &#8211; &#x41;", "café – A"),
    ],
)
def test_markup_is_stripped_and_its_words_stay(page, text):
    assert " ".join(without_markup(page).split()) == text


@given(st.lists(st.tuples(st.sampled_from(["p", "li", "div", "h2", "td"]), st.text("abcß红", min_size=1)), max_size=6))
def test_a_block_s_words_stay_apart_whatever_its_tag(blocks):
    page = "".join(f"<{tag} class='x'>{words}</{tag}>" for tag, words in blocks)
    assert without_markup(page).split() == [words for _, words in blocks]


@pytest.mark.parametrize(
    "cell, pictures",
    [
        ("a.jpg|b.png", ["a.jpg", "b.png"]),
        ("a.jpg, b.jpg ;c.webp", ["a.jpg", "b.jpg", "c.webp"]),
        ("https://x.example/a,b/1.jpg", ["https://x.example/a,b/1.jpg"]),
        ("one, two.jpg", ["one, two.jpg"]),
        ('["a.jpg", "b.jpg"]', ["a.jpg", "b.jpg"]),
        ("['a.jpg', None]", ["a.jpg"]),
        ("[1].jpg", ["[1].jpg"]),
        ([None, {"bytes": b"", "path": "a.jpg"}, "b.jpg|c.jpg"], ["a.jpg", "b.jpg", "c.jpg"]),
        ("nan", []),
        (None, []),
    ],
)
def test_a_cell_may_name_several_pictures(cell, pictures):
    assert pictures_of(cell) == pictures


def test_the_first_picture_that_is_there_counts(tmp_path):
    (tmp_path / "b.jpg").touch()
    assert first_picture("a.jpg|b.jpg|c.jpg", ImageFolder(tmp_path)) == "b.jpg"
    assert first_picture("a.jpg|c.jpg", ImageFolder(tmp_path)) == "a.jpg"


@given(st.lists(st.lists(st.booleans(), max_size=3), min_size=1, max_size=5), st.integers(1, 4))
def test_a_product_s_rows_are_one_wherever_a_part_ends(tmp_path_factory, further, at_once):
    """`further`: for each product, whether each further row has a picture."""
    rows, path = [], tmp_path_factory.getbasetemp() / "rows.jsonl"
    for number, pictures in enumerate(further):
        rows.append({"id": number, "title": f"dress {number}", "category": "dress", "image": f"{number}.jpg"})
        rows += [{"id": number, "image": f"{number}_{i}.jpg" if p else ""} for i, p in enumerate(pictures)]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tables, "ROWS_AT_ONCE", at_once)
        found = [row for _, row, _ in Tables(DataConfig(), 32).rows([path], None, images=False)]
    assert [row.id for row in found if isinstance(row, Product)] == [str(number) for number in range(len(further))]
    reasons = [row.reason for row in found if isinstance(row, Skipped)]
    assert reasons == [tables.FURTHER_PICTURE if p else tables.FURTHER_ROW for pictures in further for p in pictures]


def test_a_product_is_filled_from_its_further_rows_and_another_text_is_another_product():
    columns = Columns(text=("title",), group="")
    rows = [{"id": 1, "title": "", "category": "hat"}, {"id": 1, "title": "red hat", "category": "", "image": "1.jpg"}]
    rows += [{"id": 1, "title": "blue hat", "category": "hat", "image": "2.jpg"}]
    first, further, other = merged(rows, columns)
    assert (first["title"], first["category"], pictures_of(first["image"])) == ("red hat", "hat", ["1.jpg"])
    assert further.reason == tables.FURTHER_ROW and other == rows[2]


def test_a_path_made_of_columns_follows_the_rows_of_a_product(tmp_path):
    cells = [("007", "red hat", "a"), ("007", "", "b"), ("12.0", "bag", "a"), ("013", "belt", "")]
    rows = [{"id": i, "title": title, "category": "hat", "view": view} for i, title, view in cells]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "00").mkdir()
    (tmp_path / "00/007-b.png").write_bytes(PICTURE)
    source = Tables(DataConfig(columns=Columns(image="{id:.2}/{id}-{view}.png")), 32, str(tmp_path / "t.jsonl"))
    assert list(source.image_names(tmp_path / "t.jsonl")) == ["00/007-a.png", "00/007-b.png", "12/12-a.png"]
    hat, further, bag, belt = source.products([tmp_path / "t.jsonl"], None)
    assert (hat.id, hat.image, further.reason) == ("007", normalise_image(PICTURE, 32), tables.FURTHER_PICTURE)
    assert (bag.id, bag.reason, belt.reason) == ("12", "image file not found", "missing image")


@pytest.mark.parametrize(
    "cell, name",
    [
        (12345.0, "12345"),
        ("12345.0", "12345"),
        (19753086241975312.0, "19753086241975312"),
        ("0108775015", "0108775015"),
        ("1.08E+08", "1.08E+08"),
        ("1.5", "1.5"),
        ('="0108775015"', "0108775015"),
        (float("inf"), "inf"),
        ("v1.0", "v1.0"),
    ],
)
def test_an_id_stays_what_it_was(cell, name):
    assert clean_id(cell) == name
