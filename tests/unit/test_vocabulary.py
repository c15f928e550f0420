"""A vocabulary restricted to what texts use or trained on them in any script, and where the columns of a text end."""

import itertools

import pytest
import tokenizers
import transformers
from hypothesis import example, given
from hypothesis import strategies as st

from fbjax.config.data import Columns, DataConfig
from fbjax.config.schema import Config, ModelConfig
from fbjax.data.sources.base import Product
from fbjax.data.sources.tables import describe
from fbjax.data.text.unknown import measure_unknown
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


def test_a_run_s_vocabulary_is_taken_over_by_its_file(tmp_path):
    trained = Vocabulary.train(["red dress", "blue bag"], 60)
    trained.save(tmp_path / "tokenizer.json")
    assert Vocabulary.from_file(tmp_path / "tokenizer.json").fingerprint == trained.fingerprint


def test_a_catalogue_s_pieces_are_looked_for_once(tmp_path):
    said, products = [], [product | {"title": "silk dress", "category": "dress"} for product in make_products(4)]
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


TRAINED_ON = {  # a text -> its words; "|" stands for no space
    "ชุดเดรสผู้หญิงสีดำ A4": "ชุ|ด|เด|ร|ส|ผู้|ห|ญิ|ง|สี|ดำ A4",
    "เสื้อทั้งวัน": "เสื้|อ|ทั้ง|วัน",
    "ເສື້ອສີແດງສຳລັບ": "ເສື້|ອ|ສີ|ແດ|ງ|ສຳ|ລັບ",
    "အင်္ကျီအနီရောင် မြန်မာ": "အင်္ကျီ|အ|နီ|ရောင် မြန်|မာ",
    "ខ្មែរស្រី": "ខ្មែ|រ|ស្រី",
    "おしゃれなワンピース赤い": "おしゃれな|ワンピース|赤|い",
    "红色T恤": "红|色|T|恤",
    "빨간 원피스": "빨간 원피스",
    "Платье, ёлка": "Платье|, ёлка",
    "लाल कमीज़": "लाल कमीज़",
}


def test_a_trained_vocabulary_cuts_scripts_without_spaces(tmp_path):
    made = Vocabulary.train(TRAINED_ON, 8000)
    made.save(tmp_path / "tokenizer.json")
    exported = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text, words in TRAINED_ON.items():
        assert made.words(text) == words.replace("|", " ").split()
        ((ids, _),) = made.pieces([text])
        assert made.unk_id not in ids
        assert exported(text, add_special_tokens=False).input_ids == ids


def test_a_trained_vocabulary_keeps_the_marks_that_tell_words_apart():
    made = Vocabulary.train([*TRAINED_ON, "バス ハス สี สา café cafe שָׁלוֹם שלום"], 8000)
    ids = {text: made.pieces([text])[0][0] for text in "バス ハス สี สา café cafe שָׁלוֹם שלום".split()}
    assert ids["バス"] != ids["ハス"] and ids["สี"] != ids["สา"]
    assert ids["café"] == ids["cafe"] and ids["שָׁלוֹם"] == ids["שלום"]


@given(
    st.lists(
        st.text("abC\u00e9E\u0301\u0130ёÅ\u4e2d\ufe0f❤ .,-'#[]\u200b\u00adΣς\uac00ش\u064e", max_size=20), min_size=1
    )
)
def test_elsewhere_a_trained_vocabulary_spells_as_bert(texts):
    made = Vocabulary.train(texts, 100)
    bert = tokenizers.BertWordPieceTokenizer({piece: row for row, piece in enumerate(made.rows)}, lowercase=True)
    for text, (ids, word_ids) in zip(texts, made.pieces(texts), strict=True):
        expected = bert.encode(text, add_special_tokens=False)
        assert (ids, word_ids) == (expected.ids, expected.word_ids)


def test_a_letter_that_began_no_word_may_begin_one():
    made = Vocabulary.train(["ab ab", "ac"], 100)
    assert spelled(made, "cab b ##a") == ["c", "##a", "##b", "b", "[UNK]", "[UNK]", "a"]


SCRIPTS = {
    "Latin": "abcdeéñß",
    "Cyrillic": "абвгдйё",
    "Arabic": "شعبمدنَ",
    "Devanagari": "कखगिीु्",
    "Thai": "กขคสดเแิีุ่้าะ",
    "Lao": "ກຂຄເແິີຸ່້າ",
    "Khmer": "កខគ្ាិីុ",
    "Burmese": "ကခဂင်္ျိီုာ",
    "Han": "红色连衣裙女士夏季新款",
    "kana": "かわいいワンピーズ゚ー",
    "Hangul": "빨간원피스",
    "emoji": "👗❤️👠",
}
CUT = {"Thai", "Lao", "Khmer", "Burmese", "Han"}


@given(data=st.data(), name=st.sampled_from(sorted(SCRIPTS)), known=st.sampled_from([*sorted(SCRIPTS), ""]))
def test_texts_of_any_script_are_known_or_said_to_be_unknown(data, name, known):
    """`known`: the script that the vocabulary was trained on; "": on the texts themselves."""
    words = st.text(SCRIPTS[name], min_size=1, max_size=150).filter(str.strip)
    texts = data.draw(st.lists(st.lists(words, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=8))
    made = Vocabulary.train(texts if not known else [f"{x} {x}{x}" for x in SCRIPTS[known]], 8000)
    unknown = measure_unknown(made, texts)
    of_texts = [[piece != made.unk_id for piece in ids] for ids, _ in made.pieces(texts)]
    readable = sum(any(known) for known in of_texts)
    assert unknown.too_many or readable >= len(texts) / 2
    if not known and name in CUT:
        assert unknown.pieces == 0
    if known and not set(SCRIPTS[name]) & set(SCRIPTS[known]):
        assert unknown.too_many or not any("".join(texts))


def test_a_table_that_its_vocabulary_does_not_know_is_refused_before_it_is_prepared(tmp_path):
    table = tmp_path / "table.csv"
    rows = "".join(f"{i},红色真丝连衣裙 {i},dress,{i}.jpg\n" for i in range(9))
    table.write_text(f"id,title,category,image\n{rows}", encoding="utf-8")
    english = write_vocabulary(tmp_path / "english", [*SPECIAL, "dress", *"0123456789"]) / "vocab.txt"

    def make(vocabulary):
        data = DataConfig(train=str(table), prepared=str(tmp_path / "prepared"))
        return make_vocabulary(Config(data=data, model=ModelConfig(vocabulary=vocabulary)), str)

    with pytest.raises(ValueError, match=r"87.5% of the word pieces .* 100.0% of the texts .*vocabulary='train:8000'"):
        make(str(english))
    assert make("train:8000").unk_id not in make("train:8000").pieces(["红色真丝连衣裙"])[0][0]


@pytest.mark.parametrize("size", ["999999999999", "0", "-1", "abc", "5", "", "1e4", "²", "8000 "])
def test_a_size_that_no_vocabulary_can_have_is_refused(size):
    config = Config(model=ModelConfig(vocabulary=f"train:{size}"))
    with pytest.raises(ValueError, match=f"'train:{size}': write 'train:8000' .* from 50 to 1,000,000"):
        make_vocabulary(config, str)


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
