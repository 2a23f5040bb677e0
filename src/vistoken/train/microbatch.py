"""A micro-batch as objectives see it: ways to run the model, counted in the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vistoken.core.objectives import Clock, StepLoss, TargetStates
from vistoken.models.decoder import aux_loss
from vistoken.train.encoders import encode_pictures
from vistoken.train.groups import part_parameters
from vistoken.train.loss import chunk_rows, summed_cross_entropy
from vistoken.train.masks import decoder_mask
from vistoken.train.metrics import Meter
from vistoken.train.packing import PackedBatch

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration


@dataclass
class TrainBatch:
    """One micro-batch of a stage; implements :class:`vistoken.core.objectives.MicroBatch`.

    Args:
        model: The model.
        inputs: What the collator made.
        meter: Counts for the metrics.
        clock: How far the stage is.
    """

    model: VistokenForConditionalGeneration
    inputs: Mapping[str, Any]
    meter: Meter
    clock: Clock
    visual: int = 0

    def states(self) -> TargetStates | None:
        """Run the model on the packed conversations."""
        batch: PackedBatch | None = self.inputs["batch"]
        if batch is None:  # every sample of the micro-batch was dropped
            return None
        core = self.model.model
        embedding: Any = core.get_input_embeddings()
        table: Tensor = embedding.weight
        device = table.device
        mask = decoder_mask(batch.segments, core.language_model.config, table.dtype, device)
        features = encode_pictures(self.model, self.inputs["pictures"])
        outputs = core(
            input_ids=batch.input_ids.to(device),
            position_ids=batch.position_ids.to(device),
            attention_mask=mask,
            mm_encoder_outputs=None if features is None else {"image": features},
            text_map=batch.token_map.to(device),
            use_cache=False,
        )
        hidden = outputs.last_hidden_state.flatten(0, 1)[batch.sources.to(device)]
        self.visual = 0 if features is None else sum(len(rows) for rows in features.pooler_output)
        self.meter.mechanisms.add(outputs.aux or {})
        aux = aux_loss(outputs.aux or {})
        if features is None:
            aux = _added(aux, self._untouched())
        return TargetStates(hidden, batch.targets.to(device), aux)

    def uncounted(self) -> TrainBatch:
        """The same batch with a meter that nobody reads."""
        return replace(self, meter=Meter())

    def cross_entropy(self, states: TargetStates) -> StepLoss:
        """Mean over the targets, plus the mechanisms' losses; predictions are counted."""
        head: nn.Module = self.model.lm_head
        rows = chunk_rows(self.model.config.text_config.vocab_size)
        total, predicted = summed_cross_entropy(head, states.hidden, states.targets, rows)
        self.meter.add(self.inputs["batch"], predicted, self.visual)
        loss = total / len(states.targets)
        if states.aux is not None:
            loss = loss + states.aux
        return StepLoss(loss, len(states.targets))

    def nothing(self) -> StepLoss:
        """A loss of 0 that every trained tensor has a (zero) gradient of, as on other ranks."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return StepLoss(_zero(trained), 0)

    def _untouched(self) -> Tensor | None:
        """0, with a gradient of 0 for what pictures train; None where nothing of it is trained.

        Without it a text-only micro-batch would leave those tensors out of the gradients' exchange:
        DistributedDataParallel stops there when activations are recomputed.
        """
        parts = part_parameters(self.model)
        trained = [
            parameter
            for name, parameters in parts.items()
            if name != "language"
            for parameter in parameters.values()
            if parameter.requires_grad
        ]
        return _zero(trained) if trained else None

    def count(self, questions: int, tokens: int, supervised: int, visual: int) -> None:
        """Count questions and tokens."""
        self.meter.count(questions, tokens, supervised, visual)


def _zero(parameters: Sequence[nn.Parameter]) -> Tensor:
    """0 (0-d), of which every parameter has a gradient of 0."""
    return torch.stack([p.flatten()[0].float() * 0 for p in parameters]).sum()


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other
