import json

import card
import pytest
import torch
from nano_accuracy import GREY, GreyEncoder, Outcome, greedy_tokens, rows_right, summarise
from PIL import Image

from vistoken.data.messages import read_messages
from vistoken.train.packing import IGNORE, Row, batch_packed, pack
from vistoken.train.samples import PixelEncoder, QuestionCollator, group_examples, read_examples

QUESTIONS = ["What is this?", "How many objects are in the picture?", "Is there a cat?"]


@pytest.fixture
def asked(pico, picture, tmp_path):
    """A picture, and per question the prompt's ids and the tokens that `generate` writes."""
    model, processor = pico
    path = tmp_path / "picture.png"
    picture(40, 56, 3).save(path)
    rows = []
    for question in QUESTIONS:
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        prompt = processor.apply_chat_template([user], add_generation_prompt=True)
        inputs = processor(text=prompt, images=Image.open(path), return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        written = model.generate(**inputs, do_sample=False, max_new_tokens=12, eos_token_id=-1)
        rows.append((inputs["input_ids"][0].tolist(), written[0, length:].tolist()))
    return path, rows


def _score(pico, path, rows):
    """Packed arg-max of (prompt, answer) rows: whether each is right."""
    model, processor = pico
    pictures = PixelEncoder(processor)([path])
    with torch.inference_mode():
        features = model.get_image_features(pictures.pixel_values, pictures.view_table)
        packed = pack(
            [
                Row(
                    prompt + reply,
                    [IGNORE] * len(prompt) + reply,
                    1 + max(i for i, t in enumerate(prompt) if t == model.config.image_token_id),
                )
                for prompt, reply in rows
            ]
        )
        batch = batch_packed([packed], 0)
        return rows_right(batch, greedy_tokens(model, batch, features))


def test_packed_argmax_is_right_exactly_where_generate_writes_the_answer(pico, asked):
    path, rows = asked
    assert len({tuple(reply) for _, reply in rows}) > 1, "questions must matter to the answer"
    assert _score(pico, path, rows) == [True, True, True]
    for place in (0, 5, 11):
        prompt, reply = rows[1]
        other = [*reply[:place], (reply[place] + 1) % 400, *reply[place + 1 :]]
        assert _score(pico, path, [rows[0], (prompt, other), rows[2]]) == [True, False, True]


def test_an_answer_must_also_end_where_generation_does(pico, asked):
    path, rows = asked
    prompt, reply = rows[0]
    shorter = [*reply[:4], pico[1].tokenizer.eos_token_id]
    assert reply[4] != shorter[4]
    assert _score(pico, path, [(prompt, shorter)]) == [False]


def test_questions_are_asked_as_the_processor_asks_them(pico, asked, tmp_path):
    path, rows = asked
    processor = pico[1]
    data = tmp_path / "val.jsonl"
    lines = []
    for number, question in enumerate(QUESTIONS):
        picture = {"type": "image", "path": path.name}
        user = {"role": "user", "content": [picture, {"type": "text", "text": question}]}
        reply = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
        row = {"id": str(number), "kind": "presence", "messages": [user, reply]}
        read_messages(row, "test")
        lines.append(json.dumps(row))
    data.write_text("\n".join(lines), encoding="utf-8")
    (group,) = group_examples(read_examples([data], None), len(lines))
    collate = QuestionCollator(processor, processor.chat_template, PixelEncoder(processor), 4096)
    batch = collate([group])["batch"]
    prefix = int((batch.position_ids[0].diff() < 0).nonzero()[0])  # end of the first branch
    answer = batch.targets[batch.rows == 0].tolist()
    assert batch.input_ids[0, : prefix + 1].tolist() == rows[0][0] + answer
    assert answer[-1] == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_grey_picture_of_each_size_is_encoded_once(pico, picture, tmp_path):
    model, processor = pico
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, size in zip(paths, [(40, 56), (40, 56), (30, 30)], strict=True):
        picture(*size, 1).save(path)
    grey = GreyEncoder(model, processor)
    with torch.inference_mode():
        shown = grey(paths)
        plain = tmp_path / "grey.png"
        Image.new("RGB", (56, 40), GREY).save(plain)
        real = PixelEncoder(processor)([plain])
        expected, _ = model.model.encode(real.pixel_values, real.view_table)
    assert sorted(grey.by_size) == [(30, 30), (56, 40)]
    assert torch.equal(shown.view_table[: len(real.view_table)], real.view_table)
    for maps, wanted in zip(shown.tower_features, expected, strict=False):
        assert torch.equal(maps[0], wanted[0])


def test_rows_of_a_table_count_what_they_say():
    outcomes = [
        Outcome("a", "name1", model=True, grey=False, prior=False),
        Outcome("a", "count", model=True, grey=True, prior=True),
        Outcome("b", "nameN", model=False, grey=True, prior=False),
        Outcome("b", "name1", model=True, grey=False, prior=True),
    ]
    rows = summarise(outcomes, seed=0)
    assert list(rows) == ["count", "name1", "nameN", "naming", "all"]
    assert rows["naming"]["n"] == 3
    assert rows["naming"]["model"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert rows["name1"]["model_minus_grey"]["value"] == 1
    assert rows["all"]["prior"]["value"] == 0.5


def test_only_the_table_of_a_card_changes(tmp_path):
    rows = summarise([Outcome("a", "name1", model=True, grey=False, prior=False)], seed=0)
    path = tmp_path / "README.md"
    path.write_text(f"before\n{card.BEGIN}\nold\n{card.END}\nafter\n", encoding="utf-8")
    card.write_table(path, {"val": rows})
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| name1 | 1 | 100.0 [100, 100] | 0.0 [0, 0] | 0.0 | +100.0 [+100, +100] |" in text
    path.write_text("no marks\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="lacks the marks"):
        card.write_table(path, {"val": rows})
    assert path.read_text(encoding="utf-8") == "no marks\n"
