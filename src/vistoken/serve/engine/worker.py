"""The engine's thread: who is taken up, read and stepped, and when."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vistoken.serve.engine.decoders import Decoder, Prefilled, Reading
from vistoken.serve.engine.features import FeatureCache
from vistoken.serve.engine.job import Job, Row
from vistoken.serve.engine.reading import Reader
from vistoken.serve.engine.sampling import Chooser, Rules
from vistoken.serve.engine.text import TextStream

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
        self._tokenizer, self._decoder = tokenizer, decoder
        self._rules, self._features = rules, features
        self._reader = Reader(model, decoder, features)
        self._max_rows, self.places = max_rows, places
        self._wake = threading.Condition()
        self._queue: deque[Job] = deque()
        self._reading: deque[tuple[Job, Reading]] = deque()
        self._rows: list[Row] = []
        self._errands: deque[Callable[[], None]] = deque()
        self._closing = False
        self._counts = {
            "steps": 0.0,
            "step_rows": 0.0,
            "tokens": 0.0,
            "busy_seconds": 0.0,
            "cpu_seconds": 0.0,
        }
        self._pace_s = 1.0  # how often a request is finished, smoothed
        self._last_done = time.perf_counter()
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
        return not (self._queue or self._reading or self._rows or self._errands)

    def patience(self) -> int:
        """Whole seconds after which a place in the queue is likely."""
        return max(1, min(60, round(self._pace_s * 2)))

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
            **self._counts,
            "rows": float(len(self._rows)),
            "reading": float(len(self._reading)),
            "waiting": float(len(self._queue)),
            "kv_bytes": float(self._decoder.stored_bytes()),
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
        if self._rows:
            self._step()

    def _let_go(self) -> None:
        """Drop whatever was cancelled."""
        for row in [row for row in self._rows if row.job.cancelled]:
            self._leave(row)
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
        present = {id(j): j for j in [*(r.job for r in self._rows), *(j for j, _ in self._reading)]}
        rows = len(self._rows) + sum(j.rows for j, _ in self._reading) + job.rows
        longest = max([j.longest for j in present.values()] + [job.longest])
        return rows <= self._max_rows and rows * longest <= self.places

    def _read_on(self) -> None:
        """Read one piece of one prompt; prompts take turns."""
        job, reading = self._reading.popleft()
        with self._only_this(job):
            with _timed(job):
                try:
                    next(reading)
                except StopIteration as finished:
                    self._begin(job, finished.value)
                    return
            self._reading.append((job, reading))

    def _begin(self, job: Job, read: Prefilled) -> None:
        """Write the first token of every answer and let the unfinished ones join."""
        history = None
        if self._rules.needs_history:
            history = [job.prompt.ids[0].tolist()]
        logits = self._rules.apply(read.logits, history)[0]
        for choice in range(job.rows):
            chooser = Chooser(job.prompt.sampling, choice)
            token = int(logits.argmax()) if chooser.greedy else chooser.draw(logits)
            text = TextStream(self._tokenizer, job.prompt.sampling.stop)
            row = Row(job, choice, self._decoder.sit(read, token), chooser, text)
            self._rows.append(row)
            self._write(row, token)

    def _step(self) -> None:
        rows = list(self._rows)
        begun = time.perf_counter()
        try:
            logits = self._decoder.step([row.seat for row in rows])
        except Exception:
            logger.exception("a step of %d rows failed; each is tried alone", len(rows))
            self._step_one_by_one(rows)
            return
        self._counts["steps"] += 1
        self._counts["step_rows"] += len(rows)
        self._after_step(rows, logits)
        spent = (time.perf_counter() - begun) * 1e3
        for job in {id(row.job): row.job for row in rows}.values():
            job.usage.engine_ms += spent

    def _step_one_by_one(self, rows: list[Row]) -> None:
        """Find out whose fault it was: the others go on."""
        for row in rows:
            if row in self._rows:
                with self._only_this(row.job):
                    self._after_step([row], self._decoder.step([row.seat]))

    def _after_step(self, rows: list[Row], logits: Tensor) -> None:
        self._decoder.advance([row.seat for row in rows])
        histories = None
        if self._rules.needs_history:
            histories = [[*row.job.prompt.ids[0].tolist(), *row.tokens] for row in rows]
        logits = self._rules.apply(logits, histories)
        greedy = logits.argmax(-1).tolist()
        for number, row in enumerate(rows):
            if row not in self._rows:  # its request failed with another of its answers
                continue
            with self._only_this(row.job):
                dice = row.chooser
                self._write(row, greedy[number] if dice.greedy else dice.draw(logits[number]))

    def _write(self, row: Row, token: int) -> None:
        """Take a token into an answer and deliver what can be said."""
        row.seat.token = token
        sampling = row.job.prompt.sampling
        self._counts["tokens"] += 1
        if token in self._rules.ends and not sampling.ignore_eos:
            self._finish(row, row.text.finish(), "stop", (token,))
            return
        row.tokens.append(token)
        text = row.text.push(token)
        if row.text.stopped:
            self._finish(row, text, "stop", (token,))
        elif len(row.tokens) >= row.job.prompt.max_tokens:
            text += row.text.finish()
            self._finish(row, text, "stop" if row.text.stopped else "length", (token,))
        else:
            row.job.say(row, text, None, (token,))

    def _finish(self, row: Row, text: str, reason: str, tokens: tuple[int, ...]) -> None:
        row.job.say(row, text, reason, tokens)
        self._leave(row)
        row.job.open_rows -= 1
        if row.job.open_rows == 0:
            row.job.done()
            now = time.perf_counter()
            self._pace_s += 0.2 * (now - self._last_done - self._pace_s)
            self._last_done = now

    def _leave(self, row: Row) -> None:
        self._rows.remove(row)
        self._decoder.leave(row.seat)

    @contextmanager
    def _only_this(self, job: Job) -> Generator[None]:
        """Whatever goes wrong here ends this request and no other."""
        try:
            yield
        except Exception as error:
            logger.exception("a request failed")
            self._drop(job, error)

    def _drop(self, job: Job, error: Exception) -> None:
        job.fail(error)
        for row in [row for row in self._rows if row.job is job]:
            self._leave(row)

    def _drop_all(self, error: Exception) -> None:
        """Start afresh after a fault of the engine itself."""
        jobs = {
            id(job): job for job in [*(r.job for r in self._rows), *(j for j, _ in self._reading)]
        }
        self._reading.clear()
        for job in jobs.values():
            self._drop(job, error)


@contextmanager
def _timed(job: Job) -> Generator[None]:
    begun = time.perf_counter()
    try:
        yield
    finally:
        job.usage.engine_ms += (time.perf_counter() - begun) * 1e3
