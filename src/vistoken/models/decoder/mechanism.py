"""Decoder mechanisms: the contract, a base with defaults, and one that does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor
from transformers import Cache, PretrainedConfig

from vistoken.core.parts import PartFlags
from vistoken.models.decoder.plan import STOCK_LAYER, LayerPlan
from vistoken.models.decoder.state import SequenceState


@dataclass(frozen=True)
class MechanismContext:
    """What a mechanism is built from, beside its own config.

    Args:
        text_config: Configuration of the language model it acts in.
        feature_width: Channels of the encoder features that enter the connector's projection.
    """

    text_config: PretrainedConfig
    feature_width: int


class PromptScorer(Protocol):
    """Tells a mechanism what a prompt's rows attend to, before the prompt runs."""

    def key_scores(self, layer: int, rows: Tensor, cols: Tensor, after: Tensor) -> Tensor:
        """Attention probabilities of a layer, averaged over heads and asking rows.

        Args:
            layer: Number of the layer; the stock layers before it are run on the whole prompt.
            rows (Tensor): (B, n) bool, rows that ask.
            cols (Tensor): (B, n) bool, keys that are asked about.
            after (Tensor): (B, n) int64; for a key, only rows at later places than this count.

        Returns:
            (B, n) float32, 0 at other keys.
        """
        ...


class Mechanism(Protocol):
    """A part that acts between and inside the decoder's layers.

    A mechanism may own parameters (it is then an ``nn.Module`` too) but keeps nothing of a call:
    what belongs to a call goes into the state's ``extra``, the cache object, or ``aux``.
    """

    @property
    def name(self) -> str:
        """Part name, unique in a stack; its weights are saved under ``mechanisms.<name>``."""
        ...

    @property
    def flags(self) -> PartFlags:
        """What the mechanism can live with."""
        ...

    @property
    def own_cache(self) -> bool:
        """Whether cached calls need :class:`~vistoken.models.decoder.cache.SparseCache`.

        That is so for a mechanism that drops rows, writes only some keys, or asks ``state.keys()``
        what the cache holds.
        """
        ...

    @property
    def side_inputs(self) -> tuple[str, ...]:
        """What the encoder must leave in ``state.side``; known: ``encoder_features``."""
        ...

    @property
    def shortens(self) -> bool:
        """Whether :meth:`shorten` may leave rows out: it then needs every prompt in one call."""
        ...

    def shorten(self, state: SequenceState, scorer: PromptScorer) -> Tensor | None:
        """Choose the rows of a prompt that enter the decoder at all.

        Runs before the rows are in the cache; the rest begins anew with the rows that are left, at
        positions 0, 1, 2, ... How many are left must follow from the token map alone: scores of
        0 throughout (costs are counted so) must leave as many.

        Returns:
            (B, n) bool, or None to keep all.
        """
        ...

    def begin(self, state: SequenceState, cache: Cache | None) -> SequenceState:
        """Act once before the first layer: refuse the call, prepare ``extra``, replace rows."""
        ...

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        """Look at, change or remove rows before a layer runs."""
        ...

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Tell a layer what to do differently for the rows that are left."""
        ...

    def after_layer(self, layer: int, state: SequenceState, aux: dict[str, Tensor]) -> None:
        """Read a layer's output and scores.

        ``aux["<name>/loss/<what>"]`` (0-d, weighted already) is added to the training loss; other
        entries ``<name>/<what>`` are statistics. Training logs the means of both.
        """
        ...


class BaseMechanism:
    """A mechanism that changes nothing; a real one overrides what it needs."""

    name: str = ""
    # vLLM runs layers of its own: no mechanism reaches them
    flags: PartFlags = PartFlags(vllm=False)
    own_cache: bool = True
    side_inputs: tuple[str, ...] = ()
    shortens: bool = False
    config_class: ClassVar[type]

    def shorten(self, state: SequenceState, scorer: PromptScorer) -> Tensor | None:
        """Keep all rows."""
        return None

    def begin(self, state: SequenceState, cache: Cache | None) -> SequenceState:
        """Return the state as it is."""
        return state

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        """Return the state as it is."""
        return state

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Return the trivial plan."""
        return STOCK_LAYER

    def after_layer(self, layer: int, state: SequenceState, aux: dict[str, Tensor]) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class NoOpConfig:
    """The no-op mechanism has no options."""


class NoOp(BaseMechanism):
    """A mechanism that changes nothing: forces the loop in tests and benchmarks."""

    config_class = NoOpConfig
    name = "no-op"
    own_cache = False

    def __init__(
        self, config: NoOpConfig | None = None, context: MechanismContext | None = None
    ) -> None:
        del config, context  # what every mechanism is built from; this one needs neither
