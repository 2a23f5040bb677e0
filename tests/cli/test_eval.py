"""`eval` as a program: runs, resumes after a kill, compares, refuses in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.fixture
def task(tmp_path, picture):
    """Two questions about each of two pictures."""
    rows = []
    for number in range(2):
        picture(40, 56, number).save(tmp_path / f"{number}.png")
        for kind, answer in (("name", "cat"), ("presence", "yes")):
            image = {"type": "image", "path": f"{number}.png"}
            user = {"role": "user", "content": [image, {"type": "text", "text": f"{kind}?"}]}
            messages = [user, {"role": "assistant", "content": answer}]
            rows.append({"id": f"{number}-{kind}", "kind": kind, "messages": messages})
    path = tmp_path / "val.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_run_its_table_and_a_comparison(vistoken, task, tmp_path):
    out = tmp_path / "results"
    plan = vistoken("eval", "pico", task, "-o", out, "--dry-run", "--json")
    assert plan.data["tasks"] == {"val": {"name": 2, "presence": 2}}
    assert not out.exists()
    done = vistoken("eval", "pico", task, "-o", out, "--grey", "--group", "both=name,presence")
    assert done.code == 0, done
    assert done.out.strip() == (out / "table.txt").read_text("utf-8").strip()
    assert [line.split()[0] for line in done.out.splitlines()[4:]] == [
        "name", "presence", "both", "all",
    ]  # fmt: skip
    # half a line: what a kill in the middle of a write leaves
    with (out / "samples.jsonl").open("ab") as file:
        file.write(b'{"task": "va')
    again = vistoken("eval", "run", "pico", task, "-o", out, "--grey", "--json")
    assert again.data["asked_now"] == 0
    assert len((out / "samples.jsonl").read_bytes().splitlines()) == 4
    other = tmp_path / "written"
    assert vistoken("eval", "pico", task, "-o", other, "--method", "generate").code == 0
    vistoken("eval", "compare", out, other).failed(2, "method is forced there and generate here")
    same = vistoken("eval", "compare", out, other, "--allow", "method", "--json")
    assert same.data["tasks"]["val"]["all"]["difference"]["value"] == 0
    shown = vistoken("eval", "compare", out, other, "--allow", "method")
    assert shown.out.splitlines()[-1].split()[:2] == ["all", "4"]


def test_what_it_refuses(vistoken, task, tmp_path):
    out = tmp_path / "results"
    vistoken("eval", "pica", task, "-o", out).failed(2, "did you mean", "pico")
    vistoken("eval", "pico", tmp_path / "no.jsonl", "-o", out).failed(3, "no.jsonl", "not exist")
    vistoken("eval", "pico", task, "-o", out, "--method", "guess").failed(2, "--method 'guess'")
    vistoken("eval", "pico", task, "-o", out, "--group", "both").failed(2, "naming=name1,nameN")
    vistoken("eval", "pico", task).failed(2, "--output")
    vistoken("eval", "compare", tmp_path, out).failed(3, "holds no results")
    assert not out.exists()


def test_it_is_a_verb_of_the_program(task, tmp_path):
    command = [sys.executable, "-m", "vistoken", "eval", "pico", str(task), "--limit", "1"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "results")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "all" in done.stdout
    summary = json.loads((tmp_path / "results/summary.json").read_text("utf-8"))
    assert summary["questions"] == 2
    assert summary["settings"]["limit"] == 1
