"""Projections of attention for rows that compute in some heads only.

B batch, n rows, q query rows, H query heads, G key/value heads, E head size, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from vistoken.core.errors import UsageError
from vistoken.models.decoder.cut_linear import from_some_inputs, some_outputs
from vistoken.models.decoder.families import LayerModules
from vistoken.models.decoder.plan import LayerPlan, ReadyKV
from vistoken.models.decoder.rows import RowSet
from vistoken.models.decoder.state import SequenceState


def head_cut(
    parts: LayerModules, plan: LayerPlan, queries: RowSet | None, state: SequenceState
) -> HeadCut | None:
    """Prepare the cut of a layer; None where its plan cuts no head.

    Args:
        parts: The layer's modules.
        plan: Its plan.
        queries: The query rows; None for all.
        state: The layer's input.

    Raises:
        UsageError: If the cut contradicts itself, the rest of the plan, or the layer.
    """
    if not plan.row_heads:
        return None
    query_heads, shared = head_counts(parts)
    for cut in plan.row_heads:
        _check_shapes(cut.rows, cut.heads, state.valid, query_heads, parts.number)
    rows = tuple(cut.rows for cut in plan.row_heads)
    ready = tuple(part.rows for part in plan.inject if isinstance(part.source, ReadyKV))
    asking = None if queries is None else queries.mask

    def find() -> tuple[list[Tensor], list[Tensor]]:
        owner = _owners(rows, state.valid, parts.number)
        keyed = owner.clone()
        for taken in ready:
            keyed[taken.expand_as(owner)] = _NOBODY
        if queries is not None:
            owner = queries.gather(owner, dim=1)
            owner[~queries.real.to(owner.device)] = _NOBODY
        return _places(owner, len(rows)), _places(keyed, len(rows))

    asking_places, key_places = state.memo.get("row_heads", (asking, *rows, *ready), find)
    _check_scores(plan, state)
    groups = query_heads // shared
    kept = [torch.nonzero(cut.heads).flatten() for cut in plan.row_heads]
    read = [torch.unique(heads // groups) for heads in kept]
    return HeadCut(
        parts,
        [_Piece(places, heads) for places, heads in zip(asking_places, [*kept, None], strict=True)],
        [_Piece(places, heads) for places, heads in zip(key_places, [*read, None], strict=True)],
        query_heads,
        shared,
    )


def head_counts(parts: LayerModules) -> tuple[int, int]:
    """Query heads and key/value heads of a layer, whose heads must be all of one size.

    Raises:
        UsageError: If its projections do not consist of such heads.
    """
    sizes = [_size(part, "out_features") for part in (parts.q_proj, parts.k_proj, parts.v_proj)]
    query, key, value = sizes
    fits = query == _size(parts.o_proj, "in_features") and key == value
    if not fits or key == 0 or query % key or key % parts.head_dim:
        raise UsageError(
            f"row_heads cannot cut layer {parts.number}: its projections to {query}, {key} and "
            f"{value} channels are not made of heads of {parts.head_dim}."
        )
    return query // parts.head_dim, key // parts.head_dim


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Rows, by their numbers in the flattened batch, and their heads; None for all heads."""

    places: Tensor
    heads: Tensor | None


