"""Running a study: cell after cell, then one table; whatever is finished is never done again."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vistoken.api import load
from vistoken.core.files import write_atomically
from vistoken.eval.records import write_json
from vistoken.study.cell import CellRunner, Tell
from vistoken.study.costs import latency_ratio, predict
from vistoken.study.data import prepare
from vistoken.study.grid import Cell, Grid
from vistoken.study.picture import page
from vistoken.study.report import collect, markdown
from vistoken.train.cache import fast_compute

REPORT = "study.json"
TABLE = "study.md"
PAGE = "study.html"
_COSTS = "costs.json"


def run_study(
    grid: Grid,
    output: Path,
    *,
    data: Path | None = None,
    cache: Path | None = None,
    only: Sequence[str] = (),
    progress: Tell | None = None,
) -> dict[str, Any]:
    """Run a study's cells that are not finished, and report all that are.

    Args:
        grid: The grid.
        output: Folder of the study; an interrupted one goes on there.
        data: Folder with the splits; composed when None.
        cache: Feature cache, ``output/features`` when None.
        only: Cells (``arm/seed``) or arms to run; all when empty.
        progress: Told what is done, the number done and the total.

    Returns:
        The report, as written to ``study.json``; ``study.md`` and ``study.html`` stand beside it.

    Raises:
        UsageError: An unknown cell, or a folder that belongs to another study.
        DataError: A split is missing or faulty.
    """
    chosen = grid.only(only)
    output.mkdir(parents=True, exist_ok=True)
    files = prepare(grid.data, data, output, progress)
    features = cache or output / "features"
    runner = CellRunner(grid, output, files, features, progress)
    for cell in grid.cells:
        runner.is_done(cell)  # a folder of another study is refused before the work
    costs = {arm: predict(grid.arm_recipe(arm), grid.study.picture) for arm in grid.arms}
    for number, cell in enumerate(chosen):
        if progress is not None:
            progress("cells", number, len(chosen))
        runner.run(cell)
        write_report(grid, runner, costs)
    if progress is not None:
        progress("cells", len(chosen), len(chosen))
    return write_report(grid, runner, _with_latency(costs, grid, runner, progress))


def write_report(grid: Grid, runner: CellRunner, costs: dict[str, Any]) -> dict[str, Any]:
    """Write table, page and data of what is finished."""
    report = collect(grid, runner, costs)
    write_json(runner.output / REPORT, report)
    write_atomically(runner.output / TABLE, markdown(report).encode("utf-8"))
    write_atomically(runner.output / PAGE, page(report).encode("utf-8"))
    return report


def _with_latency(
    costs: dict[str, Any], grid: Grid, runner: CellRunner, progress: Tell | None
) -> dict[str, Any]:
    """Costs with the latency of the first seed's models, measured once all of these are there."""
    first = {cell.arm: cell for cell in grid.cells if cell.seed == grid.study.seeds[0]}
    if not grid.study.latency_rounds or not all(runner.is_done(cell) for cell in first.values()):
        return costs
    path = runner.output / _COSTS
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    else:
        known = _latencies(grid, runner, first, progress)
        write_json(path, known)
    return {arm: cost | {"latency": known.get(arm)} for arm, cost in costs.items()}


def _latencies(
    grid: Grid, runner: CellRunner, first: dict[str, Cell], progress: Tell | None
) -> dict[str, Any]:
    baseline = load(runner.model(first[grid.study.baseline]), dtype=fast_compute())
    others = [arm for arm in grid.arms if arm != grid.study.baseline]
    ratios = {}
    for number, arm in enumerate(others, start=1):
        model = load(runner.model(first[arm]), dtype=fast_compute())
        ratios[arm] = latency_ratio(
            model, baseline, grid.study.latency_rounds, picture=grid.study.picture
        )
        if progress is not None:
            progress("time the arms", number, len(others))
    own = [ratio["baseline_ms"] for ratio in ratios.values()]
    if own:
        same = {"value": 1.0, "low": 1.0, "high": 1.0, "rounds": grid.study.latency_rounds}
        ratios[grid.study.baseline] = {**same, "ms": round(statistics.median(own), 3)}
    return ratios
