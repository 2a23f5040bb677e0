"""Evaluation of a model on task files: answers on disk as they come, then a summary."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistoken.core.errors import UsageError
from vistoken.core.files import write_atomically
from vistoken.eval.answering import METHODS, Answer, Answerer, Method
from vistoken.eval.grey import GreyEncoder
from vistoken.eval.prompts import PromptMaker
from vistoken.eval.records import SUMMARY, TABLE, Record, Results, write_json
from vistoken.eval.scoring import answer_prior, prior_hits
from vistoken.eval.summary import summarise, table_rows, text_table
from vistoken.eval.tasks import Question, Task, read_answers
from vistoken.train.cache import FeatureCache, fast_compute, hash_weights
from vistoken.train.encoders import CachedEncoder, Encoder, PixelEncoder

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.processing import VistokenProcessor

_FORMAT = 2

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvalOptions:
    """How questions are asked.

    Args:
        method: ``forced`` (one packed pass, the same answers) or ``generate``.
        max_new_tokens: Longest answer that is written.
        grey: Also ask everything about a grey picture of the same size.
        grey_limit: Only about the first so many pictures of each task; about all when None.
        prior: Data file whose answers give the answer prior; the task file itself when None.
        limit: Pictures of each task, all when None; as the tasks were read with.
        cache: Folder of a feature cache; None encodes every picture.
        groups: Further rows of the table, name -> kinds.
    """

    method: Method = "forced"
    max_new_tokens: int = 64
    grey: bool = False
    grey_limit: int | None = None
    prior: Path | None = None
    limit: int | None = None
    cache: Path | None = None
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


def describe(
    model: VistokenForConditionalGeneration,
    processor: VistokenProcessor,
    tasks: Sequence[Task],
    options: EvalOptions,
    name: str,
) -> dict[str, Any]:
    """Everything that a result depends on, and what it was run with."""
    return {
        "format": _FORMAT,
        "model": name,
        "weights": hash_weights(model),
        "prompt": _prompt_digest(processor),
        "dtype": str(model.dtype).removeprefix("torch."),
        "features": "pixels" if options.cache is None else f"cached in {fast_compute()}",
        "tasks": {task.name: task.digest for task in tasks},
        "limit": options.limit,
        "method": options.method,
        "max_new_tokens": options.max_new_tokens,
        "grey": options.grey,
        "grey_limit": options.grey_limit,
        "prior": "task" if options.prior is None else _digest(options.prior),
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("vistoken", "torch", "transformers")
        },
    }


def evaluate(
    model: VistokenForConditionalGeneration,
    processor: VistokenProcessor,
    tasks: Sequence[Task],
    output: Path,
    options: EvalOptions | None = None,
    name: str = "",
    progress: Tell | None = None,
) -> dict[str, Any]:
    """Ask a model the questions of tasks; go on where an earlier run of the same settings stopped.

    Args:
        model: The model, on its device, in evaluation mode.
        processor: Its processor.
        tasks: What to ask.
        output: Folder of the results.
        options: How to ask.
        name: What the model is called in the results.
        progress: Told the task, the number of questions done and the total.

    Returns:
        The summary, as written to ``summary.json``.

    Raises:
        UsageError: The folder holds results of other settings.
        DataError: A question or a picture is faulty.
    """
    options = options or EvalOptions()
    results = Results(output)
    settings = describe(model, processor, tasks, options, name)
    done = results.begin(settings)
    began = time.perf_counter()
    asker = _Asker(model, processor, options)
    for task in tasks:
        asked = {record.id for record in done if record.task == task.name}
        greys = 0
        if options.grey:
            greys = len(task.groups) if options.grey_limit is None else options.grey_limit
        _ask_task(task, asker, results, asked, greys, progress)
    seconds = time.perf_counter() - began
    summary = {
        "settings": settings,
        "questions": sum(len(task.questions) for task in tasks),
        "asked_now": len(results.records()) - len(done),
        "seconds": round(seconds, 2),
        "interval": "95 %, bootstrap over pictures",
        "tasks": summaries(results, tasks, options.groups),
    }
    write_json(output / SUMMARY, summary)
    write_atomically(output / TABLE, summary_text(summary).encode("utf-8"))
    return summary


def summaries(
    results: Results, tasks: Sequence[Task], groups: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The table of every task."""
    records = results.records()
    return {
        task.name: summarise([r for r in records if r.task == task.name], groups) for task in tasks
    }


def summary_text(summary: Mapping[str, Any]) -> str:
    """A summary as plain text."""
    parts = []
    for name, table in summary["tasks"].items():
        parts.append(f"{name}: exact match of the greedy answer in percent, 95 % interval\n")
        parts.append(text_table(*table_rows(table)) + "\n")
    return "\n".join(parts)


class _Asker:
    """Asks groups of questions in sight of the picture and, if wanted, of a grey one."""

    def __init__(
        self,
        model: VistokenForConditionalGeneration,
        processor: VistokenProcessor,
        options: EvalOptions,
    ) -> None:
        encode: Encoder = PixelEncoder(processor)
        if options.cache is not None:
            cache = FeatureCache(options.cache, model, processor, fast_compute())
            encode = CachedEncoder(cache)
        self.see = PromptMaker(model, processor, encode)
        self.blind = PromptMaker(model, processor, GreyEncoder(model, processor))
        self.answer = Answerer(model, processor, options.method, options.max_new_tokens)
        self.prior = None if options.prior is None else answer_prior(read_answers(options.prior))

    def __call__(
        self, group: Sequence[Question], prior: Mapping[str, str], grey_too: bool
    ) -> list[Record]:
        references = [question.answer for question in group]
        others = [question.others for question in group]
        said = self.answer(self.see(group), references, others)
        grey: Sequence[Answer | None] = [None] * len(group)
        if grey_too:
            grey = self.answer(self.blind(group), references, others)
        hits = [
            any(
                prior_hits(prior, [(question.kind, a) for a in (question.answer, *question.others)])
            )
            for question in group
        ]
        return [
            Record(
                question.task,
                question.id,
                question.kind,
                question.cluster,
                question.answer,
                answer.text,
                answer.complete,
                answer.right,
                hit,
                None if blind is None else blind.right,
            )
            for question, answer, blind, hit in zip(group, said, grey, hits, strict=True)
        ]


def _ask_task(
    task: Task,
    asker: _Asker,
    results: Results,
    done: set[str],
    greys: int,
    progress: Tell | None,
) -> None:
    own = answer_prior((question.kind, question.answer) for question in task.questions)
    total = len(task.questions)
    count = 0
    for number, group in enumerate(task.groups):
        left = [question for question in group if question.id not in done]
        if left:
            results.append(asker(left, asker.prior or own, number < greys))
        count += len(group)
        if progress is not None:
            progress(f"ask {task.name}", count, total)


def _prompt_digest(processor: VistokenProcessor) -> str:
    """What a prompt depends on beside the question: template, views and token counts."""
    settings = [processor.chat_template, processor.image_processor.to_dict()]
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
