"""Pictures with writing: words, numbers and signs on plates."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from vistoken.data.scenes.augment import resized, visible_crop
from vistoken.data.scenes.backgrounds import COLOURS, background
from vistoken.data.scenes.compose import scene_rng
from vistoken.data.scenes.lettering import WORDS
from vistoken.data.scenes.names import icon_names
from vistoken.data.scenes.placing import Box, place_apart
from vistoken.data.scenes.v1.asker import Asker, Question
from vistoken.data.scenes.v1.samples import Sample, rows_about
from vistoken.data.scenes.v1.workshop import Workshop

SORTS = ("word", "number", "sign")
_SIGN_LIST = (
    "stop, exit, open, closed, push, pull, entrance, parking, no parking, one way, no entry, "
    "danger, caution, wet floor, wet paint, keep out, keep left, keep right, slow, private, "
    "for sale, sold out, welcome, office, reception, tickets, information, toilets, "
    "platform 1, platform 2, gate 7, room 12, bus stop, taxi, police, hospital, school, "
    "hotel, bakery, library, museum, fire exit, first aid, no smoking, do not enter, "
    "please wait, lost and found, emergency exit, staff only, mind the gap"
)
SIGNS = tuple(_SIGN_LIST.split(", "))
# One writing in eight is never read in training.
_HELD_OUT_ONE_IN = 8
_PLATES = ((255, 255, 255), (25, 25, 25), (250, 240, 200), (30, 60, 110), (120, 20, 30))
_SIGN_PLATES = ((190, 20, 30), (20, 100, 60), (20, 70, 160), (250, 205, 40), (255, 255, 255))
_TILT_DEGREES = 8.0
_NUMBERS = ((1, 0.55), (2, 0.3), (3, 0.15))


@dataclass(frozen=True)
class Writing:
    """Something written: its text in lower case, its sort and where it stands."""

    text: str
    sort: str
    box: Box


def is_held_out_text(text: str) -> bool:
    """Tell whether a writing is kept out of training, by a hash of its text."""
    digest = hashlib.sha256(f"text\n{text}".encode()).digest()
    return int.from_bytes(digest[:4]) % _HELD_OUT_ONE_IN == 0


def choose_text(sort: str, held_out: bool, rng: random.Random) -> str:
    """Draw something to write.

    Args:
        sort: One of `SORTS`.
        held_out: Whether training must not show it, or may.
        rng: Chooses.

    Returns:
        Text in lower case.
    """
    while True:
        if sort == "number":
            text = _number(rng)
        else:
            text = rng.choice(SIGNS if sort == "sign" else _WORDS)
        if is_held_out_text(text) == held_out:
            return text


def _number(rng: random.Random) -> str:
    form = rng.choices(("plain", "price", "time", "percent"), (6, 2, 1, 1))[0]
    if form == "price":
        return f"${rng.randint(1, 99)}.{rng.choice(('00', '49', '50', '95', '99'))}"
    if form == "time":
        return f"{rng.randint(1, 12)}:{rng.randint(0, 59):02d}"
    if form == "percent":
        return f"{rng.randint(1, 100)}%"
    return str(rng.randint(0, 10 ** rng.randint(1, 4) - 1))


def _single_words() -> tuple[str, ...]:
    names = (name.word for name in icon_names() if " " not in name.word)
    return tuple(sorted({*WORDS, *names}))


_WORDS = _single_words()


class ReadingPart:
    """Pictures with one to three writings.

    Args:
        workshop: Settings.
        split: Name of this part.
        held_out: Whether it has the writings that training does not show.
        unseen_phrasings: Share of questions in wordings that training never uses.
    """

    def __init__(
        self, workshop: Workshop, split: str, *, held_out: bool, unseen_phrasings: float
    ) -> None:
        self._workshop = workshop
        self._split = split
        self._held_out = held_out
        self._unseen = unseen_phrasings

    def sample(self, index: int) -> Sample:
        """Make the sample with a number."""
        rng = scene_rng("v1/reading", self._workshop.seed, self._split, index)
        size_px = self._workshop.size_px
        numbers, weights = zip(*_NUMBERS, strict=True)
        chosen: dict[str, str] = {}
        while len(chosen) < rng.choices(numbers, weights)[0]:
            sort = rng.choice(SORTS)
            chosen[choose_text(sort, self._held_out, rng)] = sort
        plates = [plate(text, sort, size_px, rng) for text, sort in chosen.items()]
        plates, boxes = place_apart(plates, size_px, rng)
        colour = rng.choice(list(COLOURS))
        canvas = background(colour, size_px, rng)
        for patch, (top, left, _, _) in zip(plates, boxes, strict=True):
            canvas.paste(patch, (left, top), patch)
        writings = [Writing(t, s, b) for (t, s), b in zip(chosen.items(), boxes, strict=True)]
        sample_id = f"{self._split}-{index:06d}"
        image = f"images/{sample_id}.jpg"
        annotation = {
            "id": sample_id,
            "image": image,
            "size": [size_px, size_px],
            "background": colour,
            "writings": [{"text": w.text, "sort": w.sort, "box": list(w.box)} for w in writings],
        }
        questions = ask_reading(writings, size_px, Asker(rng, self._unseen), self._held_out)
        return Sample(image, canvas, annotation, rows_about(sample_id, image, questions))


def plate(text: str, sort: str, size_px: int, rng: random.Random) -> Image.Image:
    """Paint a writing on a plate, a little tilted.

    Args:
        text: What is written.
        sort: A sign has a border and stronger colours.
        size_px: Height and width of the picture, which the letters are scaled to.
        rng: Chooses size, case, colours and tilt.

    Returns:
        RGBA, as wide as 0.9 of the picture at most.
    """
    if sort == "sign":
        shown = rng.choice((text.upper(), text.upper(), text.capitalize()))
    else:
        shown = rng.choice((text, text.upper(), text.capitalize()))
    font = ImageFont.load_default(round(size_px * rng.uniform(0.075, 0.15)))
    ground = rng.choice(_SIGN_PLATES if sort == "sign" else _PLATES)
    ink = (20, 20, 20) if sum(ground) > 380 else (250, 250, 250)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(shown))
    margin = max(4, size_px // (28 if sort == "sign" else 48))
    size = (right - left + 2 * margin, bottom - top + 2 * margin)
    painted = Image.new("RGBA", size, (*ground, 255))
    draw = ImageDraw.Draw(painted)
    draw.text((margin - left, margin - top), shown, fill=ink, font=font)
    if sort == "sign":
        edge = margin // 3
        draw.rectangle((edge, edge, size[0] - 1 - edge, size[1] - 1 - edge), outline=ink, width=2)
    if rng.random() < 0.5:
        angle = rng.uniform(-_TILT_DEGREES, _TILT_DEGREES)
        painted = painted.rotate(angle, resample=Image.Resampling.BICUBIC, expand=True)
    painted = visible_crop(painted)
    return resized(painted, min(max(painted.size), round(0.9 * size_px)))


def ask_reading(
    writings: list[Writing], size_px: int, asker: Asker, held_out: bool
) -> list[Question]:
    """Ask what is written, where there are several: at one side, and whether something is."""
    questions: list[Question] = []
    if len(writings) == 1:
        (only,) = writings
        questions.append(_read(f"reading-{only.sort}", only, asker))
    for direction, axis, sign in (("top", 0, -1), ("bottom", 0, 1), ("left", 1, -1)):
        ordered = sorted(writings, key=lambda w: -sign * (w.box[axis] + w.box[axis + 2]))
        if len(ordered) > 1 and _apart(ordered[0], ordered[1], axis) > 0.15 * size_px:
            questions.append(_read("reading-side", ordered[0], asker, side=direction))
    shown = asker.rng.choice(writings)
    other = shown.text
    while other in {writing.text for writing in writings}:
        other = choose_text(shown.sort, held_out, asker.rng)
    for text, answer in ((shown.text, "yes"), (other, "no")):
        questions.append(
            asker.put(
                "reading-check",
                answer,
                facts={"sort": shown.sort},
                text=text,
                said="Yes, it is written there." if answer == "yes" else "No, it is not there.",
            )
        )
    asker.rng.shuffle(questions)
    return questions


def _read(wording: str, writing: Writing, asker: Asker, **words: str) -> Question:
    facts = {"sort": writing.sort, **words}
    return asker.put("reading", writing.text, wording=wording, facts=facts, **words)


def _apart(one: Writing, other: Writing, axis: int) -> float:
    return abs(one.box[axis] + one.box[axis + 2] - other.box[axis] - other.box[axis + 2]) / 2
