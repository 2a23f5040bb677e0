"""Text while it comes: the pieces make the whole, characters stay whole, stops hold."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vistoken.serve.engine.text import TextStream


class Bytes:
    """A tokenizer of single bytes; 256 and above are special and silent."""

    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(max_size=30),
    specials=st.lists(st.integers(0, 200), max_size=3),
    stops=st.lists(st.text(min_size=1, max_size=3), max_size=3),
)
def test_pieces_make_the_whole_up_to_the_first_stop(text, specials, stops):
    text = text.replace("\ufffd", "?")
    tokens = list(text.encode("utf-8", "ignore"))
    text = bytes(tokens).decode()
    for place in specials:
        tokens.insert(place % (len(tokens) + 1), 256)
    stream = TextStream(Bytes(), tuple(stops))
    pieces = []
    for token in tokens:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    else:
        pieces.append(stream.finish())
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    said = "".join(pieces)
    assert "\ufffd" not in "".join(pieces[:-1])
    if not places:
        assert said == text
    else:
        # the answer ends before a stop text, the one that was complete first
        assert stream.stopped
        assert any(said == text[:place] for place in places)


def test_half_a_character_at_the_end_is_shown_as_such():
    stream = TextStream(Bytes())
    said = "".join(stream.push(token) for token in "aé".encode()[:-1])
    assert said == "a"
    assert stream.finish() == "\ufffd"


def test_the_beginning_of_a_stop_text_is_held_back_until_it_is_none():
    stream = TextStream(Bytes(), ("END",))
    assert [stream.push(byte) for byte in b"aENx"] == ["a", "", "", "ENx"]
    assert [stream.push(byte) for byte in b"EN"] == ["", ""]
    assert stream.finish() == "EN"
