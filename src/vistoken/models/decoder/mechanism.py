"""Decoder mechanisms: what they are, and how several of them act on one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import Cache, PretrainedConfig

from vistoken.core.errors import UsageError
from vistoken.core.parts import PartFlags
from vistoken.models.decoder.plan import STOCK_LAYER, LayerPlan, merge_plans
from vistoken.models.decoder.state import SequenceState


class Mechanism(Protocol):
    """A part that acts between and inside the decoder's layers.

    A mechanism may own parameters but keeps nothing of a call: what belongs to a call goes into
    the state's ``extra``, the cache object, or ``aux``.
    """

    @property
    def name(self) -> str:
        """Part name, unique in a stack."""
        ...

    @property
    def flags(self) -> PartFlags:
        """What the mechanism can live with."""
        ...

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        """Look at, change or remove rows before a layer runs."""
        ...

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Tell a layer what to do differently for the rows that are left."""
        ...

    def after_layer(self, layer: int, state: SequenceState, aux: dict[str, Tensor]) -> None:
        """Read a layer's output; losses and statistics go into ``aux`` as ``<name>/<what>``."""
        ...


@dataclass(frozen=True)
class NoOpConfig:
    """The no-op mechanism has no options."""


class NoOp:
    """A mechanism that changes nothing: forces the loop in tests and benchmarks."""

    config_class = NoOpConfig
    name = "no-op"
    flags = PartFlags()

    def __init__(
        self, config: NoOpConfig | None = None, text_config: PretrainedConfig | None = None
    ) -> None:
        del config, text_config  # what every mechanism is built from; this one needs neither

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        """Return the state as it is."""
        return state

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Return the trivial plan."""
        return STOCK_LAYER

    def after_layer(self, layer: int, state: SequenceState, aux: dict[str, Tensor]) -> None:
        """Do nothing."""


class MechanismStack:
    """The active mechanisms, in the order in which they act.

    Args:
        mechanisms: Any number of them, none included.

    Raises:
        UsageError: If two have the same name.
    """

    def __init__(self, mechanisms: Iterable[Mechanism] = ()) -> None:
        self._mechanisms = tuple(mechanisms)
        names = [mechanism.name for mechanism in self._mechanisms]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(
                    f"the decoder mechanism {name!r} is configured {names.count(name)} times; "
                    "keep one entry."
                )

    def __len__(self) -> int:
        return len(self._mechanisms)

    def __iter__(self) -> Iterator[Mechanism]:
        return iter(self._mechanisms)

    def check_call(self, cache: Cache | None, *, packed: bool) -> None:
        """Refuse a call that a mechanism's flags exclude.

        Args:
            cache: The cache that the call uses, if any.
            packed: Whether rows of several samples share a sequence (a ready 4-D mask).

        Raises:
            UsageError: Naming the mechanism and what it excludes.
        """
        for mechanism in self._mechanisms:
            if not mechanism.flags.static_cache and cache is not None and cache.is_compileable:
                raise UsageError(
                    f"the mechanism {mechanism.name!r} cannot run on a static cache; "
                    "leave out cache_implementation or use 'dynamic'."
                )
            if not mechanism.flags.packing and packed:
                raise UsageError(
                    f"the mechanism {mechanism.name!r} cannot run on packed samples (a 4-D "
                    "attention_mask); switch packing off."
                )

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        """Let every mechanism act on the rows.

        Args:
            layer: Number of the layer about to run.
            state: Its input.

        Returns:
            The rows that are left.

        Raises:
            UsageError: If a mechanism returns tables that disagree on the rows.
        """
        for mechanism in self._mechanisms:
            hidden, positions, valid = state.hidden, state.position_ids, state.valid
            state = mechanism.before_layer(layer, state)
            # looked at only where something was replaced: this runs for every layer and token
            if (
                state.hidden is not hidden
                or state.position_ids is not positions
                or state.valid is not valid
            ) and not state.rows_agree():
                raise UsageError(
                    f"the mechanism {mechanism.name!r} returned, before layer {layer}, tables "
                    f"that do not match hidden's rows {tuple(state.hidden.shape[:2])}; it must "
                    "gather position_ids, valid, token_map and extra together with hidden."
                )
        return state

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Merge what all mechanisms tell a layer."""
        return merge_plans([mechanism.plan(layer, state) for mechanism in self._mechanisms])

    def after_layer(self, layer: int, state: SequenceState, aux: dict[str, Tensor]) -> None:
        """Let every mechanism read a layer's output."""
        for mechanism in self._mechanisms:
            mechanism.after_layer(layer, state, aux)
