"""Data of a stage by what its objective wants: conversations, or pictures with annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vistoken.core.objectives import Rows
from vistoken.train.encoders import Encoder
from vistoken.train.examples import Numbers, ScenePicture, read_examples, read_pictures
from vistoken.train.grouping import QuestionGroup, group_examples
from vistoken.train.labelling import find_labeller
from vistoken.train.samples import QuestionCollator, SceneCollator
from vistoken.train.settings import StageConfig

if TYPE_CHECKING:
    from vistoken.data.bad_samples import BadSamples
    from vistoken.models.processing import VistokenProcessor


@dataclass(frozen=True)
class StageItems:
    """What a stage draws batches from.

    Attributes:
        items: One entry per sample of the data loader.
        images: Every picture in them, hardly one more than once.
        lengths: Grouping length of each item, negative without a picture; empty where unknown.
    """

    items: Sequence[Any]
    images: Sequence[Path]
    lengths: Sequence[int] | Numbers = ()


class Feed(Protocol):
    """Reads data files and makes batches of what is in them."""

    def read(
        self, files: Sequence[Path], root: Path | None, stage: StageConfig, bad: BadSamples
    ) -> StageItems:
        """Read data files."""

    def collator(
        self, stage: StageConfig, processor: VistokenProcessor, encode: Encoder, bad: BadSamples
    ) -> Any:
        """Make what turns a list of items into a batch."""

    def images(self, items: Sequence[Any]) -> list[Path]:
        """Every picture of a list of items, once."""

    def names(self, items: Sequence[Any]) -> list[str]:
        """What the samples of a list of items are called in errors."""


class Conversations:
    """Rows about the same pictures, grouped."""

    def read(
        self, files: Sequence[Path], root: Path | None, stage: StageConfig, bad: BadSamples
    ) -> StageItems:
        """Rows about the same pictures, grouped."""
        groups = group_examples(read_examples(files, root, bad), stage.questions_per_image)
        return StageItems(groups, groups.images, groups.lengths)

    def collator(
        self, stage: StageConfig, processor: VistokenProcessor, encode: Encoder, bad: BadSamples
    ) -> QuestionCollator:
        """Packs questions behind their pictures, and samples into rows where the stage says so."""
        label = find_labeller(stage.labels, processor, stage.template, stage.max_length)
        return QuestionCollator(
            processor,
            str(processor.chat_template),
            encode,
            stage.max_length,
            too_long=stage.too_long,
            pack_samples=stage.pack_samples,
            bad=bad,
            label=label,
        )

    def images(self, items: Sequence[QuestionGroup]) -> list[Path]:
        """Every picture of the groups, once."""
        return list(dict.fromkeys(image for group in items for image in group.images))

    def names(self, items: Sequence[QuestionGroup]) -> list[str]:
        """Each row's file, line and id."""
        return [example.where for group in items for example in group.examples]


class Scenes:
    """Annotated pictures."""

    def read(
        self, files: Sequence[Path], root: Path | None, stage: StageConfig, bad: BadSamples
    ) -> StageItems:
        """Annotated pictures."""
        pictures = read_pictures(files, root)
        return StageItems(pictures, self.images(pictures))

    def collator(
        self, stage: StageConfig, processor: VistokenProcessor, encode: Encoder, bad: BadSamples
    ) -> SceneCollator:
        """Pictures with their scenes."""
        return SceneCollator(encode)

    def images(self, items: Sequence[ScenePicture]) -> list[Path]:
        """Every picture."""
        return [picture.image for picture in items]

    def names(self, items: Sequence[ScenePicture]) -> list[str]:
        """Each picture's file."""
        return [str(picture.image) for picture in items]


FEEDS: dict[Rows, Feed] = {"conversations": Conversations(), "scenes": Scenes()}
"""Every way to feed an objective."""
