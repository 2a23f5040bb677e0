"""The contact sheet takes kinds in turns, no picture twice, and only styles that may be shown."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from vistoken.eval.records import Record, Results

SCRIPT = Path(__file__).parents[2] / "docs/scripts/contact_sheet.py"


@pytest.fixture(scope="module")
def sheet():
    specification = importlib.util.spec_from_file_location("contact_sheet", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def record(number, kind, right):
    return Record("val", str(number), kind, f"{number}.png", "cat", "dog", right, right, False)


def test_kinds_take_turns(sheet):
    records = [record(n, "name1" if n < 8 else "count", True) for n in range(10)]
    chosen = sheet.choose(records, 4, 0)
    assert sorted(r.kind for r in chosen) == ["count", "count", "name1", "name1"]
    assert len({r.cluster for r in chosen}) == 4
    assert sheet.choose(records, 4, 0) == chosen


def test_a_sheet_of_allowed_styles(sheet, tmp_path, picture, monkeypatch):
    rows, scenes, records = [], [], []
    for number in range(4):
        picture(40, 40, number).save(tmp_path / f"{number}.png")
        user = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": "What?"}]
        reply = {"role": "assistant", "content": "cat"}
        messages = [{"role": "user", "content": user}, reply]
        rows.append({"id": str(number), "kind": "name1", "messages": messages})
        style = "noto" if number < 2 else "openmoji"
        scenes.append({"image": f"{number}.png", "objects": [{"style": style}]})
        records.append(record(number, "name1", number % 2 == 0))
    task = tmp_path / "val.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    notes = "".join(json.dumps(scene) + "\n" for scene in scenes)
    (tmp_path / "val.scenes.jsonl").write_text(notes, encoding="utf-8")
    results = Results(tmp_path / "results")
    results.begin({})
    results.append(records)
    words = [tmp_path / "results", task, tmp_path / "out.png", "--rows", 1, "--columns", 1]
    monkeypatch.setattr(sys, "argv", ["contact_sheet.py", *map(str, words), "--style", "noto"])
    sheet.main()
    with Image.open(tmp_path / "out.png") as made:
        assert made.height == sheet.GAP + 2 * (sheet.SIDE + sheet.TEXT + sheet.GAP)
    wanted = ["contact_sheet.py", *map(str, words), "--columns", "2", "--style", "noto"]
    monkeypatch.setattr(sys, "argv", wanted)
    with pytest.raises(SystemExit, match="too few answers"):
        sheet.main()
