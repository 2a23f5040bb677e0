"""Videos and boxes: read and kept everywhere, refused by name wherever a model would read them."""

import json

import pytest

from vistoken.core.errors import DataError
from vistoken.data.bad_samples import BadSamples
from vistoken.data.check import ProcessorEncode, check_file
from vistoken.data.converting import convert_file
from vistoken.data.labels import encode_conversation
from vistoken.data.messages import image_paths, read_messages
from vistoken.data.official_samples import released_turns
from vistoken.data.preview import MaskView, preview_page
from vistoken.data.sampling import modality_length
from vistoken.eval.tasks import read_tasks
from vistoken.models.templates import load_template
from vistoken.train.examples import read_examples

IMAGE = {"type": "image", "path": "x.png"}
VIDEO = {"type": "video", "path": "clips/a.mp4"}
BOX = {"type": "box", "box": [4, 8.5, 20, 40]}


def text(value):
    return {"type": "text", "text": value}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def answer(*parts):
    return {"role": "assistant", "content": list(parts)}


PLAIN = {"id": "plain", "messages": [user(IMAGE, text("What is it?")), answer(text("A bus."))]}
BOXED = {
    "id": "boxed",
    "messages": [
        user(IMAGE, text("Where?"), {**BOX, "image": 0, "note": "kept"}),
        answer(BOX),
        user({**IMAGE, "path": "y.png"}, text("And here?")),
        answer(text("There:"), {**BOX, "image": 1}),
    ],
}
FILMED = {"id": "filmed", "messages": [user(VIDEO, text("What happens?")), answer(text("Rain."))]}
REFUSED = [
    (BOXED, "sample 'boxed', message 1: this model has no part that reads boxes"),
    (FILMED, "sample 'filmed', message 1: this model has no part that reads videos"),
]


@pytest.fixture
def folder(tmp_path, picture):
    picture(60, 90).save(tmp_path / "x.png")
    picture(60, 90, seed=1).save(tmp_path / "y.png")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"film")
    return tmp_path


def write(folder, *rows):
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("row", [BOXED, FILMED])
def test_videos_and_boxes_are_read_unchanged(row):
    assert read_messages(row, "a.jsonl:1") == row["messages"]


def test_marks_go_and_videos_and_boxes_stay():
    row = {"id": 1, "messages": [user(IMAGE, text("<image>"), VIDEO, BOX), answer(text("Yes"))]}
    assert read_messages(row, "a")[0]["content"] == [IMAGE, VIDEO, BOX]
    assert image_paths(row["messages"]) == ["x.png"]


def box(*edges, **more):
    return {"type": "box", "box": list(edges), **more}


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([user({"type": "video"})], r"message 1 \(user\), part 1 \(video\): 'path' must be"),
        ([user({"type": "video", "path": ""})], r"part 1 \(video\): 'path' must be"),
        ([user(text("a")), answer(VIDEO)], r"2 \(assistant\), part 1 \(video\): only a user"),
        ([{"role": "system", "content": [BOX]}], r"1 \(system\), part 1 \(box\): a system message"),
        ([user(IMAGE, {"type": "box"})], r"part 2 \(box\): 'box' must be four finite numbers"),
        ([user(IMAGE, box(0, 0, 4))], "four finite numbers"),
        ([user(IMAGE, box(0, 0, 4, True))], "four finite numbers"),
        ([user(IMAGE, box(0, 0, 4, "4"))], "four finite numbers"),
        ([user(IMAGE, box(0, 0, 4, float("nan")))], "four finite numbers"),
        ([user(IMAGE, box(0, 0, float("inf"), 4))], "four finite numbers"),
        ([user(IMAGE, box(0, 0, 4, 10**400))], "four finite numbers"),
        ([user(IMAGE, box(4, 0, 4, 4))], "bottom must be more than top"),
        ([user(IMAGE, box(0, 4, 4, 4))], "right more than left"),
        ([user(IMAGE, box(0, 0, 4, 4, image=-1))], "'image' must be the number of a picture"),
        ([user(IMAGE, box(0, 0, 4, 4, image=True))], "'image' must be the number of a picture"),
        ([user(text("a"), BOX)], r"part 2 \(box\): it is on picture 0, but 0 pictures"),
        (
            [user(IMAGE, text("a")), answer(box(0, 0, 4, 4, image=1)), user(IMAGE, text("b"))],
            r"message 2 \(assistant\), part 1 \(box\): it is on picture 1, but 1 pictures",
        ),
    ],
)
def test_faults_name_sample_message_and_part(messages, says):
    with pytest.raises(DataError, match=says) as error:
        read_messages({"id": "s1", "messages": messages}, "a.jsonl:7")
    assert str(error.value).startswith("a.jsonl:7: sample 's1', message")
    assert "\n" not in str(error.value)


