"""What a training stage needs in memory, per device, predicted without allocating it.

Weights, gradients and optimiser state are counted. Activations are those that the backward pass
reads again: the forward pass of one micro-batch runs on the meta device and every tensor that
autograd saves is added up, once per storage. Left out are the workspace of kernels, fragments of
the allocator and the runtime's own share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from vistoken.core.errors import UsageError
from vistoken.core.tables import VIEW
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.pipeline import PipelineSpec, anchor_rows
from vistoken.train.groups import apply_groups, part_parameters
from vistoken.train.loss import chunk_rows
from vistoken.train.settings import StageConfig

Sharding = Literal["none", "zero2", "zero3", "fsdp2"]

_PROBE = "vistoken_memory"
_FLOAT32 = 4
_ADAM = 2 * _FLOAT32  # two moments
# of each weight, scales included: one per row; one float32 in eight bits per 64, and their own
_QUANTIZED = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one stage on each device.

    Args:
        stage: The stage's name.
        weights: Of all parts, in the types they are kept in.
        gradients: Of what is trained, in float32.
        optimizer: AdamW's two moments of what is trained, in float32.
        activations: Saved for the backward pass; with checkpointing, the layers' inputs and one
            layer's own.
        loss: Logits and what their gradient needs, one slice of positions at a time.
        sequence: Tokens of a sample that this was computed for.
        visual_tokens: Visual tokens among them.
        samples: Samples of a micro-batch.
    """

    stage: str
    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    sequence: int
    visual_tokens: int
    samples: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss


@dataclass(frozen=True)
class _Shape:
    """One micro-batch."""

    samples: int
    length: int
    visual: int
    supervised: int


