"""Reading data files by number: every format, damaged files, and memory."""

import csv
import gzip
import json
import logging
import pickle
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistoken.core.errors import DataError, MachineError
from vistoken.data import json_lists
from vistoken.data.reading import BadSamples, open_rows, read_good
from vistoken.data.schema import read_messages
from vistoken.data.turns import from_sharegpt

ROWS = [
    {"id": str(number), "messages": [{"role": "user", "content": f"Grüße {number}? 🙂 [{{,"}]}
    for number in range(5)
]
texts = st.text(st.characters(codec="utf-8"), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.lists(st.dictionaries(texts, json_values, max_size=3), min_size=1, max_size=8)


@pytest.fixture
def file(tmp_path):
    def write(name, text, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


def lines_of(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_json_lines(file):
    rows = open_rows(file("a.jsonl", lines_of(ROWS)))
    assert list(rows) == ROWS
    assert rows[-1] == ROWS[-1]
    assert rows[1:3] == ROWS[1:3]
    assert rows.where(2) == f"{rows.path}, line 3"
    with pytest.raises(IndexError):
        rows[5]


def test_blank_lines_and_carriage_returns_keep_line_numbers(file):
    text = "\ufeff\n  \r\n" + lines_of(ROWS[:2]).replace("\n", "\r\n") + "\n\n{\n"
    rows = open_rows(file("a.jsonl", text))
    assert len(rows) == 3
    assert rows[1] == ROWS[1]
    with pytest.raises(DataError, match="a.jsonl, line 7: not valid JSON"):
        rows[2]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_list(file, indent, encoding):
    rows = open_rows(file("a.json", json.dumps(ROWS, indent=indent, ensure_ascii=False), encoding))
    assert list(rows) == ROWS
    assert rows[3] == ROWS[3]
    assert rows.where(3) == f"{rows.path}, record 3"


@settings(max_examples=60, deadline=None)
@given(objects, st.integers(1, 40), st.booleans())
def test_any_list_is_read_whatever_the_window(tmp_path_factory, rows, window, ascii_only):
    path = tmp_path_factory.mktemp("rows") / "a.json"
    path.write_text(json.dumps(rows, ensure_ascii=ascii_only), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, "_CHUNK", window)
        assert list(open_rows(path)) == rows


@settings(max_examples=30, deadline=None)
@given(objects)
def test_any_lines_are_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(open_rows(path)) == rows


def test_a_readers_copy_reads(file):
    rows = pickle.loads(pickle.dumps(open_rows(file("a.json", json.dumps(ROWS)))))
    assert rows[4] == ROWS[4]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no rows"),
        ("[]", "has no rows"),
        ("[ \n", "record 0: not valid JSON"),
        ('[{"id": 1}', "after record 0 ',' is due, not its end"),
        ('[{"id": 1} {"id": 2}]', "after record 0 ',' is due"),
        ('[{"id": 1}, {"id": "tr', "record 1: not valid JSON"),
        ('[{"id": 1}, 2]', "record 1: must be a JSON object"),
        ('[{"id": 1}, {id: 2}, ' + '{"id": 3}, ' * 9 + "]", "record 1: not valid JSON"),
    ],
)
def test_damaged_lists(file, text, says):
    with pytest.raises(DataError, match=says):
        open_rows(file("a.json", text))


def test_a_missing_file_and_bytes_that_are_no_text(file, tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist"):
        open_rows(tmp_path / "gone.jsonl")
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"id": "Grüße"}'.encode("latin-1"))
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        open_rows(path)[0]
    path = tmp_path / "latin.json"
    path.write_bytes('[{"id": "Grüße"}]'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        open_rows(path)


def test_a_file_that_changes_under_the_reader(file):
    rows = open_rows(file("a.jsonl", lines_of(ROWS)))
    file("a.jsonl", lines_of(ROWS[1:]))
    with pytest.raises(DataError, match="has changed"):
        rows[0]


def test_places_of_a_large_list_are_kept(file, tmp_path, monkeypatch):
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(json_lists, "_WORTH_KEEPING", 1)
    path = file("a.json", json.dumps(ROWS))
    assert list(open_rows(path)) == ROWS
    assert len(list((tmp_path / "home").rglob("*.npy"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(json_lists, "_scan", lambda path: pytest.fail("scanned again"))
        assert list(open_rows(path)) == ROWS
    file("a.json", json.dumps(ROWS[:2]))
    assert list(open_rows(path)) == ROWS[:2]


def message(*parts):
    return {"role": "user", "content": list(parts)}


def test_parquet_and_a_saved_data_set(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    mixed = [
        {"id": "a", "kind": "k", "messages": [message({"type": "image", "path": "x.png"})]},
        {"id": "b", "messages": [message({"type": "text", "text": "Hi"})]},
    ]
    table = datasets.Dataset.from_list(mixed)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        rows = open_rows(path)
        assert list(rows) == mixed
        assert read_messages(rows[0], rows.where(0)) == mixed[0]["messages"]
        assert rows.where(1).endswith(", row 1")
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="bad.parquet cannot be read as parquet"):
        open_rows(tmp_path / "bad.parquet")


def test_other_tables_that_datasets_reads(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as packed:
        packed.write(lines_of(ROWS))
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "saved")
    shutil.copy(next((tmp_path / "saved").glob("*.arrow")), tmp_path / "a.arrow")
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as lines:
        cells = csv.writer(lines)
        cells.writerow(["id", "messages"])
        cells.writerows([f"row {row['id']}", json.dumps(row["messages"])] for row in ROWS)
        cells.writerow(["bad", "[{"])
    for name in ("a.jsonl.gz", "a.arrow"):
        assert list(open_rows(tmp_path / name)) == ROWS
    rows = open_rows(tmp_path / "a.csv")
    assert [row["messages"] for row in rows[:5]] == [row["messages"] for row in ROWS]
    assert rows[1]["id"] == "row 1"
    with pytest.raises(DataError, match=r"a\.csv, row 5: the cell 'messages' holds no JSON"):
        rows[5]


def test_tables_need_a_package_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(MachineError, match=r"a\.parquet needs .*pip install 'vistoken\[train\]'"):
        open_rows(tmp_path / "a.parquet")


def test_pictures_inside_a_table_are_refused_in_few_words():
    record = {"id": "a", "images": [{"bytes": b"x" * 100_000, "path": None}], "conversations": []}
    with pytest.raises(DataError, match="sample 'a': 'images' must be a path") as caught:
        from_sharegpt(record, "a.parquet, row 0")
    assert len(str(caught.value)) < 300


def test_bad_samples_stop_or_are_counted(file, caplog):
    bad_row = {"id": "bad", "messages": []}
    rows = open_rows(file("a.jsonl", lines_of([ROWS[0], bad_row, ROWS[1]]) + "{\n"))
    with pytest.raises(DataError, match="line 2: sample 'bad'"):
        list(read_good(rows, read_messages, BadSamples("error")))
    skipped = BadSamples("skip")
    with caplog.at_level(logging.WARNING):
        good = [index for index, _ in read_good(rows, read_messages, skipped)]
    assert good == [0, 2]
    assert skipped.skipped == 2
    assert ["sample 'bad'" in skipped.first[0], "line 4" in skipped.first[1]] == [True, True]
    assert "sample 'bad'" in caplog.text


MEASURE = """
import resource, sys, random
from pathlib import Path
from vistoken.data.reading import open_rows
unit = 1e6 if sys.platform == "darwin" else 1e3
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
path = Path(sys.argv[1])
small = open_rows(path.with_name("small" + path.suffix))
assert small[0]["id"] == "0000000"
before = peak()
rows = open_rows(path)
assert len(rows) == int(sys.argv[2])
for index in random.Random(0).sample(range(len(rows)), 5_000):
    assert rows[index]["id"] == f"{index:07d}"
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("form", "total", "limit"), [("jsonl", 1_000_000, 100), ("json", 250_000, 25)]
)
def test_many_rows_take_little_memory(tmp_path, form, total, limit):
    text = "What is shown in this picture? " * 2
    row = '{"id": "%07d", "messages": [{"role": "user", "content": "' + text + '"}]}'
    opening, between, closing = ("[", ",\n", "]") if form == "json" else ("", "\n", "\n")
    for name, count in (("small", 1), ("large", total)):
        with (tmp_path / f"{name}.{form}").open("w") as file:
            file.write(opening + row % 0)
            for start in range(1, count, 10_000):
                stop = min(start + 10_000, count)
                file.write("".join(between + row % number for number in range(start, stop)))
            file.write(closing)
    assert (tmp_path / f"large.{form}").stat().st_size > limit * 1e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / f"large.{form}"), str(total)],
        capture_output=True,
        text=True,
        check=True,
        env={"VISTOKEN_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    assert float(done.stdout) < limit
