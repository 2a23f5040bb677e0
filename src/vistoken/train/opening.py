"""The model, processor and encoder that all stages of a run share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

import torch

from vistoken.core.errors import UsageError
from vistoken.models.build import build, references_of
from vistoken.models.checkpoint import is_light
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.processing import VistokenProcessor
from vistoken.models.recipe import load_recipe
from vistoken.models.references import Reference, read_references
from vistoken.train.cache import Compute, FeatureCache, fast_compute
from vistoken.train.encoders import CachedEncoder, Encoder, PixelEncoder
from vistoken.train.settings import RunConfig, StageConfig
from vistoken.train.stage_views import stage_processor


@dataclass
class OpenRun:
    """What stages are run with; the model is the one that they change."""

    config: RunConfig
    model: VistokenForConditionalGeneration
    processor: VistokenProcessor
    references: list[Reference]
    bf16: bool
    device: torch.device
    cache: FeatureCache | None = None
    encode: Encoder = field(init=False)

    def __post_init__(self) -> None:
        if self.config.cache is not None:
            compute: Compute = "bfloat16" if self.bf16 else "float32"
            self.cache = FeatureCache(self.config.cache, self.model, self.processor, compute)
            self.encode = CachedEncoder(self.cache)
        else:
            self.encode = PixelEncoder(self.processor)

    def for_stage(self, stage: StageConfig) -> OpenRun:
        """This run with the views of a stage; the model stays the same object."""
        if stage.views is None:
            return self
        return replace(self, processor=stage_processor(self.processor, stage))

    def folder(self, stage: StageConfig) -> Path:
        """Where a stage's checkpoints are."""
        return self.config.output / "stages" / stage.name


def open_run(config: RunConfig) -> OpenRun:
    """Build or load a run's model, where the run will be computed."""
    bf16 = config.precision == "bfloat16" or (
        config.precision == "auto" and fast_compute() == "bfloat16"
    )
    model, processor, references = _model(config)
    if bf16:
        # frozen weights are stored in the type they are used in: autocast would cast them anew
        model.model.language_model.to(torch.bfloat16)
        model.lm_head.to(torch.bfloat16)
        model.tie_weights()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return OpenRun(config, model.to(device), processor, references, bf16, device)


def _model(
    config: RunConfig,
) -> tuple[VistokenForConditionalGeneration, VistokenProcessor, list[Reference]]:
    source = Path(config.recipe)
    if source.is_dir():
        return _checkpoint(source)
    recipe = load_recipe(config.recipe)
    if config.start == "new":
        model, processor = build(recipe)
        return model, processor, references_of(recipe)
    with resources.as_file(resources.files("vistoken") / "assets" / recipe.name) as trained:
        if not is_light(trained):
            raise UsageError(
                f"start: trained: recipe {recipe.name!r} has no trained weights in this package; "
                "set start: new, or name a checkpoint directory as the recipe"
            )
        return _checkpoint(trained)


def _checkpoint(
    directory: Path,
) -> tuple[VistokenForConditionalGeneration, VistokenProcessor, list[Reference]]:
    if not is_light(directory):
        raise UsageError(
            f"{directory} is not a light checkpoint, which training needs to refer to; name "
            "the folder 'model' of a run, from before 'vistoken merge'"
        )
    model = VistokenForConditionalGeneration.from_pretrained(directory)
    processor = VistokenProcessor.from_pretrained(directory)
    return model, processor, read_references(directory)


def stage_encoder(run: OpenRun, stage: StageConfig) -> Encoder:
    """Where a stage gets its pictures from.

    Raises:
        UsageError: The stage trains the towers, and the run caches their features.
    """
    if run.cache is not None and stage.group("vision").train != "frozen":
        raise UsageError(
            f"stage {stage.name!r} trains the vision towers, whose features cannot come from a "
            "cache; set cache: null"
        )
    return run.encode
