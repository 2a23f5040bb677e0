"""The parts that show composed scenes, and conversations about some of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from PIL import Image

from vistoken.data.scenes.compose import Scene, scene_rng
from vistoken.data.scenes.sources import DrawingSource
from vistoken.data.scenes.v1.asker import Asker, Question
from vistoken.data.scenes.v1.compose import compose
from vistoken.data.scenes.v1.geometry import part_of_picture, single_things
from vistoken.data.scenes.v1.negatives import Vocabulary
from vistoken.data.scenes.v1.questions import ask, ask_count, ask_places, ask_tiny
from vistoken.data.scenes.v1.samples import Sample, messages_of, rows_about
from vistoken.data.scenes.v1.splits import SPLITS, names_of
from vistoken.data.scenes.v1.workshop import Workshop

# What a follow-up may ask about: a question whose short answer is the name of one thing.
_NAMING = frozenset({"name1", "nameN", "relation", "size", "nearest", "between"})
_FOLLOW_UPS = (
    "Where is it?",
    "Where is it in the picture?",
    "In which part of the picture is it?",
)
_UNSEEN_FOLLOW_UP = "And whereabouts is that?"


def questions_of(
    scene: Scene, drawings: DrawingSource, seed: int, purpose: str = "v1/ask"
) -> list[Question]:
    """Ask about a scene as its split does.

    Args:
        scene: What is asked about.
        drawings: The source it was composed from.
        seed: Seed of the set.
        purpose: What the random numbers are for.

    Returns:
        Questions in random order.
    """
    plan = SPLITS[scene.split]
    asker = Asker(scene_rng(purpose, seed, scene.split, scene.index), plan.unseen_phrasings)
    if plan.asked == "count":
        return ask_count(scene, asker)
    vocabulary = Vocabulary(names_of(plan, drawings.names), drawings.confusable)
    return (ask if plan.asked == "all" else ask_tiny)(scene, vocabulary, asker)


def rows_of(scene: Scene, image: str, drawings: DrawingSource, seed: int) -> list[dict[str, Any]]:
    """Put a scene's questions into the data schema, one row each.

    Args:
        scene: What is asked about.
        image: Path of its picture, relative to the image root.
        drawings: The source it was composed from.
        seed: Seed of the set.

    Returns:
        Rows with the same picture.
    """
    questions = questions_of(scene, drawings, seed)
    return rows_about(scene.scene_id, image, questions, things=len(scene.objects))


class ScenePart:
    """Composed scenes of one split.

    Args:
        workshop: Sources and settings.
        split: A key of `SPLITS`.
    """

    def __init__(self, workshop: Workshop, split: str) -> None:
        self._workshop = workshop
        self._split = split
        self._plan = SPLITS[split]
        self.drawings = workshop.drawings_of(self._plan)

    def compose(self, index: int) -> tuple[Scene, Image.Image]:
        """Compose the scene with a number."""
        return compose(
            self.drawings,
            seed=self._workshop.seed,
            split=self._split,
            index=index,
            size_px=self._workshop.size_px,
            surface=self._workshop.surfaces.paint if self._plan.surfaces else None,
        )

    def sample(self, index: int) -> Sample:
        """Make the sample with a number."""
        scene, picture = self.compose(index)
        image = f"images/{scene.scene_id}.jpg"
        rows = rows_of(scene, image, self.drawings, self._workshop.seed)
        return Sample(image, picture, scene.annotation(image), rows)


class PlacesPart:
    """More questions about places and numbers in another split's scenes, whose pictures it shares.

    Args:
        workshop: Sources and settings.
        about: The split whose scenes are asked about.
    """

    def __init__(self, workshop: Workshop, about: str) -> None:
        self._seed = workshop.seed
        self._scenes = ScenePart(workshop, about)

    def sample(self, index: int) -> Sample:
        """Make the sample with a number."""
        scene, picture = self._scenes.compose(index)
        image = f"images/{scene.scene_id}.jpg"
        plan = SPLITS[scene.split]
        asker = Asker(
            scene_rng("v1/places", self._seed, scene.split, scene.index), plan.unseen_phrasings
        )
        drawings = self._scenes.drawings
        vocabulary = Vocabulary(names_of(plan, drawings.names), drawings.confusable)
        questions = ask_places(scene, vocabulary, asker)
        rows = rows_about(f"{scene.scene_id}-p", image, questions, things=len(scene.objects))
        return Sample(image, picture, scene.annotation(image), rows)


class TurnsPart:
    """Conversations of several turns about scenes of another split, whose pictures it shares.

    Args:
        workshop: Sources and settings.
        split: Name of this part.
        about: The split whose scenes are talked about.
    """

    def __init__(self, workshop: Workshop, split: str, about: str) -> None:
        self._seed = workshop.seed
        self._split = split
        self._scenes = ScenePart(workshop, about)

    def sample(self, index: int) -> Sample:
        """Make the sample with a number: one row with two to five turns."""
        scene, picture = self._scenes.compose(index)
        image = f"images/{scene.scene_id}.jpg"
        turns = self._turns(scene)
        row: dict[str, Any] = {
            "id": f"{self._split}-{index:06d}-00",
            "kind": "turns",
            "kinds": [turn.kind for turn in turns],
            "answer": turns[-1].answer,
            "answers": [turn.answer for turn in turns],
            "phrasing": "unseen" if any(t.phrasing == "unseen" for t in turns) else "seen",
            "form": turns[-1].form,
            "things": len(scene.objects),
            "messages": messages_of(image, turns),
        }
        return Sample(image, picture, scene.annotation(image), [row])

    def _turns(self, scene: Scene) -> list[Question]:
        rng = scene_rng("v1/turns", self._seed, scene.split, scene.index)
        asked = questions_of(scene, self._scenes.drawings, self._seed, "v1/turns/ask")
        first_of_kind = {question.kind: question for question in reversed(asked)}
        chosen = rng.sample(sorted(first_of_kind), min(len(first_of_kind), rng.randint(2, 4)))
        turns: list[Question] = []
        followed = False
        for kind in chosen:
            turns.append(first_of_kind[kind])
            follow_up = None if followed else self._follow_up(scene, turns[-1], rng.random())
            if follow_up is not None:
                turns.append(follow_up)
                followed = True
        return turns

    def _follow_up(self, scene: Scene, question: Question, draw: float) -> Question | None:
        """Ask where the thing is that the last answer named."""
        numbers = Counter(thing.name.word for thing in scene.objects)
        if question.kind not in _NAMING or numbers[question.answer] != 1:
            return None
        (thing,) = (t for t in single_things(scene) if t.name.word == question.answer)
        part = part_of_picture(scene, thing)
        if part is None:
            return None
        unseen = draw < SPLITS[scene.split].unseen_phrasings
        text = _UNSEEN_FOLLOW_UP if unseen else _FOLLOW_UPS[int(draw * len(_FOLLOW_UPS))]
        reply = f"It is {'in' if part == 'middle' else 'at'} the {part} of the picture."
        return Question(
            "where", text, reply, reply, "unseen" if unseen else "seen", "sentence", {"part": part}
        )
