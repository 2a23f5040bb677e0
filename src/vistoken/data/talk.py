"""Conversations that a language model has with itself: rows of what it speaks of anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vistoken.core.errors import DataError, UsageError

_BATCH = 32
_SHORTEST = 8
"""Characters of a request."""
_IN_VAIN = 20
"""Batches in a row without a conversation after which the model is given up."""


@dataclass(frozen=True)
class Writer:
    """A causal language model and how it marks the turns of a conversation.

    Attributes:
        model: A ``transformers`` model that generates.
        tokenizer: Its tokenizer.
        opening: What stands before a user's words.
        between: What stands between them and the answer.
        request_tokens: Most tokens of a request.
        answer_tokens: Most tokens of an answer; longer ones are cut.
    """

    model: Any
    tokenizer: Any
    opening: str
    between: str
    request_tokens: int = 48
    answer_tokens: int = 160

    @classmethod
    def read(cls, folder: Path) -> Writer:
        """Load a language model from a folder of ``transformers``' files.

        Raises:
            UsageError: It is no such folder, or its tokenizer has no chat template.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not (folder / "config.json").is_file():
            raise UsageError(f"{folder} is no folder of a language model: it has no config.json")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if tokenizer.chat_template is None:
            raise UsageError(f"{folder} has no chat template; its model knows no conversations")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        mark = "\u2400"
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
        )
        opening, _, between = text.partition(mark)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        return cls(model, tokenizer, opening, between)

    def go_on(self, prompts: Sequence[str], longest: int, temperature: float) -> list[str]:
        """Sample what follows each prompt, up to the end of the turn.

        Args:
            prompts: Texts with the template's own special tokens.
            longest: Most tokens to write.
            temperature: Of the sampling.

        Returns:
            What was written, one text per prompt.
        """
        inputs = self.tokenizer(
            list(prompts),
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        with torch.inference_mode():
            written: Tensor = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                temperature=temperature,
                top_k=0,
                max_new_tokens=longest,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        answers = written[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]


def talk(
    writer: Writer,
    rows: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[dict[str, Any]]:
    """Let the model write a user's request, and then answer it.

    With the objective ``keep-language`` such rows hold the model where it speaks most often.

    Args:
        writer: The model.
        rows: How many conversations, of two messages each.
        seed: Of the sampling; PyTorch's own generator is as before afterwards.
        progress: Called with the number done and the total.

    Yields:
        Rows in the data schema, of kind ``text``.

    Raises:
        DataError: The model writes no requests, or no answers, however often it is asked.

    Source: Magpie (arXiv 2406.08464), requests out of a chat template alone.
    """
    made = batch = in_vain = 0
    while made < rows:
        if in_vain == _IN_VAIN:
            raise DataError(
                f"the language model wrote {made} of {rows} conversations and then none in "
                f"{_IN_VAIN * _BATCH} tries; take one that was trained to chat"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1_000_003 + batch)
            asked = writer.go_on([writer.opening] * _BATCH, writer.request_tokens, 1.0)
            asked = [text for text in asked if len(text) >= _SHORTEST][: rows - made]
            prompts = [f"{writer.opening}{text}{writer.between}" for text in asked]
            said = writer.go_on(prompts, writer.answer_tokens, 0.9) if prompts else []
        batch += 1
        in_vain = 0 if any(said) else in_vain + 1
        for request, answer in zip(asked, said, strict=True):
            if answer:
                yield _row(f"talk-{seed}-{made:05d}", request, answer)
                made += 1
        progress(made, rows)


def _row(name: str, request: str, answer: str) -> dict[str, Any]:
    return {
        "id": name,
        "kind": "text",
        "messages": [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("user", request), ("assistant", answer))
        ],
    }
