"""A conversation with a model: messages, pictures, streamed answers and how fast they came."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vistoken.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from vistoken.models import VistokenForConditionalGeneration, VistokenProcessor


@dataclass(frozen=True)
class Answer:
    """An answer and its cost.

    Args:
        text: What the model said.
        tokens: Tokens of it.
        prompt_tokens: Tokens of the prompt, visual ones included.
        visual_tokens: Visual tokens of the prompt.
        first_token_s: Seconds until the first token.
        tokens_per_s: Speed after the first token; None where there is no second one.
    """

    text: str
    tokens: int
    prompt_tokens: int
    visual_tokens: int
    first_token_s: float
    tokens_per_s: float | None


@dataclass
class Conversation:
    """What was said so far.

    Args:
        model: The model.
        processor: Its processor.
        system: System message; the template's own when None.
        max_new_tokens: Longest answer.
        temperature: 0 takes the likeliest token, more samples.
        seed: Of the sampling.
    """

    model: VistokenForConditionalGeneration
    processor: VistokenProcessor
    system: str | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Image] = field(default_factory=list)
    waiting: list[Image] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = []
        self.pictures = []
        self.waiting = []
        if self.system is not None:
            content = [{"type": "text", "text": self.system}]
            self.messages.append({"role": "system", "content": content})

    def show(self, picture: Image) -> None:
        """Add a picture to the next question."""
        self.waiting.append(picture)

    def ask(self, question: str, tell: Callable[[str], None]) -> Answer:
        """Ask, and remember question and answer.

        An empty answer is not remembered, nor is its question: templates refuse a turn in which
        nothing was said. Its pictures then belong to the next question.

        Args:
            question: The question; pictures shown since the last one belong to it.
            tell: Receives the answer piece by piece.

        Raises:
            DataError: The question is empty or holds image marks of its own.
            UsageError: The conversation is longer than the language model can read, or nothing
                that the chat template can render.
        """
        mark = self.processor.image_token
        if not question.strip():
            raise DataError("the question is empty; write what you want to know")
        if mark in question:
            raise DataError(
                f"the question holds {question.count(mark)} {mark} marks of its own; leave them "
                "out, every picture gets its place by itself"
            )
        content: list[dict[str, Any]] = [{"type": "image"} for _ in self.waiting]
        content.append({"type": "text", "text": question})
        messages = [*self.messages, {"role": "user", "content": content}]
        pictures = [*self.pictures, *self.waiting]
        answer = self._generate(messages, pictures, tell)
        if not answer.text:
            return answer
        said = {"role": "assistant", "content": [{"type": "text", "text": answer.text}]}
        self.messages, self.pictures, self.waiting = [*messages, said], pictures, []
        return answer

    def _generate(
        self, messages: list[dict[str, Any]], pictures: list[Image], tell: Callable[[str], None]
    ) -> Answer:
        import torch
        from transformers import TextIteratorStreamer

        inputs = self._inputs(messages, pictures).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        self._check_length(length)
        streamer = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        clock = _Clock()
        options: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:
            options = {"do_sample": True, "temperature": self.temperature}
        results: list[torch.Tensor] = []
        errors: list[BaseException] = []

        def generate() -> None:
            try:
                with torch.random.fork_rng():
                    torch.manual_seed(self.seed)
                    results.append(
                        self.model.generate(
                            **inputs,
                            **options,
                            max_new_tokens=self.max_new_tokens,
                            streamer=streamer,
                            stopping_criteria=[clock],
                        )
                    )
            except BaseException as error:
                errors.append(error)
            finally:
                streamer.end()

        worker = threading.Thread(target=generate, daemon=True)
        worker.start()
        try:
            text = "".join(_told(streamer, tell))
        except KeyboardInterrupt:
            clock.stopped = True
            worker.join()
            raise
        worker.join()
        if errors:
            raise errors[0]
        visual = int((inputs["input_ids"] == self.processor.image_token_id).sum())
        tokens = results[0].shape[1] - length
        return Answer(text.strip(), tokens, length, visual, clock.first_s, clock.speed(tokens))

    def _inputs(self, messages: list[dict[str, Any]], pictures: list[Image]) -> Any:
        """Model inputs, with the map of who said what where the template tells it."""
        prompt = self._render(messages)
        if not self.processor.tells_roles:
            return self.processor(text=prompt, images=pictures or None, return_tensors="pt")
        return self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_text_map=True,
            processor_kwargs={"images": pictures},
        )

    def _render(self, messages: list[dict[str, Any]]) -> str:
        from jinja2 import TemplateError

        if self.processor.chat_template is None:
            raise UsageError(
                "this model has no chat template, so there is no conversation with it; convert or "
                "save it again with one ('vistoken list templates' names those that there are)"
            )
        try:
            prompt = self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise UsageError(
                f"the model's chat template refuses this conversation ({error}); start over with "
                "/reset, or leave --system out"
            ) from error
        return str(prompt)

    def _check_length(self, length: int) -> None:
        text: Any = self.model.config.text_config
        longest = text.max_position_embeddings
        if length + self.max_new_tokens > longest:
            raise UsageError(
                f"{length} tokens of prompt and {self.max_new_tokens} of answer are more than the "
                f"{longest} that this language model can read; show fewer pictures, start over "
                "with /reset, or lower --max-new-tokens"
            )


class _Clock:
    """Watches tokens come, as a stopping criterion: it is asked after each of them."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.first_s = 0.0
        self.last_s = 0.0
        self.stopped = False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        self.last_s = time.perf_counter() - self.begun
        self.first_s = self.first_s or self.last_s
        return torch.full((len(input_ids),), self.stopped, device=input_ids.device)

    def speed(self, tokens: int) -> float | None:
        """Tokens per second after the first one."""
        span = self.last_s - self.first_s
        return (tokens - 1) / span if tokens > 1 and span > 0 else None


def _told(streamer: Any, tell: Callable[[str], None]) -> list[str]:
    pieces: list[str] = []
    for piece in streamer:
        tell(piece)
        pieces.append(piece)
    return pieces
