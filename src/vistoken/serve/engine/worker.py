"""The engine's thread: whose turn it is to be taken up, read and written."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from vistoken.serve.engine.decoders import Decoder, Reading
from vistoken.serve.engine.features import FeatureCache
from vistoken.serve.engine.job import Job
from vistoken.serve.engine.reading import Reader
from vistoken.serve.engine.sampling import Rules
from vistoken.serve.engine.writing import Writing

if TYPE_CHECKING:
    from vistoken.models import VistokenForConditionalGeneration

logger = logging.getLogger(__name__)


class Worker:
    """Owns the model.

    Args:
        model: The model.
        tokenizer: Decodes; used by nobody else.
        decoder: Steps rows.
        rules: The checkpoint's generation settings.
        features: Visual tokens seen before.
        max_rows: Answers at a time.
        places: Tokens of key/value memory, rows times the longest of them.
    """

    def __init__(
        self,
        model: VistokenForConditionalGeneration,
        tokenizer: Any,
        decoder: Decoder,
        rules: Rules,
        features: FeatureCache,
        max_rows: int,
        places: int,
    ) -> None:
        self.writing = Writing(tokenizer, decoder, rules)
        self._features = features
        self._reader = Reader(model, decoder, features)
        self._max_rows, self.places = max_rows, places
        self._wake = threading.Condition()
        self._queue: deque[Job] = deque()
        self._reading: deque[tuple[Job, Reading]] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._closing = False
        self._counts = {"busy_seconds": 0.0, "cpu_seconds": 0.0}
        self._thread = threading.Thread(target=self._run, name="vistoken-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that were not taken up yet."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._queue or self._reading or self.writing.rows or self._errands)

    def add(self, job: Job) -> None:
        """Queue a request."""
        with self._wake:
            self._queue.append(job)
            self._wake.notify()

    def between_steps(self, errand: Callable[[], None]) -> None:
        """Run something that needs the model, in this thread; it must not raise."""
        with self._wake:
            self._errands.append(errand)
            self._wake.notify()

    def close(self) -> None:
        """Finish everything that was queued, then end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def stats(self) -> dict[str, float]:
        """Counts and present sizes."""
        return {
            **self.writing.counts,
            **self._counts,
            "rows": float(len(self.writing.rows)),
            "reading": float(len(self._reading)),
            "waiting": float(len(self._queue)),
            "kv_bytes": float(self.writing.stored_bytes()),
            "image_cache_bytes": float(self._features.bytes),
            "image_cache_hits": float(self._features.hits),
            "image_cache_misses": float(self._features.misses),
        }

    def _run(self) -> None:
        while self._wait():
            begun = time.perf_counter()
            try:
                self.turn()
            except Exception as error:  # a fault of ours must not silence the server
                logger.exception("a turn of the engine failed")
                self._drop_all(error)
            self._counts["busy_seconds"] += time.perf_counter() - begun
            self._counts["cpu_seconds"] = time.thread_time()

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when everything is done for good."""
        with self._wake:
            while self.idle:
                if self._closing:
                    return False
                self._wake.wait()
        return True

    @torch.inference_mode()
    def turn(self) -> None:
        """Do one piece of everything that is to do; what the thread does over and over."""
        self._let_go()
        while self._errands:
            self._errands.popleft()()
        self._take_up()
        if self._reading:
            self._read_on()
        if self.writing.rows:
            self.writing.step()

    def _let_go(self) -> None:
        """Drop whatever was cancelled."""
        self.writing.let_go()
        if any(job.cancelled for job, _ in self._reading):
            self._reading = deque(pair for pair in self._reading if not pair[0].cancelled)

    def _take_up(self) -> None:
        """Begin with the next requests, strictly in turn: a big one is not passed by small ones."""
        while self._queue:
            job = self._queue[0]
            if not job.cancelled and not self._fits(job):
                return
            self._queue.popleft()
            if not job.cancelled:
                job.taken_up()
                self._reading.append((job, self._reader(job)))

    def _fits(self, job: Job) -> bool:
        present = {id(job): job for job in self._present()}
        rows = len(self.writing.rows) + sum(j.rows for j, _ in self._reading) + job.rows
        longest = max([j.longest for j in present.values()] + [job.longest])
        return rows <= self._max_rows and rows * longest <= self.places

    def _read_on(self) -> None:
        """Read one piece of one prompt; prompts take turns."""
        job, reading = self._reading.popleft()
        with self.writing.only_this(job):
            with _timed(job):
                try:
                    next(reading)
                except StopIteration as finished:
                    self.writing.begin(job, finished.value)
                    return
            self._reading.append((job, reading))

    def _drop_all(self, error: Exception) -> None:
        """Start afresh after a fault of the engine itself."""
        jobs = {id(job): job for job in self._present()}
        self._reading.clear()
        for job in jobs.values():
            self.writing.drop(job, error)

    def _present(self) -> list[Job]:
        """Requests that are being written or read; one comes once for each of its answers."""
        written = [row.job for row in self.writing.rows]
        return [*written, *(job for job, _ in self._reading)]


@contextmanager
def _timed(job: Job) -> Generator[None]:
    begun = time.perf_counter()
    try:
        yield
    finally:
        job.usage.engine_ms += (time.perf_counter() - begun) * 1e3
