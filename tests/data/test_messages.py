"""The messages schema: what is read, what is refused and how the refusal reads."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistoken.core.errors import DataError
from vistoken.data.messages import from_llava, image_paths, read_messages

GOLDEN = Path(__file__).parents[1] / "golden" / "llava-training"
SOURCES = json.loads((GOLDEN / "preprocess.json").read_text(encoding="utf-8"))["sources"]

IMAGE = {"type": "image", "path": "images/x.png"}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "A red bus."}]}


def text(value):
    return {"type": "text", "text": value}


def row(*messages, **extra):
    return {"id": "s1", "messages": list(messages), **extra}


def user(*content):
    return {"role": "user", "content": list(content)}


def test_a_valid_row_is_read_unchanged():
    messages = [
        {"role": "system", "content": [text("Be brief.")]},
        user(IMAGE, text("What is it?")),
        ANSWER,
        user(text("Where?")),
        ANSWER,
    ]
    assert read_messages(row(*messages, kind="name"), "a.jsonl:1") == messages


def test_string_content_becomes_a_text_part():
    read = read_messages(row({"role": "user", "content": "Hi"}), "a.jsonl:1")
    assert read == [user(text("Hi"))]


def test_marks_that_repeat_image_parts_are_taken_out():
    second = {"type": "image", "path": "images/y.png"}
    read = read_messages(row(user(IMAGE, second, text("<image>\n<image>\nSame?"))), "a.jsonl:1")
    assert read == [user(IMAGE, second, text("Same?"))]
    assert image_paths(read) == ["images/x.png", "images/y.png"]
    assert read_messages(row(user(IMAGE, text("<image>"))), "a.jsonl:1") == [user(IMAGE)]


def test_further_keys_of_a_part_are_kept():
    boxed = {**IMAGE, "box": [0, 0, 4, 4]}
    assert read_messages(row(user(boxed, text("Hi"))), "a.jsonl:1")[0]["content"][0] == boxed


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "at least one message"),
        ("Hi", "'messages' must be a list"),
        (["Hi"], "message 1: must be an object"),
        ([{"role": "usr", "content": "Hi"}], "message 1: unknown role 'usr'; did you mean 'user'?"),
        ([{"role": ["user"], "content": "Hi"}], "message 1: unknown role"),
        ([ANSWER], "message 1: role 'assistant' where 'system' or 'user' is due"),
        ([user(text("Hi")), user(text("Hi"))], "message 2: role 'user' where 'assistant' is due"),
        ([user(text("Hi")), ANSWER, ANSWER], "message 3: role 'assistant' where 'user' is due"),
        ([{"role": "system", "content": "S"}], "only a system message"),
        ([user(text(""))], r"message 1 \(user\): the text is empty"),
        ([user(text("\n "))], r"message 1 \(user\): the text is empty"),
        ([user()], r"message 1 \(user\): the text is empty"),
        ([user(text("Hi")), {"role": "assistant", "content": ""}], "message 2 .*the text is empty"),
        ([user(text(3))], r"message 1 \(user\), part 1 \(text\): 'text' must be a text, not 3"),
        ([user({"type": "image"})], r"part 1 \(image\): 'path' must be a text, not None"),
        ([user({"type": "image", "path": ""})], "'path' must be a text"),
        ([user({"type": "audio"})], "part 1: 'type' must be 'text', .* not 'audio'"),
        ([user("Hi")], "part 1: 'type' must be"),
        ([{"role": "user", "content": None}], "'content' must be a text or a list"),
        ([user(text("<image>\nHi"))], "1 <image> marks in the text for 0 image parts"),
        ([user(IMAGE, text("<image><image>Hi"))], "2 <image> marks in the text for 1 image parts"),
        (
            [user(text("Hi")), {"role": "assistant", "content": [IMAGE]}],
            r"message 2 \(assistant\), part 1 \(image\): only a user message may hold images",
        ),
    ],
)
def test_bad_messages_name_sample_and_place(messages, says):
    with pytest.raises(DataError, match=says) as error:
        read_messages({"id": "s1", "messages": messages}, "a.jsonl:7")
    assert str(error.value).startswith("a.jsonl:7: sample 's1'")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sample_id", [None, "", True, 1.5, ["a"]])
def test_a_row_needs_an_id(sample_id):
    with pytest.raises(DataError, match="a.jsonl:7: the row has no 'id'"):
        read_messages({"id": sample_id, "messages": [user(text("Hi"))]}, "a.jsonl:7")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "path"]), inner)
        ),
    )
)
def test_whatever_the_row_holds_it_is_read_or_refused(messages):
    try:
        read = read_messages({"id": 1, "messages": messages}, "a.jsonl:7")
    except DataError:
        return
    assert [message["role"] for message in read if message["role"] == "user"]


def test_llava_puts_the_picture_first():
    record = {
        "id": 5,
        "image": "x.png",
        "source": "coco",
        "conversations": [
            {"from": "human", "value": "What is it? \n<image>"},
            {"from": "gpt", "value": " A bus "},
        ],
    }
    assert from_llava(record, "a.json[0]") == {
        "id": "5",
        "source": "coco",
        "messages": [
            user({"type": "image", "path": "x.png"}, text("What is it?")),
            {"role": "assistant", "content": [text(" A bus ")]},
        ],
    }


def test_llava_golden_conversations():
    def read(name):
        record = {"id": name, "image": "x.png", "conversations": SOURCES[name]}
        return from_llava(record, "golden")["messages"]

    assert [message["role"] for message in read("gpt_first")] == ["user", "assistant"]
    assert image_paths(read("two_images")) == ["x.png"]
    assert len(read("multi_turn")) == 4
    with pytest.raises(DataError, match="sample 'empty_answer', message 2 .*the text is empty"):
        read("empty_answer")


def test_llava_list_of_images_is_dealt_in_order():
    record = {
        "id": 1,
        "image": ["x.png", "y.png", "z.png"],
        "conversations": [
            {"from": "human", "value": "<image><image>Same?"},
            {"from": "gpt", "value": "No"},
            {"from": "human", "value": "And <image>?"},
            {"from": "gpt", "value": "Yes"},
        ],
    }
    messages = from_llava(record, "a.json[0]")["messages"]
    assert image_paths(messages[:1]) == ["x.png", "y.png"]
    assert image_paths(messages[2:]) == ["z.png"]
    assert messages[2]["content"][-1] == text("And ?")


QUESTION = {"from": "human", "value": "<image>\nHi"}
REPLY = {"from": "gpt", "value": "Yo"}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"conversations": []}, "at least one turn"),
        ({"conversations": ["Hi"]}, "turn 1: must be an object"),
        ({"conversations": [{"from": "user", "value": "Hi"}]}, "turn 1: unknown speaker 'user'"),
        ({"conversations": [{"from": "human", "value": None}]}, "turn 1: 'value' must be a text"),
        ({"conversations": [QUESTION, REPLY]}, "turn 1: an <image> mark has no image left"),
        (
            {"image": "x.png", "conversations": [QUESTION, REPLY, QUESTION, REPLY]},
            "turn 3: an <image> mark has no image left",
        ),
        (
            {"image": "x.png", "conversations": [{"from": "human", "value": "Hi"}, REPLY]},
            "image 'x.png' has no <image> mark",
        ),
        ({"image": 3, "conversations": [QUESTION]}, "'image' must be a path"),
        (
            {"image": "x.png", "conversations": [{"from": "human", "value": "Hi"}, QUESTION]},
            "message 2: role 'user'",
        ),
        ({"conversations": [REPLY]}, "at least one message"),
    ],
)
def test_bad_llava_records_name_sample_and_turn(record, says):
    with pytest.raises(DataError, match=says) as error:
        from_llava({"id": 9, **record}, "a.json[3]")
    assert str(error.value).startswith("a.json[3]: sample '9'")
