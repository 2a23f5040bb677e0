"""What `/metrics` tells Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vistoken.serve.engine.protocol import Engine, Usage
from vistoken.serve.errors import CLIENT_LEFT

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# Paths are counted by name only where the name is ours: a scanner must not grow our memory.
_PATHS = ("/v1/chat/completions", "/v1/models", "/health", "/metrics", "/")
_COUNTERS = {
    "steps": "Decode steps.",
    "step_rows": "Answers in all decode steps.",
    "tokens": "Tokens written.",
    "busy_seconds": "Seconds of computation.",
    "cpu_seconds": "Seconds of a core that the engine's thread took.",
    "prepare_cpu_seconds": "Seconds of a core that the making of prompts took.",
    "image_cache_hits": "Pictures whose visual tokens were there already.",
    "image_cache_misses": "Pictures that were encoded.",
}
_GAUGES = {
    "rows": "Answers that are being written.",
    "reading": "Requests whose prompts are being read.",
    "waiting": "Requests that wait.",
    "kv_bytes": "Bytes of keys and values.",
    "image_cache_bytes": "Bytes of visual tokens kept.",
}


class Meters:
    """Counts of one server.

    Args:
        engines: Whose numbers are told, too.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engines(engines))
        self._requests = Counter(
            "vistoken_requests", "Requests.", ["path", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "vistoken_request_seconds", "Time to answer.", ["path"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._first = Histogram(
            "vistoken_first_token_seconds", "Time to the first token.", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._queue = Histogram(
            "vistoken_queue_seconds", "Time in the queue.", buckets=_SECONDS, registry=self.registry
        )
        self._prompt = Counter(
            "vistoken_prompt_tokens", "Tokens of prompts answered.", registry=self.registry
        )
        self._visual = Counter(
            "vistoken_visual_tokens", "Visual tokens among them.", registry=self.registry
        )
        self._completion = Counter(
            "vistoken_completion_tokens", "Tokens of answers.", registry=self.registry
        )

    def answered(self, usage: Usage) -> None:
        """Count a complete answer."""
        self._first.observe(usage.first_token_ms / 1e3)
        self._queue.observe(usage.queue_ms / 1e3)
        self._prompt.inc(usage.prompt_tokens)
        self._visual.inc(usage.visual_tokens)
        self._completion.inc(usage.completion_tokens)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        known = path if path in _PATHS else "other"
        self._requests.labels(known, str(status)).inc()
        self._seconds.labels(known).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)


class _Engines(Collector):
    """Asks the engines when it is asked."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        stats = {name: engine.stats() for name, engine in self._engines.items()}
        for key, help_text in _COUNTERS.items():
            counter = CounterMetricFamily(f"vistoken_engine_{key}", help_text, labels=["model"])
            for name, values in stats.items():
                if key in values:
                    counter.add_metric([name], values[key])
            yield counter
        for key, help_text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"vistoken_engine_{key}", help_text, labels=["model"])
            for name, values in stats.items():
                if key in values:
                    gauge.add_metric([name], values[key])
            yield gauge


class MeterRequests:
    """Middleware that counts requests and their time.

    Args:
        app: What answers.
        meters: Where to count.
    """

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app, self._meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer and count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        # nothing is answered to a client that left while it was still asking
        status = CLIENT_LEFT

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if status == CLIENT_LEFT:  # an answer that had begun keeps its status
                status = 500
            raise
        finally:
            self._meters.request(scope["path"], status, time.perf_counter() - begun)
