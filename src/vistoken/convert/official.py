"""Planning the conversion of an official release: what becomes what, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vistoken.convert.accounting import (
    Ledger,
    file_of,
    is_vocabulary,
    language_target,
    tower_target,
)
from vistoken.convert.adapter import AdapterPlan, plan_adapter
from vistoken.convert.bases import (
    find_base,
    is_tied,
    language_names,
    place_base,
    place_tower,
    read_base_config,
    read_tower_config,
)
from vistoken.convert.official_config import (
    OfficialSettings,
    read_settings,
    tower_name,
)
from vistoken.convert.preprocessing import Preprocessing, read_preprocessing
from vistoken.convert.release import (
    Release,
    ReleaseKind,
    Role,
    normalise,
    role_of,
    tower_key,
)
from vistoken.convert.sources import locate_source
from vistoken.core.errors import WeightsError
from vistoken.core.registry import load_part, part_names
from vistoken.models.configuration import VistokenConfig, config_from_dict
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.pipeline import PipelineSpec
from vistoken.models.recipe import LanguageRecipe, Recipe, TowerRecipe
from vistoken.models.towers.probe import probe_tower

NEWLINE = "image_newline"


@dataclass(frozen=True)
class OfficialPlan:
    """A release, understood.

    Args:
        release: What was read.
        settings: What its config decides.
        base: Language model it builds on; None when the release contains it.
        tower: Vision tower directory.
        variant: What to call its connector.
        config: Our model's config, image token included.
        pipeline: Our processor's pipeline.
        ledger: Where the release's own tensors go.
        adapter: Where its LoRA tensors go.
        has_tower_weights: The release contains the tower's weights.
    """

    release: Release
    settings: OfficialSettings
    base: Path | None
    tower: Path
    variant: str
    config: VistokenConfig
    pipeline: PipelineSpec
    ledger: Ledger
    adapter: AdapterPlan | None
    has_tower_weights: bool

    @property
    def vocab_size(self) -> int:
        """Token ids before the image token."""
        return int(self.config.image_token_id)

    @property
    def is_complete(self) -> bool:
        """Whether the release contains every weight itself."""
        return self.base is None and self.has_tower_weights

    @property
    def retrained(self) -> list[str]:
        """Tensors of a language model or tower that the release has in place of its base's."""
        parts = (Role.LANGUAGE_MODEL, Role.VISION_TOWER)
        return [] if self.base is None else [r.key for r in self.ledger.rows if r.use in parts]

    @property
    def tower_name(self) -> str:
        """Name of the only tower."""
        return self.pipeline.towers[0].name


def plan_release(
    release: Release, base: str | Path | None, vision_tower: str | Path | None
) -> OfficialPlan:
    """Work out where every tensor of a release goes.

    Args:
        release: The release, read.
        base: Language model's directory or hub id, if the user named one.
        vision_tower: Vision tower's, likewise.

    Raises:
        WeightsError: A model it builds on is not found or is another one; or a tensor is missing,
            unexpected or misshapen.
        MachineError: A model must be fetched and the hub cannot be reached.
    """
    where = str(release.directory / "config.json")
    tower = locate_source(
        release.directory,
        tower_name(release.config),
        vision_tower,
        "vision tower",
        "--vision-tower",
    )
    preprocessing = read_preprocessing(tower)
    settings = read_settings(release.config, preprocessing.size, where)
    base_dir = None if release.kind is ReleaseKind.MERGED else find_base(release, base)
    text = settings.text if base_dir is None else read_base_config(release, base_dir)
    ours = (Role.CONNECTOR, Role.MECHANISM)
    tensors = {
        normalise(k): v
        for k, v in release.weights.items()
        if role_of(normalise(k)) in ours and normalise(k) != NEWLINE
    }
    tower_recipe = _tower_recipe(tower, settings, preprocessing)
    importer, options = _read_connector(release, tensors, tower_recipe)
    recipe = Recipe(
        name="imported",
        template=settings.template,
        towers=[tower_recipe],
        views=importer.views(settings.views),
        connector=importer.chain(options, tensors),
        layout=importer.layout(settings.layout),
        mechanisms=[*_mechanisms(release, importer, tensors, text), *_configured(release)],
        language_model=LanguageRecipe(source=str(base_dir), config=text),
    )
    config = recipe.model_config_for()
    with torch.device("meta"):
        model = VistokenForConditionalGeneration(config)
    names = {**connector_names(importer, model), **mechanism_names(importer, model)}
    ledger = _account(release, model, names, config.image_token_id)
    return OfficialPlan(
        release=release,
        settings=settings,
        base=base_dir,
        tower=tower,
        variant=str(options.get("variant", importer.part)),
        config=config,
        pipeline=recipe.pipeline(config),
        ledger=ledger,
        adapter=_adapter(release, model),
        has_tower_weights=any(role_of(normalise(k)) is Role.VISION_TOWER for k in release.weights),
    )


def read_foundation(plan: OfficialPlan) -> dict[str, Tensor]:
    """Read the language model and the vision tower that a release leaves out, by our names.

    Raises:
        WeightsError: One of them is incomplete, unsafe, or another model than the release needs.
    """
    ledger = Ledger(plan.ledger.shapes, plan.vocab_size)
    if plan.base is not None:
        replaced = {name for name in plan.ledger.targets if is_vocabulary(name)}
        if replaced and plan.config.tie_word_embeddings:
            replaced.add("lm_head.weight")
        place_base(ledger, plan.base, plan.config, replaced)
    if not plan.has_tower_weights:
        place_tower(ledger, plan.tower)
    return ledger.state()


