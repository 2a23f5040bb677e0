"""The other parts of vistoken-scenes 1: writing, charts, conversations, what is fetched."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vistoken.core.errors import DataError, MachineError, UsageError
from vistoken.data.scenes import archives
from vistoken.data.scenes.grammar import NUMBER_WORDS
from vistoken.data.scenes.names import icon_names
from vistoken.data.scenes.v1 import PARTS, full_size, make_set
from vistoken.data.scenes.v1.cutouts import cutout_table, held_out_pictures, merged_confusable
from vistoken.data.scenes.v1.packages import PHOTOGRAPHS, SURFACES
from vistoken.data.scenes.v1.photographs import written_questions
from vistoken.data.scenes.v1.questions import KINDS
from vistoken.data.scenes.v1.reading import SIGNS, is_held_out_text
from vistoken.data.scenes.v1.samples import Sample
from vistoken.data.scenes.v1.wordings import WORDINGS
from vistoken.data.scenes.v1.workshop import Workshop

SIZE = 160


def samples(part: str, number: int, seed: int = 3) -> list[Sample]:
    made = PARTS[part].make(Workshop(seed, SIZE, "shapes"))
    return [made.sample(index) for index in range(number)]


def text_of(row: dict[str, Any], turn: int = 0) -> str:
    return str(row["messages"][2 * turn]["content"][-1]["text"])


# Writing


def side_of(writings: list[dict[str, Any]], side: str) -> str:
    def outwards(writing: dict[str, Any]) -> int:
        top, left, bottom, right = writing["box"]
        return {"top": -(top + bottom), "bottom": top + bottom, "left": -(left + right)}[side]

    return str(max(writings, key=outwards)["text"])


@pytest.mark.parametrize("part", ["reading", "reading-val"])
def test_writing_is_read_rightly_and_kept_apart(part: str) -> None:
    for sample in samples(part, 40):
        writings = sample.annotation["writings"]
        texts = {writing["text"] for writing in writings}
        assert all(is_held_out_text(text) == (part == "reading-val") for text in texts)
        for top, left, bottom, right in (writing["box"] for writing in writings):
            assert 0 <= top < bottom <= SIZE
            assert 0 <= left < right <= SIZE
        checks = Counter(r["answer"] for r in sample.rows if r["kind"] == "reading-check")
        assert checks["yes"] == checks["no"] == 1
        for row in sample.rows:
            if row["kind"] == "reading-check":
                quoted = text_of(row).split('"')[1]
                assert row["answer"] == ("yes" if quoted in texts else "no")
                assert part == "reading-val" or not is_held_out_text(quoted)
            elif "side" in row:
                assert row["answer"] == side_of(writings, row["side"])
            else:
                assert {row["answer"]} == texts
            reply = row["messages"][1]["content"][0]["text"]
            assert row["answer"] in reply.lower()


def test_every_sort_of_writing_is_held_out_in_part() -> None:
    assert 3 <= sum(map(is_held_out_text, SIGNS)) <= 12
    kinds = Counter(
        writing["sort"] for s in samples("reading", 60) for writing in s.annotation["writings"]
    )
    assert set(kinds) == {"word", "number", "sign"}


# Charts


def true_of_chart(row: dict[str, Any], values: dict[str, int]) -> str:
    named = [colour for colour in values if f" {colour} " in text_of(row)]
    if row["asked"] == "highest":
        return max(values, key=lambda colour: values[colour])
    if row["asked"] == "lowest":
        return min(values, key=lambda colour: values[colour])
    if row["asked"] == "number":
        return NUMBER_WORDS[len(values)]
    if row["asked"] == "value":
        return (*NUMBER_WORDS, "ten")[values[named[0]]]
    assert len(named) == 2
    return max(named, key=lambda colour: values[colour])


def test_charts_are_answered_rightly() -> None:
    for sample in samples("charts-val", 30):
        values = {bar["colour"]: bar["value"] for bar in sample.annotation["bars"]}
        assert len(set(values.values())) == len(values) >= 3
        assert {row["asked"] for row in sample.rows} == {
            "highest",
            "lowest",
            "value",
            "compare",
            "number",
        }
        for row in sample.rows:
            assert row["answer"] == true_of_chart(row, values)


def test_higher_bars_are_drawn_higher() -> None:
    red = (214, 40, 40)
    heights: dict[int, int] = {}
    for sample in samples("charts", 40):
        pixels = sample.picture.load()
        assert pixels is not None
        rows = [y for y in range(SIZE) if any(pixels[x, y] == red for x in range(SIZE))]
        value = next((b["value"] for b in sample.annotation["bars"] if b["colour"] == "red"), None)
        assert (value is not None) == bool(rows)
        if value is not None:
            heights[value] = len(rows)
    low, high = min(heights), max(heights)
    assert high - low >= 4
    assert heights[high] > heights[low]


# Conversations


def test_conversations_have_several_turns_about_one_picture() -> None:
    turns = samples("turns", 25)
    for sample, single in zip(turns, samples("train", 25), strict=True):
        assert sample.image == single.image
        assert sample.picture.tobytes() == single.picture.tobytes()
        (row,) = sample.rows
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 2 <= len(row["kinds"]) == len(row["answers"]) == len(roles) // 2 <= 5
        images = [p for m in row["messages"] for p in m["content"] if p["type"] == "image"]
        assert images == [row["messages"][0]["content"][0]]


def test_it_is_where_the_last_answer_stands() -> None:
    followed = 0
    for sample in samples("turns", 40):
        (row,) = sample.rows
        for turn, answer in enumerate(row["answers"]):
            if not answer.startswith("It is "):
                continue
            followed += 1
            (thing,) = (
                t for t in sample.annotation["objects"] if t["name"] == row["answers"][turn - 1]
            )
            top, left, bottom, right = thing["box"]
            row_third, col_third = (
                int(3 * (low + high) / 2 / SIZE) for low, high in ((top, bottom), (left, right))
            )
            words = (("top", "", "bottom")[row_third], ("left", "", "right")[col_third])
            part = " ".join(word for word in words if word) or "middle"
            assert (
                answer == f"It is {'in' if part == 'middle' else 'at'} the {part} of the picture."
            )
    assert followed > 10


# What is fetched


def test_held_out_cutouts_show_words_known_from_other_pictures() -> None:
    paths = [cutout.path for cutout in cutout_table()]
    assert len(set(paths)) == len(paths) >= 200
    icons = {name.word for name in icon_names()}
    shown = {c.word for c in cutout_table() if c.path not in held_out_pictures()}
    for cutout in cutout_table():
        if cutout.path in held_out_pictures():
            assert cutout.word in shown | icons
    assert 0.15 < len(held_out_pictures()) / len(paths) < 0.5


def test_words_of_cutouts_have_rivals_among_names_or_cutouts() -> None:
    rivals = merged_confusable()
    assert "crow" in rivals["eagle"]
    for word, others in rivals.items():
        assert word not in others
        assert all(word in rivals[other] for other in others)


def test_photographs_have_at_least_sixty_balanced_questions() -> None:
    questions = [q for found in written_questions().values() for q in found]
    assert len(questions) >= 60
    assert set(written_questions()) == set(PHOTOGRAPHS)
    # What training sees as a background is not asked about.
    assert not {path for _, path in PHOTOGRAPHS.values()} & set(SURFACES.values())
    presence = Counter(answer for kind, _, answer, *_ in questions if kind == "presence")
    assert abs(presence["yes"] - presence["no"]) <= 2
    for kind, text, *answers in questions:
        assert kind in WORDINGS or kind == "reading"
        assert text.endswith((".", "?"))
        assert answers == [answer.lower() for answer in answers]


def package_with(tmp_path: Path, files: dict[str, str]) -> Path:
    """A Debian package as an archive of archives."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    package = tmp_path / "thing.deb"
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data.getvalue()}
    with package.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return package


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pin_of(package: Path) -> archives.DebianPackage:
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    return archives.DebianPackage("thing", "1:2", digest, "usr/share/thing")


