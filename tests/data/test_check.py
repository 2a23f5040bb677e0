"""The check and the preview of a data file: every fault named, nothing else."""

import html
import json

import pytest

from vistoken.core.errors import DataError
from vistoken.data.check import ProcessorEncode, check_file
from vistoken.data.labels import IGNORE_LABEL
from vistoken.data.preview import MaskView, preview_page
from vistoken.data.runs import label_runs

IMAGE = {"type": "image", "path": "x.png"}


def text(value):
    return {"type": "text", "text": value}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def answer(value="A bus."):
    return {"role": "assistant", "content": [text(value)]}


@pytest.fixture
def folder(tmp_path, picture):
    picture(60, 90).save(tmp_path / "x.png")
    picture(30, 30, seed=1).save(tmp_path / "y.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "x.png").read_bytes()[:60])
    return tmp_path


def write(folder, rows, name="a.jsonl"):
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


GOOD = {"id": "good", "messages": [user(IMAGE, text("What is it?")), answer()]}
# Per row: what is wrong with it, as kinds.
FAULTY = [
    (GOOD, []),
    ("{", ["json"]),
    ("[]", ["json"]),
    ({"messages": GOOD["messages"]}, ["id"]),
    ({"id": "empty", "messages": []}, ["schema"]),
    ({"id": "gone", "messages": [user({**IMAGE, "path": "z.png"}), answer()]}, ["image-missing"]),
    (
        {"id": "cut", "messages": [user({**IMAGE, "path": "broken.png"}), answer()]},
        ["image-broken"],
    ),
    ({"id": "marks", "messages": [user(text("<image>\nHi")), answer()]}, ["placeholder"]),
    ({"id": "order", "messages": [user(text("a")), user(text("b")), answer()]}, ["role-order"]),
    ({"id": "role", "messages": [user(text("a")), {"role": "bot", "content": "b"}]}, ["role"]),
    ({"id": "blank", "messages": [user(text("a")), answer(" ")]}, ["empty"]),
    ({"id": "mute", "messages": [user(text("a"))]}, ["unsupervised"]),
    ({"id": "part", "messages": [user({"type": "audio"}), answer()]}, ["schema"]),
    (
        {
            "id": "many",
            "messages": [
                user(text("")),
                answer(""),
                {"role": "sys", "content": "x"},
                answer(),
                user({**IMAGE, "path": "z.png"}),
            ],
        },
        ["empty", "empty", "role", "image-missing"],
    ),
    ({"id": "good", "messages": [user(text("b")), answer()]}, []),
]


def test_every_fault_is_named_with_sample_and_place(folder):
    path = write(folder, [row for row, _ in FAULTY])
    report = check_file(path)
    found = {index: [] for index in range(len(FAULTY))}
    for fault in report.faults:
        found[fault.index].append(fault.kind)
        assert fault.where == f"{path}, line {fault.index + 1}"
        assert fault.message.startswith(fault.where)
        if fault.id:
            assert repr(fault.id) in fault.message
    assert found == dict(enumerate(kinds for _, kinds in FAULTY))
    assert report.samples == len(FAULTY)
    assert report.bad_samples == sum(bool(kinds) for _, kinds in FAULTY)
    assert sum(report.kinds.values()) == len(report.faults)
    assert report.repeated_ids == 1
    assert report.supervised_share is None
    assert report.to_dict()["faults"][0]["kind"] == "json"


def test_a_llava_file_and_its_faults(folder):
    human, gpt = {"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Yo"}
    records = [
        {"id": 1, "image": "x.png", "conversations": [human, gpt]},
        {"id": 2, "conversations": [human, gpt]},
        {"id": 3, "image": "x.png", "conversations": [{**human, "from": "user"}, gpt, gpt]},
        {"id": 4, "image": "x.png", "conversations": [{"from": "human", "value": "Hi"}, gpt]},
        {"id": 5, "image": "x.png", "conversations": [human, {"from": "gpt", "value": 3}]},
    ]
    path = folder / "a.json"
    path.write_text(json.dumps(records))
    report = check_file(path)
    assert report.form == "llava"
    kinds = [(fault.index, fault.kind) for fault in report.faults]
    assert kinds == [
        (1, "placeholder"),
        (2, "role"),
        (2, "role-order"),
        (3, "placeholder"),
        (4, "schema"),
    ]
    assert "record 2: sample '3', turn 1: unknown speaker 'user'" in report.faults[1].message


def test_a_picture_is_counted_once_and_the_root_is_heeded(folder):
    (folder / "rows").mkdir()
    path = write(folder / "rows", [GOOD, GOOD])
    assert check_file(path).kinds == {"image-missing": 2}
    report = check_file(path, folder)
    assert (report.bad_samples, report.images, report.with_images) == (0, 1, 2)


def test_lengths_in_words(folder):
    rows = [
        {"id": str(words), "messages": [user(text("a " * words)), answer("b")]}
        for words in (1, 1, 5, 30)
    ]
    report = check_file(write(folder, rows))
    assert dict(report.lengths) == {2: 2, 6: 1, 31: 1}
    histogram = report.histogram(bins=3)
    assert histogram == [(2, 11, 3), (12, 21, 0), (22, 31, 1)]


def test_tokens_of_a_model(folder, pico):
    encode = ProcessorEncode(pico[1])
    path = write(folder, [GOOD])
    report = check_file(path, encode=encode)
    encoded = encode(GOOD["messages"], [(60, 90)], "a")
    assert report.unit == "tokens"
    assert report.tokens == len(encoded.input_ids)
    assert report.supervised == sum(label != IGNORE_LABEL for label in encoded.labels) > 0
    short = check_file(path, encode=encode, max_length=report.tokens - 1)
    assert short.kinds == {"too-long": 1}
    assert f"{report.tokens} tokens, {report.tokens - 1} fit" in short.faults[0].message
    assert not check_file(path, encode=encode, max_length=report.tokens).faults


def test_runs_cover_every_token(pico):
    encoded = ProcessorEncode(pico[1])(GOOD["messages"], [(60, 90)], "a")
    runs = label_runs(encoded)
    assert [runs[0].start, *(run.stop for run in runs)] == [
        *(run.start for run in runs),
        len(encoded.input_ids),
    ]
    assert [(run.start, run.stop) for run in runs if run.picture == 0] == encoded.images


def test_preview_of_conversations_without_a_model(folder):
    two = {
        "id": "two",
        "messages": [user(IMAGE, {**IMAGE, "path": "y.png"}, text("<i>?")), answer()],
    }
    alone = [{"id": name, "messages": [user(text("Hi")), answer("Yo")]} for name in "ab"]
    page = folder / "page.html"
    preview_page(write(folder, [GOOD, {**GOOD, "id": "next"}, two, *alone]), page, limit=9)
    shown = page.read_text(encoding="utf-8")
    assert shown.count("<figure>") == 4
    assert shown.count("data:image/jpeg") == 3
    assert shown.count("<article>") == 5
    assert '<span class="user">&lt;i&gt;?</span>' in shown
    assert '<span class="supervised">Yo</span>' in shown


def test_preview_colours_tokens_by_their_labels(folder, pico):
    encode = ProcessorEncode(pico[1])
    page = folder / "page.html"
    masks = MaskView(encode, pico[1].tokenizer.decode)
    preview_page(write(folder, [GOOD]), page, limit=1, masks=masks)
    shown = page.read_text(encoding="utf-8")
    encoded = encode(GOOD["messages"], [(60, 90)], "a")
    start, stop = encoded.images[0]
    assert f"[{stop - start} visual tokens]" in shown
    supervised = [label for label in encoded.labels if label != IGNORE_LABEL]
    assert f"{len(encoded.input_ids)} tokens, {len(supervised)} supervised" in shown
    answered = html.escape(pico[1].tokenizer.decode(supervised))
    assert f'<span class="supervised">{answered}</span>' in shown
    with pytest.raises(DataError, match="z.png"):
        preview_page(
            write(folder, [{**GOOD, "messages": [user({**IMAGE, "path": "z.png"}), answer()]}]),
            folder / "no.html",
            limit=1,
        )
    assert not (folder / "no.html").exists()
