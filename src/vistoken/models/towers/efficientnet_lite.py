"""EfficientNet-Lite as a vision tower: a convolutional pyramid without attention.

Source: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (1905.11946),
table 1 and section 3.3; the Lite variant (ReLU6, no squeeze-and-excitation, stem and head not
scaled) is tensorflow/tpu:models/official/efficientnet/lite.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from vistoken.core.errors import DataError


class Stage(NamedTuple):
    """One row of the network's plan before scaling."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


class BlockPlan(NamedTuple):
    """One inverted residual block after scaling."""

    kernel: int
    stride: int
    expansion: int
    in_channels: int
    out_channels: int


STAGES = (
    Stage(repeats=1, kernel=3, stride=1, expansion=1, channels=16),
    Stage(repeats=2, kernel=3, stride=2, expansion=6, channels=24),
    Stage(repeats=2, kernel=5, stride=2, expansion=6, channels=40),
    Stage(repeats=3, kernel=3, stride=2, expansion=6, channels=80),
    Stage(repeats=3, kernel=5, stride=1, expansion=6, channels=112),
    Stage(repeats=4, kernel=5, stride=2, expansion=6, channels=192),
    Stage(repeats=1, kernel=3, stride=1, expansion=6, channels=320),
)

CHANNEL_MULTIPLE = 8