def predict_memory(
    model: VistokenForConditionalGeneration,
    spec: PipelineSpec,
    stage: StageConfig,
    *,
    bf16: bool = True,
    length: int | None = None,
    supervised: int | None = None,
    image_size: tuple[int, int] | None = None,
    devices: int = 1,
    sharding: Sharding = "none",
) -> StageMemory:
    """Predict the memory of a stage.

    Args:
        model: The model on the meta device; adapters are injected and its types are changed.
        spec: Its pipeline with the processor's views.
        stage: The stage.
        bf16: The language model and the arithmetic are in bfloat16.
        length: Tokens of every sample, visual ones included; ``stage.max_length`` when None.
        supervised: Supervised tokens of every sample; all its text when None.
        image_size: (height, width) of each sample's picture; the tower's nominal one when None.
        devices: Number of devices.
        sharding: What is divided among them: nothing, gradients and optimiser state (``zero2``),
            or the weights too.

    Raises:
        UsageError: The picture alone is longer than a sample, or the towers are trained.
    """
    if devices < 1:
        raise UsageError(f"devices must be at least 1, got {devices}")
    if stage.group("vision").train != "frozen":
        raise UsageError(
            f"stage {stage.name!r} trains the vision towers; their memory is not predicted"
        )
    apply_groups(model, _in_full_precision(stage))
    table = spec.view_function().view_table(*(image_size or spec.towers[0].size))
    visual = len(model.model.plan.arrange(table).order)
    length = stage.max_length if length is None else length
    if length <= visual:
        raise UsageError(
            f"stage {stage.name!r}: the picture alone has {visual} tokens, a sample has {length}; "
            "raise the length"
        )
    text = length - visual
    shape = _Shape(stage.images_per_step, length, visual, min(supervised or text, text))
    weights, trained, matrices = _weights(model, stage, bf16)
    next_token = stage.group("language").train != "frozen" or stage.objective == "next-token"
    loss = activations = 0
    if next_token:
        activations = _activations(model, stage, table, shape, bf16)
        # autocast keeps a copy of every trained matrix in its own type
        activations += 2 * matrices if bf16 else 0
        loss = _loss(model, shape, bf16)
    return StageMemory(
        stage=stage.name,
        weights=-(-weights // (devices if sharding in ("zero3", "fsdp2") else 1)),
        gradients=-(-trained * _FLOAT32 // (1 if sharding == "none" else devices)),
        optimizer=-(-trained * _ADAM // (1 if sharding == "none" else devices)),
        activations=activations,
        loss=loss,
        sequence=length,
        visual_tokens=visual,
        samples=shape.samples,
    )


def _in_full_precision(stage: StageConfig) -> StageConfig:
    """The stage without quantisation: it is counted, nothing on the meta device can be packed."""
    language = stage.group("language").model_copy(update={"quantization": None})
    return stage.model_copy(update={"groups": {**stage.groups, "language": language}})


def _weights(
    model: VistokenForConditionalGeneration, stage: StageConfig, bf16: bool
) -> tuple[int, int, int]:
    """Bytes of all weights; numbers trained; of those, numbers in matrices."""
    total = trained = matrices = 0.0
    quantized = stage.group("language").quantization
    linear = {
        id(module.weight)
        for module in model.model.language_model.modules()
        if isinstance(module, nn.Linear)
    }
    for name, parameters in part_parameters(model).items():
        for parameter in parameters.values():
            size = _FLOAT32
            if parameter.requires_grad:
                trained += parameter.numel()
                matrices += parameter.numel() if parameter.dim() > 1 else 0
            elif name == "language" and quantized is not None and id(parameter) in linear:
                total += parameter.numel() * _QUANTIZED[quantized]
                continue
            elif name == "language" and bf16:
                size = torch.bfloat16.itemsize
            total += parameter.numel() * size
    return int(total), int(trained), int(matrices)


def _activations(
    model: VistokenForConditionalGeneration,
    stage: StageConfig,
    table: Tensor,
    shape: _Shape,
    bf16: bool,
) -> int:
    model.to(torch.bfloat16 if bf16 else torch.float32)
    model.train()
    saved = _Saved(model)
    with _probed(model):
        with saved:
            embeddings = _embed(model, table, shape)
        outside = saved.bytes
        saved.bytes = 0
        with saved:
            states = _decode(model, embeddings, shape)
        inside = saved.bytes
    if not states.requires_grad:
        return 0
    if not stage.checkpointing:
        return outside + inside
    layers = int(model.config.text_config.num_hidden_layers)
    kept = layers * embeddings.numel() * embeddings.element_size()
    return outside + kept + inside // layers


def _embed(model: VistokenForConditionalGeneration, table: Tensor, shape: _Shape) -> Tensor:
    """Embeddings (B, n, D) with the pictures' tokens in front."""
    core = model.model
    words: Any = core.get_input_embeddings()
    device, dtype = words.weight.device, words.weight.dtype
    maps = []
    for row in anchor_rows(table):
        view = table[row]
        height, width = (int(VIEW.get(view, side).item()) for side in ("height", "width"))
        grids = [tower.input.grid_of(height, width) for tower in core.plan.spec.towers]
        maps.append(
            tuple(
                torch.empty(*grid, tower.width, dtype=dtype, device=device)
                for grid, tower in zip(grids, core.plan.spec.towers, strict=True)
            )
        )
    tables = torch.cat([table] * shape.samples)
    features = model.get_image_features(tower_features=maps * shape.samples, view_table=tables)
    ids = torch.zeros(shape.samples, shape.length - shape.visual, dtype=torch.int64, device=device)
    text = words(ids)
    return torch.cat([torch.stack(list(features.pooler_output)).to(text), text], dim=1)


def _decode(model: VistokenForConditionalGeneration, embeddings: Tensor, shape: _Shape) -> Tensor:
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


def _loss(model: VistokenForConditionalGeneration, shape: _Shape, bf16: bool) -> int:
    """Logits, their float32 copy and log-probabilities of one slice; the copy's gradient."""
    vocabulary = int(model.lm_head.weight.shape[0])
    rows = min(shape.samples * shape.supervised, chunk_rows(vocabulary))
    copies = 3 * _FLOAT32 + (torch.bfloat16.itemsize if bf16 else 0)
    return rows * vocabulary * copies


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


class _FusedAttention(torch.autograd.Function):
    """Attention that saves what fused kernels do: its inputs, its output and one sum per row."""

    @staticmethod
    def forward(
        context: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        # kernels take a mask in the inputs' type, so every layer makes its own
        own = None if mask is None else mask.to(query.dtype, copy=True)
        context.save_for_backward(query, key, value, output, sums, own)
        return output


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    output: Tensor = _FusedAttention.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


@contextmanager
def _probed(model: VistokenForConditionalGeneration) -> Iterator[None]:
    """The language model with fused attention's footprint, whatever this device would choose."""
    AttentionInterface.register(_PROBE, _attend)
    config = model.model.language_model.config
    before = config._attn_implementation
    config._attn_implementation = _PROBE
    try:
        yield
    finally:
        config._attn_implementation = before
