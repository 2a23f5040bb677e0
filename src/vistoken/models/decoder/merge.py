"""How the plans of several mechanisms for one layer become one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations

from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.models.decoder.plan import (
    STOCK_LAYER,
    FfnChannels,
    Inject,
    LayerPlan,
    Rotary,
    RowHeads,
    ScoreRequest,
)


def merge_plans(plans: Iterable[LayerPlan]) -> LayerPlan:
    """Combine the plans of several mechanisms for one layer.

    Args:
        plans: In the order of the stack.

    Returns:
        One plan, by the rules of :class:`~vistoken.models.decoder.plan.LayerPlan`.

    Raises:
        UsageError: If two plans inject into the same row, cut heads or the FFN of the same row, ask
            for scores under one name, or both replace the rotary tables.
    """
    merged = STOCK_LAYER
    for plan in plans:
        if plan is STOCK_LAYER or plan.is_trivial:
            continue
        merged = plan if merged is STOCK_LAYER else _merge_two(merged, plan)
    return merged


def _merge_two(first: LayerPlan, second: LayerPlan) -> LayerPlan:
    return LayerPlan(
        mask=_join(first.mask, second.mask, Tensor.__and__),
        key_bias=_join(first.key_bias, second.key_bias, Tensor.__add__),
        mask_or=_join(first.mask_or, second.mask_or, Tensor.__or__),
        query_rows=_join(first.query_rows, second.query_rows, Tensor.__and__),
        ffn_rows=_ffn_rows(first, second),
        inject=_joined_injections(first.inject + second.inject),
        head_value_keep=_join(first.head_value_keep, second.head_value_keep, Tensor.__mul__),
        head_out_keep=_join(first.head_out_keep, second.head_out_keep, Tensor.__mul__),
        row_heads=_joined_heads(first.row_heads + second.row_heads),
        ffn_channels=_joined_channels(first.ffn_channels + second.ffn_channels),
        position_embeddings=_one_rotary(first.position_embeddings, second.position_embeddings),
        cache_write=_join(first.cache_write, second.cache_write, Tensor.__and__),
        need_scores=_joined_scores(first.need_scores + second.need_scores),
    )


def _join(
    first: Tensor | None, second: Tensor | None, combine: Callable[[Tensor, Tensor], Tensor]
) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return combine(first, second)


def _ffn_rows(first: LayerPlan, second: LayerPlan) -> Tensor | None:
    """AND of what each plan means: without ``ffn_rows`` it means its query rows."""
    if first.ffn_rows is None and second.ffn_rows is None:
        return None  # the merged query rows are the default again
    own = [p.query_rows if p.ffn_rows is None else p.ffn_rows for p in (first, second)]
    return _join(own[0], own[1], Tensor.__and__)


def _joined_injections(parts: tuple[Inject, ...]) -> tuple[Inject, ...]:
    for one, other in combinations(parts, 2):
        if bool((one.rows & other.rows).any()):
            raise UsageError(
                "two decoder mechanisms inject keys and values into the same rows; use one of them."
            )
    return parts


def _joined_heads(parts: tuple[RowHeads, ...]) -> tuple[RowHeads, ...]:
    for one, other in combinations(parts, 2):
        if bool((one.rows & other.rows).any()):
            raise UsageError(
                "two entries of row_heads cut the heads of the same rows; use one of the "
                "mechanisms, or let their rows differ."
            )
    return parts


def _joined_channels(parts: tuple[FfnChannels, ...]) -> tuple[FfnChannels, ...]:
    for one, other in combinations(parts, 2):
        if bool((one.rows & other.rows).any()):
            raise UsageError(
                "two entries of ffn_channels cut the FFN of the same rows; use one of the "
                "mechanisms, or let their rows differ."
            )
    return parts


def _joined_scores(parts: tuple[ScoreRequest, ...]) -> tuple[ScoreRequest, ...]:
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"scores are asked for twice under the name {name!r}; name requests "
                "'<mechanism>/<what>'."
            )
    return parts


def _one_rotary(first: Rotary | None, second: Rotary | None) -> Rotary | None:
    if first is not None and second is not None:
        raise UsageError(
            "two decoder mechanisms replace the rotary positions of one layer; use one of them."
        )
    return second if first is None else first
