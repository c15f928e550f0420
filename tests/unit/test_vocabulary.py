"""A vocabulary restricted to what texts use, and where the columns of a text end in its pieces."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fbjax.config.schema import Columns, Config, DataConfig, ModelConfig
from fbjax.data.sources.base import Product
from fbjax.data.sources.tables import describe
from fbjax.data.text.wordpiece import SPECIAL, Vocabulary
from fbjax.runs.vocabulary import make_vocabulary
from tests.support.tables import make_products, write_parquet

BERT_ORDER = ("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_vocabulary(folder, pieces):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return folder


def spelled(vocabulary, text):
    ((ids, _),) = vocabulary.pieces([text])
    return [vocabulary.rows[i] for i in ids]


letters = st.text("abc", min_size=1, max_size=3)
words = st.text("aBc", min_size=1, max_size=8) | st.sampled_from(["a" * 100, "b" * 101, "[PAD]", "\u00e9", "x"])


@given(pieces=st.sets(letters | letters.map("##{}".format)), table=st.lists(words, min_size=1))
@example(pieces={"aab", "aa", "c", "##bc"}, table=["aabc", "aa", "cbc"])  # aab-c is unknown: not aa-bc without aab
def test_texts_of_the_table_s_words_keep_their_pieces(tmp_path_factory, pieces, table):
    whole = Vocabulary.from_file(write_vocabulary(tmp_path_factory.mktemp("bert"), [*SPECIAL, *pieces]) / "vocab.txt")
    text = " ".join(table[::-1])
    assert spelled(whole.restricted_to(table), text) == spelled(whole, text)


def test_what_is_kept_by_hand(tmp_path):
    single = ["a", "z", "\u00e9", "\u042f", "7", "-", "##a", "##z", "##\u00e9", "##\u042f"]
    others = ["dress", "##es", "bag", "caf\u00e9", "na", "##zz"]
    whole = Vocabulary.from_file(write_vocabulary(tmp_path, [*BERT_ORDER, *others, *single, "Bag"]) / "vocab.txt")
    used = whole.restricted_to(["caf\u00e9 dresses"])
    kept = [piece for piece in others + single if piece not in ("bag", "na", "##zz", "\u042f", "##\u042f")]
    assert used.rows == [*SPECIAL, *kept]
    assert spelled(used, "azz") == ["a", "##z", "##z"]  # a word of no text
    assert spelled(used, "Dress") == ["[UNK]"]  # cased still, though no piece left has an uppercase letter


def test_a_catalogue_s_pieces_are_looked_for_once(tmp_path):
    said, products = [], make_products(4)
    table = write_parquet(tmp_path / "table.parquet", products)
    bert = write_vocabulary(tmp_path / "bert", [*BERT_ORDER, "dress", "silk", "train"])

    def make(bert=bert, text=("title",)):
        data = DataConfig(train=str(table), columns=Columns(text=text), prepared=str(tmp_path / "prepared"))
        model = ModelConfig(pretrained=str(bert), vocabulary="used")
        return make_vocabulary(Config(data=data, model=model), said.append)

    assert make().rows == make().rows == [*SPECIAL, "dress", "silk"]
    assert len(said) == 1
    other = write_vocabulary(tmp_path / "other", [*SPECIAL, "silk", "dress"])
    assert make(other).rows == [*SPECIAL, "silk", "dress"]
    assert make(text=("category",)).rows == [*SPECIAL, "dress"]
    write_parquet(table, [product | {"title": " "} for product in products])
    with pytest.raises(ValueError, match="table.parquet has no text in 'title' .* 'used' .*config.data.columns.text"):
        make()


cells = st.lists(
    st.text("aAbΣ\u00e9\u0301\u0130\u4e2d\uac00.,-'#[] \t\u200b\u00ad\ufb01\U0001f457", max_size=12)
    | st.sampled_from(["[PAD]", "[MASK] a", "a[SEP]b", "b" * 101, "nan", "\u0301", "\u200b"])
    | st.text(max_size=8)
    | st.none(),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module", params=["a", "A"], ids=["lowercase", "cased"])
def mixed(request, tmp_path_factory):
    pieces = [*SPECIAL, request.param, "##a", "b", "##b", "e", "\u4e2d", ".", "-", "##\u0301", "fi", "\u1100"]
    return Vocabulary.from_file(write_vocabulary(tmp_path_factory.mktemp("mixed"), pieces) / "vocab.txt")


@given(cells=cells)
@example(cells=["a.", None, "-b", ""])
@example(cells=["\u200b", "[PAD] a", "\u0301b"])
def test_a_column_has_the_pieces_of_its_own_text(mixed, cells):
    names = tuple(f"text {number}" for number in range(len(cells)))
    columns = Columns(id="id", text=names, category="id")
    found = describe({"id": "1", **dict(zip(names, cells, strict=True))}, columns, "")
    if not isinstance(found, Product):
        assert found.reason == "empty text"
        return
    starts = [0, *found.column_ends[:-1]]
    alone = [found.text[slice(*bounds)] for bounds in zip(starts, found.column_ends, strict=True)]
    assert [text.strip() for text in alone] == [" ".join((cell or "").split()) for cell in cells]
    ((ids, word_ids, ends),) = mixed.pieces_of_columns([found.text], [found.column_ends])
    assert [(ids, word_ids)] == mixed.pieces([found.text])
    each = [ids for ids, _ in mixed.pieces(alone)]
    assert ids == sum(each, [])
    assert ends == list(itertools.accumulate(map(len, each)))
