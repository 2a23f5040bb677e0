"""Rows without a picture from Python's own manual."""

import json

import pytest

from vistoken.core.errors import DataError
from vistoken.data.check import check_file
from vistoken.data.prose import prose_rows, write_prose


def said(row):
    user, assistant = (message["content"][0]["text"] for message in row["messages"])
    return user, assistant


def test_passages_are_prose_and_come_once():
    rows = prose_rows()
    answers = [said(row)[1] for row in rows]
    assert len(rows) > 150
    assert len(set(answers)) == len(answers)
    assert sum(len(answer.split()) for answer in answers) > 15_000
    assert not any(mark in text for row in rows for text in said(row) for mark in ("::=", ">>>"))


def test_each_time_has_other_requests_and_other_names():
    once, thrice = prose_rows(), prose_rows(3)
    assert len(thrice) == 3 * len(once) == len({row["id"] for row in thrice})
    assert prose_rows(3) == thrice
    answer = said(once[0])[1]
    requests = [said(row)[0] for row in thrice if said(row)[1] == answer]
    assert len(requests) == 3
    many = {said(row)[0] for row in prose_rows(12) if said(row)[1] == answer}
    assert len(many) > 1


def test_the_file_is_data_that_check_accepts(tmp_path):
    path = tmp_path / "text.jsonl"
    number = write_prose(path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == prose_rows()
    report = check_file(path)
    assert (report.samples, report.bad_samples) == (number, 0)


def test_no_file_is_overwritten_and_no_folder_made(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("mine")
    with pytest.raises(DataError, match=r"text\.jsonl exists"):
        write_prose(path)
    assert path.read_text() == "mine"
    with pytest.raises(DataError, match="is not a folder"):
        write_prose(tmp_path / "none" / "text.jsonl")