def test_a_faulty_message_before_does_not_blame_the_box():
    faults = []
    messages = [user({"type": "image"}), answer(BOX)]
    read_messages({"id": 1, "messages": messages}, "a", faults.append)
    assert len(faults) == 1


def test_check_finds_missing_videos_and_what_a_model_cannot_read(folder, pico):
    gone = {"id": "gone", "messages": [user(text("a"), {**VIDEO, "path": "b.mp4"}), answer(BOX)]}
    whole = check_file(write(folder, PLAIN, BOXED, FILMED))
    assert (whole.faults, whole.bad_samples) == ([], 0)
    assert sum(whole.lengths.values()) == 3
    report = check_file(write(folder, FILMED, gone))
    assert [fault.kind for fault in report.faults] == ["schema", "video-missing"]
    assert "sample 'gone', message 1 (user), part 2 (video): video" in report.faults[1].message
    encode = ProcessorEncode(pico[1])
    with_model = check_file(write(folder, PLAIN, BOXED, FILMED), encode=encode)
    assert [(fault.id, fault.kind) for fault in with_model.faults] == [
        ("boxed", "unread-part"),
        ("filmed", "unread-part"),
    ]


def test_converting_keeps_them_or_refuses(folder):
    path = write(folder, BOXED, PLAIN, FILMED)
    out = folder / "b.json"
    assert convert_file(path, out, "auto", "schema", BadSamples())[0] == 3
    assert json.loads(out.read_text()) == [BOXED, PLAIN, FILMED]
    for form in ("llava", "sharegpt"):
        with pytest.raises(DataError, match="sample 'boxed': this form has no place for a box"):
            convert_file(path, folder / "c.json", "auto", form, BadSamples())
        assert not (folder / "c.json").exists()
        bad = BadSamples("skip")
        assert convert_file(path, folder / f"{form}.json", "auto", form, bad)[0] == 1
        assert bad.skipped == 2


def test_preview_draws_boxes_and_names_videos(folder, pico):
    page = folder / "page.html"
    preview_page(write(folder, BOXED, FILMED), page, limit=9)
    shown = page.read_text(encoding="utf-8")
    drawn = '<rect x="8.5" y="4" width="31.5" height="16"/>'
    assert shown.count(drawn) == 3
    assert shown.count('viewBox="0 0 90 60"') == 2
    assert "[box 4, 8.5, 20, 40 on picture 1]" in shown
    assert "[video clips/a.mp4]" in shown
    masks = MaskView(ProcessorEncode(pico[1]), pico[1].tokenizer.decode)
    preview_page(write(folder, FILMED), page, limit=1, masks=masks)
    shown = page.read_text(encoding="utf-8")
    assert "no part that reads videos" in shown
    assert "[video clips/a.mp4]" in shown


@pytest.mark.parametrize(("row", "says"), REFUSED)
def test_training_and_eval_refuse_by_name_or_skip_and_count(folder, row, says):
    path = write(folder, PLAIN, row)
    with pytest.raises(DataError, match=says) as error:
        read_examples([path], None)
    assert error.value.exit_code == 3
    with pytest.raises(DataError, match=says):
        read_tasks([path])
    told = []
    bad = BadSamples("skip", told.append)
    assert [example.id for example in read_examples([path], None, bad)] == ["plain"]
    assert bad.skipped == 1
    assert [left.sample for left in told] == [row["id"]]


@pytest.mark.parametrize("row", [BOXED, FILMED])
def test_no_template_leaves_them_out(row, pico):
    processor = pico[1]
    # A checkpoint may bring a template that knows nothing of such parts and would drop them.
    deaf = (
        "{% for m in messages %}{% generation %}{% for p in m.content if p.type == 'text' %}"
        "{{ p.text }}{% endfor %}{% endgeneration %}{% endfor %}"
    )
    for template in (deaf, load_template("chatml")):
        with pytest.raises(DataError, match="s1, message 1: this model has no part that reads"):
            encode_conversation(
                processor.tokenizer, template, row["messages"], [], "<image>", where="s1"
            )
        with pytest.raises(DataError, match="this model has no part that reads"):
            processor.apply_chat_template(row["messages"], template, tokenize=False)
    with pytest.raises(DataError, match="s1, message 1: this model has no part that reads"):
        released_turns(row["messages"], "s1")


def test_length_counts_a_video_as_a_picture_and_a_box_as_a_word():
    assert modality_length(FILMED["messages"]) == 4
    assert modality_length([user(text("a b"), BOX)]) == -3
