"""The ``uhd-schema`` layout: "," between slices of a row, a newline behind each row of slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.parts import Layout, ViewMap
from vistoken.core.tables import TOKEN, VIEW, TokenKind
from vistoken.systems.llava_uhd.config import UhdSchemaConfig

_COMMA, _NEWLINE = -1, -2  # rows looked up in the language model's table, as `arrange` names them
_LETTER = "a"


class UhdSchema(Layout):
    """Slices row-major, each followed by its separator, then the views that are no slices.

    The separators are the language model's own embeddings of "," and newline, so gradients reach
    its table where it is trained. The last slice has its newline too. A picture without slices
    has no separators.

    Source: arXiv 2403.11703 section 3.3; thunlp/LLaVA-UHD, branch LLaVA-UHD-v1.
    """

    config_class = UhdSchemaConfig
    looked_up_rows = 2

    @classmethod
    def options_for(
        cls, options: Mapping[str, Any], tokenizer: Any, positions: int | None
    ) -> dict[str, Any]:
        """Fill in the separators' ids and the language model's length.

        Raises:
            UsageError: The tokenizer writes a separator as several tokens.
        """
        found = {
            "comma_id": separator_id(tokenizer, ","),
            "newline_id": separator_id(tokenizer, "\n"),
            "max_tokens": positions,
        }
        given = {name: value for name, value in options.items() if value is not None}
        for name in ("comma_id", "newline_id"):
            if given.get(name, found[name]) != found[name]:
                raise UsageError(
                    f"uhd-schema: {name} is {given[name]}, the tokenizer has {found[name]}; leave "
                    "the option out"
                )
        return {**found, **given}

    def vocabulary_ids(self) -> tuple[int, ...]:
        """Ids of "," and newline.

        Raises:
            UsageError: Nobody has filled them in.
        """
        config: UhdSchemaConfig = self.config
        if config.comma_id is None or config.newline_id is None:
            raise UsageError(
                "uhd-schema does not know the ids of ',' and newline; build the model from a "
                "recipe with a tokenizer, or set comma_id and newline_id"
            )
        return config.comma_id, config.newline_id

    @classmethod
    def arrange(
        cls, config: UhdSchemaConfig, view_table: Tensor, maps: list[ViewMap]
    ) -> tuple[Tensor, Tensor]:
        """Slices with separators, then the rest."""
        tokens = torch.cat([m.tokens for m in maps])
        counts = torch.tensor([len(m.tokens) for m in maps])
        members = torch.arange(len(tokens)).split(counts.tolist())
        places = [_place(m) for m in maps]
        sliced = [number for number, place in enumerate(places) if place is not None]
        _check_tilings([places[number] for number in sliced])
        order: list[Tensor] = []
        for number in sorted(sliced, key=lambda n: places[n] or ()):
            _, _, col, _, cols = places[number] or (0,) * 5
            separator = _NEWLINE if col == cols - 1 else _COMMA
            order += [members[number], torch.tensor([separator])]
        order += [members[n] for n, place in enumerate(places) if place is None]
        joined = torch.cat(order)
        _check_length(config, view_table, len(joined), len(sliced))
        return joined, _token_map(tokens, joined)


def separator_id(tokenizer: Any, text: str) -> int:
    """Id of a separator as it stands behind a word.

    Some tokenizers put a word mark before a text of its own, so it is read behind a letter.

    Raises:
        UsageError: It is not one token there.
    """
    alone: list[int] = tokenizer.encode(_LETTER, add_special_tokens=False)
    both: list[int] = tokenizer.encode(_LETTER + text, add_special_tokens=False)
    if both[:-1] != alone:
        raise UsageError(
            f"uhd-schema: the tokenizer does not write {text!r} as one token "
            f"(ids {both} for {_LETTER + text!r}); use the layout 'plain' with this language model"
        )
    return int(both[-1])


def _place(view_map: ViewMap) -> tuple[int, int, int, int, int] | None:
    """(group, row, col, rows, cols) of a view of a tiling; None of any other view."""
    group, row, col, rows, cols = (
        int(VIEW.get(view_map.view, name).item())
        for name in ("group", "row", "col", "rows", "cols")
    )
    return (group, row, col, rows, cols) if rows * cols > 1 else None


def _check_tilings(places: list[tuple[int, int, int, int, int] | None]) -> None:
    """Every cell of every tiling once, or separators would stand in wrong places."""
    tilings = {(p[0], p[3], p[4]) for p in places if p is not None}
    wanted = {
        (group, row, col, rows, cols)
        for group, rows, cols in tilings
        for row in range(rows)
        for col in range(cols)
    }
    if len(places) != len(wanted) or set(places) != wanted:
        raise UsageError(
            f"uhd-schema needs every slice of a picture once, got {len(places)} of {len(wanted)}; "
            "use the layout 'plain' with these views"
        )


def _check_length(config: UhdSchemaConfig, view_table: Tensor, tokens: int, slices: int) -> None:
    if config.max_tokens is None or tokens < config.max_tokens:
        return
    height, width = (int(VIEW.get(view_table[0], f"orig_{side}")) for side in ("height", "width"))
    raise UsageError(
        f"a picture of {height}x{width} pixels becomes {tokens} visual tokens ({slices} slices), "
        f"and the language model has {config.max_tokens} positions; lower max_slices of the views, "
        "set their longest_side or overview_only, give the resampler a smaller grid, or take a "
        "language model of more positions"
    )


def _token_map(tokens: Tensor, order: Tensor) -> Tensor:
    """Rows of ``tokens`` by ``order``; a separator takes place and time from the one before."""
    learned = order < 0
    before = order.clone()
    before[learned] = order[torch.nonzero(learned).flatten() - 1]
    placed = tokens[before]
    newline = order == _NEWLINE
    separators = TOKEN.make(
        len(order),
        kind=torch.where(newline, int(TokenKind.NEWLINE), int(TokenKind.SEPARATOR)),
        learned=newline.long(),
        **{c: TOKEN.get(placed, c) for c in ("group", "frame0", "frame1", "t0", "t1", "row")},
    )
    return torch.where(learned[:, None], separators, placed)
