"""Answers, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vistoken.models.decoder import aux_loss
from vistoken.train.encoders import Encoder, encode_pictures
from vistoken.train.examples import read_examples
from vistoken.train.grouping import group_examples
from vistoken.train.labelling import find_labeller
from vistoken.train.loss import chunk_rows, summed_cross_entropy
from vistoken.train.metrics import Meter
from vistoken.train.objectives.base import Objective, StageItems, StepLoss
from vistoken.train.packing import PackedBatch, decoder_mask
from vistoken.train.samples import QuestionCollator
from vistoken.train.settings import StageConfig

if TYPE_CHECKING:
    from vistoken.data.reading import BadSamples
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.processing import VistokenProcessor


class NextToken(Objective):
    """Mean cross-entropy over the supervised tokens."""

    @classmethod
    def read(
        cls, files: Sequence[Path], root: Path | None, stage: StageConfig, bad: BadSamples
    ) -> StageItems:
        """Rows about the same pictures, grouped."""
        groups = group_examples(read_examples(files, root, bad), stage.questions_per_image)
        return StageItems(groups, groups.images, groups.lengths)

    @classmethod
    def collator(
        cls, stage: StageConfig, processor: VistokenProcessor, encode: Encoder, bad: BadSamples
    ) -> QuestionCollator:
        """Packs questions behind their pictures, and samples into rows where the stage says so."""
        label = find_labeller(stage.labels, processor, stage.template, stage.max_length)
        return QuestionCollator(
            processor,
            str(processor.chat_template),
            encode,
            stage.max_length,
            too_long=stage.too_long,
            pack_samples=stage.pack_samples,
            bad=bad,
            label=label,
        )

    def loss(
        self, model: VistokenForConditionalGeneration, inputs: dict[str, Any], meter: Meter
    ) -> StepLoss:
        """Run the model; logits are computed at supervised positions only."""
        batch: PackedBatch | None = inputs["batch"]
        if batch is None:  # every sample of the micro-batch was dropped
            return StepLoss(_zero(model), 0)
        core = model.model
        embedding: Any = core.get_input_embeddings()
        table: Tensor = embedding.weight
        device = table.device
        mask = decoder_mask(
            batch.attention_mask.to(device), core.language_model.config, table.dtype
        )
        features = encode_pictures(model, inputs["pictures"])
        outputs = core(
            input_ids=batch.input_ids.to(device),
            position_ids=batch.position_ids.to(device),
            attention_mask=mask,
            mm_encoder_outputs=None if features is None else {"image": features},
            use_cache=False,
        )
        hidden = outputs.last_hidden_state.flatten(0, 1)[batch.sources.to(device)]
        head: nn.Module = model.lm_head
        total, predicted = summed_cross_entropy(
            head,
            hidden,
            batch.targets.to(device),
            chunk_rows(model.config.text_config.vocab_size),
        )
        visual = 0 if features is None else sum(len(rows) for rows in features.pooler_output)
        meter.add(batch, predicted, visual)
        loss = total / len(batch.targets)
        of_mechanisms = aux_loss(outputs.aux or {})
        if of_mechanisms is not None:
            loss = loss + of_mechanisms
        return StepLoss(loss, len(batch.targets))


def _zero(model: VistokenForConditionalGeneration) -> Tensor:
    """A loss of 0 that every trained tensor has a (zero) gradient of, as on the other ranks."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.stack([p.flatten()[0].float() * 0 for p in trained]).sum()
