"""What training reports: running scores, JSON lines, progress on a terminal or in a log."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from vistoken.train.mechanism_means import MechanismMeans
from vistoken.train.packing import PackedBatch

logger = logging.getLogger(__name__)

_WINDOW = 200


class Meter:
    """Counts since the last log line, and exact match over the latest questions of each kind.

    Exact match is teacher-forced: every supervised token, the end token included, is the most
    likely one. That equals greedy decoding's exact match. ``mechanisms`` gathers what the decoder's
    mechanisms report.
    """

    def __init__(self) -> None:
        self.questions = 0
        self.mechanisms = MechanismMeans()
        self._matches: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=_WINDOW))
        self.restart()

    def restart(self) -> None:
        """Begin a new log interval."""
        self._start = time.perf_counter()
        self._interval_questions = 0
        self._tokens = 0
        self._supervised = 0
        self._visual = 0

    def add(self, batch: PackedBatch, predicted: Tensor, visual: int) -> None:
        """Count a batch.

        Args:
            batch: What was asked.
            predicted (Tensor): (M,) int64, most likely token at each target.
            visual: Visual tokens among its tokens.
        """
        wrong = (predicted.cpu() != batch.targets.cpu()).long()
        misses = torch.zeros(len(batch.kinds), dtype=torch.int64)
        misses.index_add_(0, batch.rows.cpu(), wrong)
        for kind, missed in zip(batch.kinds, misses.tolist(), strict=True):
            self._matches[kind].append(missed == 0)
        self.count(len(batch.kinds), batch.tokens, len(batch.targets), visual)

    def count(self, questions: int, tokens: int, supervised: int, visual: int) -> None:
        """Count questions and tokens."""
        self.questions += questions
        self._interval_questions += questions
        self._tokens += tokens
        self._supervised += supervised
        self._visual += visual

    def read(self, unit: str = "questions") -> dict[str, float]:
        """Metrics of the interval; begins the next one.

        Args:
            unit: What is counted, ``questions`` or ``images``.
        """
        seconds = max(time.perf_counter() - self._start, 1e-9)
        values = {
            unit: self.questions,
            f"{unit}_per_s": self._interval_questions / seconds,
            "tokens_per_s": self._tokens / seconds,
            "visual_tokens_per_s": self._visual / seconds,
            "supervised_share": self._supervised / max(self._tokens, 1),
        }
        for kind, matches in sorted(self._matches.items()):
            values[f"exact/{kind or 'all'}"] = sum(matches) / len(matches)
        values |= self.mechanisms.read()
        self.restart()
        return values

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        matches = {kind: list(values) for kind, values in self._matches.items()}
        return {"questions": self.questions, "matches": matches}

    def load(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`."""
        self.questions = state["questions"]
        for kind, values in state["matches"].items():
            self._matches[kind].extend(values)


def peak_memory() -> int:
    """Most bytes this process has held: of the GPU where there is one, else of main memory.

    0 where the system does not say (Windows).
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Progress(TrainerCallback):
    """Shows how far a stage is: a bar on a terminal, a line per log record elsewhere.

    The first step of a session is shown at once: it tells how long the others will take.

    Args:
        stage: The stage's name.
        time_left: Seconds after which the stage ends at the latest.
    """

    def __init__(self, stage: str, time_left: Callable[[], float] = lambda: math.inf) -> None:
        self.stage = stage
        self._time_left = time_left
        self._bar: Any = None
        self._task: Any = None
        self._start = 0.0
        self._first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, and the bar on a terminal."""
        self._start, self._first = time.perf_counter(), state.global_step
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.stage, total=state.max_steps, completed=state.global_step, note=""
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar; after the first step, say how long the rest will take."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)
        if state.global_step == self._first + 1 and not control.should_log:
            self._show(state, {"eta_s": self.eta(state)})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show a record."""
        self._show(state, logs or {})

    def _show(self, state: Any, record: dict[str, Any]) -> None:
        note = self._note(record)
        if self._bar is not None:
            self._bar.update(self._task, note=note)
        else:
            logger.info("%s %d/%d %s", self.stage, state.global_step, state.max_steps, note)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()

    def eta(self, state: Any) -> float:
        """Seconds to go at the mean speed since the start of this session, or until the end."""
        done = max(state.global_step - self._first, 1)
        pace = (time.perf_counter() - self._start) / done
        return min(pace * (state.max_steps - state.global_step), self._time_left())

    @staticmethod
    def _note(logs: dict[str, Any]) -> str:
        parts = []
        for key, form in _SHOWN:
            # counts of faults are shown once there are any
            if logs.get(key) or (key in logs and key not in _FAULTS):
                parts.append(form.format(logs[key]))
        exact = {k.removeprefix("exact/"): v for k, v in logs.items() if k.startswith("exact/")}
        parts += [f"{kind} {value:.2f}" for kind, value in exact.items()]
        return "  ".join(parts)


_FAULTS = ("too_long_turns", "too_long_samples", "bad_samples")
_SHOWN: Sequence[tuple[str, str]] = (
    ("loss", "loss {:.3f}"),
    ("val/loss", "val {:.3f}"),
    ("learning_rate", "lr {:.1e}"),
    ("questions_per_s", "{:.1f} q/s"),
    ("tokens_per_s", "{:.0f} tok/s"),
    ("images_per_s", "{:.1f} img/s"),
    ("visual_tokens_per_s", "{:.0f} visual/s"),
    ("supervised_share", "{:.0%} supervised"),
    ("retrieval/names", "retrieval {:.3f}"),
    ("retrieval/colours", "colours {:.3f}"),
    ("too_long_turns", "{:.0f} rounds too long"),
    ("too_long_samples", "{:.0f} samples too long"),
    ("bad_samples", "{:.0f} bad samples"),
    ("peak_memory_mb", "{:.0f} MB"),
    ("eta_s", "ETA {:.0f} s"),
)
