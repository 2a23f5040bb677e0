"""Recipes: a system at a size, in one YAML file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vistoken.core.errors import UsageError, did_you_mean
from vistoken.models.configuration import VistokenConfig, VistokenVisionConfig, config_from_dict
from vistoken.models.pipeline import PartSpec, PipelineSpec
from vistoken.models.templates import load_template
from vistoken.models.towers.probe import probe_tower


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TowerRecipe(_Strict):
    """One vision tower: where its weights come from and how it is read."""

    name: str
    source: str
    config: dict[str, Any]
    feature_layer: int | list[int] = -2
    select: Literal["default", "full"] = "default"
    size: tuple[int, int]
    stride: int | None = None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Literal["crop", "stretch"] = "crop"


class LanguageRecipe(_Strict):
    """The language model: where its weights come from and its config.

    Args:
        source: Where its weights come from.
        config: Its configuration.
        tokenizer: Where its tokenizer comes from; the source when None.
        layers: Only its first so many decoder layers, for a small model that reads with pretrained
            embeddings; all of them when None.
    """

    source: str
    config: dict[str, Any]
    tokenizer: str | None = None
    layers: int | None = Field(default=None, ge=1)


class Recipe(_Strict):
    """A system at a size.

    Args:
        name: Kebab-case, the file's name.
        summary: One line.
        template: Chat template, see :mod:`vistoken.models.templates`.
        towers: Vision towers; the first one anchors the tokens.
        views: View function.
        micro_batch: Most views in one pass of a tower; all views of one shape when None.
        connector: Connector chain.
        layout: Layout.
        mechanisms: Decoder mechanisms, in the order in which they act.
        language_model: Language model.
        seed: Seed of weights that are not loaded from anywhere.
        train: A run that makes the model from its parts; validated by the training package.
        tune: A run that goes on from the recipe's trained weights with data of one's own.
    """

    name: str
    summary: str = ""
    template: str
    towers: list[TowerRecipe] = Field(min_length=1)
    views: dict[str, Any] | str = "pad"
    micro_batch: int | None = Field(default=None, ge=1)
    connector: list[dict[str, Any] | str]
    layout: dict[str, Any] | str = "plain"
    mechanisms: list[dict[str, Any] | str] = Field(default_factory=list)
    language_model: LanguageRecipe
    seed: int = 0
    train: dict[str, Any] | None = None
    tune: dict[str, Any] | None = None

    def model_config_for(self, text_config: dict[str, Any] | None = None) -> VistokenConfig:
        """The model's configuration.

        Args:
            text_config: The language model's real config, when it was loaded; else the recipe's.

        The vocabulary grows by one row, the image token.
        """
        text = dict(text_config or self.language_model.config)
        if text_config is None and self.language_model.layers is not None:
            text["num_hidden_layers"] = self.language_model.layers
        text.pop("_name_or_path", None)  # a place on this machine says nothing elsewhere
        vocab_size = text["vocab_size"]
        text["vocab_size"] = vocab_size + 1
        return VistokenConfig(
            vision_config=VistokenVisionConfig(
                towers=[_tower(tower) for tower in self.towers], micro_batch=self.micro_batch
            ),
            connector_config=[_part(stage, "connector") for stage in self.connector],
            layout_config=_part(self.layout, "layout"),
            decoder_config={"mechanisms": [_part(m, "mechanism") for m in self.mechanisms]},
            text_config=text,
            image_token_id=vocab_size,
        )

    def pipeline(self, config: VistokenConfig) -> PipelineSpec:
        """The pipeline with this recipe's views, as the processor stores it."""
        spec = config.pipeline()
        views = PartSpec.read(self.views, "views")
        return PipelineSpec(spec.towers, spec.connector, spec.layout, spec.text_width, views)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("vistoken") / "recipes"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe by name, or from a YAML file.

    Raises:
        UsageError: No such recipe, not YAML, or a field that a recipe does not have.
    """
    if str(name).endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"recipe file {path} does not exist")
        text = path.read_text(encoding="utf-8")
    else:
        if str(name) not in recipe_names():
            raise UsageError(
                f"unknown recipe {str(name)!r}: " + did_you_mean(str(name), recipe_names())
            )
        text = (resources.files("vistoken") / "recipes" / f"{name}.yaml").read_text(
            encoding="utf-8"
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {name} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(
            f"recipe {name} must be a mapping of fields, see the recipes in the package"
        )
    return parse_recipe(values, str(name))


def parse_recipe(values: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's fields; UsageError names the field and near names."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"recipe {where}: {_explain(error)}") from error
    load_template(recipe.template)
    return recipe


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        fields = [*Recipe.model_fields, *TowerRecipe.model_fields, *LanguageRecipe.model_fields]
        return f"unknown field {place!r}; " + did_you_mean(str(problem["loc"][-1]), fields)
    return f"field {place!r}: {problem['msg']}"


def _part(value: dict[str, Any] | str, where: str) -> dict[str, Any]:
    spec = PartSpec.read(value, where)
    return {"part": spec.part, "name": spec.name, "options": dict(spec.options)}


def _tower(tower: TowerRecipe) -> dict[str, Any]:
    config = config_from_dict(tower.config, f"tower {tower.name!r}")
    probe = probe_tower(config, tower.feature_layer, tower.size, tower.stride)
    return {
        "name": tower.name,
        "config": config.to_diff_dict() | {"model_type": config.model_type},
        "feature_layer": tower.feature_layer,
        "size": list(tower.size),
        "stride": probe.stride,
        "width": probe.width,
        "prefix": probe.prefix,
        "select": tower.select,
        "mean": list(tower.mean),
        "std": list(tower.std),
        "fit": tower.fit,
    }
