"""vistoken-scenes 1: repeatable, split as promised, every answer true by its annotation."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistoken.core.errors import DataError, UsageError
from vistoken.data.scenes.compose import is_held_out
from vistoken.data.scenes.grammar import NUMBER_WORDS, plural
from vistoken.data.scenes.names import icon_names
from vistoken.data.scenes.shapes import ShapeSource
from vistoken.data.scenes.v1 import SPLITS, make_set
from vistoken.data.scenes.v1.compose import compose
from vistoken.data.scenes.v1.questions import KINDS
from vistoken.data.scenes.v1.scenes import rows_of
from vistoken.data.scenes.v1.splits import is_held_out_class, is_popular, names_of
from vistoken.data.scenes.v1.wording import SENTENCE_HINTS
from vistoken.data.scenes.v1.wordings import (
    BESIDE,
    FURTHEST,
    RELATIONS,
    SIDES,
    SIZES,
    WORDINGS,
)
from vistoken.train.scenes import read_scenes, vocabulary

SOURCE = ShapeSource()
SIZE = 160
WORDS = sorted((name.word for name in SOURCE.names), key=len, reverse=True)

seeds = st.integers(0, 2**32 - 1)
OFFLINE = sorted(name for name, split in SPLITS.items() if split.drawings == "icons")
splits = st.sampled_from(OFFLINE)


def asked(seed: int, split: str, index: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    scene, _ = compose(SOURCE, seed=seed, split=split, index=index, size_px=SIZE)
    return scene.annotation("x.jpg"), rows_of(scene, "x.jpg", SOURCE, seed)


def kind_of(row: dict[str, Any]) -> str:
    return str(row.get("asked", row["kind"]))


def text_of(row: dict[str, Any], role: str) -> str:
    (message,) = (message for message in row["messages"] if message["role"] == role)
    return str(message["content"][-1]["text"])


# Composition


def test_what_is_trained_on_stays_as_it_is() -> None:
    """The first five splits never change within version 1; only a new version may."""
    digest = hashlib.sha256()
    for split in ("train", "dense", "val", "style", "classes"):
        for index in (0, 1, 2):
            digest.update(json.dumps(asked(0, split, index)[1]).encode())
    assert digest.hexdigest() == (
        "73d2ad24538020c83da39491674392028bc05c122f1fb30aadb4d60d1c125a84"
    )


def test_tiny_things_are_tiny() -> None:
    for index in range(20):
        annotation, rows = asked(1, "small", index)
        assert {row["kind"] for row in rows} == {"small"}
        for top, left, bottom, right in (thing["box"] for thing in annotation["objects"]):
            assert max(bottom - top, right - left) <= 24 / 336 * SIZE + 1


@given(seed=seeds, split=splits)
@settings(max_examples=40, deadline=None)
def test_scenes_and_rows_repeat_exactly(seed: int, split: str) -> None:
    first, picture = compose(SOURCE, seed=seed, split=split, index=3, size_px=SIZE)
    again, again_picture = compose(SOURCE, seed=seed, split=split, index=3, size_px=SIZE)
    assert first == again
    assert picture.tobytes() == again_picture.tobytes()
    assert rows_of(first, "x.jpg", SOURCE, seed) == rows_of(again, "x.jpg", SOURCE, seed)


@given(seed=seeds, split=splits)
@settings(max_examples=40, deadline=None)
def test_boxes_lie_inside_and_apart(seed: int, split: str) -> None:
    annotation, _ = asked(seed, split)
    boxes = [thing["box"] for thing in annotation["objects"]]
    for number, (top, left, bottom, right) in enumerate(boxes):
        assert 0 <= top < bottom <= SIZE
        assert 0 <= left < right <= SIZE
        for other in boxes[:number]:
            rows_apart = bottom <= other[0] or other[2] <= top
            cols_apart = right <= other[1] or other[3] <= left
            assert rows_apart or cols_apart


@given(seed=seeds, split=splits)
@settings(max_examples=40, deadline=None)
def test_splits_show_and_say_only_what_is_theirs(seed: int, split: str) -> None:
    plan = SPLITS[split]
    annotation, rows = asked(seed, split)
    shown = {thing["name"] for thing in annotation["objects"]}
    styles = {thing["style"] for thing in annotation["objects"]}
    allowed = {name.word for name in names_of(plan, SOURCE.names)}
    assert shown <= allowed
    assert styles <= set(SOURCE.held_out_styles if plan.held_out_styles else SOURCE.train_styles)
    if plan.held_out_compositions is not None:
        assert is_held_out(frozenset(shown)) == plan.held_out_compositions
    for row in rows:
        assert set(words_in(text_of(row, "user"))) <= allowed
        assert plan.unseen_phrasings > 0 or row["phrasing"] == "seen"


def test_dense_scenes_hold_many_different_things_and_one_question() -> None:
    for index in range(20):
        annotation, rows = asked(1, "dense", index)
        names = [thing["name"] for thing in annotation["objects"]]
        assert 6 <= len(names) <= 9
        assert len(set(names)) == len(names)
        assert [row["kind"] for row in rows] == ["count"]
        for top, left, bottom, right in (thing["box"] for thing in annotation["objects"]):
            assert max(bottom - top, right - left) >= 0.15 * SIZE


def test_held_out_and_popular_names_are_a_small_share() -> None:
    words = [name.word for name in icon_names()]
    assert 0.06 < sum(map(is_held_out_class, words)) / len(words) < 0.11
    assert 0.05 < sum(map(is_popular, words)) / len(words) < 0.15


# Questions: answers worked out again from the annotation alone


def words_in(text: str) -> list[str]:
    """Names that a text speaks of, singular or plural, longest first and none inside another."""
    found: list[str] = []
    lowered = text.lower()
    for word in WORDS:
        pattern = rf"\b({re.escape(word)}|{re.escape(plural(word))})\b"
        if re.search(pattern, lowered):
            found.append(word)
            lowered = re.sub(pattern, "#", lowered)
    return found


def meaning(text: str, table: dict[str, tuple[str, ...]]) -> str:
    found = [
        (len(words), value)
        for value, ways in table.items()
        for words in ways
        if re.search(rf"\b{re.escape(words)}\b", text)
    ]
    return max(found)[1]


def middle(thing: dict[str, Any]) -> tuple[float, float]:
    top, left, bottom, right = thing["box"]
    return (top + bottom) / 2, (left + right) / 2


def outwards(thing: dict[str, Any], direction: str) -> float:
    row, col = middle(thing)
    return {"left": -col, "right": col, "above": -row, "below": row}[direction]


def furthest(things: list[dict[str, Any]], direction: str) -> str:
    return str(max(things, key=lambda thing: outwards(thing, direction))["name"])


def area(thing: dict[str, Any]) -> int:
    top, left, bottom, right = thing["box"]
    return int((bottom - top) * (right - left))


def true_answer(row: dict[str, Any], scene: dict[str, Any]) -> str:
    kind, question = kind_of(row), text_of(row, "user")
    things = scene["objects"]
    names = [thing["name"] for thing in things]
    spoken = words_in(question)
    # What a question calls "the red ring" is a single thing.
    meant = {word: next((t for t in things if t["name"] == word), None) for word in spoken}
    pair = [thing for thing in meant.values() if thing is not None]
    if kind == "name1":
        (only,) = names
        return str(only)
    if kind == "nameN":
        return furthest(things, meaning(question, merged(SIDES, FURTHEST)))
    if kind in ("relation", "relation-check", "size", "between"):
        assert len(pair) == 2
        assert all(names.count(thing["name"]) == 1 for thing in pair)
    if kind == "relation":
        return furthest(pair, meaning(question, RELATIONS))
    if kind == "relation-check":
        first, second = sorted(pair, key=lambda thing: question.lower().index(thing["name"]))
        direction = meaning(question, BESIDE)
        return "yes" if outwards(first, direction) > outwards(second, direction) else "no"
    if kind == "size":
        chosen = max if meaning(question, SIZES) == "larger" else min
        return str(chosen(pair, key=area)["name"])
    if kind == "nearest":
        (one,) = pair
        others = [thing for thing in things if thing is not one]
        nearest = min(others, key=lambda thing: math.dist(middle(thing), middle(one)))
        return str(nearest["name"])
    if kind == "between":
        rest = [thing for thing in things if thing not in pair]
        ends = [middle(thing) for thing in pair]
        detour = {
            index: sum(math.dist(middle(thing), end) for end in ends)
            for index, thing in enumerate(rest)
        }
        return str(rest[min(detour, key=lambda index: detour[index])]["name"])
    if kind == "count":
        return NUMBER_WORDS[len(things)]
    if kind == "count-of":
        return NUMBER_WORDS[names.count(spoken[0])]
    if kind == "presence":
        return "yes" if spoken[0] in names else "no"
    if kind == "colour":
        return str(scene["background"])
    if kind == "absent":
        assert spoken[0] not in names
        return f"There is no {spoken[0]} in the picture."
    if kind == "where":
        return check_where(row, scene, spoken[0])
    raise AssertionError(f"no way to check {kind}")


def merged(*tables: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(word for table in tables for word in table[key]) for key in tables[0]}


def check_where(row: dict[str, Any], scene: dict[str, Any], word: str) -> str:
    (thing,) = (thing for thing in scene["objects"] if thing["name"] == word)
    row_third, col_third = (int(3 * position / SIZE) for position in middle(thing))
    words = (("top", "", "bottom")[row_third], ("left", "", "right")[col_third])
    part = " ".join(word for word in words if word) or "middle"
    assert row["part"] == part
    return f"The {word} is {'in' if part == 'middle' else 'at'} the {part} of the picture."


@given(seed=seeds, split=splits)
@settings(max_examples=100, deadline=None)
def test_every_answer_is_true(seed: int, split: str) -> None:
    annotation, rows = asked(seed, split)
    for row in rows:
        assert kind_of(row) in KINDS
        assert (row["kind"] == "small") == split.startswith("small")
        question, reply = text_of(row, "user"), text_of(row, "assistant")
        if row["kind"].startswith("caption"):
            check_caption(row, annotation)
            continue
        assert row["answer"] == true_answer(row, annotation), question
        wants_sentence = question.endswith(SENTENCE_HINTS) or not WORDINGS[kind_of(row)].sentence
        assert row["form"] == ("sentence" if wants_sentence else "short")
        if wants_sentence:
            assert reply[0].isupper()
            assert reply.endswith(".")
            check_sentence(row, annotation)
        else:
            assert reply == row["answer"]


def check_sentence(row: dict[str, Any], scene: dict[str, Any]) -> None:
    """A sentence says the short answer, and nothing false about what is shown."""
    reply, answer = text_of(row, "assistant").lower(), row["answer"].lower()
    if kind_of(row) == "count-of" and answer == "zero":
        assert reply.startswith("there are no ")
    elif kind_of(row) == "relation-check":
        assert reply.startswith(answer)
        first, second = sorted(words_in(reply), key=reply.index)
        things = {thing["name"]: thing for thing in scene["objects"]}
        direction = meaning(reply, BESIDE)
        assert outwards(things[first], direction) > outwards(things[second], direction)
    else:
        assert answer in reply
    spoken = [w for w in words_in(reply) if w not in {t["name"] for t in scene["objects"]}]
    assert not spoken or " no " in reply


def check_caption(row: dict[str, Any], scene: dict[str, Any]) -> None:
    text = text_of(row, "assistant")
    assert text.count(".") == int(row["kind"][-1])
    assert f"{scene['background']}" in text
    numbers = Counter(thing["name"] for thing in scene["objects"])
    assert set(words_in(text)) == set(numbers)
    for name, number in numbers.items():
        if number > 1:
            assert f"{NUMBER_WORDS[number]} {plural(name)}" in text.lower()
    if row["kind"] == "caption-3":
        relation = text.split(". ")[1].lower()
        first, second = sorted(words_in(relation), key=relation.index)
        things = {thing["name"]: thing for thing in scene["objects"]}
        direction = meaning(relation, BESIDE)
        assert outwards(things[first], direction) > outwards(things[second], direction)


@given(seed=seeds, split=splits)
@settings(max_examples=40, deadline=None)
def test_presence_is_balanced_in_every_scene(seed: int, split: str) -> None:
    _, rows = asked(seed, split)
    answers = Counter(row["answer"] for row in rows if kind_of(row) == "presence")
    assert answers["yes"] == answers["no"]
    assert answers["yes"] >= 1 or split == "dense"


@pytest.fixture(scope="module")
def many_rows() -> list[dict[str, Any]]:
    return [row for index in range(300) for row in asked(7, "val", index)[1]]


def test_negatives_come_in_three_equal_sorts(many_rows: list[dict[str, Any]]) -> None:
    sorts = Counter(row["sort"] for row in many_rows if row.get("answer") == "no" and "sort" in row)
    for sort in ("random", "popular", "adversarial"):
        assert sorts[sort] > 0.25 * sorts.total()


def test_choices_do_not_favour_an_order_or_an_answer(many_rows: list[dict[str, Any]]) -> None:
    for kind in ("relation", "size"):
        rows = [row for row in many_rows if row["kind"] == kind]
        first = sum(
            min(words_in(text_of(row, "user")), key=text_of(row, "user").lower().index)
            == row["answer"]
            for row in rows
        )
        assert len(rows) > 45
        assert 0.38 < first / len(rows) < 0.62
    checks = Counter(row["answer"] for row in many_rows if row["kind"] == "relation-check")
    assert 0.38 < checks["yes"] / checks.total() < 0.62


def test_every_kind_and_both_phrasings_occur(many_rows: list[dict[str, Any]]) -> None:
    assert {row["kind"] for row in many_rows} == set(KINDS)
    unseen = sum(row["phrasing"] == "unseen" for row in many_rows) / len(many_rows)
    assert 0.3 < unseen < 0.4
    short = sum(row["form"] == "short" for row in many_rows) / len(many_rows)
    assert 0.7 < short < 0.9


def test_unseen_wordings_are_never_seen_ones() -> None:
    for ways in WORDINGS.values():
        assert ways.unseen
        assert not set(ways.seen) & set(ways.unseen)


# Written sets

NUMBERS = {"train": 20, "dense": 4, "val": 6, "style": 4, "classes": 6}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("v1") / "set"
    make_set(out, scenes=NUMBERS, seed=5, source="shapes", size_px=SIZE)
    return out


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_set_has_every_split_with_annotations(written: Path) -> None:
    for split, number in NUMBERS.items():
        rows = read_lines(written / f"{split}.jsonl")
        assert len({row["id"] for row in rows}) == len(rows)
        scenes = read_scenes(written / f"{split}.scenes.jsonl")
        assert len(scenes) == number
        images = [row["messages"][0]["content"][0]["path"] for row in rows]
        assert list(dict.fromkeys(images)) == [scene.image for scene in scenes]
        assert all((written / image).is_file() for image in images)


def test_training_neither_shows_nor_says_a_held_out_class(written: Path) -> None:
    for split in ("train", "dense"):
        words = vocabulary(read_scenes(written / f"{split}.scenes.jsonl"))
        assert not [word for word in words if is_held_out_class(word) and word in WORDS]
        for row in read_lines(written / f"{split}.jsonl"):
            for role in ("user", "assistant"):
                assert not any(map(is_held_out_class, words_in(text_of(row, role))))


def test_a_longer_set_begins_with_the_shorter_one(written: Path, tmp_path: Path) -> None:
    make_set(tmp_path / "l", scenes={"train": 23}, seed=5, source="shapes", size_px=SIZE)
    for name in ("train.jsonl", "train.scenes.jsonl"):
        short = (written / name).read_text(encoding="utf-8")
        assert (tmp_path / "l" / name).read_text(encoding="utf-8").startswith(short)
    picture = "images/train-000007.jpg"
    assert (tmp_path / "l" / picture).read_bytes() == (written / picture).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"scenes": {"trains": 1}}, "train"),
        ({"scenes": {"train": -1}}, "-1"),
        ({"scenes": {"train": 0}}, "no split"),
        ({"scenes": {"train": 1}, "source": "shape"}, "shapes"),
        ({"scenes": {"train": 1}, "size_px": 80}, "size_px"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        make_set(tmp_path / "set", **({"source": "shapes"} | arguments))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="not an empty folder"):
        make_set(tmp_path, scenes={"val": 1}, source="shapes")
