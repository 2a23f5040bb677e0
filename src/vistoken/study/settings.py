"""The fields of a study file, and what may stand in them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vistoken.core.errors import UsageError, did_you_mean

Values = dict[str, Any]
"""Changes of a recipe: dotted path -> value, such as ``train.stages.joint.steps: 100``."""

_NAME = r"^[a-z0-9][a-z0-9-]*$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Strict):
    """What is trained on and asked.

    Args:
        set: Set that is composed where no folder of data is given, as ``data make`` names it.
        source: ``icons`` or ``shapes``: what its scenes are composed from.
        scenes: Scenes of each split that are composed.
        size_px: Height and width of composed pictures; the set's own when None.
        seed: Of the scenes.
        train: Split that is trained on.
        tasks: Splits that are asked.
        kinds: Kinds of questions that are kept in all splits; all of them when None.
        wording: ``full`` as the data has it, or ``terse``: what is asked and one-word names, for
            language models that start from nothing.
    """

    set: Literal["plain", "vistoken-scenes-v1", "large-scenes"] = "plain"
    source: Literal["icons", "shapes"] = "icons"
    scenes: dict[str, int] = Field(default_factory=dict)
    size_px: int | None = Field(default=None, ge=1)
    seed: int = 0
    train: str = "train"
    tasks: tuple[str, ...] = Field(default=("val",), min_length=1)
    kinds: tuple[str, ...] | None = None
    wording: Literal["full", "terse"] = "full"


class Asking(_Strict):
    """How the trained models are asked.

    Args:
        method: As in ``eval``.
        limit: Pictures of each task.
        grey: Also ask the baseline about grey pictures.
        groups: Further rows of the tables, name -> kinds.
        max_new_tokens: Longest answer that is written.
    """

    method: Literal["forced", "generate"] = "forced"
    limit: int | None = Field(default=None, ge=1)
    grey: bool = True
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    max_new_tokens: int = Field(default=64, ge=1)


class Size(_Strict):
    """One size at which a study can be run.

    Args:
        summary: One line that stands above its table.
        recipe: Recipe that it starts from.
        arms: Arms that are run at this size; all of them when None.
        set: Changes of the recipe that all arms share.
        data: Data of this size; the study's own when None.
        asking: How this size is asked; as the study says when None.
    """

    summary: str = ""
    recipe: str
    arms: tuple[str, ...] | None = None
    set: Values = Field(default_factory=dict)
    data: Data | None = None
    asking: Asking | None = None


class Arm(_Strict):
    """One arm.

    Args:
        summary: One line.
        set: Changes of the recipe that make this arm.
    """

    summary: str = ""
    set: Values = Field(default_factory=dict)


class Study(_Strict):
    """A study: every arm at every seed, with the same data and the same steps.

    Args:
        name: Kebab-case.
        summary: What is asked.
        baseline: Arm that the others are compared with.
        seeds: Of weights and data order.
        sizes: Name -> size; the first one is run where none is named.
        arms: Name -> arm.
        data: What is trained on and asked.
        asking: How.
        shared: Stages that are run once per seed, by the baseline, and that every arm starts from;
            they may train the group ``connector`` alone, which all arms have.
        latency_rounds: Rounds in which an arm and the baseline take turns; 0 measures none.
        picture: (height, width) of the picture that costs are given for, where arms differ in what
            they make of a picture; preparing and encoding it are timed too. None counts one of the
            tower's own size and times connector and prefill.
    """

    name: str = Field(pattern=_NAME)
    summary: str = ""
    baseline: str
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    sizes: dict[str, Size] = Field(min_length=1)
    arms: dict[str, Arm] = Field(min_length=1)
    data: Data = Data()
    asking: Asking = Asking()
    shared: tuple[str, ...] = ()
    latency_rounds: int = Field(default=15, ge=0)
    picture: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _check(self) -> Study:
        if self.baseline not in self.arms:
            raise ValueError(
                f"baseline {self.baseline!r} is no arm; {did_you_mean(self.baseline, self.arms)}"
            )
        for name, size in self.sizes.items():
            for arm in size.arms or ():
                if arm not in self.arms:
                    raise ValueError(f"size {name}: no arm {arm!r}; {did_you_mean(arm, self.arms)}")
            if size.arms is not None and self.baseline not in size.arms:
                raise ValueError(f"size {name}: the baseline {self.baseline!r} must be among arms")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed comes twice")
        return self

    def size(self, name: str | None) -> tuple[str, Size]:
        """A size by name; the first one when None.

        Raises:
            UsageError: There is none of that name.
        """
        chosen = next(iter(self.sizes)) if name is None else name
        if chosen not in self.sizes:
            raise UsageError(
                f"study {self.name} has no size {chosen!r}; {did_you_mean(chosen, self.sizes)}"
            )
        return chosen, self.sizes[chosen]


def load_study(name: str | Path) -> Study:
    """Read a study: a YAML file, or one that comes with the package (``spatial-tokens``).

    Raises:
        UsageError: No such study, not YAML, or a field that a study does not have.
    """
    text = _text(Path(name))
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"study {name} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"study {name} must be a mapping with name, baseline, sizes and arms")
    values = {key: value for key, value in values.items() if not key.startswith("x-")}
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        message = str(problem["msg"]).removeprefix("Value error, ")
        raise UsageError(
            f"study {name}: " + (f"field {place!r}: " if place else "") + message
        ) from (error)


def study_names() -> list[str]:
    """Studies that come with the package."""
    folder = resources.files("vistoken") / "recipes" / "studies"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if ".yaml" in f.name)


def _text(path: Path) -> str:
    if path.is_file():
        return path.read_text(encoding="utf-8")
    stem = path.name.removesuffix(".yaml")
    if str(path) in (stem, f"recipes/studies/{stem}.yaml") and stem in study_names():
        file = resources.files("vistoken") / "recipes" / "studies" / f"{stem}.yaml"
        return file.read_text(encoding="utf-8")
    raise UsageError(
        f"study {path} is neither a file nor one of the package's: "
        + did_you_mean(stem, study_names())
    )