def test_a_debian_package_is_unpacked_below_its_prefix(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"usr/share/thing/a/b.png": "picture", "usr/share/doc/c": "text"}
    package = package_with(tmp_path, files)
    monkeypatch.setattr(archives.shutil, "which", lambda name: name)
    monkeypatch.setattr(archives, "_download", lambda *_: package)
    folder = archives.fetch_debian(pin_of(package))
    assert [p.relative_to(folder).as_posix() for p in folder.rglob("*.*")] == ["a/b.png"]
    assert (folder / "a/b.png").read_text() == "picture"
    package.unlink()
    assert archives.fetch_debian(archives.DebianPackage("thing", "1:2", "", "")) == folder


def test_a_changed_debian_package_is_refused(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package_with(tmp_path, {"usr/share/thing/a": "x"})
    pin = pin_of(package)
    package.write_bytes(package.read_bytes() + b"!")
    monkeypatch.setattr(archives.shutil, "which", lambda name: name)
    monkeypatch.setattr(archives, "_download", lambda *_: package)
    with pytest.raises(DataError, match="instead of the pinned"):
        archives.fetch_debian(pin)
    assert list((home / "sources").iterdir()) == []


def test_a_machine_without_apt_is_told_what_to_leave_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MachineError, match="apt-get.*--scenes"):
        archives.fetch_debian(archives.DebianPackage("thing", "1", "0", ""))


