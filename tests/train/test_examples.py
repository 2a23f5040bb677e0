"""Rows for training: read in every form, grouped, and never all in memory."""

import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistoken.core.errors import DataError
from vistoken.data.bad_samples import BadSamples
from vistoken.data.sampling import modality_length
from vistoken.train.examples import Items, read_examples
from vistoken.train.grouping import cut_groups, group_examples

from .conftest import row, write_lines


def schema_row(name, path="images/0.png", question="What is it?", answer="cup"):
    return row(name, path, question, answer)


def llava_record(name):
    return {
        "id": name,
        "image": "images/0.png",
        "conversations": [
            {"from": "human", "value": "What is it?\n<image>"},
            {"from": "gpt", "value": "cup"},
        ],
    }


def sharegpt_record(name):
    return {
        "id": name,
        "images": ["images/0.png"],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "user", "value": "<image>\nWhat is it?"},
            {"from": "assistant", "value": "cup"},
        ],
    }


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "saved"])
@pytest.mark.parametrize("form", [schema_row, llava_record, sharegpt_record])
def test_training_reads_every_form_from_every_kind_of_file(
    data, tmp_path, monkeypatch, suffix, form
):
    rows = [form("a"), form("b")]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        write_lines(path, rows)
    elif suffix == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        table = datasets.Dataset.from_list(rows)
        table.to_parquet(path) if suffix == "parquet" else table.save_to_disk(path)
    examples = read_examples([path], data)
    assert [example.id for example in examples] == ["a", "b"]
    first = examples[0]
    assert first.images == (data / "images" / "0.png",)
    assert first.messages[-1]["content"] == [{"type": "text", "text": "cup"}]
    assert first.messages[-2]["content"][1]["text"] == "What is it?"
    assert len(first.messages) == (3 if form is sharegpt_record else 2)
    assert first.where.startswith(str(path))
    (group,) = group_examples(examples, 10)
    assert group.examples == tuple(examples)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"id": "f", "conversations": [{"from": "bot", "value": "x"}]}, "unknown speaker 'bot'"),
        ({**llava_record("f"), "image": "gone.png"}, r"gone\.png does not exist"),
        ({**llava_record("f"), "image": None}, "an <image> mark has no image left"),
    ],
)
def test_a_faulty_row_is_named_with_file_and_sample(data, tmp_path, fault, says):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([llava_record("a"), fault]), encoding="utf-8")
    with pytest.raises(DataError, match=rf"rows\.json, record 1: sample 'f'.*{says}"):
        read_examples([path], data)
    told = []
    examples = read_examples([path], data, BadSamples("skip", told.append))
    assert [example.id for example in examples] == ["a"]
    assert [(left.reason, left.sample) for left in told] == [("bad_samples", "f")]
    path.write_text(json.dumps([fault]), encoding="utf-8")
    with pytest.raises(DataError, match="no usable row in .*rows.json; 1 were skipped"):
        read_examples([path], data, BadSamples("skip"))


def test_a_folder_that_datasets_did_not_write(data):
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="images is a folder that"):
        read_examples([data / "images"], data)


def test_rows_of_several_files_follow_each_other_and_are_read_when_asked_for(data, tmp_path):
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    write_lines(paths[0], [schema_row("1"), {"id": "bad"}, schema_row("2")])
    write_lines(paths[1], [schema_row("3")])
    examples = read_examples(paths, data, BadSamples("skip"))
    assert [example.id for example in examples] == ["1", "2", "3"]
    assert examples[-1].where.startswith(str(paths[1]))
    copy = pickle.loads(pickle.dumps(Items(group_examples(examples, 2))))
    assert [[e.id for e in copy[n].examples] for n in range(len(copy))] == [["1"], ["2", "3"]]
    write_lines(paths[1], [schema_row("33")])
    assert examples[0].id == "1"
    with pytest.raises(DataError, match=r"b\.jsonl has changed"):
        examples[2]


