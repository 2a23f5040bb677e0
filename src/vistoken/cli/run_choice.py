"""Which run a verb means: a YAML file's, or one of a recipe's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistoken.core.errors import UsageError

if TYPE_CHECKING:
    from vistoken.models.recipe import Recipe
    from vistoken.train.config import RunConfig

FromScratchOption = Annotated[
    bool,
    typer.Option(
        "--from-scratch", help="With nano: not from its trained weights, but all its stages."
    ),
]


@dataclass(frozen=True)
class Given:
    """What a user says beside a recipe's name.

    Attributes:
        data: Training files.
        image_root: Folder of their image paths.
        output: Folder of the run.
        from_scratch: Run the recipe's ``train`` section where it also has a ``tune`` section.
    """

    data: tuple[Path, ...] = ()
    image_root: Path | None = None
    output: Path | None = None
    from_scratch: bool = False


def choose_run(
    name: str, given: Given, overrides: list[str], *, needs_data: bool = True
) -> RunConfig:
    """The configuration of a run.

    Args:
        name: A recipe's name, or a run's YAML file.
        given: Fields of a recipe's run.
        overrides: ``a.b=c`` each.
        needs_data: Whether a recipe's run without data is an error.

    Raises:
        UsageError: No such recipe or file, no data, or not a valid configuration.
    """
    from vistoken.models.recipe import load_recipe, recipe_names
    from vistoken.train.config import load_config, recipe_config

    if name in recipe_names() and not Path(name).exists():
        recipe = load_recipe(name)
        section = recipe.train if given.from_scratch or not recipe.tune else recipe.tune
        _check_stages(recipe, section, overrides)
        values = _values(name, given)
        if not (given.data or any(override.startswith("data=") for override in overrides)):
            if needs_data:
                raise UsageError(
                    f"recipe {name} needs training data: add --data FILE "
                    "('vistoken data make scenes' composes some)"
                )
            values["data"] = ["unused.jsonl"]
        return recipe_config(name, section, values, overrides)
    if given != Given():
        raise UsageError(
            "--data, --image-root, --output and --from-scratch go with a recipe; "
            "a YAML file has them as fields"
        )
    if not name.endswith((".yaml", ".yml")):
        load_recipe(name)  # an unknown recipe: its error suggests near names
    return load_config(Path(name), overrides)


def _values(name: str, given: Given) -> dict[str, Any]:
    values: dict[str, Any] = {
        "data": [str(path) for path in given.data],
        "output": str(given.output or Path("runs") / name),
    }
    if given.image_root is not None:
        values["image_root"] = str(given.image_root)
    return values


def _check_stages(recipe: Recipe, section: dict[str, Any] | None, overrides: list[str]) -> None:
    """Tell an override of the recipe's other run from a misspelt one."""
    names, others = _stages(section), _stages(recipe.train) | _stages(recipe.tune)
    for override in overrides:
        first, _, rest = override.partition(".")
        stage = rest.partition(".")[0]
        if first == "stages" and stage in others - names:
            how = "leave --from-scratch out" if section is recipe.train else "add --from-scratch"
            raise UsageError(
                f"override {override!r}: this run of {recipe.name} has the stage(s) "
                f"{', '.join(sorted(names))}; for {stage!r} {how}"
            )


def _stages(section: dict[str, Any] | None) -> set[str]:
    return {stage["name"] for stage in (section or {}).get("stages", ())}
