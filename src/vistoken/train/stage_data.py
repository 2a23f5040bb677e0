"""What a stage learns from, and the pictures it is probed with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistoken.core.errors import DataError
from vistoken.data.bad_samples import BadSamples
from vistoken.models.images import open_image
from vistoken.train.alignment import NameSpace
from vistoken.train.cache import FeatureCache
from vistoken.train.examples import Numbers, ScenePicture, read_pictures
from vistoken.train.feeds import FEEDS, Feed
from vistoken.train.objectives import find_objective
from vistoken.train.scenes import scenes_file, vocabulary
from vistoken.train.settings import RunConfig, StageConfig

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.processing import VistokenProcessor

logger = logging.getLogger(__name__)


def stage_files(config: RunConfig, stage: StageConfig) -> tuple[tuple[Path, ...], Path | None]:
    """Data files of a stage and their image root."""
    files = config.data if stage.data is None else stage.data
    return files, config.image_root if stage.image_root is None else stage.image_root


@dataclass(frozen=True)
class StageData:
    """Everything that a stage reads.

    Attributes:
        items: One entry per sample of the data loader.
        images: Every picture in them, hardly one more than once.
        lengths: Grouping length of each item; empty where unknown.
        held_out: Samples of the validation.
        held_out_images: Every picture in those.
        probe: Annotated pictures whose names are read off the connector's output now and then.
    """

    items: Sequence[Any]
    images: Sequence[Path]
    lengths: Sequence[int] | Numbers
    held_out: Sequence[Any]
    held_out_images: list[Path]
    probe: list[ScenePicture]

    @property
    def measured_images(self) -> list[Path]:
        """Every picture that is measured on rather than trained on."""
        return [*self.held_out_images, *(picture.image for picture in self.probe)]

    @property
    def named(self) -> list[ScenePicture]:
        """Annotated pictures among what is held out."""
        scenes = [item for item in self.held_out if isinstance(item, ScenePicture)]
        return [*self.probe, *scenes]


def read_stage(config: RunConfig, stage: StageConfig, bad: BadSamples) -> StageData:
    """Read what a stage draws batches from, and what it is measured on."""
    feed: Feed = FEEDS[find_objective(stage.objective).rows]
    files, root = stage_files(config, stage)
    read = feed.read(files, root, stage, bad)
    held_out: Sequence[Any] = ()
    held_out_images: list[Path] = []
    if stage.needs_validation:
        # held-out rows are measured on, so none may be passed over
        found = feed.read(config.validation, config.image_root, stage, BadSamples("error"))
        held_out = [found.items[n] for n in range(min(len(found.items), stage.validation_samples))]
        held_out_images = feed.images(held_out)
    probe = _probe_pictures(config, stage)
    return StageData(read.items, read.images, read.lengths, held_out, held_out_images, probe)


def _probe_pictures(config: RunConfig, stage: StageConfig) -> list[ScenePicture]:
    if not stage.needs_probe:
        return []
    files = config.validation or config.data
    return read_pictures(files, config.image_root)[: stage.retrieval_images]


def name_space(
    config: RunConfig,
    stage: StageConfig,
    model: VistokenForConditionalGeneration,
    processor: VistokenProcessor,
    others: Sequence[ScenePicture],
) -> NameSpace | None:
    """The words of a stage's annotations; None when nothing asks for them."""
    if not find_objective(stage.objective).needs_names and not others:
        return None
    files, root = stage_files(config, stage)
    annotated = [path for path in files if scenes_file(path).is_file()]
    pictures = [*read_pictures(annotated, root), *others]
    words = vocabulary([picture.scene for picture in pictures])
    return NameSpace(model, processor.tokenizer, words, stage.temperature)


def fill_cache(
    cache: FeatureCache,
    images: Sequence[Path],
    skip: bool,
    progress: Callable[[str, int, int], None] | None,
) -> set[Path]:
    """Encode a stage's pictures ahead.

    Args:
        cache: The cache.
        images: Pictures.
        skip: Pass over pictures that cannot be read; their samples are counted when they come up.
        progress: Told what is being done, the number done and the total.

    Returns:
        Pictures that cannot be read.

    Raises:
        DataError: A picture cannot be read, without ``skip``.
    """
    unreadable: set[Path] = set()
    if skip:
        unreadable = {image for image in images if not _can_be_read(image)}

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress("encode images", done, total)
        if done == total or done % 200 < 8:
            logger.info("encoded %d of %d images", done, total)

    report = cache.fill(images, progress=tell, without=unreadable)
    logger.info("%d images cached, %.1f img/s", report.images, report.images_per_second)
    return unreadable


def _can_be_read(image: Path) -> bool:
    try:
        open_image(image)
    except DataError:
        return False
    return True
