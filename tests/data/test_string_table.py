"""A table of strings does what a dict does, in a fraction of its memory."""

from hypothesis import given
from hypothesis import strategies as st

from vistoken.data import string_table
from vistoken.data.string_table import StringTable

TEXTS = st.text(alphabet="ab\0é\ud83d", max_size=4)


@given(st.lists(st.tuples(TEXTS, st.integers(0, 2**62))), st.integers(1, 5))
def test_a_string_has_the_number_it_came_with_first(pairs, recent):
    table, expected = StringTable(recent), {}
    for text, number in pairs:
        assert table.get(text) == expected.get(text)
        if text not in expected:
            table.add(text, number)
            expected[text] = number
    assert len(table) == len(expected)
    assert {text: table.get(text) for text in expected} == expected


@given(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1))
def test_hashes_that_end_in_zeros_are_found(texts):
    digest = string_table._digest
    try:
        string_table._digest = lambda text: text.encode().ljust(12, b"\0")
        table = StringTable(1)
        for text in texts:
            assert table.get(text) is None
            table.add(text, ord(text))
        assert [table.get(text) for text in texts] == [ord(text) for text in texts]
    finally:
        string_table._digest = digest
