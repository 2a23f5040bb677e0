"""What a training stage needs in memory, per device, predicted without allocating it.

Weights, gradients and optimiser state are counted. Activations are those that the backward pass
reads again: the forward pass of one micro-batch runs on the meta device and every tensor that
autograd saves is added up, once per storage. Only what an objective runs is run: towers where they
are trained, the language model where its loss needs it. Of what is not there at one time (logits, a
layer that is computed again, towers at work) the largest counts. Left out are the workspace of
kernels, fragments of the allocator and the runtime's own share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vistoken.core.errors import UsageError
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.pipeline import PipelineSpec
from vistoken.train.groups import apply_groups, part_parameters
from vistoken.train.loss import chunk_rows
from vistoken.train.memory_probe import BatchShape, count_activations, saved_bytes
from vistoken.train.objectives import find_objective
from vistoken.train.settings import StageConfig

__all__ = ["ASSUMED_WORDS", "Sharding", "StageMemory", "predict_memory", "saved_bytes"]

Sharding = Literal["none", "zero2", "zero3", "fsdp2"]

_FLOAT32 = 4
_ADAM = 2 * _FLOAT32  # two moments
ASSUMED_WORDS = 512
"""What an alignment chooses from where no scenes were read; packaged ones name about as many."""
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
        activations: Saved for the backward pass; with checkpointing, the layers' inputs.
        loss: Logits and what their gradient needs, one slice of positions at a time.
        recomputed: What one layer saves while checkpointing computes it again.
        encoding: The most that frozen towers hold while they run.
        gradients_before: Gradients that exist while every activation does: all of them where a
            step has several micro-batches or devices, else the first that the backward pass
            makes, of the head.
        sequence: Tokens of a sample that this was computed for; without the language model those
            of its picture.
        visual_tokens: Visual tokens among them.
        samples: Samples of a micro-batch.
        words: Words that an alignment chooses from; None where the language model runs.
    """

    stage: str
    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    recomputed: int
    encoding: int
    gradients_before: int
    sequence: int
    visual_tokens: int
    samples: int
    words: int | None

    @property
    def working(self) -> int:
        """What the fullest moment of a step adds to weights, gradients and optimiser state.

        In the backward pass activations go as gradients come, so it is fullest where it begins or
        where it ends; while towers run, gradients are yet to come.
        """
        begins = self.activations + max(self.loss, self.recomputed) + self.gradients_before
        ends = self.gradients + self.recomputed
        return max(begins, ends, self.encoding) - self.gradients

    @property
    def total(self) -> int:
        """Weights, gradients, optimiser state and :attr:`working`."""
        return self.weights + self.gradients + self.optimizer + self.working


def predict_memory(
    model: VistokenForConditionalGeneration,
    spec: PipelineSpec,
    stage: StageConfig,
    *,
    bf16: bool = True,
    length: int | None = None,
    supervised: int | None = None,
    samples: int | None = None,
    image_size: tuple[int, int] | None = None,
    words: int | None = None,
    cached: bool = False,
    devices: int = 1,
    sharding: Sharding = "none",
) -> StageMemory:
    """Predict the memory of a stage.

    Of a trained tower, layers behind the one that is read get no gradient but are counted.

    Args:
        model: The model on the meta device; adapters are injected and its types are changed.
        spec: Its pipeline with the processor's views.
        stage: The stage.
        bf16: The language model and the arithmetic are in bfloat16.
        length: Tokens of every sample, visual ones included; ``stage.max_length`` when None.
        supervised: Supervised tokens of every sample; all its text when None.
        samples: Samples of a micro-batch; ``stage.images_per_step`` when None.
        image_size: (height, width) of each sample's picture; the tower's nominal one when None.
        words: Words that an alignment chooses from; :data:`ASSUMED_WORDS` when None.
        cached: Frozen towers' features are read from the disk.
        devices: Number of devices.
        sharding: What is divided among them: nothing, gradients and optimiser state (``zero2``),
            or the weights too.

    Raises:
        UsageError: The picture alone is longer than a sample.
    """
    if devices < 1:
        raise UsageError(f"devices must be at least 1, got {devices}")
    apply_groups(model, _in_full_precision(stage))
    table = spec.view_function().view_table(*(image_size or spec.towers[0].size))
    visual = len(model.model.plan.arrange(table).order)
    runs_language = find_objective(stage.objective).runs_language_model
    if length is None:
        length = stage.max_length if runs_language else visual
    if runs_language and length <= visual:
        raise UsageError(
            f"stage {stage.name!r}: the picture alone has {visual} tokens, a sample has {length}; "
            "raise the length"
        )
    text = length - visual
    shape = BatchShape(
        samples or stage.images_per_step, length, visual, min(supervised or text, text)
    )
    weights, trained, matrices = _weights(model, stage, bf16)
    counted = count_activations(model, stage, table, shape, bf16, cached)
    # autocast keeps a copy of every trained matrix in its own type
    copies = 2 * matrices if bf16 else 0
    words = None if runs_language else words or ASSUMED_WORDS
    loss = _loss(model, shape, bf16) if words is None else _alignment_loss(model, shape, words)
    gradients = -(-trained * _FLOAT32 // (1 if sharding == "none" else devices))
    whole_step = stage.accumulate == 1 and devices == 1
    return StageMemory(
        stage=stage.name,
        weights=-(-weights // (devices if sharding in ("zero3", "fsdp2") else 1)),
        gradients=gradients,
        optimizer=-(-trained * _ADAM // (1 if sharding == "none" else devices)),
        activations=counted.saved + copies,
        loss=loss,
        recomputed=counted.recomputed,
        encoding=counted.encoding,
        gradients_before=_head_gradient(model) if whole_step else gradients,
        sequence=length,
        visual_tokens=visual,
        samples=shape.samples,
        words=words,
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


def _head_gradient(model: VistokenForConditionalGeneration) -> int:
    """Bytes of the head's gradient, which may be the embeddings' too; 0 where it is frozen."""
    weight = model.lm_head.weight
    return weight.numel() * _FLOAT32 if weight.requires_grad else 0


def _loss(model: VistokenForConditionalGeneration, shape: BatchShape, bf16: bool) -> int:
    """Logits, their float32 copy and log-probabilities of one slice; the copy's gradient."""
    vocabulary = int(model.lm_head.weight.shape[0])
    rows = min(shape.samples * shape.supervised, chunk_rows(vocabulary))
    copies = 3 * _FLOAT32 + (torch.bfloat16.itemsize if bf16 else 0)
    return rows * vocabulary * copies


def _alignment_loss(model: VistokenForConditionalGeneration, shape: BatchShape, words: int) -> int:
    """Tokens centred, normalised and their gradients; cosines, their logarithms and gradients."""
    tokens = shape.samples * shape.visual
    width = int(model.config.text_config.hidden_size)
    return 3 * _FLOAT32 * tokens * (width + words)
