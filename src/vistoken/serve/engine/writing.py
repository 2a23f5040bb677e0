"""Answers that are being written: they begin, take their steps together, and end."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from vistoken.serve.engine.decoders import Decoder, Prefilled
from vistoken.serve.engine.job import Job, Row
from vistoken.serve.engine.sampling import Chooser, Rules
from vistoken.serve.engine.text import TextStream

logger = logging.getLogger(__name__)


class Writing:
    """The answers of all requests whose prompts were read; used by the engine's thread alone.

    Args:
        tokenizer: Decodes; used by nobody else.
        decoder: Steps rows.
        rules: The checkpoint's generation settings.
    """

    def __init__(self, tokenizer: Any, decoder: Decoder, rules: Rules) -> None:
        self._tokenizer, self._decoder, self._rules = tokenizer, decoder, rules
        self.rows: list[Row] = []
        self.counts = {"steps": 0.0, "step_rows": 0.0, "tokens": 0.0}
        self._pace_s = 1.0  # how often a request is finished, smoothed
        self._last_done = time.perf_counter()

    def patience(self) -> int:
        """Whole seconds after which a place in the queue is likely."""
        return max(1, min(60, round(self._pace_s * 2)))

    def stored_bytes(self) -> int:
        """Bytes of the keys and values of all rows."""
        return self._decoder.stored_bytes()

    def begin(self, job: Job, read: Prefilled) -> None:
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
            self.rows.append(row)
            self._write(row, token)

    def step(self) -> None:
        """Write the next token of every answer."""
        rows = list(self.rows)
        begun = time.perf_counter()
        try:
            logits = self._decoder.step([row.seat for row in rows])
        except Exception:
            logger.exception("a step of %d rows failed; each is tried alone", len(rows))
            self._step_one_by_one(rows)
            return
        self.counts["steps"] += 1
        self.counts["step_rows"] += len(rows)
        # before anything is written: whoever hears that he is done reads what it took
        spent = (time.perf_counter() - begun) * 1e3
        for job in {id(row.job): row.job for row in rows}.values():
            job.usage.engine_ms += spent
        self._after_step(rows, logits)

    def let_go(self) -> None:
        """Drop whatever was cancelled."""
        for row in [row for row in self.rows if row.job.cancelled]:
            self._leave(row)

    def drop(self, job: Job, error: Exception) -> None:
        """End a request without its answers."""
        job.fail(error)
        for row in [row for row in self.rows if row.job is job]:
            self._leave(row)

    @contextmanager
    def only_this(self, job: Job) -> Generator[None]:
        """Whatever goes wrong here ends this request and no other."""
        try:
            yield
        except Exception as error:
            logger.exception("a request failed")
            self.drop(job, error)

    def _step_one_by_one(self, rows: list[Row]) -> None:
        """Find out whose fault it was: the others go on."""
        for row in rows:
            if row in self.rows:
                with self.only_this(row.job):
                    self._after_step([row], self._decoder.step([row.seat]))

    def _after_step(self, rows: list[Row], logits: Tensor) -> None:
        self._decoder.advance([row.seat for row in rows])
        histories = None
        if self._rules.needs_history:
            histories = [[*row.job.prompt.ids[0].tolist(), *row.tokens] for row in rows]
        logits = self._rules.apply(logits, histories)
        greedy = logits.argmax(-1).tolist()
        for number, row in enumerate(rows):
            if row not in self.rows:  # its request failed with another of its answers
                continue
            with self.only_this(row.job):
                dice = row.chooser
                self._write(row, greedy[number] if dice.greedy else dice.draw(logits[number]))

    def _write(self, row: Row, token: int) -> None:
        """Take a token into an answer and deliver what can be said."""
        row.seat.token = token
        sampling = row.job.prompt.sampling
        self.counts["tokens"] += 1
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
        self.rows.remove(row)
        self._decoder.leave(row.seat)
