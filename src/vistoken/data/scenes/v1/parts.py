"""All parts of vistoken-scenes 1, by name, with their full sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vistoken.data.scenes.v1.charts import ChartPart
from vistoken.data.scenes.v1.easy_vqa import EasyVqaPart
from vistoken.data.scenes.v1.photographs import PhotographPart, written_questions
from vistoken.data.scenes.v1.reading import ReadingPart
from vistoken.data.scenes.v1.samples import Part
from vistoken.data.scenes.v1.scenes import PlacesPart, ScenePart, TurnsPart
from vistoken.data.scenes.v1.splits import SPLITS
from vistoken.data.scenes.v1.workshop import Workshop

_UNSEEN = 0.35


@dataclass(frozen=True)
class PartPlan:
    """A file of the set.

    Attributes:
        note: What it is, for the data card.
        scenes: How many pictures it has at full size.
        make: Makes the part.
        offline: Whether it can be made from shapes, without any package.
        has_objects: Whether its annotation lists named objects with boxes; such annotations are
            called ``NAME.scenes.jsonl``, others ``NAME.truth.jsonl``.
    """

    note: str
    scenes: int
    make: Callable[[Workshop], Part]
    offline: bool = True
    has_objects: bool = False


def _scene_plans() -> dict[str, PartPlan]:
    return {
        name: PartPlan(
            split.note,
            split.scenes,
            partial(ScenePart, split=name),
            offline=split.drawings == "icons",
            has_objects=True,
        )
        for name, split in SPLITS.items()
    }


PARTS: dict[str, PartPlan] = _scene_plans() | {
    # not in the set unless asked for
    "places": PartPlan(
        "more questions about places and numbers in pictures of train",
        0,
        partial(PlacesPart, about="train"),
        has_objects=True,
    ),
    "turns": PartPlan(
        "conversations of two to five turns about pictures of train",
        4_000,
        partial(TurnsPart, split="turns", about="train"),
        has_objects=True,
    ),
    "turns-val": PartPlan(
        "the same about pictures of val",
        200,
        partial(TurnsPart, split="turns-val", about="val"),
        has_objects=True,
    ),
    "reading": PartPlan(
        "one to three words, numbers or signs on plates",
        3_000,
        partial(ReadingPart, split="reading", held_out=False, unseen_phrasings=0.0),
    ),
    "reading-val": PartPlan(
        "the same with writings that reading does not show",
        300,
        partial(ReadingPart, split="reading-val", held_out=True, unseen_phrasings=_UNSEEN),
    ),
    "charts": PartPlan(
        "bar charts of three to six coloured bars",
        1_500,
        partial(ChartPart, split="charts", unseen_phrasings=0.0),
    ),
    "charts-val": PartPlan(
        "more of them", 200, partial(ChartPart, split="charts-val", unseen_phrasings=_UNSEEN)
    ),
    "easy-vqa": PartPlan(
        "easy-VQA's training pictures",
        1_500,
        partial(EasyVqaPart, split="easy-vqa", subset="train"),
        offline=False,
    ),
    "easy-vqa-val": PartPlan(
        "easy-VQA's test pictures",
        200,
        partial(EasyVqaPart, split="easy-vqa-val", subset="test"),
        offline=False,
    ),
    "photographs": PartPlan(
        "photographs out of packages with questions written by hand",
        len(written_questions()),
        partial(PhotographPart, split="photographs"),
        offline=False,
    ),
}