def test_groups_carry_lengths_and_pictures(data, tmp_path):
    path = tmp_path / "rows.jsonl"
    two = schema_row("two")
    two["messages"][0]["content"].insert(0, {"type": "image", "path": "images/1.png"})
    alone = {"id": "t", "messages": [{"role": "user", "content": "Hi"}, two["messages"][1]]}
    system = schema_row("s")
    system["messages"].insert(0, {"role": "system", "content": "Be brief."})
    write_lines(path, [schema_row("a"), alone, two, schema_row("b"), alone, system])
    groups = group_examples(read_examples([path], data), 10)
    assert [[e.id for e in group.examples] for group in groups] == [
        ["a", "b"], ["t"], ["two"], ["t"], ["s"]
    ]  # fmt: skip
    expected = [sum(modality_length(e.messages) for e in group.examples) for group in groups]
    assert groups.lengths.tolist() == expected
    assert [image.name for image in groups.images] == ["0.png", "1.png", "0.png", "0.png"]
    assert len(groups.images) == 4
    assert groups.images[1].name == "1.png"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40), st.integers(1, 7))
def test_groups_are_even_ordered_and_of_one_key(rows, most):
    keys = np.array([key for key, _ in rows], np.uint64)
    shared = np.array([is_shared for _, is_shared in rows], np.bool_)
    members, bounds = cut_groups(keys, shared, most)
    groups = [members[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    by_key = {}
    for number, (key, is_shared) in enumerate(rows):
        by_key.setdefault(key if is_shared else ("alone", number), []).append(number)
    expected = []
    for whole in by_key.values():
        parts = -(-len(whole) // most)
        expected += [
            whole[part * len(whole) // parts : (part + 1) * len(whole) // parts]
            for part in range(parts)
        ]
    assert groups == expected


MEASURE = """
import sys
from pathlib import Path
from torch.utils.data import DataLoader
from vistoken.data.bad_samples import BadSamples
from vistoken.data.sampling import ModalityLengthSampler, ShuffledSampler
from vistoken.train.examples import Items
from vistoken.train.feeds import Conversations
from vistoken.train.settings import StageConfig

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3

def draw(path, batches):
    stage = StageConfig(name="a", groups={"language": {"train": "full"}}, steps=1)
    found = Conversations().read([path], None, stage, BadSamples())
    items = Items(found.items)
    count = len(items)
    for make in (ShuffledSampler, lambda count: ModalityLengthSampler(found.lengths, 8, 2)):
        sampler = make(count)
        loader = iter(DataLoader(items, 8, sampler=sampler, collate_fn=list))
        for _ in range(batches):
            assert len(next(loader)) == 8
        del loader, sampler  # a stage has one of them
    return len(found.items)

path = Path(sys.argv[1])
draw(path.with_name("small.jsonl"), 1)
Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts at what there is now
before = status("VmRSS")
groups = draw(path, 200)
print(groups, status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_training_on_a_million_rows_takes_little_memory(tmp_path, data):
    question = "What is shown in this picture, and where in it? " * 2
    text = '{"id": "%07d", "messages": [{"role": "user", "content": [%s{"type": "text", "text": "'
    text += question + '"}]}, {"role": "assistant", "content": "A cup of tea."}]}\n'
    pictures = [f'{{"type": "image", "path": "{data}/images/{n}.png"}}, ' for n in range(4)]
    total = 1_000_000
    for name, count in (("small", 20), ("large", total)):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for start in range(0, count, 10_000):
                numbers = range(start, min(start + 10_000, count))
                # three of four rows without a picture, so that groups are many
                rows = (text % (n, "" if n % 4 else pictures[n // 4 % 4]) for n in numbers)
                file.write("".join(rows))
    assert (tmp_path / "large.jsonl").stat().st_size > 200e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "large.jsonl")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    groups, growth = done.stdout.split()
    assert int(groups) == total * 3 // 4 + total // 40
    assert float(growth) < 80


def test_a_picture_path_that_no_system_takes(data, tmp_path):
    path = tmp_path / "rows.jsonl"
    write_lines(path, [schema_row("a", "x" * 5000 + ".png"), schema_row("b", "a\0b.png")])
    told = []
    with pytest.raises(DataError, match="no usable row"):
        read_examples([path], Path(data), BadSamples("skip", told.append))
    assert [left.sample for left in told] == ["a", "b"]
