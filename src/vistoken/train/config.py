"""The configuration of a training run: one YAML file, `a.b=c` overrides, unknown keys refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vistoken.core.errors import UsageError, did_you_mean

GroupName = Literal["vision", "connector", "spatial", "language"]
GROUP_NAMES: tuple[GroupName, ...] = ("vision", "connector", "spatial", "language")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraConfigFields(_Strict):
    """Low-rank adapters on every linear layer of the language model.

    Args:
        r: Rank.
        alpha: Numerator of the scale alpha / r.
        dropout: Dropout on the adapter's input.
        targets: Names of the linear layers; all of them when None.
    """

    r: int = Field(default=32, ge=1)
    alpha: float = Field(default=64, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None


class GroupConfig(_Strict):
    """How one named part is trained.

    Args:
        train: ``frozen``, ``full``, or ``lora`` (language only).
        lr: Learning rate at the end of the warm-up.
        weight_decay: Decoupled decay of matrices; biases, norms and gains are never decayed.
        lora: Adapter settings for ``train: lora``.
    """

    train: Literal["frozen", "full", "lora"] = "frozen"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    lora: LoraConfigFields = LoraConfigFields()


class StageConfig(_Strict):
    """One stage of training.

    Args:
        name: Unique in the run; names the stage's folder.
        objective: ``next-token``, or ``name-alignment`` (stage 0, no language-model pass).
        needs: Stage whose weights this one starts from; it must be done before.
        template: Chat template of this stage; the recipe's own when None.
        data: Data files of this stage; the run's when None.
        image_root: Folder of this stage's image paths; the run's when None.
        groups: Train mode and rate by part; a part not named is frozen.
        steps: Optimiser steps; or
        epochs: passes over the data.
        minutes: The schedule ends no later than this, by the clock (see ``schedule``).
        images_per_step: Images (next-token: sequences) in a micro-batch.
        accumulate: Micro-batches per optimiser step.
        questions_per_image: Most branches behind one image prefix; the rest form further samples.
        max_length: Most tokens of a sample.
        schedule: Shape of the learning rate after the warm-up; ``cosine`` and ``linear`` end at 0.
        warmup: Share of the steps with a rising rate.
        clip: Largest gradient norm; 0 does not clip.
        betas: AdamW's decay rates.
        eps: AdamW's epsilon.
        checkpointing: Recompute activations in the backward pass.
        temperature: Of the alignment's softmax.
        log_every: Steps between metric lines.
        save_every: Steps between checkpoints.
        keep: Checkpoints that are kept.
        retrieval_every: Steps between name retrievals from the connector's output; 0 never.
        retrieval_images: Images of a name retrieval.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    objective: Literal["next-token", "name-alignment"] = "next-token"
    needs: str | None = None
    template: str | None = None
    data: tuple[Path, ...] | None = Field(default=None, min_length=1)
    image_root: Path | None = None
    groups: dict[GroupName, GroupConfig]
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    images_per_step: int = Field(default=1, ge=1)
    accumulate: int = Field(default=1, ge=1)
    questions_per_image: int = Field(default=10, ge=1)
    max_length: int = Field(default=2048, ge=8)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)
    clip: float = Field(default=1.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    checkpointing: bool = False
    temperature: float = Field(default=0.05, gt=0)
    log_every: int = Field(default=10, ge=1)
    save_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    retrieval_every: int = Field(default=0, ge=0)
    retrieval_images: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _check(self) -> StageConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        for name, group in self.groups.items():
            if group.train == "lora" and name != "language":
                raise ValueError(f"groups.{name}.train: lora exists for language only")
        if all(group.train == "frozen" for group in self.groups.values()):
            raise ValueError("every part is frozen; set train: full or lora for one of groups")
        if self.objective == "name-alignment" and self.group("language").train != "frozen":
            raise ValueError("name-alignment never runs the language model; freeze it")
        return self

    def group(self, name: GroupName) -> GroupConfig:
        """Settings of a part; frozen when the stage does not name it."""
        return self.groups.get(name, GroupConfig())


class RunConfig(_Strict):
    """A training run.

    Args:
        recipe: Recipe name, recipe file, or a checkpoint directory to go on from.
        data: Files of the messages schema (``.jsonl``), or LLaVA's lists (``.json``).
        validation: Files to read name retrievals from, never trained on.
        image_root: Folder of the image paths; each data file's own when None.
        output: Folder of the run.
        seed: Seed of the data order and of new weights.
        init: Finished stage of another run to start from (its folder).
        cache: Folder of the feature cache; None encodes every time.
        precision: Arithmetic of the language model and connector; ``auto`` is bfloat16 where the
            hardware computes in it.
        stages: Stages in order.
    """

    recipe: str
    data: tuple[Path, ...] = Field(min_length=1)
    validation: tuple[Path, ...] = ()
    image_root: Path | None = None
    output: Path
    seed: int = Field(default=0, ge=0)
    init: Path | None = None
    cache: Path | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    stages: tuple[StageConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        return self


def parse_config(values: Mapping[str, Any], where: str = "run configuration") -> RunConfig:
    """Validate a configuration.

    Raises:
        UsageError: An unknown key (near names suggested), a missing one or a wrong value.
    """
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error)}") from error


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML configuration and apply overrides.

    Args:
        path: The file.
        overrides: ``a.b=c`` each, the value in YAML; a list is addressed by number or, for
            stages, by name: ``stages.joint.steps=100``.

    Raises:
        UsageError: No such file, not YAML, or not a valid configuration.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"run configuration {path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"run configuration {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"run configuration {path} must be a mapping with recipe, data, output")
    return parse_config(apply_overrides(values, overrides), str(path))