class HeadCut:
    """The projections of one layer, each row in its heads.

    Args:
        parts: The layer's modules.
        asking: Its query rows, among all B * q.
        keyed: Its rows whose keys and values are worked out, among all B * n.
        heads: Query heads.
        shared: Key/value heads.
    """

    def __init__(
        self,
        parts: LayerModules,
        asking: list[_Piece],
        keyed: list[_Piece],
        heads: int,
        shared: int,
    ) -> None:
        self._parts, self._asking, self._keyed = parts, asking, keyed
        self._heads, self._shared = heads, shared
        self._where = f"the attention of layer {parts.number}"

    def queries(self, rows: Tensor) -> Tensor:
        """Queries (B, q, H, E) before rotation of rows (B, q, D); 0 in heads left out."""
        flat = rows.flatten(0, 1)
        parts = self._parts
        query = self._split(parts.q_proj, parts.q_norm, flat, self._asking, self._heads)
        return query.unflatten(0, rows.shape[:2])

    def keys_and_values(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before rotation and values (N, G, E) of all rows (N, D); 0 where left out."""
        parts = self._parts
        keys = self._split(parts.k_proj, parts.k_norm, rows, self._keyed, self._shared)
        return keys, self._split(parts.v_proj, None, rows, self._keyed, self._shared)

    def output(self, heads: Tensor) -> Tensor:
        """Output projection (B, q, D) of heads (B, q, H, E), of which those left out are 0."""
        flat, projection = heads.flatten(0, 1), self._parts.o_proj
        pieces: list[tuple[Tensor, Tensor]] = []
        for piece in self._asking:
            if len(piece.places) == 0:
                continue
            places = piece.places.to(flat.device)
            picked = flat[places]
            if piece.heads is None:
                change = projection(picked.flatten(1))
            else:
                kept = piece.heads.to(flat.device)
                given = picked[:, kept].flatten(1)
                change = from_some_inputs(projection, given, self._channels(kept), self._where)
            pieces.append((places, change))
        example = pieces[0][1] if pieces else flat
        result = example.new_zeros(len(flat), _size(projection, "out_features"))
        for places, change in pieces:
            result = result.index_copy(0, places, change)
        return result.unflatten(0, heads.shape[:2])

    def _split(
        self,
        projection: nn.Module,
        norm: nn.Module | None,
        rows: Tensor,
        pieces: list[_Piece],
        heads: int,
    ) -> Tensor:
        """Heads (N, heads, E) of all rows (N, D), worked out piece by piece."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for piece in pieces:
            places = piece.places.to(rows.device)
            if len(places) == 0 or (piece.heads is not None and len(piece.heads) == 0):
                continue
            if piece.heads is None:
                projected, kept = projection(rows[places]), torch.arange(heads, device=rows.device)
            else:
                kept = piece.heads.to(rows.device)
                channels = self._channels(kept)
                projected = some_outputs(projection, rows[places], channels, self._where)
            found.append((places, kept, self._parts.heads(projected, norm)))
        example = found[0][2] if found else rows
        result = example.new_zeros(len(rows), heads, self._parts.head_dim)
        for places, kept, split in found:
            result = result.index_put((places[:, None], kept[None]), split)
        return result

    def _channels(self, heads: Tensor) -> Tensor:
        size = self._parts.head_dim
        return (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()


_NOBODY = -1


def _owners(rows: tuple[Tensor, ...], valid: Tensor, number: int) -> Tensor:
    """Number (B, n) of the entry that each row belongs to, behind the last for all others."""
    for one, other in combinations(rows, 2):
        if bool((one & other).any()):
            raise UsageError(
                f"two entries of row_heads cut the heads of the same rows in layer {number}; name "
                "each row once."
            )
    owner = torch.full(valid.shape, len(rows), device=rows[0].device)
    for entry, chosen in enumerate(rows):
        owner[chosen.expand_as(owner)] = entry
    return owner


def _places(owner: Tensor, entries: int) -> list[Tensor]:
    flat = owner.flatten()
    return [torch.nonzero(flat == entry).flatten() for entry in range(entries + 1)]


def _check_shapes(rows: Tensor, heads: Tensor, valid: Tensor, total: int, number: int) -> None:
    fits = rows.dim() == 2 and rows.shape[0] in (1, len(valid)) and rows.shape[1] == valid.shape[1]
    if not fits or heads.shape != (total,) or heads.dtype != torch.bool:
        raise UsageError(
            f"a mechanism's row_heads has rows {tuple(rows.shape)} and heads {tuple(heads.shape)} "
            f"({heads.dtype}) but layer {number} has {tuple(valid.shape)} rows and {total} heads; "
            "both are boolean."
        )


def _check_scores(plan: LayerPlan, state: SequenceState) -> None:
    """Scores of queries and keys that are not worked out would be numbers without a meaning."""
    for request in plan.need_scores:
        new = request.cols[:, -state.valid.shape[1] :]
        for cut in plan.row_heads:
            asks = bool((request.rows & cut.rows).any())
            if asks or (request.kind == "logits" and bool((new & cut.rows).any())):
                raise UsageError(
                    f"the score request {request.name!r} names rows whose heads another plan "
                    "leaves out; leave one of the two mechanisms out."
                )


def _size(linear: nn.Module, name: str) -> int:
    return int(getattr(linear, name))
