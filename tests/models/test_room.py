"""What counts against a language model's positions, row by row."""

from __future__ import annotations

import pytest
import torch

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, TextRole, TokenKind
from vistoken.models.decoder import SequenceState, SparseCache
from vistoken.models.room import Room

HIDDEN = torch.zeros(2, 6, 1)
COUNTED = torch.arange(6).expand(2, -1)
ALL = torch.ones(2, 6, dtype=torch.bool)
PICTURES = torch.tensor([[False, True, True, False, False, False]] * 2)


def room(positions):
    return Room(positions, ["buy more"], PICTURES)


def fits(positions, state, keep=None):
    """Whether the prompts fit; what they are told otherwise."""
    try:
        room(positions).check_prompts(state, keep)
    except UsageError as error:
        return str(error)
    return True


def test_a_prompt_may_fill_all_positions():
    state = SequenceState(HIDDEN, COUNTED, ALL, cache=SparseCache(1))
    assert fits(6, state) is True
    assert fits(5, state) == (
        "prompt 0 has 2 visual tokens and 4 of text, which take 6 positions, and the language "
        "model has 5 positions; for fewer tokens or more room, buy more"
    )
    assert fits(None, state) is True


def test_samples_that_share_a_row_count_each():
    state = SequenceState(HIDDEN, COUNTED % 3, ALL, cache=SparseCache(1))
    assert fits(3, state) is True
    assert "take 3 positions" in fits(2, state)


def test_padding_does_not_count():
    valid = ALL.clone()
    valid[:, 4:] = False
    state = SequenceState(HIDDEN, COUNTED, valid, cache=SparseCache(1))
    assert fits(4, state) is True
    assert "2 visual tokens and 2 of text, which take 4" in fits(3, state)


def test_rows_left_out_do_not_count_where_positions_are_counted_anew():
    keep = ALL.clone()
    keep[0, 1] = False
    state = SequenceState(HIDDEN, COUNTED, ALL, cache=SparseCache(1))
    assert fits(5, state, keep).startswith("prompt 1 has 2 visual tokens and 4 of text, which take")
    keep[1, 2] = False
    assert fits(5, state, keep) is True
    assert "which take 5 positions" in fits(4, state, keep)


def test_an_answer_is_not_part_of_the_prompt_where_there_is_no_cache():
    role = torch.tensor([TextRole.USER] * 4 + [TextRole.ASSISTANT] * 2).expand(2, -1)
    table = TOKEN.make(12, kind=TokenKind.TEXT).unflatten(0, (2, 6))
    table = TOKEN.set(table, role=role)
    assert fits(4, SequenceState(HIDDEN, COUNTED, ALL, table)) is True
    assert "take 4 positions" in fits(3, SequenceState(HIDDEN, COUNTED, ALL, table))
    cached = SequenceState(HIDDEN, COUNTED, ALL, table, cache=SparseCache(1))
    assert "take 6 positions" in fits(4, cached)


def test_positions_that_a_cache_counts_by_itself():
    cache = SparseCache(1)
    cache.set_next_positions(torch.tensor([3, 0]))
    state = SequenceState(HIDDEN, COUNTED, ALL, cache=cache)
    assert fits(9, state) is True
    assert "prompt 0" in fits(8, state)


def test_positions_are_counted_where_none_are_given():
    room(6).check_call(HIDDEN, None, None, None, None)
    with pytest.raises(UsageError, match="take 6 positions"):
        room(5).check_call(HIDDEN, None, None, None, None)