def recipe_config(
    recipe: str,
    train: Mapping[str, Any] | None,
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
) -> RunConfig:
    """The configuration that a recipe's ``train`` section and a user's values make.

    Args:
        recipe: Recipe name or file, stored in the configuration.
        train: The recipe's ``train`` section: any field of :class:`RunConfig`.
        values: The user's fields, such as data and output; they win.
        overrides: ``a.b=c`` each, applied last.

    Raises:
        UsageError: The recipe has no such section, or the result is not valid.
    """
    if not train:
        raise UsageError(f"recipe {recipe} has no train section; give stages in a YAML file")
    merged = {**train, "recipe": recipe, **values}
    return parse_config(apply_overrides(merged, overrides), f"recipe {recipe}")


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of nested plain values with ``a.b=c`` assignments applied."""
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(_plain(values), sort_keys=False))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UsageError(f"override {override!r} must look like stages.joint.steps=100")
        *places, last = key.split(".")
        target: Any = result
        for place in places:
            target = _step(target, place, override)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"override {override!r}: the value is not valid YAML") from error
        if isinstance(target, list):
            target[_position(target, last, override)] = value
        else:
            target[last] = _number(value)
    return result


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _step(target: Any, place: str, override: str) -> Any:
    if isinstance(target, list):
        return target[_position(target, place, override)]
    inner = target.setdefault(place, {})
    if inner is None:
        inner = target[place] = {}
    if not isinstance(inner, dict | list):
        raise UsageError(f"override {override!r}: {place!r} is a value, it has no fields")
    return inner


def _position(target: list[Any], place: str, override: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in target]
    if place in names:
        return names.index(place)
    if place.isdigit() and int(place) < len(target):
        return int(place)
    known = [name for name in names if isinstance(name, str)]
    raise UsageError(f"override {override!r}: no entry {place!r}; " + did_you_mean(place, known))


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as a text; a rate is meant."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        models = (RunConfig, StageConfig, GroupConfig, LoraConfigFields)
        model = _model_at(problem["loc"])
        known = list(model.model_fields) if model else [f for m in models for f in m.model_fields]
        return f"unknown field {place!r}; " + did_you_mean(str(problem["loc"][-1]), known)
    if problem["type"] == "missing":
        return f"field {place!r} is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"field {place!r}: {message}" if place else message


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model whose field the last element of an error's place would be."""
    if len(loc) == 1:
        return RunConfig
    if loc[0] == "stages":
        if len(loc) == 3:
            return StageConfig
        if len(loc) == 5:
            return GroupConfig
        return LoraConfigFields if len(loc) > 5 else None
    return None
