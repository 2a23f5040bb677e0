"""Answers, token by token."""

from __future__ import annotations

from vistoken.core.objectives import MicroBatch, Objective, StepLoss


class NextToken(Objective):
    """Mean cross-entropy over the supervised tokens."""

    def loss(self, batch: MicroBatch) -> StepLoss:
        """Run the model; logits are computed at supervised positions only."""
        states = batch.states()
        return batch.nothing() if states is None else batch.cross_entropy(states)