STRIDE_16_INDEX = 4
"""Index in `hidden_states` of the map at one sixteenth of the image (112 channels in Lite0)."""


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    """Shape of an EfficientNet-Lite tower; the defaults are Lite0.

    `(width_multiplier, depth_multiplier)` of Lite0 to Lite4 are (1.0, 1.0), (1.0, 1.1), (1.1, 1.2),
    (1.2, 1.4) and (1.4, 1.8). `hidden_size` is the width of the head map, the last one.
    """

    model_type = "efficientnet-lite"

    width_multiplier: float | int = 1.0
    depth_multiplier: float | int = 1.0
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 32
    num_channels: int = 3
    stem_channels: int = 32
    hidden_size: int = 1280
    norm_eps: float = 1e-3

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of each entry of `hidden_states`: stem, strides 2, 4, 8, 16, 32, head."""
        blocks = plan_blocks(self)
        ends = [blocks[index].out_channels for index in stride_ends(blocks)]
        return [self.stem_channels, *ends, self.hidden_size]


def scale_channels(channels: int, multiplier: float) -> int:
    """Scale a channel count and round it to a multiple of eight, losing at most a tenth."""
    scaled = channels * multiplier
    nearest = int(scaled + CHANNEL_MULTIPLE / 2) // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE
    rounded = max(CHANNEL_MULTIPLE, nearest)
    return rounded + CHANNEL_MULTIPLE if rounded < 0.9 * scaled else rounded


def plan_blocks(config: EfficientNetLiteConfig) -> list[BlockPlan]:
    """List every block of the trunk; the first and the last stage keep their single block."""
    plans: list[BlockPlan] = []
    incoming = config.stem_channels
    for number, stage in enumerate(STAGES):
        at_the_rim = number in (0, len(STAGES) - 1)
        repeats = (
            stage.repeats if at_the_rim else math.ceil(stage.repeats * config.depth_multiplier)
        )
        outgoing = scale_channels(stage.channels, config.width_multiplier)
        for repeat in range(repeats):
            stride = stage.stride if repeat == 0 else 1
            plans.append(BlockPlan(stage.kernel, stride, stage.expansion, incoming, outgoing))
            incoming = outgoing
    return plans


def stride_ends(blocks: list[BlockPlan]) -> list[int]:
    """Return the indices of the blocks that are the last at their resolution."""
    following = [block.stride for block in blocks[1:]] + [2]
    return [index for index, stride in enumerate(following) if stride > 1]


class SameConv2d(nn.Conv2d):
    """A convolution padded so that the output is the input over the stride, rounded up.

    The odd pixel of padding goes to the bottom and the right. The released weights were trained
    so; symmetric padding would shift every stage by half a pixel of its own grid.
    """

    def __init__(
        self, incoming: int, outgoing: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(incoming, outgoing, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, C', ceil(H / stride), ceil(W / stride)]`."""
        rows = self._missing(input.shape[-2], axis=0)
        cols = self._missing(input.shape[-1], axis=1)
        padding = (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2)
        return super().forward(functional.pad(input, padding))

    def _missing(self, length: int, axis: int) -> int:
        stride, kernel = self.stride[axis], self.kernel_size[axis]
        outputs = -(-length // stride)
        return max((outputs - 1) * stride + kernel - length, 0)


class StoredNorm2d(nn.BatchNorm2d):
    """Batch normalisation that always uses the stored statistics.

    A tower sees a handful of pictures at a time, too few to re-estimate statistics, and a frozen
    one must not change because somebody called `train()` on the model around it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `[B, C, H, W]` by the stored mean and variance."""
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class ConvNorm(nn.Module):
    """Convolution and normalisation, without the activation."""

    def __init__(
        self,
        incoming: int,
        outgoing: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        eps: float,
    ) -> None:
        super().__init__()
        self.conv = SameConv2d(incoming, outgoing, kernel, stride, groups)
        self.norm = StoredNorm2d(outgoing, eps=eps)

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, C', H', W']`."""
        return cast(Tensor, self.norm(self.conv(maps)))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; add the input where shape and resolution allow it."""

    def __init__(self, plan: BlockPlan, eps: float) -> None:
        super().__init__()
        width = plan.in_channels * plan.expansion
        self.expand = ConvNorm(plan.in_channels, width, 1, eps=eps) if plan.expansion > 1 else None
        self.depthwise = ConvNorm(
            width, width, plan.kernel, stride=plan.stride, groups=width, eps=eps
        )
        self.project = ConvNorm(width, plan.out_channels, 1, eps=eps)
        self.residual = plan.stride == 1 and plan.in_channels == plan.out_channels

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, C', H', W']`."""
        hidden = maps
        if self.expand is not None:
            hidden = functional.relu6(self.expand(hidden))
        hidden = self.project(functional.relu6(self.depthwise(hidden)))
        return hidden + maps if self.residual else hidden


class EfficientNetLiteModel(PreTrainedModel):
    """The convolutional trunk and head map of EfficientNet-Lite, without the classifier.

    Pixels are expected as `(pixel - 127) / 128` with pixels of 0 to 255. Normalisation statistics
    are never updated, in training neither.
    """

    config_class = EfficientNetLiteConfig
    config: EfficientNetLiteConfig
    base_model_prefix = "tower"
    main_input_name = "pixel_values"
    _no_split_modules = ["InvertedResidual"]

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        plans = plan_blocks(config)
        self.stem = ConvNorm(
            config.num_channels, config.stem_channels, 3, stride=2, eps=config.norm_eps
        )
        self.blocks = nn.ModuleList(InvertedResidual(plan, config.norm_eps) for plan in plans)
        self.head = ConvNorm(plans[-1].out_channels, config.hidden_size, 1, eps=config.norm_eps)
        self._ends = frozenset(stride_ends(plans))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            for ones in (module.weight, module.running_var):
                init.ones_(cast(Tensor, ones))
            for zeros in (module.bias, module.running_mean, module.num_batches_tracked):
                init.zeros_(cast(Tensor, zeros))

    def get_input_embeddings(self) -> nn.Module:
        """Return the stem, the module that reads the pixels."""
        return self.stem

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Encode pictures.

        Args:
            pixel_values: `[B, 3, H, W]` floats, `(pixel - 127) / 128`; any H and W.
            output_hidden_states: Whether to return all maps; the configuration's value if None.
            kwargs: Accepted and ignored, so that callers may treat all towers alike.

        Returns:
            `last_hidden_state`, `[B, hidden_size, ceil(H/32), ceil(W/32)]`, and, if asked for,
            `hidden_states` with `config.hidden_sizes` channels: 0 the stem (stride 2), then the
            last map at strides 2, 4, 8, 16 (index 4, `STRIDE_16_INDEX`) and 32, then the head map.

        Raises:
            DataError: If the pixels are not a batch of pictures with the configured channels.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise DataError(
                f"pixel_values has shape {list(pixel_values.shape)}; EfficientNet-Lite takes"
                f" [batch, {self.config.num_channels}, height, width]"
            )
        keep = (
            self.config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states
        )
        maps = functional.relu6(self.stem(pixel_values.to(self.stem.conv.weight.dtype)))
        collected = [maps]
        for index, block in enumerate(self.blocks):
            maps = block(maps)
            if index in self._ends:
                collected.append(maps)
        head = functional.relu6(self.head(maps))
        hidden_states = (*collected, head) if keep else None
        return BaseModelOutput(last_hidden_state=head, hidden_states=hidden_states)
