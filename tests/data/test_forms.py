"""Converting data files between forms, there and back."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistoken.core.errors import DataError, UsageError
from vistoken.data.converting import KEPT, convert_file, convert_record
from vistoken.data.forms import detect_form, named_form
from vistoken.data.reading import BadSamples, open_rows
from vistoken.data.schema import read_messages

SCHEMA, LLAVA, SHAREGPT = map(named_form, ("schema", "llava", "sharegpt"))
GOLDEN = Path(__file__).parents[1] / "golden" / "llava-training"
SOURCES = json.loads((GOLDEN / "preprocess.json").read_text(encoding="utf-8"))["sources"]

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: text.strip() and "<image>" not in text
)
extras = st.dictionaries(
    st.sampled_from(["kind", "source", "score", "system", "images", "messages", KEPT]),
    st.integers() | texts | st.booleans() | st.lists(st.integers(), max_size=2),
    max_size=2,
)
marked = st.tuples(
    texts, st.sampled_from(["<image>\n{}", "{}\n<image>", " {}<image>", "<image>{} <image>"])
)


@st.composite
def llava_records(draw):
    pictures = draw(st.integers(0, 1))
    first, shape = draw(marked)
    turns = [{"from": "gpt", "value": draw(texts)}] if draw(st.booleans()) else []
    turns.append({"from": "human", "value": shape.format(first) if pictures else first})
    turns.append(
        {"from": "gpt", "value": draw(texts), **draw(st.sampled_from([{}, {"weight": 0}]))}
    )
    for text in draw(st.lists(texts, max_size=2)):
        turns += [{"from": "human", "value": text}, {"from": "gpt", "value": draw(texts)}]
    extra = draw(extras)
    extra.pop("image", None)
    image = {"image": draw(st.sampled_from(["x.png", ["x.png"]]))} if pictures else {}
    identity = draw(st.integers(0, 9) | st.just("a/1"))
    return {**extra, "id": identity, **image, "conversations": turns}


@st.composite
def schema_rows(draw):
    messages = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": [{"type": "text", "text": draw(texts)}]})
    for _ in range(draw(st.integers(1, 3))):
        parts = [
            {"type": "image", "path": path, **draw(st.sampled_from([{}, {"box": [0, 1, 2, 3]}]))}
            for path in draw(st.lists(st.sampled_from(["x.png", "y.png"]), max_size=2))
        ]
        parts.append({"type": "text", "text": draw(texts)})
        content = draw(texts) if len(parts) == 1 and draw(st.booleans()) else parts
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": draw(texts)}]})
    extra = {key: value for key, value in draw(extras).items() if key != "messages"}
    return {**extra, "id": draw(st.integers(0, 9) | st.just("a")), "messages": messages}


def there_and_back(record, source, target):
    there = convert_record(record, source, target, "a.json")
    return there, convert_record(json.loads(json.dumps(there)), target, source, "b.json")


@settings(max_examples=40, deadline=None)
@given(llava_records())
def test_llava_through_the_schema(record):
    row, back = there_and_back(record, LLAVA, SCHEMA)
    assert json.dumps(back, sort_keys=True) == json.dumps(record, sort_keys=True)
    read_messages(row, "a.jsonl")


@settings(max_examples=40, deadline=None)
@given(schema_rows(), st.sampled_from([LLAVA, SHAREGPT]))
def test_the_schema_through_other_forms(row, target):
    _, back = there_and_back(row, SCHEMA, target)
    assert json.dumps(back, sort_keys=True) == json.dumps(row, sort_keys=True)


@pytest.mark.parametrize("spoken", [[], [{"role": "system", "content": "Be brief."}]])
def test_a_further_key_named_system_is_not_spoken(spoken):
    said = [{"role": "user", "content": "Same?"}, {"role": "assistant", "content": "No"}]
    row = {"id": "s", "system": "linux", "messages": [*spoken, *said]}
    there, back = there_and_back(row, SCHEMA, SHAREGPT)
    assert "system" not in there
    assert [turn["value"] for turn in there["conversations"]][-2:] == ["Same?", "No"]
    assert len(there["conversations"]) == len(row["messages"])
    assert back == row


@settings(max_examples=40, deadline=None)
@given(llava_records())
def test_two_steps_there_and_back(record):
    row = convert_record(record, LLAVA, SCHEMA, "a")
    shared = convert_record(row, SCHEMA, SHAREGPT, "b")
    assert convert_record(shared, SHAREGPT, SCHEMA, "c") == row
    assert convert_record(row, SCHEMA, LLAVA, "d") == record


def test_sharegpt_with_its_own_names():
    record = {
        "id": "s",
        "system": "Be brief.",
        "images": ["x.png", "y.png"],
        "tools": [],
        "conversations": [
            {"from": "user", "value": "<image><image>Same?"},
            {"from": "chatgpt", "value": "No"},
        ],
    }
    assert detect_form(record, "a") is SHAREGPT
    row, back = there_and_back(record, SHAREGPT, SCHEMA)
    assert back == record
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert [part["type"] for part in row["messages"][1]["content"]] == ["image", "image", "text"]
    assert row["tools"] == []


def test_a_canonical_record_keeps_nothing_aside():
    record = {"id": "1", "image": "x.png", "conversations": SOURCES["one_turn_image"], "kind": "k"}
    row, back = there_and_back(record, LLAVA, SCHEMA)
    assert back == record
    assert KEPT not in row
    assert row["kind"] == "k"


def test_an_edited_row_is_written_as_edited():
    turns = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A bus"}]
    row, _ = there_and_back({"id": 1, "image": "x.png", "conversations": turns}, LLAVA, SCHEMA)
    assert KEPT in row
    row["messages"][0]["content"][1]["text"] = "Where?"
    back = convert_record(row, SCHEMA, LLAVA, "a")
    assert back["conversations"][0]["value"] == "<image>\nWhere?"
    assert KEPT not in back


def test_detection():
    assert detect_form({"conversations": SOURCES["multi_turn"]}, "a") is LLAVA
    assert detect_form({"messages": []}, "a") is SCHEMA
    with pytest.raises(DataError, match="a.json: neither 'messages' nor"):
        detect_form({"text": "Hi"}, "a.json")
    with pytest.raises(UsageError, match="did you mean 'sharegpt'"):
        named_form("share-gpt")


@pytest.fixture
def llava_file(tmp_path):
    records = [
        {"id": name, "image": "x.png", "conversations": source}
        for name, source in SOURCES.items()
        if name != "text_only"
    ]
    path = tmp_path / "in.json"
    path.write_text(json.dumps(records))
    return path, records


def test_a_file_there_and_back(llava_file, tmp_path):
    path, records = llava_file
    with pytest.raises(DataError, match="record 3: sample 'empty_answer', message 2"):
        convert_file(path, tmp_path / "out.jsonl", "auto", "schema", BadSamples("error"))
    assert [file.name for file in tmp_path.iterdir()] == ["in.json"]
    skipped = BadSamples("skip")
    written = convert_file(path, tmp_path / "out.jsonl", "auto", "schema", skipped)
    assert (written, skipped.skipped) == ((4, "llava"), 1)
    kept = [record for record in records if record["id"] != "empty_answer"]
    convert_file(tmp_path / "out.jsonl", tmp_path / "back.json", "schema", "llava", BadSamples())
    assert list(open_rows(tmp_path / "back.json")) == kept
    assert json.loads((tmp_path / "back.json").read_text()) == kept
    convert_file(tmp_path / "out.jsonl", tmp_path / "back.jsonl", "auto", "llava", BadSamples())
    assert list(open_rows(tmp_path / "back.jsonl")) == kept
    with pytest.raises(UsageError, match="must end in"):
        convert_file(path, tmp_path / "out.csv", "auto", "schema", BadSamples())