def _tower_recipe(
    directory: Path, settings: OfficialSettings, preprocessing: Preprocessing
) -> TowerRecipe:
    config = read_tower_config(directory)
    return TowerRecipe(
        name=config.model_type.removesuffix("_vision_model"),
        source=str(directory),
        config={**config.to_diff_dict(), "model_type": config.model_type},
        feature_layer=settings.feature_layer,
        select=settings.select,
        size=preprocessing.size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        fit=preprocessing.fit,
    )


def _read_connector(
    release: Release, tensors: Mapping[str, Tensor], tower: TowerRecipe
) -> tuple[Any, dict[str, Any]]:
    """The registered importer that knows these tensors, and its part's options."""
    importers = [load_part("importer", name) for name in part_names("importer")]
    matching = [importer for importer in importers if importer.recognises(tensors)]
    if len(matching) != 1:
        raise WeightsError(
            f"{file_of(release.directory, release.weights)} holds no connector that is known here "
            f"(its tensors: {', '.join(sorted(tensors)[:5]) or 'none'})"
        )
    tower_config = config_from_dict(tower.config, "vision tower")
    stride = probe_tower(tower_config, tower.feature_layer, tower.size).stride
    grid = (tower.size[0] // stride, tower.size[1] // stride)
    try:
        return matching[0], matching[0].options(tensors, grid)
    except WeightsError as error:
        raise WeightsError(
            f"{file_of(release.directory, release.weights)}: {error}; fetch the release again"
        ) from error


def connector_names(importer: Any, model: nn.Module) -> dict[str, str]:
    """Official connector name -> ours in the whole model, for every tensor of the connector."""
    prefix = "model.multi_modal_projector."
    state = {n: t for n, t in model.state_dict().items() if n.startswith(prefix)}
    stem = f"{prefix}{importer.part}."
    # a chain of one stage may keep the stage's own names without a level for it
    stem = stem if all(name.startswith(stem) for name in state) else prefix
    official = importer.official_names({n.removeprefix(stem): t for n, t in state.items()})
    return {theirs: stem + ours for ours, theirs in official.items()}


def mechanism_names(importer: Any, model: nn.Module) -> dict[str, str]:
    """Official name -> ours in the whole model, for every tensor of the release's mechanism."""
    stem = f"model.mechanisms.{importer.mechanism}."
    state = {n.removeprefix(stem): t for n, t in model.state_dict().items() if n.startswith(stem)}
    official = importer.mechanism_names(state)
    return {theirs: stem + ours for ours, theirs in official.items()}


def _mechanisms(
    release: Release, importer: Any, tensors: Mapping[str, Tensor], text: Mapping[str, Any]
) -> list[dict[str, Any] | str]:
    if importer.mechanism is None:
        return []
    try:
        options = importer.mechanism_options(tensors, text["num_hidden_layers"])
    except WeightsError as error:
        raise WeightsError(
            f"{file_of(release.directory, release.weights)}: {error}; fetch the release again"
        ) from error
    return [{"part": importer.mechanism, "options": options}]


def _configured(release: Release) -> list[dict[str, Any] | str]:
    """Mechanisms without weights, which the release's config alone asks for."""
    specs: list[dict[str, Any] | str] = []
    for name in part_names("importer"):
        importer = load_part("importer", name)
        options = importer.configured_options(release.config, release.directory)
        if options is not None:
            specs.append({"part": importer.mechanism, "options": options})
    return specs


def _account(release: Release, model: nn.Module, names: dict[str, str], vocab_size: int) -> Ledger:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ledger = Ledger(shapes, vocab_size)
    layout = f"model.layout.{NEWLINE}"
    for key in release.weights:
        name = normalise(key)
        role = role_of(name)
        if role is Role.DERIVED:
            ledger.skip(release.weights, key, "computed from the config")
        elif name == NEWLINE and layout not in shapes:
            ledger.skip(release.weights, key, "one view per image has no newline rows")
        elif name == NEWLINE:
            ledger.place(release.weights, key, layout, "layout")
        elif role is Role.LANGUAGE_MODEL:
            ledger.place(release.weights, key, language_target(name), role)
        elif role is Role.VISION_TOWER:
            ledger.place(release.weights, key, tower_target(tower_key(name), shapes), role)
        else:
            ledger.place(release.weights, key, names.get(name, name), role)
    _require(release, model, ledger, names)
    ledger.check(f"{release.directory} does not fit its model", "fetch the release again")
    return ledger


def _require(release: Release, model: nn.Module, ledger: Ledger, names: dict[str, str]) -> None:
    inverse = {ours: f"model.{official}" for official, ours in names.items()}
    inverse[f"model.layout.{NEWLINE}"] = f"model.{NEWLINE}"
    prefixes = ("model.multi_modal_projector.", "model.layout.", "model.mechanisms.")
    wanted = [name for name in ledger.shapes if name.startswith(prefixes)]
    if release.kind is ReleaseKind.MERGED:
        wanted += [n for n in language_names(ledger.shapes) if not is_tied(n, model.config)]
    tower = [n for n in ledger.shapes if n.startswith("model.vision_tower.")]
    if any(name in ledger.targets for name in tower):
        wanted += tower
    ledger.require(wanted, file_of(release.directory, release.weights), inverse)


def _adapter(release: Release, model: nn.Module) -> AdapterPlan | None:
    if release.kind is not ReleaseKind.LORA:
        return None
    modules = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "multi_modal_projector" not in name
    }
    if not release.adapter:
        raise WeightsError(f"the LoRA adapter of {release.directory} is empty; fetch it again")
    return plan_adapter(release.adapter, release.adapter_config, modules, release.directory)
