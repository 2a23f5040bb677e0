"""What a stage learns from: its items, their batches, and the pictures it is probed with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistoken.models.templates import load_template
from vistoken.train.alignment import NameSpace, scenes_file, vocabulary
from vistoken.train.samples import (
    Encoder,
    QuestionCollator,
    SceneCollator,
    ScenePicture,
    group_examples,
    read_examples,
    read_pictures,
)
from vistoken.train.settings import RunConfig, StageConfig

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.processing import VistokenProcessor


def stage_files(config: RunConfig, stage: StageConfig) -> tuple[tuple[Path, ...], Path | None]:
    """Data files of a stage and their image root."""
    files = config.data if stage.data is None else stage.data
    return files, config.image_root if stage.image_root is None else stage.image_root


def stage_items(config: RunConfig, stage: StageConfig) -> tuple[list[Any], list[Path]]:
    """What a stage draws batches from, and every picture in it."""
    files, root = stage_files(config, stage)
    if stage.objective == "name-alignment":
        pictures = read_pictures(files, root)
        return list(pictures), [picture.image for picture in pictures]
    examples = read_examples(files, root)
    groups = group_examples(examples, stage.questions_per_image)
    return list(groups), list(dict.fromkeys(image for group in groups for image in group.images))


def probe_pictures(config: RunConfig, stage: StageConfig) -> list[ScenePicture]:
    """Annotated pictures whose names are read off the connector's output now and then."""
    if not stage.retrieval_every:
        return []
    files = config.validation or config.data
    return read_pictures(files, config.image_root)[: stage.retrieval_images]


def name_space(
    config: RunConfig,
    stage: StageConfig,
    model: VistokenForConditionalGeneration,
    processor: VistokenProcessor,
    probe: Sequence[ScenePicture],
) -> NameSpace | None:
    """The words of a stage's annotations; None when nothing asks for them."""
    if stage.objective != "name-alignment" and not probe:
        return None
    files, root = stage_files(config, stage)
    annotated = [path for path in files if scenes_file(path).is_file()]
    pictures = [*read_pictures(annotated, root), *probe]
    words = vocabulary([picture.scene for picture in pictures])
    return NameSpace(model, processor.tokenizer, words, stage.temperature)


def stage_collator(stage: StageConfig, processor: VistokenProcessor, encode: Encoder) -> Any:
    """Makes a stage's batches of its items."""
    if stage.objective == "name-alignment":
        return SceneCollator(encode)
    template = load_template(stage.template) if stage.template else str(processor.chat_template)
    return QuestionCollator(processor, template, encode, stage.max_length)