def test_files_of_a_wheel_are_pinned_one_by_one(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as bundle:
        bundle.writestr("thing/a.png", "picture")
        bundle.writestr("thing/b.png", "other")
    monkeypatch.setattr(archives, "_download", lambda *_: wheel)
    right = hashlib.sha256(b"picture").hexdigest()
    folder = archives.fetch_wheel_files(archives.WheelFiles("thing", "1", {"thing/a.png": right}))
    assert [path.name for path in folder.rglob("*.png")] == ["a.png"]
    with pytest.raises(DataError, match="instead of the pinned"):
        archives.fetch_wheel_files(archives.WheelFiles("thing", "2", {"thing/b.png": right}))
    with pytest.raises(DataError, match=r"no thing/c\.png"):
        archives.fetch_wheel_files(archives.WheelFiles("thing", "3", {"thing/c.png": right}))


# Places


def test_places_are_asked_about_pictures_of_train_in_other_questions() -> None:
    scenes, places = samples("train", 25), samples("places", 25)
    for scene, asked in zip(scenes, places, strict=True):
        assert asked.image == scene.image
        assert asked.annotation == scene.annotation
        assert not {row["id"] for row in asked.rows} & {row["id"] for row in scene.rows}
        texts = [text_of(row) for row in asked.rows]
        assert 1 <= len(set(texts)) == len(texts) <= 12
    kinds = Counter(row["kind"] for sample in places for row in sample.rows)
    assert kinds["relation"] > 25
    assert min(kinds["where"], kinds["count"]) > 10
    assert set(kinds) <= set(KINDS) - {"presence", "colour", "absent"}
    assert all(row["phrasing"] == "seen" for sample in places for row in sample.rows)


def test_places_are_made_only_when_asked_for(tmp_path: Path) -> None:
    assert "places" not in full_size("icons")
    make_set(tmp_path / "set", scenes={"train": 2, "places": 2}, source="shapes", size_px=SIZE)
    rows = (tmp_path / "set" / "places.jsonl").read_text().splitlines()
    assert len(rows) > 2
    assert len(list((tmp_path / "set" / "images").iterdir())) == 2


# Written sets


def test_a_set_of_all_offline_parts_is_complete(tmp_path: Path) -> None:
    wanted = dict.fromkeys(full_size("shapes"), 2)
    assert not {"cutouts", "easy-vqa", "photographs"} & set(wanted)
    make_set(tmp_path / "set", scenes=wanted, seed=5, source="shapes", size_px=SIZE)
    for name in wanted:
        rows = [json.loads(line) for line in (tmp_path / "set" / f"{name}.jsonl").open()]
        for row in rows:
            with Image.open(tmp_path / "set" / row["messages"][0]["content"][0]["path"]) as shown:
                assert shown.size == (SIZE, SIZE)
        kind = "scenes" if PARTS[name].has_objects else "truth"
        assert len((tmp_path / "set" / f"{name}.{kind}.jsonl").read_text().splitlines()) == 2
    card = (tmp_path / "set" / "DATA_CARD.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` | 2 |" in card for name in wanted)
    record = json.loads((tmp_path / "set" / "make.json").read_text(encoding="utf-8"))
    assert set(record["questions"]) == set(wanted)


def test_full_size_has_a_hundred_thousand_training_rows() -> None:
    training = ("train", "dense", "small", "reading", "charts", "turns")
    rows = {name: sum(len(sample.rows) for sample in samples(name, 20)) / 20 for name in training}
    assert sum(PARTS[name].scenes * rows[name] for name in training) > 100_000
    assert PARTS["train"].scenes * rows["train"] > 80_000


def test_a_part_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'reading'"):
        make_set(tmp_path / "set", scenes={"readings": 1}, source="shapes")
