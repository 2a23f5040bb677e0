"""How several mechanisms act on one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig

from vistoken.core.errors import UsageError
from vistoken.models.decoder.mechanism import Mechanism, PromptScorer
from vistoken.models.decoder.merge import merge_plans
from vistoken.models.decoder.plan import LayerPlan
from vistoken.models.decoder.state import SequenceState

SIDE_INPUTS = ("encoder_features",)
"""What a mechanism may ask for in ``side_inputs``."""


class MechanismStack:
    """The active mechanisms, in the order in which they act.

    Args:
        mechanisms: Any number of them, none included.

    Raises:
        UsageError: If two have the same name, or one asks for an unknown side input.
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
        self.own_cache = any(mechanism.own_cache for mechanism in self._mechanisms)
        self.side_inputs = frozenset(
            side for mechanism in self._mechanisms for side in mechanism.side_inputs
        )
        for side in sorted(self.side_inputs.difference(SIDE_INPUTS)):
            raise UsageError(
                f"a decoder mechanism asks for the side input {side!r}; known: "
                f"{', '.join(SIDE_INPUTS)}."
            )
        self.shortens = any(mechanism.shortens for mechanism in self._mechanisms)
        if self.shortens and self.side_inputs:
            self._refuse_unpaired()

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
        static = cache is not None and cache.is_compileable
        compiling = torch.compiler.is_compiling()
        for mechanism in self._mechanisms:
            takes_static = mechanism.flags.static_cache and not mechanism.own_cache
            if static and not takes_static:
                raise UsageError(
                    f"the mechanism {mechanism.name!r} cannot run on a static cache; "
                    "leave out cache_implementation or use 'dynamic'."
                )
            if compiling and not takes_static:
                raise UsageError(
                    f"the mechanism {mechanism.name!r} cannot be compiled; run the model without "
                    "torch.compile."
                )
            if not mechanism.flags.packing and packed:
                raise UsageError(
                    f"the mechanism {mechanism.name!r} cannot run on packed samples (a 4-D "
                    "attention_mask); switch packing off."
                )

    def check_beams(self) -> None:
        """Refuse beam search where a mechanism excludes it.

        Raises:
            UsageError: Naming the mechanism.
        """
        for mechanism in self._mechanisms:
            if not mechanism.flags.beam:
                raise UsageError(
                    f"the mechanism {mechanism.name!r} cannot run under beam search; use "
                    "num_beams=1."
                )

    def _refuse_unpaired(self) -> None:
        short = next(m.name for m in self._mechanisms if m.shortens)
        reading = next(m.name for m in self._mechanisms if m.side_inputs)
        raise UsageError(
            f"the mechanism {short!r} leaves visual tokens out of the prompt, and {reading!r} "
            "needs all of them beside the encoder's features; configure one of the two."
        )

    def shorten(self, state: SequenceState, scorer: PromptScorer) -> Tensor | None:
        """Rows (B, n) bool of a prompt that every mechanism keeps; None where all keep all."""
        keep: Tensor | None = None
        for mechanism in self._mechanisms:
            own = mechanism.shorten(state, scorer)
            if own is not None:
                keep = own if keep is None else keep & own
        return keep

    def begin(self, state: SequenceState, cache: Cache | None) -> SequenceState:
        """Let every mechanism act before the first layer.

        Raises:
            UsageError: If a mechanism refuses the call, or returns tables that disagree.
        """
        for mechanism in self._mechanisms:
            state = mechanism.begin(state, cache)
            if not state.rows_agree():
                raise _disagreement(mechanism, "the first layer", state)
        return state

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
                raise _disagreement(mechanism, f"layer {layer}", state)
        return state

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Merge what all mechanisms tell a layer."""
        return merge_plans([mechanism.plan(layer, state) for mechanism in self._mechanisms])

    def after_layer(self, layer: int, state: SequenceState, aux: dict[str, Tensor]) -> None:
        """Let every mechanism read a layer's output."""
        for mechanism in self._mechanisms:
            mechanism.after_layer(layer, state, aux)


def _disagreement(mechanism: Mechanism, before: str, state: SequenceState) -> UsageError:
    return UsageError(
        f"the mechanism {mechanism.name!r} returned, before {before}, tables "
        f"that do not match hidden's rows {tuple(state.hidden.shape[:2])}; it must "
        "gather position_ids, valid, token_map, order and extra together with hidden."
    )


def check_generation(
    stack: MechanismStack, generation_config: GenerationConfig, *, beams: bool
) -> None:
    """Refuse settings of ``generate`` that a mechanism excludes, before anything runs.

    Args:
        stack: The active mechanisms.
        generation_config: The settings.
        beams: Whether this is a kind of beam search.

    Raises:
        UsageError: Naming the mechanism and what to change.
    """
    if beams:
        stack.check_beams()
    for mechanism in stack:
        if mechanism.shortens and generation_config.prefill_chunk_size is not None:
            raise UsageError(
                f"the mechanism {mechanism.name!r} chooses tokens by the whole prompt; generate "
                "without prefill_chunk_size."
            )
    implementation = generation_config.cache_implementation
    if implementation in (None, "dynamic"):
        return
    for mechanism in stack:
        if mechanism.own_cache or ("static" in implementation and not mechanism.flags.static_cache):
            raise UsageError(
                f"the mechanism {mechanism.name!r} cannot run on a cache of the kind "
                f"{implementation!r}; leave out cache_implementation or use 'dynamic'."
            )


def aux_loss(aux: dict[str, Tensor]) -> Tensor | None:
    """Sum of the mechanisms' losses (0-d), None if there are none.

    Args:
        aux: What a call of the decoder has left; losses are called ``<mechanism>/loss/<what>``.
    """
    losses = [value for key, value in aux.items() if key.split("/")[1:2] == ["loss"]]
    return sum(losses[1:], start=losses[0]) if losses else None
