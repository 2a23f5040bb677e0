"""What an engine may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of an embedded engine.

    Args:
        max_rows: Answers that are written at a time.
        max_queue: Requests that may wait.
        kv_bytes: Memory for keys and values of running answers.
        image_cache_bytes: Memory for visual tokens of pictures seen before; 0 keeps none.
        prefill_chunk: Prompt tokens read between two decode steps.
        max_context: Longest prompt and answer in tokens; what the language model can read at
            most when None.
        default_max_tokens: Longest answer where a request names none.
    """

    max_rows: int = 16
    max_queue: int = 64
    kv_bytes: int = 2 * 2**30
    image_cache_bytes: int = 256 * 2**20
    prefill_chunk: int = 512
    max_context: int | None = None
    default_max_tokens: int = 256
