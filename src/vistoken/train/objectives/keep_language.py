"""Answers about pictures, while rows without one leave the language model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vistoken.core.errors import UsageError
from vistoken.core.objectives import MicroBatch, Objective, StepLoss
from vistoken.train.lora import is_lora
from vistoken.train.loss import chunk_rows, summed_cross_entropy, summed_divergence
from vistoken.train.packing import PackedBatch


class KeepLanguage(Objective):
    """``next-token`` where there is a picture; elsewhere the model without adapters is the teacher.

    At the supervised tokens of rows without a picture the loss is the divergence from what the
    model predicts with every adapter off, KL(before || now). What such a row says is not learned,
    so any prose will do. The gradient of a model whose adapters do nothing yet is 0 there.

    Source: learning without forgetting (Li and Hoiem 2016, equation 5, at temperature 1), with the
        model before its adapters as the old one.
    """

    def loss(self, batch: MicroBatch) -> StepLoss:
        """Run the model; twice where a row has no picture.

        Raises:
            UsageError: Such a row, and a language model without adapters, with further trained
                weights, or with sharded ones.
        """
        states = batch.states()
        if states is None:
            return batch.nothing()
        model, packed = batch.model, batch.inputs["batch"]
        plain = without_picture(packed, model.config.image_token_id).to(states.hidden.device)
        if not plain.any():
            return batch.cross_entropy(states)
        check_model(model)
        with torch.no_grad():
            batch.cross_entropy(states)  # counts what is predicted, as everywhere
            before = _without_adapters(batch)
        rows = chunk_rows(model.config.text_config.vocab_size)
        total, _ = summed_cross_entropy(
            model.lm_head, states.hidden[~plain], states.targets[~plain], rows
        )
        total = total + summed_divergence(
            model.lm_head,
            states.hidden[plain],
            before[plain],
            lambda: adapters_off(model),
            max(rows // 2, 1),
        )
        mean = total / len(states.targets)
        return StepLoss(mean if states.aux is None else mean + states.aux, len(states.targets))


def _without_adapters(batch: MicroBatch) -> Tensor:
    """The batch's states (M, D) as they were before the adapters."""
    with adapters_off(batch.model):
        states = batch.uncounted().states()
    if states is None:
        raise RuntimeError("a batch had samples, and has none the second time")
    return states.hidden


def without_picture(batch: PackedBatch, image_token: int) -> Tensor:
    """Which targets belong to a sample that shows no picture, (M,) bool."""
    width = batch.input_ids.shape[1]
    # samples are numbered within a row, and no row has more of them than positions
    row = torch.arange(len(batch.input_ids))[:, None]
    sample = (row * width + batch.segments.sample.cpu()).flatten()
    shows = torch.zeros(batch.input_ids.numel(), dtype=torch.bool)
    shows[sample[(batch.input_ids.cpu() == image_token).flatten()]] = True
    return ~shows[sample[batch.sources.cpu()]]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before its adapters; they are back afterwards, with their gradients."""
    from peft.helpers import rescale_adapter_scale

    with rescale_adapter_scale(model, 0):
        yield


def check_model(model: Any) -> None:
    """Refuse a model of which nobody can say what its language model predicted before.

    Raises:
        UsageError: No adapters on the language model, other weights of it that are trained, or
            weights that processes share.
    """
    from peft.tuners.lora import LoraLayer
    from torch.distributed.tensor import DTensor

    language = model.model.language_model
    if not any(isinstance(module, LoraLayer) for module in language.modules()):
        raise UsageError(
            "keep-language compares the language model with itself before its adapter, and this "
            "one has none: set groups.language.train to lora, or the stage's objective to "
            "next-token"
        )
    moving = [
        name
        for part in (language, model.lm_head)
        for name, parameter in part.named_parameters()
        if parameter.requires_grad and not is_lora(name)
    ]
    if moving:
        raise UsageError(
            f"keep-language cannot tell what the language model was: {moving[0]} is trained beside "
            "its adapter; freeze it, or set the stage's objective to next-token"
        )
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise UsageError(
            "keep-language runs the model a second time for rows without a picture, which "
            "processes that share its weights cannot do each on its own: use ddp.yaml"
        )
