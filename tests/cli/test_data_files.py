"""`data check`, `data convert` and `data preview` on files of conversations."""

import json

import pytest


@pytest.fixture
def llava(tmp_path, picture):
    picture(60, 90).save(tmp_path / "x.png")
    turns = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A bus"}]
    records = [{"id": number, "image": "x.png", "conversations": turns} for number in range(3)]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps(records))
    return path, records


def test_check_passes_and_fails(vistoken, llava, full_checkpoint):
    path, records = llava
    outcome = vistoken("data", "check", path)
    assert outcome.code == 0
    assert (
        "3 samples (llava), 3 with pictures, 1 picture file, 0 samples with faults" in outcome.out
    )
    measured = vistoken("data", "check", path, "--model", full_checkpoint, "--json")
    assert measured.code == 0
    assert 0 < measured.data["supervised_share"] < 1
    assert "supervised (" in vistoken("data", "check", path, "-m", full_checkpoint).out

    records[1]["image"] = "y.png"
    path.write_text(json.dumps(records))
    outcome = vistoken("data", "check", path, "--json")
    assert outcome.code == 3
    assert outcome.data["faults"][0]["id"] == "1"
    assert outcome.data["faults_by_kind"] == {"image-missing": 1}
    assert vistoken("data", "check", path).code == 3
    assert "1 of 3 samples with faults" in vistoken("data", "check", path, "--show", 0).err


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "has no rows"),
        (b'[{"id": 1, "conversations": []},]', "a comma stands behind record 0"),
        (b'[{"id": "\xfc"}]', "line 1, byte 9 of the file: not UTF-8"),
        (b'{"id": "a", "messages": [], "x": NaN}\n', "line 1: not valid JSON"),
    ],
)
def test_check_of_files_that_are_none(vistoken, tmp_path, data, says):
    path = tmp_path / "rows.json"
    path.write_bytes(data)
    vistoken("data", "check", path).failed(3, says)


def test_check_tells_where_ids_are_repeated(vistoken, llava):
    path, records = llava
    path.write_text(json.dumps([*records, records[1]]))
    outcome = vistoken("data", "check", path)
    assert outcome.code == 0
    assert "record 3: sample '1'" in outcome.out.replace("\n", " ")


def test_check_of_too_long_samples(vistoken, llava, full_checkpoint):
    path, _ = llava
    arguments = ("data", "check", path, "--model", full_checkpoint, "--max-length", 8, "--json")
    outcome = vistoken(*arguments)
    assert outcome.code == 3
    assert outcome.data["faults_by_kind"] == {"too-long": 3}
    vistoken("data", "check", path, "--max-length", 8).failed(2, "--model")
    vistoken("data", "check", path.with_name("gone.json")).failed(3, "gone.json does not exist")
    vistoken("data", "check", path, "--form", "lava").failed(2, "'llava'")


def test_convert_there_and_back(vistoken, llava, tmp_path):
    path, records = llava
    out, back = tmp_path / "rows.jsonl", tmp_path / "back.json"
    dry = vistoken("data", "convert", path, out, "--dry-run", "--json")
    assert dry.data["from"] == "llava"
    assert not out.exists()
    assert vistoken("data", "convert", path, out, "--from", "llava", "--to", "schema").code == 0
    assert vistoken("data", "check", out).code == 0
    outcome = vistoken("data", "convert", out, back, "--to", "llava", "--json")
    assert (outcome.data["samples"], outcome.data["skipped"]) == (3, 0)
    assert json.loads(back.read_text()) == records
    vistoken("data", "convert", out, out, "--to", "llava").failed(3, "name another")
    vistoken("data", "convert", out, back, "--to", "lava").failed(2, "'llava'")


def test_convert_skips_only_when_told(vistoken, llava, tmp_path):
    path, records = llava
    records[1]["conversations"] = []
    path.write_text(json.dumps(records))
    out = tmp_path / "rows.jsonl"
    vistoken("data", "convert", path, out).failed(3, "record 1: sample '1'")
    assert not out.exists()
    outcome = vistoken("data", "convert", path, out, "--on-bad-sample", "skip")
    assert "skipped: " in outcome.out
    assert "2 samples, llava -> schema, 1 skipped" in outcome.out


