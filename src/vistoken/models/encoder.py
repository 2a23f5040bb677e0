"""Running vision towers: pixels of any views -> feature maps, one per tower and anchor view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistoken.core.parts import Grid
from vistoken.core.tables import VIEW
from vistoken.models.pipeline import TowerSpec

FeatureLayer = int | list[int]

_FIXED_POSITIONS = frozenset({"clip_vision_model", "siglip_vision_model", "vit"})
"""Towers that stretch their position table over another picture size only when asked to."""


def tower_features(
    tower: nn.Module, pixels: Tensor, layer: FeatureLayer, stride: int
) -> tuple[Tensor, Tensor]:
    """Selected hidden states of one tower as a feature map.

    Works for towers that give tokens (any number of prefix tokens, then a row-major grid) and
    for those that give maps; several layers are concatenated on channels, coarser maps are
    resized (bilinear) to the finest one first.

    Args:
        tower: A Hugging Face vision model or a house tower.
        pixels (Tensor): (B, 3, H, W).
        layer: Index, or indices, into ``hidden_states``.
        stride: Pixels per grid cell of the result.

    Returns:
        prefix tokens (B, P, C) and the feature map (B, R, C_, C).

    Raises:
        ValueError: The tower's output does not hold a grid of this stride.
    """
    if stride < 1:
        raise ValueError(f"stride must be positive, got {stride}")
    grid = (pixels.shape[-2] // stride, pixels.shape[-1] // stride)
    hidden = hidden_states(tower, pixels)
    layers = [layer] if isinstance(layer, int) else list(layer)
    for index in layers:
        if not -len(hidden) <= index < len(hidden):
            raise ValueError(f"feature layer {index} does not exist: {len(hidden)} hidden states")
    selected = [hidden[index] for index in layers]
    if selected[0].dim() == 4:
        maps = [_resize(state, grid) for state in selected]
        fused = torch.cat(maps, dim=1).permute(0, 2, 3, 1)
        return fused.new_empty(len(fused), 0, fused.shape[-1]), fused
    tokens = torch.cat(selected, dim=-1)
    prefix = tokens.shape[1] - grid[0] * grid[1]
    if prefix < 0:
        raise ValueError(
            f"the tower gave {tokens.shape[1]} tokens for {tuple(pixels.shape[-2:])} pixels, "
            f"fewer than a {grid[0]}x{grid[1]} grid of stride {stride}"
        )
    return tokens[:, :prefix], tokens[:, prefix:].unflatten(1, grid)


def encode_views(
    towers: Sequence[tuple[TowerSpec, FeatureLayer, nn.Module]],
    pixel_values: Tensor | Sequence[Tensor],
    view_table: Tensor,
    micro_batch: int | None = None,
) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
    """Encode every view of a call, batched by tower and shape.

    Args:
        towers: Spec, feature layer and module of each tower.
        pixel_values: (V, 3, H, W), or V tensors (3, H, W) where sizes differ.
        view_table (Tensor): (V, K) on the CPU.
        micro_batch: Most views in one pass of a tower; all of one shape when None.

    Returns:
        For each anchor view, its feature maps (R, C_, C) in tower order; and its kept prefix
        tokens (P, C).
    """
    tower_of = VIEW.get(view_table, "tower").tolist()
    maps: dict[int, Tensor] = {}
    prefixes: dict[int, Tensor] = {}
    for number, (spec, layer, module) in enumerate(towers):
        rows = [row for row, tower in enumerate(tower_of) if tower == number]
        groups: dict[Grid, list[int]] = {}
        for row in rows:
            shape = pixel_values[row].shape
            groups.setdefault((shape[-2], shape[-1]), []).append(row)
        dtype = next(module.parameters()).dtype
        device = next(module.parameters()).device
        for members in _passes(groups.values(), micro_batch):
            batch = torch.stack([pixel_values[row] for row in members]).to(device, dtype)
            # with checkpointing, a frozen tower's embeddings would ask for gradients
            with torch.set_grad_enabled(torch.is_grad_enabled() and _learns(module, batch)):
                prefix, fused = tower_features(module, batch, layer, spec.stride)
            for member, tokens, feature_map in zip(members, prefix, fused, strict=True):
                maps[member] = feature_map
                prefixes[member] = tokens[: spec.kept_prefix]
    anchors = [row for row, tower in enumerate(tower_of) if tower == 0]
    partners = anchor_partners(view_table, len(towers))
    features = [tuple(maps[row] for row in partners[anchor]) for anchor in anchors]
    return features, [prefixes[anchor] for anchor in anchors]


def _passes(groups: Iterable[list[int]], micro_batch: int | None) -> Iterator[list[int]]:
    """Views that go through a tower together."""
    for members in groups:
        size = micro_batch or len(members)
        for start in range(0, len(members), size):
            yield members[start : start + size]


def _learns(module: nn.Module, pixels: Tensor) -> bool:
    return pixels.requires_grad or any(p.requires_grad for p in module.parameters())


def anchor_partners(view_table: Tensor, towers: int) -> dict[int, list[int]]:
    """For each anchor row, the rows that show the same view to each tower, in tower order."""
    same = [VIEW.get(view_table, c).tolist() for c in ("group", "row", "col", "frame", "kind")]
    tower_of = VIEW.get(view_table, "tower").tolist()
    medium = (VIEW.get(view_table, "index") == 0).long().cumsum(0).tolist()
    partners: dict[int, list[int]] = {}
    by_place: dict[tuple[int, ...], int] = {}
    for row, place in enumerate(zip(medium, *same, strict=True)):
        if tower_of[row] == 0:
            by_place[place] = row
            partners[row] = [row]
    for row, place in enumerate(zip(medium, *same, strict=True)):
        if tower_of[row] > 0:
            partners[by_place[place]].append(row)
    for anchor, rows in partners.items():
        if len(rows) != towers:
            raise ValueError(f"view {anchor} is shown to {len(rows)} of {towers} vision towers")
    return partners


def hidden_states(tower: nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
    """Hidden states of a tower for pixels (B, 3, H, W): tokens (B, N, C) or maps (B, C, h, w)."""
    config: Any = tower.config
    if config.model_type == "siglip2_vision_model":
        return _naflex_hidden_states(tower, pixels, config.patch_size)
    options = {"interpolate_pos_encoding": True} if _needs_interpolation(config, pixels) else {}
    outputs = tower(pixel_values=pixels, output_hidden_states=True, **options)
    hidden: tuple[Tensor, ...] = outputs.hidden_states
    return hidden


def _needs_interpolation(config: Any, pixels: Tensor) -> bool:
    """Whether a tower must be asked; at its own size the stock path stays bit for bit."""
    if config.model_type not in _FIXED_POSITIONS:
        return False
    nominal = config.image_size
    size = (nominal, nominal) if isinstance(nominal, int) else tuple(nominal)
    return tuple(pixels.shape[-2:]) != size


def _naflex_hidden_states(tower: nn.Module, pixels: Tensor, patch: int) -> tuple[Tensor, ...]:
    """SigLIP2's NaFlex towers take flattened patches (B, N, patch*patch*3) and their grid."""
    batch, channels, height, width = pixels.shape
    rows, cols = height // patch, width // patch
    patches = pixels.reshape(batch, channels, rows, patch, cols, patch)
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * cols, -1)
    shapes = torch.tensor([[rows, cols]], device="cpu").repeat(batch, 1)  # read as numbers
    outputs = tower(
        pixel_values=patches,
        pixel_attention_mask=None,  # every patch is real: no padding to mask
        spatial_shapes=shapes,
        output_hidden_states=True,
    )
    hidden: tuple[Tensor, ...] = outputs.hidden_states
    return hidden


def _resize(state: Tensor, grid: Grid) -> Tensor:
    if tuple(state.shape[-2:]) == grid:
        return state
    return F.interpolate(state, size=grid, mode="bilinear", align_corners=False)
