"""An evaluation on disk: resumed after any kill, refused for other settings, compared in pairs."""

from __future__ import annotations

import json
import shutil

import pytest

from vistoken.core.errors import DataError, UsageError
from vistoken.eval.compare import compare, mcnemar, paired
from vistoken.eval.records import SAMPLES, SETTINGS, Record, Results
from vistoken.eval.run import EvalOptions, evaluate, summary_text
from vistoken.eval.summary import summarise
from vistoken.eval.tasks import read_tasks


@pytest.fixture(scope="module")
def finished(pico, tmp_path_factory):
    """A task and its results."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("task")
    rows = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 56, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        for kind, answer in (("name", "cat"), ("presence", "yes"), ("presence", "no")):
            content = [
                {"type": "image", "path": f"{number}.png"},
                {"type": "text", "text": f"{kind} {answer}?"},
            ]
            reply = {"role": "assistant", "content": answer}
            messages = [{"role": "user", "content": content}, reply]
            rows.append({"id": f"{number}-{answer}", "kind": kind, "messages": messages})
    path = root / "val.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks = read_tasks([path])
    out = root / "full"
    summary = evaluate(*pico, tasks, out, EvalOptions(grey=True), "pico")
    return tasks, out, summary


def again(pico, tasks, out, **changes):
    return evaluate(*pico, tasks, out, EvalOptions(**{"grey": True, **changes}), "pico")


def test_what_is_written(finished):
    tasks, out, summary = finished
    records = Results(out).records()
    assert [record.id for record in records] == [question.id for question in tasks[0].questions]
    assert {record.cluster for record in records} == {"0.png", "1.png", "2.png"}
    assert json.loads((out / "summary.json").read_text("utf-8")) == summary
    assert (out / "table.txt").read_text("utf-8") == summary_text(summary)
    table = summary["tasks"]["val"]
    assert list(table) == ["name", "presence", "all"]
    assert table["name"]["prior"]["value"] == 1  # every name is a cat
    assert table["presence"]["prior"]["value"] == 0.5
    assert (table["all"]["n"], table["all"]["pictures"]) == (9, 3)
    assert summary["asked_now"] == 9
    assert len(summary["settings"]["weights"]) == 64


@pytest.mark.parametrize("kept", [0, 1, 250, 3000], ids=lambda n: f"{n}-bytes")
def test_a_killed_run_goes_on_wherever_it_was_cut(finished, pico, tmp_path, kept):
    tasks, full, summary = finished
    out = tmp_path / "cut"
    shutil.copytree(full, out)
    whole = (full / SAMPLES).read_bytes()
    (out / SAMPLES).write_bytes(whole[:kept])
    resumed = again(pico, tasks, out)
    assert sorted((out / SAMPLES).read_bytes().splitlines()) == sorted(whole.splitlines())
    assert resumed["tasks"] == summary["tasks"]
    assert resumed["asked_now"] == 9 - whole[:kept].count(b"\n")


def test_nothing_is_asked_twice(finished, pico, tmp_path, monkeypatch):
    tasks, full, summary = finished
    out = tmp_path / "again"
    shutil.copytree(full, out)
    monkeypatch.setattr(type(pico[0]), "get_image_features", None)
    assert again(pico, tasks, out)["tasks"] == summary["tasks"]


def test_other_settings_are_refused_by_name(finished, pico, tmp_path):
    tasks, full, _ = finished
    out = tmp_path / "other"
    shutil.copytree(full, out)
    with pytest.raises(UsageError, match="max_new_tokens is 64 there and 5 here"):
        again(pico, tasks, out, max_new_tokens=5)
    settings = json.loads((out / SETTINGS).read_text("utf-8"))
    (out / SETTINGS).write_text(json.dumps(settings | {"weights": "0" * 64}), encoding="utf-8")
    with pytest.raises(UsageError, match="weights is 000000000000 there"):
        again(pico, tasks, out)
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="holds no results"):
        again(pico, tasks, tmp_path / "busy")


def test_a_damaged_line_in_the_middle_is_named(finished, pico, tmp_path):
    tasks, full, _ = finished
    out = tmp_path / "damaged"
    shutil.copytree(full, out)
    lines = (full / SAMPLES).read_bytes().splitlines(keepends=True)
    (out / SAMPLES).write_bytes(lines[0] + b"{oops\n" + lines[2])
    with pytest.raises(DataError, match="line 2: no record"):
        again(pico, tasks, out)


def test_a_limit_takes_whole_pictures(finished, pico, tmp_path):
    tasks, full, _ = finished
    short = read_tasks([tasks[0].path], limit=2)
    assert len(short[0].questions) == 6
    out = tmp_path / "short"
    assert again(pico, short, out, limit=2)["tasks"]["val"]["all"]["n"] == 6
    with pytest.raises(UsageError, match="limit is None there and 2 here"):
        compare(full, out)
    with pytest.raises(DataError, match="9 answers and .* 6, '2-cat' of 'val' is in one alone"):
        compare(full, out, allow=["limit"])


def test_the_prior_of_a_training_file(finished, pico, tmp_path):
    tasks, _, _ = finished
    rows = [json.loads(line) for line in tasks[0].path.read_text("utf-8").splitlines()]
    for row in rows:
        if row["kind"] == "name":
            row["messages"][-1]["content"] = "dog"
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = again(pico, tasks, tmp_path / "out", prior=train, grey=False)["tasks"]["val"]
    assert table["name"]["prior"]["value"] == 0
    assert "grey" not in table["name"]


def test_grey_pictures_of_the_first_pictures_only(finished, pico, tmp_path):
    tasks, full, _ = finished
    table = again(pico, tasks, tmp_path / "out", grey_limit=1)["tasks"]["val"]
    assert (table["all"]["n"], table["all"]["grey_n"]) == (9, 3)
    asked = [record for record in Results(tmp_path / "out").records() if record.grey is not None]
    assert {record.cluster for record in asked} == {"0.png"}
    assert asked == [record for record in Results(full).records() if record.cluster == "0.png"]


def test_further_answers_that_count_as_right(finished, pico, tmp_path):
    tasks, _, _ = finished
    rows = [json.loads(line) for line in tasks[0].path.read_text("utf-8").splitlines()]
    short = {"max_new_tokens": 4, "grey": False}
    again(pico, tasks, tmp_path / "first", method="generate", **short)
    said = {record.id: record for record in Results(tmp_path / "first").records()}
    assert not any(record.right for record in said.values())
    for row in rows:
        row["accepted"] = [said[row["id"]].reference, said[row["id"]].answer]
    path = tasks[0].path.with_name("accepting.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for method in ("generate", "forced"):
        summary = again(pico, read_tasks([path]), tmp_path / method, method=method, **short)
        assert summary["tasks"]["accepting"]["all"]["model"]["value"] == 1, method


def record(name, right, picture="a", kind="name"):
    return Record("val", name, kind, picture, "yes", "yes", True, right, False)


def test_mcnemar_is_the_binomial_test():
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(3, 7) == mcnemar(7, 3) == pytest.approx(0.34375)
    assert mcnemar(5, 5) == 1
    assert 0 < mcnemar(400, 600) < 1e-8


def test_paired_differences_are_drawn_by_picture():
    pairs = [
        (record(str(n), n % 2 == 0, picture), record(str(n), True, picture))
        for n, picture in enumerate("aabbccdd")
    ]
    row = paired(pairs)
    assert (row["first"], row["second"], row["difference"]["value"]) == (0.5, 1.0, 0.5)
    assert (row["only_first"], row["only_second"]) == (0, 4)
    # every picture gains one of two: no spread between pictures
    assert row["difference"]["low"] == row["difference"]["high"] == 0.5


def test_two_results_of_one_model_do_not_differ(finished, tmp_path):
    _, full, _ = finished
    table = compare(full, full)["val"]
    assert table["all"]["difference"] == {"value": 0, "low": 0, "high": 0}
    assert table["all"]["p"] == 1
    with pytest.raises(UsageError, match="--allow colour"):
        compare(full, full, allow=["colour"])
    with pytest.raises(DataError, match="holds no results"):
        compare(full, tmp_path)


@pytest.mark.parametrize("name", ["dtype", "method", "limit", "features", "tasks"])
def test_results_of_unlike_settings_are_not_compared(finished, tmp_path, name):
    _, full, _ = finished
    other = tmp_path / "other"
    shutil.copytree(full, other)
    settings = json.loads((other / SETTINGS).read_text("utf-8"))
    unlike = {"val": "0" * 64} if name == "tasks" else "unlike"
    (other / SETTINGS).write_text(json.dumps(settings | {name: unlike}), encoding="utf-8")
    with pytest.raises(UsageError, match=f"unlike settings: .*{name}"):
        compare(full, other)
    assert compare(full, other, allow=[name])["val"]["all"]["difference"]["value"] == 0


def test_another_model_is_what_a_comparison_is_for(finished, tmp_path):
    _, full, _ = finished
    other = tmp_path / "other"
    shutil.copytree(full, other)
    settings = json.loads((other / SETTINGS).read_text("utf-8"))
    changed = settings | {"weights": "0" * 64, "prompt": "1" * 64}
    (other / SETTINGS).write_text(json.dumps(changed), encoding="utf-8")
    assert compare(full, other)["val"]["all"]["n"] == 9


def test_further_rows_of_a_table():
    records = [record("1", True), record("2", False, kind="count"), record("3", True, kind="read")]
    table = summarise(records, {"seeing": ["name", "count"], "absent": ["colour"]})
    assert list(table) == ["count", "name", "read", "seeing", "all"]
    assert table["seeing"]["model"]["value"] == 0.5


def test_faulty_tasks(tmp_path, finished):
    tasks, _, _ = finished
    rows = [json.loads(line) for line in tasks[0].path.read_text("utf-8").splitlines()]
    path = tmp_path / "bad.jsonl"

    def write(changed):
        path.write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")

    write([rows[0], rows[0]])
    with pytest.raises(DataError, match="'0-cat' comes twice"):
        read_tasks([path], tasks[0].path.parent)
    write(rows)
    with pytest.raises(DataError, match="does not exist; check --image-root"):
        read_tasks([path])
    write([{**rows[0], "messages": rows[0]["messages"][:1]}])
    with pytest.raises(DataError, match="must be the right answer"):
        read_tasks([path])
    write([{**rows[0], "accepted": "cat"}])
    with pytest.raises(DataError, match="'0-cat'.*accepted must be a list"):
        read_tasks([path])
    with pytest.raises(DataError, match="two task files are called 'val'"):
        read_tasks([tasks[0].path, tasks[0].path])
