"""Contracts of the part kinds: what plugs into each seam of the pipeline.

A part is a frozen config dataclass plus a class for one seam. What a part does to tokens and what
it says about them are two methods of one class: ``forward`` (tensors) and ``token_map`` (a pure
function of tables and configuration, so that the number of tokens is known before any weight is
touched). Shapes: V views, (R, C) a grid, N tokens, D the decoder's width, K table columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vistoken.core.chain import ConnectorState, Grid, StageContext, ViewMap, grid_token_map

__all__ = [
    "FEATURES",
    "ConnectorStage",
    "ConnectorState",
    "Grid",
    "Layout",
    "PartFlags",
    "StageContext",
    "TowerInput",
    "ViewFunction",
    "ViewMap",
    "grid_token_map",
]

FEATURES = "encoder_features"
"""Key in the connector's side outputs: per anchor, what enters the projection (N, width)."""


@dataclass(frozen=True)
class PartFlags:
    """What a part can live with; refusals, cache keys and the documentation derive from this."""

    prompt_dependent: bool = False
    prefix_reusable: Literal["yes", "same_media", "no"] = "yes"
    static_cache: bool = True
    beam: bool = True
    packing: bool = True
    vllm: bool = True


@dataclass(frozen=True)
class TowerInput:
    """What a view function must know of one vision tower.

    Args:
        name: The tower's name.
        size: (height, width) in pixels that the tower was trained on.
        mean: Per-channel mean of normalised pixels, in units of [0, 1].
        std: Per-channel standard deviation, same units.
        fit: How the tower's own processor makes a picture square: centre ``crop`` after
            resizing the shortest edge (CLIP), or ``stretch`` to the exact size (SigLIP).
        stride: Pixels per grid cell of the features.
    """

    name: str
    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Literal["crop", "stretch"] = "crop"
    stride: int = 14

    @property
    def grid(self) -> Grid:
        """Feature grid of a picture of the nominal size."""
        return self.grid_of(*self.size)

    def grid_of(self, height: int, width: int) -> Grid:
        """Feature grid of a picture of this size in pixels."""
        return height // self.stride, width // self.stride


class ViewFunction(ABC):
    """One medium -> encoder inputs and their ViewTable.

    ``view_table`` is pure (sizes in, table out) and ``pixels`` must produce exactly one entry for
    each of its rows, in order. Values stay floating point between resizing and normalisation.
    ``fewer_tokens`` says which of its options give fewer tokens, for those who have too many.
    """

    config_class: ClassVar[type]
    flags: ClassVar[PartFlags] = PartFlags()
    fewer_tokens: ClassVar[str] = ""

    def __init__(self, config: Any, towers: Sequence[TowerInput]) -> None:
        self.config = config
        self.towers = tuple(towers)

    @abstractmethod
    def view_table(self, height: int, width: int) -> Tensor:
        """Predict the views (V, K) of an original of this size in pixels."""

    @abstractmethod
    def pixels(self, image: Any) -> list[Tensor]:
        """Normalised pixels of an RGB ``PIL.Image``: V tensors (3, height, width), float32."""


class ConnectorStage(nn.Module, ABC):
    """One link of the connector chain fuse -> project -> (reduce | append)*.

    ``config_class`` is a frozen dataclass; ``flat_when_alone`` lets a chain of this stage alone
    keep its parameter names without the stage's own prefix (Hugging Face Llava's projector).
    ``fewer_tokens`` says which of its options give fewer tokens.
    """

    config_class: ClassVar[type]
    flags: ClassVar[PartFlags] = PartFlags()
    fewer_tokens: ClassVar[str] = ""
    flat_when_alone: ClassVar[bool] = False

    def __init__(self, config: Any, context: StageContext) -> None:
        super().__init__()
        self.config = config
        self.context = context

    @classmethod
    def context_after(cls, config: Any, context: StageContext) -> StageContext:
        """What the next stage sees; raises UsageError when this stage cannot follow."""
        return context

    @classmethod
    def token_map(cls, config: Any, context: StageContext, maps: list[ViewMap]) -> list[ViewMap]:
        """Predict what this stage makes of each anchor view's tokens; pure."""
        return maps

    def spatial_modules(self) -> list[nn.Module]:
        """Modules that make tokens of their own rather than project patches (a training group)."""
        return []

    def channel_statistics(self) -> tuple[Tensor, Tensor] | None:
        """Buffers (mean, std), each (width,), that training data set for this stage's output."""
        return None

    @abstractmethod
    def forward(self, state: ConnectorState) -> ConnectorState:
        """Transform the state; must produce exactly the tokens that ``token_map`` predicts."""


class Layout(nn.Module):
    """Order of one medium's tokens under the image placeholder, with learned rows in between.

    A layout is one pure function, :meth:`arrange`; features and map are laid out by the same
    index, so they cannot drift apart. ``looked_up_rows`` says how many learned rows are the
    language model's own embeddings.
    """

    config_class: ClassVar[type]
    flags: ClassVar[PartFlags] = PartFlags()
    looked_up_rows: ClassVar[int] = 0

    def __init__(self, config: Any, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.text_width = text_width

    @classmethod
    @abstractmethod
    def arrange(cls, config: Any, view_table: Tensor, maps: list[ViewMap]) -> tuple[Tensor, Tensor]:
        """Order one medium's tokens.

        Args:
            config: The layout's config.
            view_table (Tensor): (V, K), all views of the medium.
            maps: One per anchor view, in order.

        Returns:
            order (N,) int64: index into the concatenated tokens of the anchors, or ``-1 - i`` for
            learned row i; and the TokenMap (N, K).
        """

    @classmethod
    def options_for(
        cls, options: Mapping[str, Any], tokenizer: Any, positions: int | None
    ) -> dict[str, Any]:
        """Complete options by what only the language model in use knows.

        Args:
            options: As configured.
            tokenizer: Its Hugging Face tokenizer.
            positions: Its number of positions, where it has one.
        """
        return dict(options)

    def learned_rows(self) -> Tensor | None:
        """Learned embeddings (L, D), if this layout has any."""
        return None

    def vocabulary_ids(self) -> tuple[int, ...]:
        """Token ids whose embeddings are this layout's learned rows, ``looked_up_rows`` of them."""
        return ()

    def forward(
        self, order: Tensor, tokens: list[Tensor], looked_up: Tensor | None = None
    ) -> Tensor:
        """Gather one medium's rows by :meth:`arrange`'s order.

        Args:
            order (Tensor): (N,) int64.
            tokens: Of each anchor, (N_i, D).
            looked_up (Tensor): (L, D), the embeddings of :meth:`vocabulary_ids`, if there are any.

        Returns:
            (N, D).
        """
        rows = torch.cat(tokens)
        learned = self.learned_rows() if looked_up is None else looked_up
        if learned is not None:
            rows = torch.cat([rows, learned.to(rows).flip(0)])  # -1 - i counts from the end
        return rows[order.to(rows.device)]
