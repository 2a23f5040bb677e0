"""Absent things to ask for, of three sorts: random, popular and adversarial."""

from __future__ import annotations

import random
from dataclasses import dataclass

from vistoken.data.scenes.compose import Scene
from vistoken.data.scenes.names import Name
from vistoken.data.scenes.v1.packages import SEEN_ON_SURFACES
from vistoken.data.scenes.v1.splits import is_popular

SORTS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Vocabulary:
    """The names of a split and which of them may be said of the same drawing.

    Attributes:
        names: Names that may be shown or asked for.
        confusable: Words that may also be said of the same drawing, by word.
    """

    names: tuple[Name, ...]
    confusable: dict[str, frozenset[str]]


def absent_name(
    scene: Scene, vocabulary: Vocabulary, taken: list[Name], sort: str, rng: random.Random
) -> tuple[Name, str]:
    """Draw a name that is surely not shown.

    Args:
        scene: What is shown.
        vocabulary: Names to choose from.
        taken: Absent names already asked for.
        sort: One of `SORTS`. "popular": among the names that scenes show most often;
            "adversarial": of the category of something shown, which occurs together with it more
            often than chance.
        rng: Chooses.

    Returns:
        A name and its sort, which is "random" where the wanted sort has no candidate left.
    """
    shown = [thing.name for thing in scene.objects]
    excluded = {name.word for name in (*shown, *taken)}
    excluded |= SEEN_ON_SURFACES.get(scene.background, frozenset())
    for name in shown:
        excluded |= vocabulary.confusable.get(name.word, frozenset())
    candidates = [name for name in vocabulary.names if name.word not in excluded]
    if sort == "popular":
        preferred = [name for name in candidates if is_popular(name.word)]
    elif sort == "adversarial":
        category = rng.choice(shown).category
        preferred = [name for name in candidates if name.category == category]
    else:
        preferred = candidates
    return (rng.choice(preferred), sort) if preferred else (rng.choice(candidates), "random")
