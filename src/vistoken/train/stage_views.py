"""Views of one stage: pictures prepared otherwise than the trained model will prepare them.

LLaVA-1.5 aligns on the tower's own centre cut and tunes on padded pictures.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.pipeline import PartSpec, PipelineSpec
from vistoken.train.settings import StageConfig

if TYPE_CHECKING:
    from vistoken.models.processing import VistokenProcessor


def stage_spec(spec: PipelineSpec, stage: StageConfig) -> PipelineSpec:
    """A pipeline with the views of a stage."""
    if stage.views is None:
        return spec
    return replace(spec, views=PartSpec.read(stage.views, "views"))


def stage_processor(processor: VistokenProcessor, stage: StageConfig) -> VistokenProcessor:
    """A processor with the views of a stage; the given one stays as it is."""
    if stage.views is None:
        return processor
    own = copy.copy(processor)
    spec = stage_spec(processor.image_processor.spec, stage)
    own.image_processor = VistokenImageProcessor(spec.to_dict())
    return own
