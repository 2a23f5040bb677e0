"""The embedded engine: one thread that owns a model and writes many answers at a time.

Between two decode steps finished answers leave, new requests are taken up in the order in which
they came, and one piece of one prompt is read: a picture encoded, or a few hundred tokens. So
nobody waits longer than for one such piece, however long the prompts of others are.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vistoken.core.errors import UsageError
from vistoken.serve.engine.alone import AloneDecoder
from vistoken.serve.engine.decoders import Decoder, why_alone
from vistoken.serve.engine.features import FeatureCache
from vistoken.serve.engine.job import Job
from vistoken.serve.engine.limits import EngineLimits
from vistoken.serve.engine.prepare import Preparer, Prompt
from vistoken.serve.engine.protocol import Conversation, Deliver, Sampling
from vistoken.serve.engine.sampling import Rules
from vistoken.serve.engine.shared import SharedDecoder
from vistoken.serve.engine.worker import Worker
from vistoken.serve.errors import RequestError

if TYPE_CHECKING:
    from vistoken.models import VistokenForConditionalGeneration, VistokenProcessor

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class EmbeddedEngine:
    """Continuous batching over one of our models.

    Args:
        name: What clients call the model.
        model: In evaluation mode on its device; used by nobody else from now on.
        processor: Its processor; likewise.
        limits: What the engine may use.

    Raises:
        UsageError: The model cannot be served by this engine, and why.
    """

    def __init__(
        self,
        name: str,
        model: VistokenForConditionalGeneration,
        processor: VistokenProcessor,
        limits: EngineLimits | None = None,
    ) -> None:
        self.name = name
        self.limits = limits or EngineLimits()
        self._created = int(time.time())
        self._alone = why_alone(model)
        self._max_context = _context(model, self.limits)
        places = self.limits.kv_bytes // kv_bytes_per_token(model)
        decoder: Decoder
        if self._alone is None:
            decoder = SharedDecoder(model, self.limits.max_rows, self.limits.prefill_chunk, places)
        else:
            logger.warning("%s is stepped row by row: %s", name, self._alone)
            decoder = AloneDecoder(model)
        self._prepare = Preparer(
            processor,
            self._max_context,
            self.limits.default_max_tokens,
            with_text_map=self._alone is not None and processor.tells_roles,
        )
        dependent = [part for part, flags in model.model.plan.flags if flags.prompt_dependent]
        if dependent:
            raise UsageError(
                f"the part {dependent[0]!r} makes visual tokens that depend on the prompt, which "
                "the embedded engine does not know how to keep apart; use 'vistoken chat'"
            )
        self._worker = Worker(
            model,
            copy.deepcopy(processor.tokenizer),
            decoder,
            Rules(model.generation_config),
            FeatureCache(self.limits.image_cache_bytes),
            self.limits.max_rows,
            places,
        )
        self._worker.start()
        self._model, self._processor = model, processor
        self._closing = False

    def describe(self) -> dict[str, Any]:
        """What the model can do, for ``/v1/models``."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "vistoken",
            "capabilities": {
                "images": True,
                "video": False,
                "token_budget": False,
                "batching": "shared" if self._alone is None else "row-by-row",
                "batching_reason": self._alone,
                "max_context": self._max_context,
            },
        }

    def prepare(self, conversation: Conversation) -> Prompt:
        """Check a request and make its model inputs, without queueing it.

        Raises:
            RequestError: It cannot be answered.
            VistokenError: The messages or pictures do not fit the model.
        """
        prompt = self._prepare(conversation)
        self._check_fits(prompt)
        return prompt

    def submit(self, conversation: Conversation, deliver: Deliver) -> Job:
        """See :meth:`~vistoken.serve.engine.protocol.Engine.submit`."""
        arrived = time.perf_counter()
        self.check_room()
        job = Job(self.prepare(conversation), deliver, arrived)
        job.usage.prepare_ms = (time.perf_counter() - arrived) * 1e3
        self.check_room()
        self._worker.add(job)
        return job

    def check_room(self) -> None:
        """Refuse what would not be answered soon.

        Raises:
            RequestError: The queue is full, or the engine is closing.
        """
        if self._closing:
            raise _closing()
        if self._worker.waiting >= self.limits.max_queue:
            raise RequestError(
                f"{self.limits.max_queue} requests are waiting already; try again later",
                429, "queue_full", retry_after=self._worker.writing.patience(),
            )  # fmt: skip

    def run(self, function: Callable[[Any, Any], Result]) -> Result:
        """Use the model for something else, between two steps of the answers.

        Args:
            function: Receives model and processor in the engine's thread; answers wait meanwhile.

        Returns:
            What the function returned; what it raised is raised here.
        """
        result: Future[Result] = Future()

        def errand() -> None:
            try:
                result.set_result(function(self._model, self._processor))
            except BaseException as error:
                result.set_exception(error)

        if self._closing:
            raise _closing()
        self._worker.between_steps(errand)
        return result.result()

    def stats(self) -> dict[str, float]:
        """Numbers for ``/metrics``."""
        return {**self._worker.stats(), "prepare_cpu_seconds": self._prepare.cpu_seconds}

    def close(self) -> None:
        """Finish what was taken, then stop the thread."""
        self._closing = True
        self._worker.close()

    def _check_fits(self, prompt: Prompt) -> None:
        sampling: Sampling = prompt.sampling
        if sampling.n > self.limits.max_rows:
            raise RequestError(
                f"n is {sampling.n}, but this server writes at most {self.limits.max_rows} "
                "answers at a time",
                param="n",
            )
        places = sampling.n * (prompt.length + prompt.max_tokens)
        if places > self._worker.places:
            raise RequestError(
                f"{sampling.n} answers of {prompt.length + prompt.max_tokens} tokens, prompt "
                f"included, need more than the {self._worker.places} tokens of key/value memory; "
                "lower max_tokens or n",
                code="context_length_exceeded",
            )


def _closing() -> RequestError:
    return RequestError(
        "the server is shutting down; try again in a moment", 503, "shutting_down", retry_after=5
    )


def kv_bytes_per_token(model: VistokenForConditionalGeneration) -> int:
    """Bytes of keys and values that one token of one sequence takes in all layers."""
    text: Any = model.config.text_config
    values = text.to_dict()
    heads = values.get("num_key_value_heads") or text.num_attention_heads
    size = values.get("head_dim") or text.hidden_size // text.num_attention_heads
    element = torch.empty(0, dtype=model.dtype).element_size()
    return int(2 * text.num_hidden_layers * heads * size * element)


def _context(model: VistokenForConditionalGeneration, limits: EngineLimits) -> int:
    text: Any = model.config.text_config
    longest = int(text.max_position_embeddings)
    return longest if limits.max_context is None else min(longest, limits.max_context)
