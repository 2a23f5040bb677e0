"""The model card's table from results of ``eval``."""

import json
import sys

import card
import nano_accuracy
import pytest

from vistoken.eval.records import Record
from vistoken.eval.summary import summarise


def record(name, kind, right, grey, prior, picture="a"):
    return Record("val", name, kind, picture, "x", "x", True, right, prior, grey)


def test_only_the_table_of_a_card_changes(tmp_path):
    rows = summarise([record("1", "name1", True, False, False)], nano_accuracy.GROUPS)
    path = tmp_path / "README.md"
    path.write_text(f"before\n{card.BEGIN}\nold\n{card.END}\nafter\n", encoding="utf-8")
    card.write_table(path, {"val": rows})
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| name1 | 1 | 100.0 [100, 100] | 0.0 [0, 0] | 0.0 | +100.0 [+100, +100] |" in text
    path.write_text("no marks\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="lacks the marks"):
        card.write_table(path, {"val": rows})
    assert path.read_text(encoding="utf-8") == "no marks\n"


def test_rows_of_a_table_count_what_they_say():
    rows = summarise(
        [
            record("1", "name1", True, False, False),
            record("2", "count", True, True, True),
            record("3", "nameN", False, True, False, "b"),
            record("4", "name1", True, False, True, "b"),
        ],
        nano_accuracy.GROUPS,
    )
    assert list(rows) == ["count", "name1", "nameN", "naming", "all"]
    assert rows["naming"]["n"] == 3
    assert rows["naming"]["model"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert rows["name1"]["model_minus_grey"]["value"] == 1
    assert rows["all"]["prior"]["value"] == 0.5


def test_the_whole_measurement(pico, tmp_path, picture, monkeypatch, capsys):
    """A checkpoint, scenes, and what is written about them."""
    from vistoken.models.checkpoint import save_full

    model = tmp_path / "model"
    save_full(*pico, model)
    data = tmp_path / "scenes"
    data.mkdir()
    (data / "make.json").write_text('{"seed": 7}', encoding="utf-8")
    picture(40, 56, 1).save(data / "a.png")
    user = {"role": "user", "content": [{"type": "image", "path": "a.png"}]}
    user["content"].append({"type": "text", "text": "What is it?"})
    row = {"id": "1", "kind": "name1", "messages": [user, {"role": "assistant", "content": "cat"}]}
    for split in ("train", "val"):
        (data / f"{split}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    out, made = tmp_path / "result.json", tmp_path / "README.md"
    words = ["--checkpoint", model, "--data", data, "--splits", "val", "--out", out]
    words += ["--card", made, "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["nano_accuracy.py", *map(str, words)])
    nano_accuracy.main()
    result = json.loads(out.read_text("utf-8"))
    assert result["data"]["seed"] == 7
    assert result["prior"] == {"name1": "cat"}
    assert result["splits"]["val"]["naming"]["prior"]["value"] == 1
    assert "| name1 | 1 |" in made.read_text("utf-8")
    assert "ask val: 1 of 1" in capsys.readouterr().out
