"""easy-VQA: 64 px pictures of one shape with questions, enlarged."""

from __future__ import annotations

import json
from collections import defaultdict

from PIL import Image

from vistoken.core.errors import UsageError
from vistoken.data.scenes.archives import fetch_wheel_files
from vistoken.data.scenes.v1.asker import Question
from vistoken.data.scenes.v1.packages import CREDITS, EASY_VQA
from vistoken.data.scenes.v1.samples import Sample, rows_about
from vistoken.data.scenes.v1.workshop import Workshop


class EasyVqaPart:
    """Pictures of easy-VQA with all their questions, in the package's order.

    Args:
        workshop: Size of the pictures; collects the credits.
        split: Name of this part.
        subset: The package's own split, "train" or "test".

    Raises:
        MachineError: The package could not be fetched.
    """

    def __init__(self, workshop: Workshop, split: str, subset: str) -> None:
        self._size_px = workshop.size_px
        self._split = split
        self._folder = fetch_wheel_files(EASY_VQA) / "easy_vqa" / "data" / subset
        entries = json.loads((self._folder / "questions.json").read_text(encoding="utf-8"))
        self._questions: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
        for text, answer, number in entries:
            self._questions[number].append((text, answer))
        self._numbers = sorted(self._questions)
        workshop.credits["easy-vqa"] = CREDITS["easy-vqa"]

    def sample(self, index: int) -> Sample:
        """Give the picture with a number, enlarged to the set's size."""
        if index >= len(self._numbers):
            raise UsageError(f"{self._split} has {len(self._numbers)} pictures; ask for no more.")
        number = self._numbers[index]
        with Image.open(self._folder / "images" / f"{number}.png") as small:
            picture = small.convert("RGB").resize(
                (self._size_px, self._size_px), Image.Resampling.BICUBIC
            )
        sample_id = f"{self._split}-{index:06d}"
        image = f"images/{sample_id}.jpg"
        questions = [
            Question("easy-vqa", _capitalised(text), answer, answer, "seen", "short")
            for text, answer in self._questions[number]
        ]
        annotation = {"id": sample_id, "image": image, "number": number}
        return Sample(image, picture, annotation, rows_about(sample_id, image, questions))


def _capitalised(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
