"""Files and pictures of every bad kind: each fault is named with its sample and place."""

import io
import json
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vistoken.core.errors import DataError
from vistoken.data.check import ProcessorEncode, check_file
from vistoken.data.check_report import Repeat


def record(name, path):
    content = [{"type": "image", "path": path}, {"type": "text", "text": "What is it?"}]
    answer = {"role": "assistant", "content": "A bus."}
    return {"id": name, "messages": [{"role": "user", "content": content}, answer]}


def text_row(name, text="Hi"):
    answer = {"role": "assistant", "content": "Yo"}
    return {"id": name, "messages": [{"role": "user", "content": text}, answer]}


def write(folder, *lines):
    path = folder / "rows.jsonl"
    rows = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(rows) + b"\n")
    return path


def encoded(picture, form, **options):
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def bomb():
    """A valid PNG header of 60,000 x 60,000 pixels, with hardly any data behind it."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + data + chunk(b"IEND", b"")


PLAIN = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8))
ROTATED = Image.Exif()
ROTATED[0x0112] = 6
GOOD = {
    "cmyk.jpg": encoded(PLAIN.convert("CMYK"), "JPEG"),
    "deep.png": encoded(Image.fromarray(np.full((9, 7), 40_000, np.uint16)), "PNG"),
    "rotated.jpg": encoded(PLAIN, "JPEG", exif=ROTATED),
    "one.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
    "thin.png": encoded(Image.new("L", (1, 300)), "PNG"),
    "clear.png": encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG"),
}
BROKEN = {
    "animated.gif": (
        encoded(PLAIN, "GIF", save_all=True, append_images=[Image.new("RGB", (48, 64))]),
        "2 frames or pages",
    ),
    "cut.jpg": (encoded(PLAIN, "JPEG")[:2000], "truncated or corrupt"),
    "flipped.png": (
        encoded(PLAIN, "PNG")[:41] + b"\xff" * 20 + encoded(PLAIN, "PNG")[61:],
        "truncated or corrupt",
    ),
    "empty.png": (b"", "not a picture"),
    "noise.jpg": (b"no picture at all", "not a picture"),
    "bomb.png": (bomb(), "more pixels than is safe"),
}


def test_pictures_that_can_be_used_are_no_fault(tmp_path, pico):
    for name, data in GOOD.items():
        (tmp_path / name).write_bytes(data)
    rows = [record(name, name) for name in GOOD]
    report = check_file(write(tmp_path, *rows), encode=ProcessorEncode(pico[1]))
    assert report.faults == []
    assert (report.images, sum(report.lengths.values())) == (len(GOOD), len(GOOD))


@pytest.mark.parametrize("name", BROKEN)
def test_pictures_that_cannot_be_used_are_named_with_their_sample(tmp_path, name):
    data, says = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    path = write(tmp_path, text_row("fine"), record("bad one", name), record("again", name))
    faults = check_file(path).faults
    assert [(fault.id, fault.kind) for fault in faults] == [
        ("bad one", "image-broken"),
        ("again", "image-broken"),
    ]
    assert faults[0].message.startswith(f"{path}, line 2: sample 'bad one'")
    assert name in faults[0].message
    assert says in faults[0].message


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "folder").mkdir()
    names = ["gone.png", "folder", "x" * 5000 + ".png", "a\0b.png"]
    report = check_file(write(tmp_path, *(record(str(n), name) for n, name in enumerate(names))))
    assert [fault.id for fault in report.faults] == ["0", "1", "2", "3"]
    assert report.kinds == {"image-missing": 4}


LINES = {
    "trailing comma": (json.dumps(text_row("a")).encode() + b",", "take away the comma"),
    "not UTF-8": ('{"id": "Grüße"}'.encode("latin-1"), "not UTF-8 .* at byte 10"),
    "NaN": (b'{"id": "a", "messages": [], "score": NaN}', "NaN is no JSON number"),
    "infinity": (b'{"id": "a", "messages": [], "score": -Infinity}', "-Infinity is no JSON"),
    "too many digits": (b'{"id": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "too deep": (b"[" * 100_000, "not valid JSON"),
    "cut off": (b'{"id": "a", "mess', "not valid JSON"),
    "a list": (b"[1]", "must be a JSON object"),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_that_are_no_rows(tmp_path, name):
    line, says = LINES[name]
    path = write(tmp_path, text_row("fine"), line, text_row("fine too"))
    (fault,) = check_file(path).faults
    assert (fault.index, fault.kind, fault.where) == (1, "json", f"{path}, line 2")
    assert re.search(says, fault.message)


LISTS = {
    "trailing comma": (b'[{"id": 1}, {"id": 2},\n]', "a comma stands behind record 1"),
    "not UTF-8": (b'[{"id": 1},\n{"id": "\xfc"}]', "line 2, byte 20 of the file: not UTF-8"),
    "too many digits": (b'[{"id": 1}, {"id": ' + b"9" * 5000 + b"}]", "record 1: not valid JSON"),
    "cut off": (b'[{"id": 1}, {"id"', "record 1: not valid JSON"),
    "empty list": (b"[]", "has no rows"),
    "empty file": (b"", "has no rows"),
    "nothing but a mark": (b"\xef\xbb\xbf\n \n", "has no rows"),
}


@pytest.mark.parametrize("name", LISTS)
def test_files_that_are_no_list_are_refused_as_a_whole(tmp_path, name):
    data, says = LISTS[name]
    path = tmp_path / "rows.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=says):
        check_file(path)


def test_a_number_that_is_none_in_a_list_names_its_record(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([text_row("a"), {**text_row("b"), "score": float("nan")}]))
    (fault,) = check_file(path).faults
    assert (fault.index, fault.kind) == (1, "json")
    assert "record 1: not valid JSON (NaN is no JSON number" in fault.message


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_byte_order_mark_is_no_fault(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    rows = [text_row("a"), text_row("b")]
    text = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
    path.write_text(text, "utf-8-sig")
    report = check_file(path)
    assert (report.samples, report.faults) == (2, [])


def test_half_a_surrogate_pair_is_named(tmp_path, pico):
    row = json.dumps(text_row("half", "smile \ud83d")).encode()
    path = write(tmp_path, text_row("whole", "smile \U0001f600"), row)
    (fault,) = check_file(path, encode=ProcessorEncode(pico[1])).faults
    assert (fault.id, fault.kind) == ("half", "schema")
    assert "message 1 (user): the text holds half of a surrogate pair" in fault.message


def test_repeated_ids_are_told_with_their_places(tmp_path):
    path = write(tmp_path, text_row("a"), text_row("b"), text_row("a"), text_row("a"))
    report = check_file(path)
    assert report.faults == []
    assert report.repeated_ids == 2
    first = f"{path}, line 1"
    third, fourth = report.repeats
    assert (third, fourth.where) == (Repeat(f"{path}, line 3", "a", first), f"{path}, line 4")
    told = report.to_dict()["repeats"][1]
    assert told == {"where": f"{path}, line 4", "id": "a", "first": first}


def test_a_sample_without_anything_to_learn(tmp_path, pico):
    open_ended = text_row("open")
    open_ended["messages"] = open_ended["messages"][:1]
    path = write(tmp_path, open_ended)
    for encode in (None, ProcessorEncode(pico[1])):
        (fault,) = check_file(path, encode=encode).faults
        assert (fault.id, fault.kind) == ("open", "unsupervised")
