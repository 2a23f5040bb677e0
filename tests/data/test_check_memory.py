"""A check's memory grows by a few bytes a row, whatever its rows hold."""

import subprocess
import sys

import pytest
from PIL import Image

MEASURE = """
import resource, sys
from pathlib import Path
from vistoken.data.check import check_file
unit = 1 if sys.platform == "darwin" else 1024
def peak(name, rows):
    report = check_file(Path(sys.argv[1]) / name)
    assert (report.samples, report.images, report.repeated_ids) == (rows, rows - 1, 1)
    assert report.repeats[0].where.endswith(f", line {rows}")
    assert report.repeats[0].first.endswith(", line 1")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
few, many = int(sys.argv[2]), int(sys.argv[3])
before = peak("few.jsonl", few)
print(peak("many.jsonl", many) - before)
"""
LINKS = 450
ONCE, EACH = 12e6, 80
"""Bytes that the interpreter takes once for its own tables, and bytes a row.

A million rows so take less than a hundred megabytes.
"""

ROW = (
    '{"id": "%07d", "messages": [{"role": "user", "content": [{"type": "image", "path": "%s"}, '
    '{"type": "text", "text": "What is shown in this picture?"}]}, '
    '{"role": "assistant", "content": "A bus."}]}\n'
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("picture", "few", "many"),
    [("missing", 20_000, 200_000), ("there", 10_000, 60_000)],  # each of these is decoded
)
def test_many_rows_with_a_picture_of_their_own_take_little_memory(tmp_path, picture, few, many):
    Image.new("RGB", (2, 3)).save(tmp_path / "there.png")
    for number in range(LINKS):  # so that one picture has two hundred thousand paths
        (tmp_path / f"{number}").symlink_to(".")
    for name, count in (("few", few), ("many", many)):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for number in range(count - 1):
                path = f"{number // LINKS}/{number % LINKS}/{picture}.png"
                file.write(ROW % (number, path))
            file.write(ROW % (0, f"0/0/{picture}.png"))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), str(few), str(many)],
        capture_output=True,
        text=True,
        env={"VISTOKEN_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < ONCE + EACH * (many - few)
