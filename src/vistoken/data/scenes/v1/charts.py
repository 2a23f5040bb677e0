"""Simple bar charts: which bar is highest or lowest, how high one is, how many there are."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from vistoken.data.scenes.compose import scene_rng
from vistoken.data.scenes.grammar import NUMBER_WORDS
from vistoken.data.scenes.v1.asker import Asker, Question
from vistoken.data.scenes.v1.samples import Sample, rows_about
from vistoken.data.scenes.v1.workshop import Workshop

_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (240, 200, 40),
    "green": (40, 150, 70),
    "blue": (38, 92, 214),
    "purple": (128, 60, 170),
    "pink": (246, 130, 180),
    "brown": (132, 88, 54),
    "gray": (130, 130, 130),
    "black": (24, 24, 24),
}
_TOP_VALUE = 10
_PAPER = ((255, 255, 255), (250, 246, 235), (235, 242, 250))


@dataclass(frozen=True)
class Bar:
    """A bar of a named colour and a whole value from 1 to 10."""

    colour: str
    value: int


class ChartPart:
    """Bar charts with three to six bars of different colours and values.

    Args:
        workshop: Settings.
        split: Name of this part.
        unseen_phrasings: Share of questions in wordings that training never uses.
    """

    def __init__(self, workshop: Workshop, split: str, *, unseen_phrasings: float) -> None:
        self._workshop = workshop
        self._split = split
        self._unseen = unseen_phrasings

    def sample(self, index: int) -> Sample:
        """Make the sample with a number."""
        rng = scene_rng("v1/charts", self._workshop.seed, self._split, index)
        number = rng.randint(3, 6)
        colours = rng.sample(list(_COLOURS), number)
        values = rng.sample(range(1, _TOP_VALUE + 1), number)
        bars = [Bar(colour, value) for colour, value in zip(colours, values, strict=True)]
        picture = draw_chart(bars, self._workshop.size_px, rng)
        sample_id = f"{self._split}-{index:06d}"
        image = f"images/{sample_id}.jpg"
        annotation = {
            "id": sample_id,
            "image": image,
            "bars": [{"colour": bar.colour, "value": bar.value} for bar in bars],
        }
        questions = ask_chart(bars, Asker(rng, self._unseen))
        return Sample(image, picture, annotation, rows_about(sample_id, image, questions))


def draw_chart(bars: list[Bar], size_px: int, rng: random.Random) -> Image.Image:
    """Draw bars from left to right above an axis, with a scale from 0 to 10.

    Args:
        bars: What is drawn.
        size_px: Height and width.
        rng: Chooses paper, margins and whether there are grid lines.

    Returns:
        RGB picture.
    """
    picture = Image.new("RGB", (size_px, size_px), rng.choice(_PAPER))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(round(0.05 * size_px))
    left, right = round(0.14 * size_px), round(size_px * rng.uniform(0.9, 0.97))
    top, bottom = round(size_px * rng.uniform(0.06, 0.15)), round(0.9 * size_px)
    lines = rng.random() < 0.6
    step = rng.choice((1, 2, 5))
    for value in range(0, _TOP_VALUE + 1, step):
        row = bottom - (bottom - top) * value / _TOP_VALUE
        draw.text((left - 0.02 * size_px, row), str(value), (40, 40, 40), font, anchor="rm")
        if lines:
            draw.line((left, row, right, row), (200, 200, 200))
    pitch = (right - left) / len(bars)
    inset = pitch * rng.uniform(0.1, 0.25)
    for number, bar in enumerate(bars):
        height = (bottom - top) * bar.value / _TOP_VALUE
        start = left + number * pitch + inset
        box = (start, bottom - height, start + pitch - 2 * inset, bottom)
        draw.rectangle(box, _COLOURS[bar.colour], (30, 30, 30))
    draw.line((left, bottom, right, bottom), (30, 30, 30), 2)
    draw.line((left, top, left, bottom), (30, 30, 30), 2)
    return picture


def ask_chart(bars: list[Bar], asker: Asker) -> list[Question]:
    """Ask five questions about a chart."""
    rng = asker.rng
    ordered = sorted(bars, key=lambda bar: bar.value)
    measured = rng.choice(bars)
    one, other = rng.sample(bars, 2)
    higher = max(one, other, key=lambda bar: bar.value)
    count = NUMBER_WORDS[len(bars)]
    value = NUMBER_WORDS[measured.value] if measured.value < len(NUMBER_WORDS) else "ten"
    questions = [
        _put(asker, "highest", ordered[-1].colour),
        _put(asker, "lowest", ordered[0].colour),
        _put(asker, "value", value, bar=measured.colour),
        _put(asker, "compare", higher.colour, one=one.colour, other=other.colour),
        _put(asker, "number", count),
    ]
    rng.shuffle(questions)
    return questions


def _put(asker: Asker, asked: str, answer: str, **words: str) -> Question:
    return asker.put("chart", answer, wording=f"chart-{asked}", facts={"asked": asked}, **words)
