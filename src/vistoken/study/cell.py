"""One cell of a study: trained, asked, and written down; each part goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vistoken.api import load
from vistoken.core.errors import UsageError
from vistoken.eval.records import write_json
from vistoken.eval.run import EvalOptions, evaluate
from vistoken.eval.tasks import read_tasks
from vistoken.study.data import StudyData
from vistoken.study.grid import Cell, fingerprint
from vistoken.study.settings import Asking
from vistoken.train.config import recipe_config
from vistoken.train.run import DONE as STAGE_DONE
from vistoken.train.run import MODEL, train
from vistoken.train.settings import RunConfig
from vistoken.train.trained import write_atomically

Tell = Callable[[str, int, int], None]

DONE = "cell.json"
_RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class CellRunner:
    """Runs cells of one study into its folder.

    Args:
        output: Folder of the study.
        data: What is trained on and asked.
        asking: How.
        baseline: Arm that is also asked about grey pictures, if any is.
        cache: Feature cache that all cells share; None encodes pictures every time.
        progress: Told what is done, the number done and the total.
    """

    output: Path
    data: StudyData
    asking: Asking
    baseline: str
    cache: Path | None
    progress: Tell | None = None

    def folder(self, cell: Cell) -> Path:
        """Folder of a cell."""
        return self.output / "cells" / cell.arm / str(cell.seed)

    def is_done(self, cell: Cell) -> bool:
        """Whether a cell was finished; refused if its folder belongs to something else.

        Raises:
            UsageError: The cell was begun with another recipe, other data or other questions.
        """
        folder = self.folder(cell)
        begun = folder / "fingerprint"
        if begun.is_file() and begun.read_text(encoding="utf-8") != self.fingerprint(cell):
            raise UsageError(
                f"{folder} was begun with another study file, other data or other options; "
                "choose another output, or delete that cell to run it again"
            )
        return (folder / DONE).is_file()

    def fingerprint(self, cell: Cell) -> str:
        """Digest of everything that decides a cell's result."""
        return fingerprint(
            [
                cell.recipe.model_dump(mode="json"),
                cell.seed,
                self.data.digests(),
                self.asking.model_dump(mode="json"),
                cell.arm == self.baseline,
            ]
        )

    def config(self, cell: Cell) -> RunConfig:
        """The training run of a cell."""
        values: dict[str, Any] = {
            "data": [str(self.data.train)],
            "image_root": str(self.data.root),
            "output": str(self.folder(cell) / "run"),
            "seed": cell.seed,
        }
        if self.cache is not None:
            values["cache"] = str(self.cache)
        recipe = str(self.folder(cell) / _RECIPE)
        return recipe_config(recipe, cell.recipe.train, values)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train and ask; finished cells are read.

        Returns:
            What ``cell.json`` holds.
        """
        folder = self.folder(cell)
        if self.is_done(cell):
            return self.read(cell)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "fingerprint", self.fingerprint(cell).encode())
        recipe = yaml.safe_dump(cell.recipe.model_dump(mode="json", exclude_none=True))
        write_atomically(folder / _RECIPE, recipe.encode("utf-8"))
        config = self.config(cell)
        begun = (config.output / "config.yaml").is_file()
        train(config, resume=begun, progress=self._named(cell))
        summary = self._ask(cell, config)
        stages = {stage.name: config.output / "stages" / stage.name for stage in config.stages}
        result = {
            "arm": cell.arm,
            "seed": cell.seed,
            "training": {name: _read(stage / STAGE_DONE) for name, stage in stages.items()},
            "tasks": summary["tasks"],
        }
        write_json(folder / DONE, result)
        for stage in stages.values():
            for checkpoint in stage.glob("checkpoint-*"):  # none of them is needed any more
                shutil.rmtree(checkpoint)
        return result

    def read(self, cell: Cell) -> dict[str, Any]:
        """What a finished cell wrote."""
        return _read(self.folder(cell) / DONE)

    def model(self, cell: Cell) -> Path:
        """Folder of a cell's trained model."""
        return self.folder(cell) / "run" / MODEL

    def results(self, cell: Cell) -> Path:
        """Folder of a cell's evaluation."""
        return self.folder(cell) / "eval"

    def _ask(self, cell: Cell, config: RunConfig) -> dict[str, Any]:
        # float32, the type that training keeps towers in: the cached features are the same ones
        model, processor = load(config.output / MODEL, dtype="float32")
        options = EvalOptions(
            self.asking.method,
            self.asking.max_new_tokens,
            self.asking.grey and cell.arm == self.baseline,
            self.data.train,
            self.asking.limit,
            self.cache,
            self.asking.groups,
        )
        tasks = read_tasks(self.data.tasks, self.data.root, self.asking.limit)
        return evaluate(
            model, processor, tasks, self.results(cell), options, cell.name, self._named(cell)
        )

    def _named(self, cell: Cell) -> Tell | None:
        tell = self.progress
        if tell is None:
            return None

        def named(what: str, done: int, total: int) -> None:
            tell(f"{cell.name}: {what}", done, total)

        return named


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
