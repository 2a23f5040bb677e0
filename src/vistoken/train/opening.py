"""The model, processor and encoder that all stages of a run share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from vistoken.core.errors import UsageError
from vistoken.models.build import build, references_of
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.processing import VistokenProcessor
from vistoken.models.recipe import load_recipe
from vistoken.models.references import Reference, read_references
from vistoken.train.cache import Compute, FeatureCache, fast_compute
from vistoken.train.encoders import CachedEncoder, Encoder, PixelEncoder
from vistoken.train.settings import RunConfig, StageConfig


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

    def folder(self, stage: StageConfig) -> Path:
        """Where a stage's checkpoints are."""
        return self.config.output / "stages" / stage.name


def open_run(config: RunConfig) -> OpenRun:
    """Build or load a run's model, where the run will be computed."""
    bf16 = config.precision == "bfloat16" or (
        config.precision == "auto" and fast_compute() == "bfloat16"
    )
    source = Path(config.recipe)
    references: list[Reference]
    if source.is_dir():
        model = VistokenForConditionalGeneration.from_pretrained(source)
        processor = VistokenProcessor.from_pretrained(source)
        references = read_references(source)
    else:
        recipe = load_recipe(config.recipe)
        model, processor = build(recipe)
        references = references_of(recipe)
    if bf16:
        # frozen weights are stored in the type they are used in: autocast would cast them anew
        model.model.language_model.to(torch.bfloat16)
        model.lm_head.to(torch.bfloat16)
        model.tie_weights()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return OpenRun(config, model.to(device), processor, references, bf16, device)


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