def test_preview_with_a_mask(vistoken, llava, full_checkpoint, tmp_path):
    path, _ = llava
    page = tmp_path / "page.html"
    assert vistoken("data", "preview", path, page, "--model", full_checkpoint).code == 0
    assert 'class="supervised"' in page.read_text()
    assert "visual tokens]" in page.read_text()
    vistoken("data", "preview", path, page, "--template", "chatml").failed(2, "--model")


def test_two_marks_for_one_picture_are_warned_of(vistoken, llava, tmp_path):
    path, records = llava
    turns = [{"from": "human", "value": "<image><image>What?"}, records[0]["conversations"][1]]
    records[1]["conversations"] = turns
    path.write_text(json.dumps(records))
    checked = vistoken("data", "check", path)
    assert checked.code == 0
    assert checked.out.count("warning: ") == 1
    assert "sample '1', turn 1: 2 <image> marks for one picture" in checked.out
    written = vistoken("data", "convert", path, tmp_path / "b.jsonl")
    assert written.out.count("warning: ") == 1


def test_a_wrong_image_root_is_one_sentence(vistoken, tmp_path, picture):
    folder = tmp_path / "pictures"
    (folder / "train").mkdir(parents=True)
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A bus"}]
    records = []
    for number in range(12):
        picture(10, 10).save(folder / "train" / f"{number}.png")
        image = {"id": number, "image": f"train/{number}.png"}
        records.append({**image, "conversations": turns})
    path = tmp_path / "llava.json"
    path.write_text(json.dumps(records))
    for root in (tmp_path, folder / "train", tmp_path / "nowhere"):
        outcome = vistoken("data", "check", path, "--image-root", root)
        assert outcome.code == 3
        first = outcome.out.splitlines()[0]
        assert first.startswith(f"wrong image root? all 12 pictures are missing under {root}")
        assert "'train/0.png'" in first
        assert f"they lie under {folder}, so give that" in first
        assert "does not exist" not in outcome.out
        assert "give the right --image-root" in outcome.err
    assert vistoken("data", "check", path, "--image-root", folder).code == 0
    gone = vistoken("data", "check", path, "--image-root", tmp_path, "--json").data
    assert gone["faults_by_kind"] == {"image-missing": 12}  # each of them, for programs

    for number in range(1, 12):
        (folder / "train" / f"{number}.png").unlink()
    outcome = vistoken("data", "check", path, "--image-root", folder)
    assert "11 of 12 pictures are missing" in outcome.out.splitlines()[0]
    assert "the folder that the paths start from" in outcome.out.splitlines()[0]
    (folder / "train" / "1.png").write_bytes((folder / "train" / "0.png").read_bytes())
    outcome = vistoken("data", "check", path, "--image-root", folder, "--show", 3)
    assert outcome.out.startswith("image-missing: ")


def test_prose_is_written_once(vistoken, tmp_path):
    path = tmp_path / "text.jsonl"
    planned = vistoken("data", "prose", path, "--dry-run", "--json")
    assert planned.code == 0
    assert planned.data["written"] is False
    assert not path.exists()
    outcome = vistoken("data", "prose", path)
    assert outcome.code == 0
    assert f"{planned.data['rows']} rows from the language reference of Python" in outcome.out
    assert len(path.read_text().splitlines()) == planned.data["rows"]
    assert vistoken("data", "prose", path).code == 3


def test_a_talk_is_planned_without_a_model(vistoken, tmp_path):
    path = tmp_path / "talk.jsonl"
    planned = vistoken("data", "talk", path, "--model", tmp_path, "--dry-run", "--json")
    assert planned.code == 0
    assert planned.data == {
        "out": str(path),
        "rows": 320,
        "seed": 0,
        "written": False,
        "model": str(tmp_path),
    }
    refused = vistoken("data", "talk", path, "--model", tmp_path)
    assert refused.code == 2
    assert "no folder of a language model" in refused.err
    assert not path.exists()
