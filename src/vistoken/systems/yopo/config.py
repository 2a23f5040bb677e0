"""Options of the decoder mechanism ``yopo``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from vistoken.core.tables import TokenKind

logger = logging.getLogger(__name__)

Mode = Literal["exact", "drop", "training_free"]

_NEVER_VISUAL = (TokenKind.TEXT, TokenKind.PAD)


@dataclass(frozen=True)
class YopoConfig:
    """Options of ``yopo``.

    Args:
        mode: ``exact``: what the released LLaVA checkpoints were trained with; probabilities of
            visual keys are set to zero after the softmax, and every row runs through every layer.
            ``drop``: real savings; heads do not see visual keys, and visual rows leave the
            sequence and the caches at ``layer_cut``. ``training_free``: for models that were not
            trained for it; heads as in ``exact`` but visual rows compute all of theirs, layers as
            in ``drop``, neither ``window`` nor ``mlp_ratio``.
        window: Side of the square of neighbours that a visual token attends to on its grid, odd;
            None leaves attention among visual tokens as it is.
        causal_local: Neighbours that come later in the sequence stay hidden, whereas the released
            code shows them.
        layer_cut: First layer without visual computation; None cuts none.
        head_keep: One string of 0 and 1 per layer, one digit per attention head: 1 where the head
            computes for visual tokens. Lists of 0 and 1 are taken too. None keeps every head.
        mlp_ratio: Visual rows use the first 1/``mlp_ratio`` of the feed-forward channels.
        kinds: Kinds of tokens that count as visual; the others (spatial tokens, newlines) are
            computed like text.
    """

    mode: Mode = "drop"
    window: int | None = None
    causal_local: bool = False
    layer_cut: int | None = None
    head_keep: tuple[str, ...] | None = None
    mlp_ratio: int = 1
    kinds: tuple[str, ...] = ("visual", "thumbnail")

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if self.layer_cut is not None and self.layer_cut < 0:
            raise ValueError(f"layer_cut must be at least 0, got {self.layer_cut}")
        if self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio must be at least 1, got {self.mlp_ratio}")
        object.__setattr__(self, "kinds", _kinds(self.kinds))
        if self.window is not None:
            object.__setattr__(self, "window", _odd(self.window))
        if self.head_keep is not None:
            object.__setattr__(self, "head_keep", digits(self.head_keep))
        if self.mode == "training_free" and (self.window is not None or self.mlp_ratio != 1):
            raise ValueError("mode training_free takes neither window nor mlp_ratio; use drop")

    @property
    def token_kinds(self) -> tuple[TokenKind, ...]:
        """The kinds that count as visual."""
        return tuple(TokenKind[kind.upper()] for kind in self.kinds)

    def options(self) -> dict[str, Any]:
        """What differs from the defaults, as plain data for a configuration file."""
        plain: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                plain[field.name] = list(value) if isinstance(value, tuple) else value
        return plain


def digits(rows: Iterable[str | Sequence[int | bool]]) -> tuple[str, ...]:
    """A head mask as one string of 0 and 1 per layer.

    Args:
        rows: Strings, or sequences of 0 and 1.

    Raises:
        ValueError: Another value, no layer, or layers of different lengths.
    """
    if isinstance(rows, str):
        raise ValueError(
            "head_keep must be a list with one entry per layer; a mask file is given to "
            "'vistoken prune --set mask=FILE'"
        )
    text = tuple(row if isinstance(row, str) else "".join(str(int(v)) for v in row) for row in rows)
    if not text or not text[0] or any(len(row) != len(text[0]) for row in text):
        raise ValueError("head_keep must have one entry per layer, all with as many digits")
    if any(set(row) - {"0", "1"} for row in text):
        raise ValueError("head_keep may hold 0 and 1 only")
    return text


def _kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    known = [kind.name.lower() for kind in TokenKind if kind not in _NEVER_VISUAL]
    if isinstance(kinds, str) or not kinds or any(kind not in known for kind in kinds):
        raise ValueError(f"kinds must be a list out of {', '.join(known)}, got {kinds!r}")
    return tuple(kinds)


def _odd(window: int) -> int:
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if window % 2:
        return window
    logger.warning(
        "yopo: an even window has no centre; window %d is read as %d", window, window - 1
    )
    return window - 1
