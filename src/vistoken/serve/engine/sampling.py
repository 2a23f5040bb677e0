"""Choosing the next token of every row by the row's own settings."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from vistoken.core.errors import UsageError
from vistoken.serve.engine.protocol import Sampling

_UNREAD = (
    "bad_words_ids", "sequence_bias", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "begin_suppress_tokens", "guidance_scale",
    "watermarking_config", "min_length", "min_new_tokens", "encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size", "constraints", "force_words_ids",
)  # fmt: skip


class Rules:
    """What a checkpoint's generation settings ask of every answer.

    Args:
        config: The model's generation settings. Sampling settings in it are left aside: a request
            brings its own.

    Raises:
        UsageError: A setting that this engine does not know how to follow.
    """

    def __init__(self, config: GenerationConfig) -> None:
        values = config.to_diff_dict()
        for name in _UNREAD:
            if values.get(name):
                raise UsageError(
                    f"the model's generation_config.json sets {name}, which the embedded engine "
                    "cannot follow; remove it there, or serve the model with --engine vllm"
                )
        ends = config.eos_token_id
        self.ends = frozenset(
            ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends]
        )
        self._suppressed = list(config.suppress_tokens or [])
        self._processors = LogitsProcessorList()
        if config.repetition_penalty not in (None, 1.0):
            self._processors.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
        if config.no_repeat_ngram_size:
            self._processors.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))

    @property
    def needs_history(self) -> bool:
        """Whether a token depends on which tokens stand before it."""
        return len(self._processors) > 0

    def apply(self, logits: Tensor, histories: Sequence[Sequence[int]] | None) -> Tensor:
        """Logits (B, V) float32 with what is forbidden at minus infinity.

        Args:
            logits (Tensor): (B, V) of the model.
            histories: Prompt and answer of each row; only read where :attr:`needs_history`.
        """
        logits = logits.to(dtype=torch.float32, copy=True)
        if histories is not None:
            for number, history in enumerate(histories):
                ids = torch.tensor([history], device=logits.device)
                logits[number] = self._processors(ids, logits[number : number + 1])[0]
        if self._suppressed:
            logits[:, self._suppressed] = -torch.inf
        return logits


class Chooser:
    """The dice of one answer.

    Args:
        sampling: The request's settings.
        choice: Which of its answers.
    """

    def __init__(self, sampling: Sampling, choice: int) -> None:
        self.greedy = sampling.temperature == 0
        self._temperature, self._top_p = sampling.temperature, sampling.top_p
        self._generator = torch.Generator()
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed + choice
        self._generator.manual_seed(seed % 2**63)

    def draw(self, logits: Tensor) -> int:
        """A token for logits (V,) float32."""
        scaled = logits.cpu() / self._temperature
        # scaled by a tiny temperature the largest may overflow; what counts is the distance to it
        probabilities = torch.softmax(scaled - scaled.max(), -1)
        if not bool(torch.isfinite(probabilities).all()):
            return int(logits.argmax())
        if self._top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            beyond = ordered.cumsum(-1) - ordered >= self._top_p
            probabilities[order[beyond]] = 0
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
