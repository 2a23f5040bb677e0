"""A study's one table: accuracies, paired differences, costs; as data and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vistoken.eval.records import Record, Results
from vistoken.eval.summary import ALL, percent
from vistoken.study.cell import CellRunner
from vistoken.study.grid import Grid
from vistoken.study.statistics import Seeds, accuracy, difference

LEGEND = (
    "Exact match of the greedy answer in percent, [95 % interval]: seeds and pictures are both "
    "drawn with replacement. Differences are arm minus baseline on the same questions at the same "
    "seed; p is McNemar's exact test over all seeds, which takes questions for independent. There "
    "is no correction for the number of comparisons: of twenty intervals one misses by chance."
)


def collect(grid: Grid, runner: CellRunner, costs: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is finished, as plain values.

    Args:
        grid: The grid.
        runner: Finds the cells' results.
        costs: Arm -> what it costs.

    Returns:
        ``arms``: arm -> ``seeds`` (finished ones), ``cost``, ``training_s``, and ``tasks``: task ->
        row -> ``accuracy``, ``difference`` (None where there is nothing to compare), and for the
        baseline's sake ``prior`` and ``grey``.
    """
    answers = {arm: _answers(grid, runner, arm) for arm in grid.arms}
    finished = sum(len(seeds) for seeds in answers.values())
    return {
        "study": grid.study.name,
        "summary": grid.study.summary,
        "size": grid.size_name,
        "size_summary": grid.size.summary,
        "baseline": grid.study.baseline,
        "cells": {"finished": finished, "all": len(grid.cells)},
        "data": runner.data.digests(),
        "asking": grid.asking.model_dump(mode="json"),
        "interval": LEGEND,
        "arms": {
            arm: {
                "summary": grid.arms[arm].summary,
                "seeds": sorted(seeds),
                "cost": costs.get(arm),
                "training_s": _training_seconds(grid, runner, arm),
                "tasks": _tasks(grid, seeds, answers[grid.study.baseline]),
            }
            for arm, seeds in answers.items()
        },
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    cells = report["cells"]
    lines = [f"# {report['study']}, size {report['size']}", "", report["summary"], ""]
    lines += [report["size_summary"], ""] if report["size_summary"] else []
    if cells["finished"] < cells["all"]:
        lines += [f"**Not finished: {cells['finished']} of {cells['all']} cells.**", ""]
    lines += [report["interval"], ""]
    tasks = dict.fromkeys(task for arm in report["arms"].values() for task in arm["tasks"])
    for task in tasks:
        lines += [f"## Accuracy, {task}", "", *_accuracies(report, task), ""]
        lines += [f"## Difference to {report['baseline']}, {task}", "", *_differences(report, task)]
        lines += [""]
    lines += ["## Cost", "", *_costs(report), ""]
    return "\n".join(lines)


def rows_of(report: Mapping[str, Any], task: str) -> list[str]:
    """Names of a task's rows, ``all`` last."""
    names = dict.fromkeys(
        row for arm in report["arms"].values() for row in arm["tasks"].get(task, {})
    )
    return [name for name in names if name != ALL] + [name for name in names if name == ALL]


def excludes_zero(estimate: Mapping[str, float]) -> bool:
    """Whether an interval lies on one side of zero."""
    return estimate["low"] > 0 or estimate["high"] < 0


def _answers(grid: Grid, runner: CellRunner, arm: str) -> Seeds:
    """Answers of an arm's finished cells, in one order."""
    answers: dict[int, Sequence[Record]] = {}
    for cell in grid.cells:
        if cell.arm == arm and runner.is_done(cell):
            records = Results(runner.results(cell)).records()
            answers[cell.seed] = sorted(records, key=lambda r: (r.task, r.id))
    return answers


def _tasks(grid: Grid, arm: Seeds, baseline: Seeds) -> dict[str, Any]:
    if not arm:
        return {}
    first = next(iter(arm.values()))
    tasks: dict[str, Any] = {}
    for task in dict.fromkeys(record.task for record in first):
        kinds = sorted({record.kind for record in first if record.task == task})
        rows: dict[str, Sequence[str]] = {kind: (kind,) for kind in kinds}
        rows |= {**grid.asking.groups, ALL: tuple(kinds)}
        chosen = {name: _row(arm, baseline, task, members) for name, members in rows.items()}
        tasks[task] = {name: row for name, row in chosen.items() if row is not None}
    return tasks


def _row(arm: Seeds, baseline: Seeds, task: str, kinds: Sequence[str]) -> dict[str, Any] | None:
    mine, theirs = _only(arm, task, kinds), _only(baseline, task, kinds)
    first = next(iter(mine.values()))
    if not first:
        return None
    both = {seed: records for seed, records in theirs.items() if seed in mine}
    row: dict[str, Any] = {
        "n": len(first),
        "pictures": len({record.cluster for record in first}),
        "accuracy": accuracy(mine),
        "prior": accuracy(mine, "prior"),
        "grey": None if first[0].grey is None else accuracy(mine, "grey"),
        "difference": None,
    }
    if both and arm is not baseline:
        row["difference"] = difference(mine, both)
    return row


def _only(arm: Seeds, task: str, kinds: Sequence[str]) -> Seeds:
    return {
        seed: [record for record in records if record.task == task and record.kind in kinds]
        for seed, records in arm.items()
    }


def _training_seconds(grid: Grid, runner: CellRunner, arm: str) -> list[float]:
    done = [cell for cell in grid.cells if cell.arm == arm and runner.is_done(cell)]
    stages = [runner.read(cell)["training"].values() for cell in done]
    return [round(sum(float(stage["seconds"]) for stage in cell), 1) for cell in stages]


def _accuracies(report: Mapping[str, Any], task: str) -> list[str]:
    names = rows_of(report, task)
    arms = {name: arm["tasks"][task] for name, arm in report["arms"].items() if arm["tasks"]}
    base = arms.get(report["baseline"]) or next(iter(arms.values()))
    counts = [f"{name} (n={base[name]['n']})" for name in names]
    lines = _head(["arm", *counts])
    lines += [
        _line(arm, [percent(rows[n]["accuracy"]) for n in names]) for arm, rows in arms.items()
    ]
    if base[names[0]]["grey"] is not None:
        lines.append(_line("grey picture, baseline", [_plain(base[n]["grey"]) for n in names]))
    lines.append(_line("answer prior", [_plain(base[n]["prior"]) for n in names]))
    return lines


def _differences(report: Mapping[str, Any], task: str) -> list[str]:
    names = rows_of(report, task)
    lines = _head(["arm", *names])
    for arm, values in report["arms"].items():
        rows = values["tasks"].get(task)
        if rows and rows[names[0]]["difference"] is not None:
            cells = []
            for name in names:
                found = rows[name]["difference"]
                shown = f"{percent(found, '+')}, p={found['p']:.2g}"
                cells.append(f"**{shown}**" if excludes_zero(found) else shown)
            lines.append(_line(arm, cells))
    return lines


def _costs(report: Mapping[str, Any]) -> list[str]:
    lines = _head(
        [
            "arm", "seeds", "views", "visual tokens", "connector", "spatial", "encode GFLOP",
            "connect GFLOP", "prefill GFLOP", "time / baseline", "ms", "training s",
        ]
    )  # fmt: skip
    for arm, values in report["arms"].items():
        cost = values["cost"]
        latency = cost.get("latency")
        ratio = (
            f"{latency['value']:.3f} [{latency['low']:.3f}, {latency['high']:.3f}]"
            if latency
            else ""
        )
        seconds = values["training_s"]
        cells = [
            str(len(values["seeds"])),
            str(cost["views"]),
            str(cost["visual_tokens"]),
            f"{cost['parameters']['connector']:,}",
            f"{cost['parameters']['spatial']:,}",
            f"{cost['encode_flops'] / 1e9:.3f}",
            f"{cost['connect_flops'] / 1e9:.3f}",
            f"{cost['prefill_flops'] / 1e9:.3f}",
            ratio,
            f"{latency['ms']:.1f}" if latency else "",
            f"{sum(seconds) / len(seconds):.0f}" if seconds else "",
        ]
        lines.append(_line(arm, cells))
    return lines


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names[0], names[1:]), "| --- |" + " --: |" * (len(names) - 1)]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _plain(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['value']:.1f}"
