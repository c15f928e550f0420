"""Filters of a search: what they become, and what they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from milvus_lite.search.filter.tokens import tokenize

from fbjax.serve.index.where import both, milvus_filter

FIELDS = {"colour": "text", "price": "number"}


@pytest.mark.parametrize(
    "where, expected",
    [
        ("", ""),
        ('colour == "Blue"', 'colour == "Blue"'),
        ("colour == 'it''s'", 'colour == "its"'),  # Python joins strings side by side
        ("price < 50 and not colour != 'Red'", '(price < 50.0) and (not (colour != "Red"))'),
        ('colour in ["Navy \\"x\\""] or price >= -1', '(colour in ["Navy \\"x\\""]) or (price >= -1.0)'),
        ("(price not in (1, 2))", "price not in [1.0, 2.0]"),
    ],
)
def test_a_filter_in_the_words_of_milvus(where, expected):
    assert milvus_filter(where, FIELDS) == expected


@pytest.mark.parametrize(
    "where, said",
    [
        ('color == "Blue"', "no field 'color' among colour, price; did you mean 'colour'?"),
        ("price == 'cheap'", "price holds numbers, not 'cheap'; compare it with a number"),
        ("colour == 3", "colour holds texts, not 3; compare it with text in quotes"),
        ("price < 1e999", "price holds numbers, not"),
        ("price == True", "price holds numbers, not True"),
        ("colour", "'colour' is no comparison"),
        ("1 < price < 2", "is no comparison"),
        ('__import__("os").system("ls")', "is no comparison"),
        ('colour == "Blue" or id != ""', "no field 'id'"),
        ('colour in "Blue"', "give a list"),
        ("colour in []", "give a list"),
        ('colour = "Blue"', "cannot be read: compare fields with values"),
        ("colour == '\ud800'", "cannot be read"),
        ("(" * 5000, "has 5,000 characters"),
        ("not " * 490 + "price < 1", "more than 300 parts"),
    ],
)
def test_what_is_no_filter_is_refused_with_the_remedy(where, said):
    with pytest.raises(ValueError, match=said):
        milvus_filter(where, FIELDS)


@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_a_clear_error(where):
    try:
        milvus_filter(where, FIELDS)
    except ValueError as error:
        assert "filter" in str(error) or "field" in str(error)


@given(st.text(max_size=40))
def test_a_value_stays_a_value_for_the_database(value):
    """Whatever the text, Milvus Lite's own reader sees a field, an operator and this one string."""
    try:
        found = milvus_filter(f"colour == {value!r}", FIELDS)
    except ValueError:
        assert any("\ud800" <= letter <= "\udfff" for letter in value)  # half a surrogate pair is no text
        return
    field, operator, read, *end = tokenize(found)
    assert (field.text, operator.text, read.value, len(end)) == ("colour", "==", value, 1)


def test_filters_are_joined():
    assert both("", 'a == "x"', "b < 1") == '(a == "x") and (b < 1)'
