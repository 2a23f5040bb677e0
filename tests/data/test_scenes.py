"""Composed scenes: repeatable, well placed, truthfully asked about and safely written."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vistoken.core.errors import DataError, MachineError, UsageError
from vistoken.data.preview import preview_page
from vistoken.data.scenes import fetch
from vistoken.data.scenes.augment import VISIBLE_ALPHA, vary_style, visible_crop
from vistoken.data.scenes.backgrounds import COLOURS, background
from vistoken.data.scenes.compose import (
    SPLITS,
    Scene,
    SceneOptions,
    compose,
    compose_of,
    is_held_out,
    scene_rng,
)
from vistoken.data.scenes.grammar import plural, with_article
from vistoken.data.scenes.make import make_scenes, rows_of
from vistoken.data.scenes.names import Name, confusable_words, icon_names
from vistoken.data.scenes.phrasings import RELATIONS, SIDES
from vistoken.data.scenes.questions import KINDS, ask
from vistoken.data.scenes.shapes import ShapeSource

SOURCE = ShapeSource()
OPTIONS = SceneOptions(size_px=160)
CROWDED = SceneOptions(size_px=160, object_counts=((3, 0.2), (5, 0.4), (8, 0.4)))
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")

seeds = st.integers(0, 2**32 - 1)
splits = st.sampled_from(SPLITS)
options = st.sampled_from((OPTIONS, CROWDED))


def words_in(scene: Scene) -> frozenset[str]:
    return frozenset(thing.name.word for thing in scene.objects)


# Composition


@given(seed=seeds, split=splits, setting=options)
@settings(max_examples=40, deadline=None)
def test_scenes_repeat_exactly(seed: int, split: str, setting: SceneOptions) -> None:
    first, first_picture = compose(SOURCE, setting, seed=seed, split=split, index=3)
    again, again_picture = compose(SOURCE, setting, seed=seed, split=split, index=3)
    other, _ = compose(SOURCE, setting, seed=seed, split=split, index=4)
    assert first == again
    assert first_picture.tobytes() == again_picture.tobytes()
    assert first.objects != other.objects


@given(seed=seeds, split=splits, setting=options)
@settings(max_examples=60, deadline=None)
def test_boxes_lie_inside_and_apart(seed: int, split: str, setting: SceneOptions) -> None:
    scene, picture = compose(SOURCE, setting, seed=seed, split=split, index=0)
    assert picture.size == (setting.size_px, setting.size_px)
    boxes = [thing.box for thing in scene.objects]
    boxes += [] if scene.text is None else [scene.text.box]
    for top, left, bottom, right in boxes:
        assert 0 <= top < bottom <= setting.size_px
        assert 0 <= left < right <= setting.size_px
    for one, other in itertools.combinations(boxes, 2):
        rows_apart = one[2] <= other[0] or other[2] <= one[0]
        cols_apart = one[3] <= other[1] or other[3] <= one[1]
        assert rows_apart or cols_apart


def test_boxes_are_where_the_pixels_change() -> None:
    by_word = {name.word: name for name in SOURCE.names}
    things = [(by_word["black square"], "flat"), (by_word["black ring"], "flat")]
    seed = next(s for s in range(200) if _plain_white(things, s))
    scene, picture = compose_of(
        SOURCE, OPTIONS, things, None, random.Random(seed), split="val", index=0
    )
    dark = np.asarray(picture.convert("L")) < 100
    for thing in scene.objects:
        top, left, bottom, right = thing.box
        inside = dark[top:bottom, left:right]
        # Visible pixels reach every edge of their box, give or take a half-transparent one.
        assert inside[:3].any()
        assert inside[-3:].any()
        assert inside[:, :3].any()
        assert inside[:, -3:].any()
        dark[top:bottom, left:right] = False
    assert not dark.any()


def _plain_white(things: list[tuple[Name, str]], seed: int) -> bool:
    rng = random.Random(seed)
    scene, _ = compose_of(SOURCE, OPTIONS, things, None, rng, split="val", index=0)
    return scene.background == "white"


@given(seed=seeds, split=splits)
@settings(max_examples=60, deadline=None)
def test_compositions_and_styles_keep_to_their_split(seed: int, split: str) -> None:
    scene, _ = compose(SOURCE, OPTIONS, seed=seed, split=split, index=1)
    assert is_held_out(words_in(scene)) == (split != "train")
    styles = {thing.style for thing in scene.objects}
    assert styles <= set(SOURCE.held_out_styles if split == "style" else SOURCE.train_styles)


def test_held_out_compositions_are_about_one_in_ten_and_ignore_order() -> None:
    pairs = itertools.combinations([name.word for name in icon_names()[:120]], 2)
    held_out = [is_held_out(frozenset(pair)) for pair in pairs]
    assert 0.08 < sum(held_out) / len(held_out) < 0.12


@pytest.mark.parametrize("colour", sorted(COLOURS))
def test_backgrounds_stay_near_their_colour(colour: str) -> None:
    for seed in range(30):
        picture = background(colour, 48, random.Random(seed))
        average = np.asarray(picture, dtype=float).mean(axis=(0, 1))
        nearest = min(COLOURS, key=lambda c: float(np.abs(average - COLOURS[c]).sum()))
        assert nearest == colour


def test_every_drawing_is_visible_in_every_style() -> None:
    for name in SOURCE.names:
        for style in (*SOURCE.train_styles, *SOURCE.held_out_styles):
            drawing = SOURCE.drawing(name, style)
            assert drawing.mode == "RGBA"
            assert min(drawing.size) > 20
            alpha = np.asarray(drawing.getchannel("A"))
            assert (alpha > VISIBLE_ALPHA).mean() > 0.05


def test_variation_changes_pixels_but_keeps_something_visible() -> None:
    drawing = SOURCE.drawing(SOURCE.names[0], "flat")
    varied = [vary_style(drawing, random.Random(seed), may_mirror=True) for seed in range(30)]
    assert len({picture.tobytes() for picture in varied}) > 15
    for picture in varied:
        cropped = visible_crop(picture)
        assert 0.7 < max(cropped.size) / max(drawing.size) < 1.5


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"size_px": 50}, "size_px"), ({"object_counts": ((9, 1.0),)}, "object_counts")],
)
def test_impossible_options_are_refused(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError, match=field):
        SceneOptions(**arguments)


# Questions: answers worked out again from the annotation alone


def direction_in(question: str, table: dict[str, tuple[str, ...]]) -> str:
    found = [
        (len(wording), direction)
        for direction, wordings in table.items()
        for wording in wordings
        if re.search(rf"\b{re.escape(wording)}\b", question)
    ]
    return max(found)[1]


def named_in(question: str, scene: dict[str, Any]) -> list[str]:
    shown = {thing["name"] for thing in scene["objects"]}
    return [name for name in shown if re.search(rf"\bthe {re.escape(name)}\b", question)]


def furthest(things: list[dict[str, Any]], direction: str) -> str:
    def outwards(thing: dict[str, Any]) -> float:
        top, left, bottom, right = thing["box"]
        return {
            "left": -(left + right),
            "right": left + right,
            "above": -(top + bottom),
            "below": top + bottom,
        }[direction]

    return str(max(things, key=outwards)["name"])


def true_answer(kind: str, question: str, scene: dict[str, Any]) -> str:
    things = scene["objects"]
    names = [thing["name"] for thing in things]
    if kind == "name1":
        (only,) = names
        return str(only)
    if kind == "nameN":
        return furthest(things, direction_in(question, SIDES))
    if kind == "relation":
        pair = named_in(question, scene)
        assert len(pair) == 2
        compared = [thing for thing in things if thing["name"] in pair]
        assert len(compared) == 2
        return furthest(compared, direction_in(question, RELATIONS))
    if kind == "count":
        return NUMBERS[len(things)]
    if kind == "count-of":
        asked = [
            name.word
            for name in SOURCE.names
            if re.search(rf"\b{re.escape(plural(name.word))}\b", question)
        ]
        return NUMBERS[names.count(max(asked, key=len))]
    if kind == "presence":
        asked = [n.word for n in SOURCE.names if re.search(rf"\b{re.escape(n.word)}\b", question)]
        return "yes" if max(asked, key=len) in names else "no"
    if kind == "colour":
        return str(scene["background"])
    if kind == "reading":
        return str(scene["text"]["word"])
    raise AssertionError(f"no way to check {kind}")


@given(seed=seeds, split=splits, setting=options)
@settings(max_examples=120, deadline=None)
def test_every_answer_is_true(seed: int, split: str, setting: SceneOptions) -> None:
    scene, _ = compose(SOURCE, setting, seed=seed, split=split, index=0)
    annotation = scene.annotation("x.jpg")
    for question in ask(scene, SOURCE, random.Random(seed)):
        assert question.kind in KINDS
        assert question.answer == question.answer.lower()
        if question.kind == "caption":
            check_caption(question.answer, annotation)
        else:
            assert question.answer == true_answer(question.kind, question.text, annotation)


def check_caption(text: str, scene: dict[str, Any]) -> None:
    assert text.endswith(f"{scene['background']} background.")
    numbers = Counter(thing["name"] for thing in scene["objects"])
    columns: dict[str, int] = {}
    for thing in scene["objects"]:
        column = thing["box"][1] + thing["box"][3]
        columns[thing["name"]] = min(column, columns.get(thing["name"], column))
    positions: list[int] = []
    for name in sorted(numbers, key=lambda name: columns[name]):
        number = numbers[name]
        said = name if number == 1 else f"{NUMBERS[number]} {plural(name)}"
        assert said in text
        positions.append(text.index(said))
    if len(set(columns.values())) == len(columns):
        assert positions == sorted(positions)


@given(seed=seeds)
@settings(max_examples=60, deadline=None)
def test_sides_are_asked_only_when_clear(seed: int) -> None:
    scene, _ = compose(SOURCE, CROWDED, seed=seed, split="train", index=0)
    annotation = scene.annotation("x.jpg")
    for question in ask(scene, SOURCE, random.Random(seed)):
        if question.kind != "relation":
            continue
        pair = [
            t for t in annotation["objects"] if t["name"] in named_in(question.text, annotation)
        ]
        axis = 1 if direction_in(question.text, RELATIONS) in ("left", "right") else 0
        one, other = ((thing["box"][axis] + thing["box"][axis + 2]) / 2 for thing in pair)
        assert abs(one - other) >= 0.08 * scene.size_px


@given(seed=seeds, split=splits)
@settings(max_examples=60, deadline=None)
def test_presence_is_balanced_in_every_scene(seed: int, split: str) -> None:
    scene, _ = compose(SOURCE, OPTIONS, seed=seed, split=split, index=0)
    answers = Counter(
        question.answer
        for question in ask(scene, SOURCE, random.Random(seed))
        if question.kind == "presence"
    )
    assert answers["yes"] == answers["no"] >= 1


def test_words_for_the_same_drawing_are_never_asked_as_absent() -> None:
    by_word = {name.word: name for name in SOURCE.names}
    shown, rivals = by_word["red circle"], {n.word for n in SOURCE.names} - {"blue star"}
    source = ShapeSource()
    source.confusable = {shown.word: frozenset(rivals - {shown.word})}
    scene, _ = compose_of(
        source, OPTIONS, [(shown, "flat")], None, random.Random(0), split="val", index=0
    )
    for seed in range(20):
        denied = {
            question.text
            for question in ask(scene, source, random.Random(seed))
            if question.kind == "presence" and question.answer == "no"
        }
        assert denied
        assert all("blue star" in text for text in denied)


def test_which_of_two_does_not_favour_the_first_named() -> None:
    first_wins = total = 0
    for index in range(150):
        scene, _ = compose(SOURCE, OPTIONS, seed=1, split="train", index=index)
        annotation = scene.annotation("x.jpg")
        for question in ask(scene, SOURCE, random.Random(index)):
            if question.kind == "relation":
                pair = named_in(question.text, annotation)
                first = min(pair, key=lambda name: question.text.index(f"the {name}"))
                first_wins += first == question.answer
                total += 1
    assert total > 100
    assert 0.4 < first_wins / total < 0.6


# Names and grammar


def test_icon_names_are_unique_short_and_lower_case() -> None:
    names = icon_names()
    assert len(names) >= 300
    assert len({name.word for name in names}) == len({name.drawing for name in names}) == len(names)
    for name in names:
        assert re.fullmatch(r"[a-z0-9]+( [a-z0-9]+){0,2}", name.word)


def test_confusable_words_are_names_and_go_both_ways() -> None:
    known = {name.word for name in icon_names()}
    rivals = confusable_words()
    for word, others in rivals.items():
        assert word in known
        assert word not in others
        assert all(word in rivals[other] for other in others)


@pytest.mark.parametrize(
    ("word", "several"),
    [
        ("cat", "cats"),
        ("bus", "buses"),
        ("fox", "foxes"),
        ("strawberry", "strawberries"),
        ("key", "keys"),
        ("mouse", "mice"),
        ("tropical fish", "tropical fish"),
        ("wine glass", "wine glasses"),
        ("tomato", "tomatoes"),
        ("yoyo", "yoyos"),
    ],
)
def test_plurals(word: str, several: str) -> None:
    assert plural(word) == several


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (Name("owl", "owl", "animal"), "an owl"),
        (Name("unicorn", "unicorn", "animal"), "a unicorn"),
        (Name("umbrella", "umbrella", "sky"), "an umbrella"),
        (Name("bread", "bread", "food", takes_article=False), "some bread"),
        (Name("letter a", "letter:A", "letter", takes_article=False), "letter a"),
    ],
)
def test_articles(name: Name, said: str) -> None:
    assert with_article(name) == said


# Written sets


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "set"
    numbers = {"train": 25, "val": 8, "style": 8}
    make_scenes(out, scenes=numbers, seed=5, source="shapes", size_px=160)
    return out


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_follow_the_schema(written: Path) -> None:
    for split in SPLITS:
        rows = read_lines(written / f"{split}.jsonl")
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            user, assistant = row["messages"]
            assert (user["role"], assistant["role"]) == ("user", "assistant")
            assert [part["type"] for part in user["content"]] == ["image", "text"]
            assert row["kind"] in KINDS
            with Image.open(written / user["content"][0]["path"]) as picture:
                assert picture.size == (160, 160)
            assert assistant["content"][0]["text"]


def test_questions_of_one_picture_are_adjacent_and_plenty(written: Path) -> None:
    rows = read_lines(written / "train.jsonl")
    images = [row["messages"][0]["content"][0]["path"] for row in rows]
    runs = [image for image, _ in itertools.groupby(images)]
    assert len(runs) == len(set(images)) == 25
    assert 7 <= len(rows) / len(runs) <= 11


def test_held_out_compositions_never_occur_in_training(written: Path) -> None:
    def compositions(split: str) -> set[frozenset[str]]:
        return {
            frozenset(thing["name"] for thing in scene["objects"])
            for scene in read_lines(written / f"{split}.scenes.jsonl")
        }

    assert not compositions("train") & (compositions("val") | compositions("style"))


def test_a_longer_set_begins_with_the_shorter_one(written: Path, tmp_path: Path) -> None:
    make_scenes(
        tmp_path / "longer", scenes={"style": 2, "train": 30}, seed=5, source="shapes", size_px=160
    )
    for name in ("train.jsonl", "train.scenes.jsonl"):
        short = (written / name).read_text(encoding="utf-8")
        assert (tmp_path / "longer" / name).read_text(encoding="utf-8").startswith(short)
    picture = "images/train-000007.jpg"
    assert (tmp_path / "longer" / picture).read_bytes() == (written / picture).read_bytes()


def test_rows_of_a_scene_do_not_depend_on_other_scenes(written: Path) -> None:
    scene, _ = compose(SOURCE, OPTIONS, seed=5, split="val", index=6)
    alone = rows_of(scene, "images/val-000006.jpg", SOURCE, seed=5)
    together = [r for r in read_lines(written / "val.jsonl") if r["id"].startswith("val-000006-")]
    assert alone == together


def test_record_card_and_credits(written: Path) -> None:
    record = json.loads((written / "make.json").read_text(encoding="utf-8"))
    assert record["seed"] == 5
    assert record["scenes"]["train"] == 25
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((written / name).read_bytes()).hexdigest() == digest
    assert set(record["sha256"]) == {f"{s}{e}" for s in SPLITS for e in (".jsonl", ".scenes.jsonl")}
    credits = json.loads((written / "CREDITS.json").read_text(encoding="utf-8"))
    assert set(credits) == {*SOURCE.train_styles, *SOURCE.held_out_styles}
    card = (written / "DATA_CARD.md").read_text(encoding="utf-8")
    assert "| train | presence |" in card
    assert "| 0.50 |" in card


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="not an empty folder"):
        make_scenes(tmp_path, scenes={"val": 1}, seed=0, source="shapes")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"scenes": {"trains": 1}, "source": "shapes"}, "train"),
        ({"scenes": {"train": -1}, "source": "shapes"}, "-1"),
        ({"scenes": {"train": 1}, "source": "shape"}, "shapes"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        make_scenes(tmp_path / "set", seed=0, **arguments)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_set_leaves_nothing(tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_scenes(
            tmp_path / "set", scenes={"val": 5}, seed=0, source="shapes", size_px=160, progress=stop
        )
    assert not list(tmp_path.iterdir())


# Preview


def test_preview_is_one_self_contained_page(written: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    preview_page(written / "val.jsonl", page, limit=3)
    text = page.read_text(encoding="utf-8")
    scenes = read_lines(written / "val.scenes.jsonl")[:3]
    assert text.count("data:image/jpeg;base64,") == 3
    boxes = sum(len(scene["objects"]) + (scene["text"] is not None) for scene in scenes)
    assert text.count("<rect ") == boxes
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    first = read_lines(written / "val.jsonl")[0]
    assert first["messages"][1]["content"][0]["text"] in text


def test_preview_names_what_is_wrong(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl"):
        preview_page(tmp_path / "none.jsonl", tmp_path / "page.html", limit=1)
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "messages": []}\n', encoding="utf-8")
    with pytest.raises(DataError, match="'a'.*at least one message"):
        preview_page(tmp_path / "bad.jsonl", tmp_path / "page.html", limit=1)
    (tmp_path / "broken.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        preview_page(tmp_path / "broken.jsonl", tmp_path / "page.html", limit=1)
    assert not (tmp_path / "page.html").exists()


# Fetching, with a stand-in for npm

PACKAGE = fetch.NpmPackage("@icons/plain", "1.0.0", "sha512-AAAA")


def test_a_missing_npm_is_a_machine_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MachineError, match=r"@icons/plain@1\.0\.0.*PATH"):
        fetch.fetch_npm(PACKAGE)
    assert not list((tmp_path / "sources").iterdir())


def test_a_changed_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    # `npm pack NAME --silent --pack-destination FOLDER`
    npm.write_text('#!/bin/sh\necho changed > "$5/plain-1.0.0.tgz"\n', encoding="utf-8")
    npm.chmod(0o755)
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(npm.parent))
    with pytest.raises(DataError, match="instead of the pinned sha512-AAAA"):
        fetch.fetch_npm(PACKAGE)
    assert not list((tmp_path / "home" / "sources").iterdir())


def test_scene_randomness_is_fixed_for_good() -> None:
    # Data sets are named by their seed, so the stream behind a seed may never change.
    assert scene_rng("compose", 0, "train", 0).getrandbits(32) == 3475358332
