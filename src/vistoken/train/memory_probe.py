"""What the backward pass of a micro-batch reads again, counted on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vistoken.core.tables import VIEW
from vistoken.models.footprint import Held, fused_attention
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.pipeline import anchor_rows
from vistoken.train.objectives import find_objective
from vistoken.train.settings import StageConfig


@dataclass(frozen=True)
class BatchShape:
    """One micro-batch."""

    samples: int
    length: int
    visual: int
    supervised: int


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch.

    Attributes:
        saved: What autograd keeps until the backward pass.
        recomputed: What one layer keeps while it is computed again; 0 without checkpointing.
        encoding: Most that frozen towers hold while they run, before anything else is there.
    """

    saved: int
    recomputed: int
    encoding: int


def count_activations(
    model: VistokenForConditionalGeneration,
    stage: StageConfig,
    table: Tensor,
    shape: BatchShape,
    bf16: bool,
    cached: bool,
) -> Activations:
    """What a forward pass of one micro-batch takes.

    Args:
        model: The model on the meta device, its parts already frozen or not.
        stage: The stage.
        table (Tensor): (V, K) int64, views of one picture.
        shape: The micro-batch.
        bf16: The arithmetic is in bfloat16.
        cached: Frozen towers' features are read from the disk.
    """
    model.to(torch.bfloat16 if bf16 else torch.float32)
    model.train()
    saved = _Saved(model)
    maps = _maps(model, table)
    encoding = 0
    parts: list[tuple[int, int]] = []  # saved and recomputed
    with fused_attention(model):
        if stage.group("vision").train != "frozen":
            with saved:
                encoded = _encode(model, table, shape.samples)
            parts.append(
                _kept(saved.take(), _tower_layers(model), stage.checkpointing, encoded, full=True)
            )
        elif not cached:
            with Held(model) as held, torch.no_grad():
                _encode(model, table, shape.samples)
            encoding = held.peak
        with saved:
            features = model.get_image_features(
                tower_features=maps * shape.samples,
                view_table=torch.cat([table] * shape.samples),
            )
        parts.append((saved.take(), 0))
        if find_objective(stage.objective).runs_language_model:
            with saved:
                embeddings = _embed(model, list(features.pooler_output), shape)
            parts.append((saved.take(), 0))
            with saved:
                _decode(model, embeddings, shape)
            layers = int(model.config.text_config.num_hidden_layers)
            full = stage.group("language").train == "full"
            parts.append(_kept(saved.take(), layers, stage.checkpointing, embeddings, full))
    return Activations(sum(kept for kept, _ in parts), max(again for _, again in parts), encoding)


def _kept(
    saved: int, layers: int, checkpointing: bool, states: Tensor, full: bool
) -> tuple[int, int]:
    """What layers keep for the backward pass, and with checkpointing one's own beside it."""
    if not checkpointing or not layers or not saved:
        return saved, 0
    # every layer's input; the last norm's, and with its own gradient what it makes of that
    states_kept = layers + (2 if full else 1)
    return states_kept * states.numel() * states.element_size(), saved // layers


def _tower_layers(model: VistokenForConditionalGeneration) -> int:
    """Layers of the towers that can be recomputed."""
    modules = (module for tower in model.model.towers() for module in tower.modules())
    return sum(isinstance(module, GradientCheckpointingLayer) for module in modules)


def _encode(model: VistokenForConditionalGeneration, table: Tensor, samples: int) -> Tensor:
    """Run the towers on a micro-batch's views; gives what the first one passes on, (B, n, C)."""
    words: Any = model.model.get_input_embeddings()
    sizes = [
        tuple(int(VIEW.get(view, side).item()) for side in ("height", "width")) for view in table
    ]
    pixels = [
        torch.empty(3, *size, dtype=words.weight.dtype, device=words.weight.device)
        for size in sizes * samples
    ]
    features, _ = model.model.encode(pixels, torch.cat([table] * samples))
    return torch.cat([maps[0].flatten(0, 1) for maps in features])


def _maps(model: VistokenForConditionalGeneration, table: Tensor) -> list[tuple[Tensor, ...]]:
    """Towers' feature maps of one picture; where towers are trained, as their outputs."""
    core = model.model
    words: Any = core.get_input_embeddings()
    trained = any(parameter.requires_grad for parameter in core.vision_tower.parameters())
    maps = []
    for row in anchor_rows(table):
        view = table[row]
        height, width = (int(VIEW.get(view, side).item()) for side in ("height", "width"))
        grids = [tower.input.grid_of(height, width) for tower in core.plan.spec.towers]
        maps.append(
            tuple(
                torch.empty(
                    *grid,
                    tower.width,
                    dtype=words.weight.dtype,
                    device=words.weight.device,
                    requires_grad=trained,
                )
                for grid, tower in zip(grids, core.plan.spec.towers, strict=True)
            )
        )
    return maps


def _embed(
    model: VistokenForConditionalGeneration, pictures: list[Tensor], shape: BatchShape
) -> Tensor:
    """Embeddings (B, n, D) with the pictures' tokens in front."""
    words: Any = model.model.get_input_embeddings()
    text_length = shape.length - shape.visual
    ids = torch.zeros(shape.samples, text_length, dtype=torch.int64, device=words.weight.device)
    text = words(ids)
    return torch.cat([torch.stack(pictures).to(text), text], dim=1)


def _decode(
    model: VistokenForConditionalGeneration, embeddings: Tensor, shape: BatchShape
) -> Tensor:
    batch, length, _ = embeddings.shape
    mask = torch.ones(batch, 1, length, length, dtype=torch.bool, device=embeddings.device)
    positions = torch.zeros(batch, length, dtype=torch.int64, device=embeddings.device)
    outputs = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
    )
    hidden: Tensor = outputs.last_hidden_state
    return hidden


class _Saved:
    """Adds up what autograd saves inside, each storage once, parameters not at all."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self._alive: list[Tensor] = []
        self._known = {_key(parameter) for parameter in model.parameters()}
        self._hooks: Any = None

    def __enter__(self) -> _Saved:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def take(self) -> int:
        """Bytes since the last call."""
        taken, self.bytes = self.bytes, 0
        return taken

    def _pack(self, tensor: Tensor) -> Tensor:
        if _key(tensor) not in self._known:
            self._known.add(_key(tensor))
            self._alive.append(tensor.detach())  # a freed storage's key is given out again
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def saved_bytes(model: nn.Module, forward: Any) -> int:
    """Bytes that autograd saves while ``forward()`` runs, parameters of the model not counted."""
    saved = _Saved(model)
    with saved:
        result = forward()
    del result
    return saved.bytes


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
