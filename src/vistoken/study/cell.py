"""One cell of a study: trained, asked, and written down; each part goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save

from vistoken.api import load
from vistoken.core.errors import UsageError, WeightsError
from vistoken.core.files import write_atomically
from vistoken.eval.records import write_json
from vistoken.eval.run import EvalOptions, evaluate
from vistoken.eval.tasks import read_tasks
from vistoken.models.build import build
from vistoken.models.checkpoint import own_state, read_safetensors
from vistoken.models.recipe import Recipe
from vistoken.study.data import StudyData
from vistoken.study.grid import Cell, Grid, fingerprint
from vistoken.train.cache import fast_compute
from vistoken.train.config import recipe_config
from vistoken.train.run import DONE as STAGE_DONE
from vistoken.train.run import MODEL, train
from vistoken.train.settings import RunConfig
from vistoken.train.trained import TRAINED

Tell = Callable[[str, int, int], None]

DONE = "cell.json"
_RECIPE = "recipe.yaml"
_INIT = "init"


@dataclass(frozen=True)
class CellRunner:
    """Runs cells of one study into its folder.

    Args:
        grid: The grid.
        output: Folder of the study.
        data: What is trained on and asked.
        cache: Feature cache that all cells share; None encodes pictures every time.
        progress: Told what is done, the number done and the total.
    """

    grid: Grid
    output: Path
    data: StudyData
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
                self.grid.asking.model_dump(mode="json"),
                self.grid.study.shared,
                cell.arm == self.grid.study.baseline,
            ]
        )

    def config(self, cell: Cell) -> RunConfig:
        """The training run of a cell, without the stages that it shares."""
        values: dict[str, Any] = {}
        if self.grid.study.shared:
            values["init"] = str(self.folder(cell) / _INIT)
        stages = (cell.recipe.train or {})["stages"][len(self.grid.study.shared) :]
        return self._config(cell, self.folder(cell), stages, values)

    def _config(
        self, cell: Cell, folder: Path, stages: list[Any], values: dict[str, Any]
    ) -> RunConfig:
        """A training run in a folder; the recipe is written there."""
        folder.mkdir(parents=True, exist_ok=True)
        recipe = yaml.safe_dump(cell.recipe.model_dump(mode="json", exclude_none=True))
        write_atomically(folder / _RECIPE, recipe.encode("utf-8"))
        values = {
            **values,
            "data": [str(self.data.train)],
            "image_root": str(self.data.root),
            "output": str(folder / "run"),
            "seed": cell.seed,
        }
        if self.cache is not None:
            values["cache"] = str(self.cache)
        section = {**(cell.recipe.train or {}), "stages": stages}
        return recipe_config(str(folder / _RECIPE), section, values)

    def _start_from_shared(self, cell: Cell) -> None:
        """Run this seed's shared stages, if need be, and make a start of them for the cell."""
        shared = self.grid.study.shared
        target = self.folder(cell) / _INIT / TRAINED
        if not shared or target.is_file():
            return
        baseline = next(
            other
            for other in self.grid.cells
            if (other.arm, other.seed) == (self.grid.study.baseline, cell.seed)
        )
        folder = self.output / "shared" / str(cell.seed)
        begun = folder / "fingerprint"
        if begun.is_file() and begun.read_text(encoding="utf-8") != self.fingerprint(baseline):
            raise UsageError(
                f"{folder} was begun with another study file, other data or other options; "
                "choose another output, or delete it to run it again"
            )
        stages = (baseline.recipe.train or {})["stages"][: len(shared)]
        config = self._config(baseline, folder, stages, {})
        write_atomically(begun, self.fingerprint(baseline).encode())
        last = config.output / "stages" / shared[-1]
        if not (last / STAGE_DONE).is_file():
            resume = (config.output / "config.yaml").is_file()
            train(config, resume=resume, progress=self._named(baseline))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_start(cell.recipe, last / TRAINED, target)

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
        self._start_from_shared(cell)
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
        model, processor = load(config.output / MODEL, dtype=fast_compute())
        options = EvalOptions(
            self.grid.asking.method,
            self.grid.asking.max_new_tokens,
            self.grid.asking.grey and cell.arm == self.grid.study.baseline,
            prior=self.data.train,
            limit=self.grid.asking.limit,
            cache=self.cache,
            groups=self.grid.asking.groups,
        )
        tasks = read_tasks(self.data.tasks, self.data.root, self.grid.asking.limit)
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


def write_start(recipe: Recipe, shared: Path, target: Path) -> None:
    """Write an arm's weights at the start: its own new ones, and those of the shared stages.

    Raises:
        WeightsError: The shared stages trained something that this arm does not have.
    """
    model, _ = build(recipe)
    state = dict(own_state(model))
    for name, tensor in read_safetensors(shared).items():
        if name not in state or state[name].shape != tensor.shape:
            raise WeightsError(
                f"{shared}: {name} of the shared stages has no place in the arm {recipe.name}; "
                "share no stage in this study"
            )
        state[name] = tensor
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    write_atomically(target, save(tensors, metadata={"format": "pt"}))
