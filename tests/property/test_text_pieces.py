"""Text that leaves piece by piece: characters are whole, stop strings never show, and the pieces are the whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from server.engine.genai.detokenize import Lookup, Window, detokenizers
from server.engine.genai.stops import StopStrings
from tests.support.writing import FOLDER

ALPHABET = "abé→😀 "


def decode(vocabulary: Sequence[bytes]):
    return lambda tokens: b"".join(vocabulary[token] for token in tokens).decode(errors="replace")


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    ends = [end for end in accumulate(sizes) if end < len(data)]
    return [part for a, b in zip([0, *ends], [*ends, len(data)], strict=True) if (part := data[a:b])]


sizes = st.lists(st.integers(1, 5), min_size=40, max_size=60)


@given(st.text(ALPHABET, max_size=40), sizes)
def test_valid_text_cut_anywhere_comes_whole_and_in_whole_characters(text: str, sizes: list[int]) -> None:
    """Tokens are any pieces of the UTF-8; no piece of text has a broken character."""
    parts = cut(text.encode(), sizes)
    detokenizer = Window(decode(parts))
    told = [detokenizer.push(token) for token in range(len(parts))]
    assert all("\ufffd" not in piece for piece in told)
    assert "".join(told) == text


@given(st.binary(max_size=60), sizes)
def test_bytes_that_make_no_text_are_told_as_a_decoder_tells_them(data: bytes, sizes: list[int]) -> None:
    """But for what is not whole at the very end."""
    parts = cut(data, sizes)
    detokenizer = Window(decode(parts))
    told = "".join([detokenizer.push(token) for token in range(len(parts))])
    whole = data.decode(errors="replace")
    assert whole.startswith(told)
    assert whole[len(told) :] in ("", "\ufffd")


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(FOLDER / "1" / "tokenizer.json"))
    tokenizer.add_tokens(["→ added", AddedToken("é\u0120", normalized=False)])
    tokenizer.add_special_tokens(["<|special|>"])
    return tokenizer


TOKENIZER = _byte_level()
SIZE = TOKENIZER.get_vocab_size()


@given(st.lists(st.integers(0, SIZE + 2), max_size=60), st.booleans())
def test_tokens_that_are_bytes_are_told_as_their_tokenizer_tells_them(tokens: list[int], skip: bool) -> None:
    """In any order: parts of characters, tokens that were added, special ones, and some that there are not."""
    detokenizer = detokenizers(TOKENIZER, skip_special_tokens=skip)()
    assert isinstance(detokenizer, Lookup)
    told = "".join([detokenizer.push(token) for token in tokens])
    whole = TOKENIZER.decode(tokens, skip_special_tokens=skip)
    assert whole.startswith(told)
    # Two where the last bytes are the first ones of a surrogate: Python's decoder waits for the third.
    assert whole[len(told) :] in ("", "\ufffd", "\ufffd\ufffd")


def test_other_tokens_are_decoded_beside_those_before_them() -> None:
    """As of a vocabulary of words, where a space stands between two."""
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}))
    detokenizer = detokenizers(tokenizer, skip_special_tokens=True)()
    assert [detokenizer.push(token) for token in (0, 1, 1)] == ["a", " b", " b"]


@given(st.lists(st.text("ab", max_size=3), max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_where_a_stop_string_first_ends_and_no_part_of_it_shows(
    pieces: list[str], stops: list[str]
) -> None:
    """As a search after every piece of the whole text would find it, wherever the pieces are cut."""
    watch, told, stopped, given_so_far = StopStrings(stops), "", None, ""
    for piece in pieces:
        new = watch.push(piece)
        told += new.text
        given_so_far += piece
        if new.stopped is None:
            beginnings = [stop[:size] for stop in stops for size in range(1, len(stop))]
            held = max([len(one) for one in beginnings if given_so_far.endswith(one)], default=0)
            assert told == given_so_far[: len(given_so_far) - held], "no more than what may become one is held back"
        else:
            stopped = new.stopped
            break
    else:
        told += watch.flush()
    whole = ""
    for piece in pieces:
        whole += piece
        places = [(whole.find(stop), -len(stop)) for stop in stops if stop in whole]
        if places:
            at, length = min(places)
            assert (told, stopped) == (whole[:at], whole[at : at - length])
            return
    assert (told, stopped) == (whole, None)


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=4))
def test_a_stop_string_that_is_to_show_shows_whole(text: str, stop: str) -> None:
    """`include`: the text ends behind it."""
    watch, told = StopStrings([stop], include=True), ""
    for character in text:
        new = watch.push(character)
        told += new.text
        if new.stopped is not None:
            break
    else:
        told += watch.flush()
    at = text.find(stop)
    assert told == (text if at < 0 else text[: at + len(stop)])
