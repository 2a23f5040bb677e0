"""The TokenMap's text columns: what is predicted is what the model has, packed or not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vistoken.core.errors import UsageError
from vistoken.core.tables import TEXT_COLUMNS, TOKEN, TextRole, TokenKind
from vistoken.data.labels import encode_conversation
from vistoken.data.token_rows import batch_maps, conversation_map
from vistoken.models.processing import VistokenProcessor
from vistoken.models.templates import load_template
from vistoken.train.encoders import PixelEncoder, encode_pictures
from vistoken.train.examples import read_examples
from vistoken.train.grouping import group_examples
from vistoken.train.masks import decoder_mask
from vistoken.train.packing import IGNORE, Row, batch_packed, join, pack
from vistoken.train.samples import QuestionCollator

from .conftest import row, write_lines


def said(role, text, images=0):
    parts = [{"type": "image", "path": "x.png"}] * images
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


@pytest.fixture
def pictures():
    return [Image.new("RGB", size, "red") for size in ((64, 64), (40, 80), (64, 32))]


def encoded(processor, messages, pictures):
    maps = [processor.image_processor.token_map(p.height, p.width) for p in pictures]
    made = encode_conversation(
        processor.tokenizer,
        str(processor.chat_template),
        messages,
        [len(table) for table in maps],
        processor.image_token,
        add_generation_prompt=True,
    )
    return made, conversation_map(made, maps)


def test_a_prompt_s_map_is_the_predicted_one(pico, pictures):
    model, processor = pico
    messages = [
        said("system", "Be brief."),
        said("user", "What?", 2),
        said("assistant", "A cup."),
        said("user", "And this?", 1),
    ]
    made, predicted = encoded(processor, messages, pictures)
    inputs = processor.image_processor(pictures)
    call = {"input_ids": torch.tensor([made.input_ids]), "text_map": predicted[None], **inputs}
    with torch.no_grad():
        produced = model(**call).token_map
    assert torch.equal(produced[0], predicted)
    roles, turns = TOKEN.get(predicted, "role"), TOKEN.get(predicted, "turn")
    assert roles.tolist() == made.role
    assert set(turns.tolist()) == {0, 1}
    assert set(roles.tolist()) == set(TextRole)
    visual = TOKEN.get(predicted, "kind") != TokenKind.TEXT
    assert set(TOKEN.get(predicted, "media")[visual].tolist()) == {0, 1, 2}
    assert set(roles[visual].tolist()) == {TextRole.USER}
    answer = model.generate(**call, max_new_tokens=3, do_sample=False)
    plain = {key: value for key, value in call.items() if key != "text_map"}
    assert torch.equal(answer, model.generate(**plain, max_new_tokens=3, do_sample=False))


@pytest.mark.parametrize("left", [False, True])
def test_a_padded_batch(pico, pictures, left):
    model, processor = pico
    asked = [
        ([said("user", "What is in the picture?", 1)], pictures[:1]),
        ([said("user", "Hi", 2), said("assistant", "Yes"), said("user", "So?")], pictures[1:]),
        ([said("user", "Hi")], []),
    ]
    made = [encoded(processor, messages, shown) for messages, shown in asked]
    predicted = batch_maps([table for _, table in made], left)
    length = predicted.shape[1]
    ids = torch.zeros(len(made), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, (conversation, _) in enumerate(made):
        n = len(conversation.input_ids)
        place = slice(length - n, length) if left else slice(0, n)
        ids[number, place] = torch.tensor(conversation.input_ids)
        mask[number, place] = 1
    inputs = processor.image_processor(pictures)
    with torch.no_grad():
        produced = model(input_ids=ids, attention_mask=mask, text_map=predicted, **inputs).token_map
    assert torch.equal(produced, predicted)
    assert torch.equal(TOKEN.get(produced, "kind") == TokenKind.PAD, mask == 0)


TEMPLATES = ["vicuna-v1", "chatml", "llama-2", "mistral", "gemma"]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("gap", ["", " "])
def test_the_processor_s_text_map_is_the_model_s(pico, pictures, template, gap):
    model, processor = pico
    text = load_template(template)
    processor = VistokenProcessor(
        processor.image_processor, processor.tokenizer, text, image_gap=gap
    )
    asked = [
        [said("user", "What?", 2), said("assistant", "A cup."), said("user", "And this?")],
        [said("user", "And what is this here?", 1)],
        [said("user", "Hi")],
    ]
    if template in ("vicuna-v1", "chatml"):
        asked[1].insert(0, said("system", "Be brief."))
    inputs = processor.apply_chat_template(
        [_without_paths(messages) for messages in asked],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_text_map=True,
        processor_kwargs={
            "images": [pictures[:2], pictures[2:], []], "padding": True, "padding_side": "left"
        },
    )  # fmt: skip
    assert set(inputs) <= {*processor.model_input_names, "text_map"}
    with torch.no_grad():
        produced = model(**inputs).token_map
    assert torch.equal(produced, inputs["text_map"])
    roles, turns = TOKEN.get(produced, "role"), TOKEN.get(produced, "turn")
    real = inputs["attention_mask"].bool()
    assert torch.equal(TOKEN.get(produced, "kind") == TokenKind.PAD, ~real)
    maps = [processor.image_processor.token_map(p.height, p.width) for p in pictures]
    for number, (messages, shown) in enumerate(zip(asked, (maps[:2], maps[2:], []), strict=True)):
        made = encode_conversation(
            processor.tokenizer, text, messages, [len(table) for table in shown],
            processor.image_token, add_generation_prompt=True,
        )  # fmt: skip
        if gap == "":  # the same ids, from the same template
            assert inputs["input_ids"][number][real[number]].tolist() == made.input_ids
            assert roles[number][real[number]].tolist() == made.role
            assert turns[number][real[number]].tolist() == made.turn
        assert set(roles[number][real[number]].tolist()) == set(made.role)
        assert set(turns[number][real[number]].tolist()) == set(made.turn)


def _without_paths(messages):
    """Parts of pictures that are given beside the conversation."""
    return [
        {**m, "content": [{k: v for k, v in p.items() if k != "path"} for p in m["content"]]}
        for m in messages
    ]


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}])
def test_generation_continues_the_map_as_the_answer(pico, pictures, monkeypatch, options):
    model, processor = pico
    asked = [
        [said("user", "What?", 1), said("assistant", "A cup."), said("user", "And this?")],
        [said("user", "What is it?", 1)],
    ]
    inputs = processor.apply_chat_template(
        [_without_paths(messages) for messages in asked],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_text_map=True,
        processor_kwargs={
            "images": [[p] for p in pictures[:2]], "padding": True, "padding_side": "left"
        },
    )  # fmt: skip
    seen = []
    forward = type(model.model).forward

    def watched(self, *args, **kwargs):
        made = forward(self, *args, **kwargs)
        seen.append(made.token_map)
        return made

    monkeypatch.setattr(type(model.model), "forward", watched)
    call = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, **options}
    written = model.generate(**inputs, **call)
    beams = options.get("num_beams", 1)
    for place, text_map in enumerate(seen[1:]):
        new = text_map if options.get("use_cache", True) else text_map[:, -1 - place :]
        assert new.shape[:2] == (2 * beams, 1 if options.get("use_cache", True) else place + 1)
        assert (TOKEN.get(new, "role") == TextRole.ASSISTANT).all()
        assert (TOKEN.get(new, "kind") == TokenKind.TEXT).all()
        assert TOKEN.get(new, "turn")[::beams, -1].tolist() == [1, 0]
    assert len(seen) == 3
    expected = inputs["text_map"]
    assert torch.equal(TOKEN.get(seen[0][::beams], "role"), TOKEN.get(expected, "role"))
    plain = {key: value for key, value in inputs.items() if key != "text_map"}
    assert torch.equal(written, model.generate(**plain, **call))


def test_a_plain_prompt_keeps_the_defaults_and_maps_have_to_be_possible(pico, pictures):
    model, processor = pico
    plain = processor(text="<image>\nWhat?", images=pictures[:1], return_tensors="pt")
    assert "text_map" not in plain
    with torch.no_grad():
        table = model(**plain).token_map
    assert set(TOKEN.get(table, "role").flatten().tolist()) == {TextRole.TEMPLATE}
    assert set(TOKEN.get(table, "turn").flatten().tolist()) == {-1}
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(UsageError, match="tokenize=True"):
        processor.apply_chat_template(messages, return_text_map=True)
    call = {"tokenize": True, "return_dict": True, "return_text_map": True}
    with pytest.raises(UsageError, match="no .* block"):
        processor.apply_chat_template(messages, "{{ messages[0]['content'] }}", **call)
    with pytest.raises(UsageError, match="padding"):
        processor.apply_chat_template([messages, [said("user", "Hello you")]], **call)
    made = processor.apply_chat_template(messages, **call)
    assert made["text_map"].shape[:2] == (1, len(made["input_ids"][0]))


def test_a_map_of_other_positions_is_refused(pico, pictures):
    model, processor = pico
    made, predicted = encoded(processor, [said("user", "Hi")], [])
    ids = torch.tensor([made.input_ids])
    with pytest.raises(ValueError, match="text_map has"):
        model(input_ids=ids[:, 1:], text_map=predicted[None])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids, text_map=predicted[None]).token_map[0], predicted)
        assert model(input_ids=ids).token_map is None
    with pytest.raises(ValueError, match="the maps are of"):
        conversation_map(made, [predicted])


def _row(prefix, own, number):
    """A row with a picture's worth of shared tokens, then tokens of its own, the last learned."""
    ids = [*prefix, *(100 * number + place for place in range(len(own) + 1))]
    labels = [IGNORE] * (len(ids) - 1) + ids[-1:]
    roles = [TextRole.USER] * len(prefix) + own + [TextRole.ASSISTANT]
    return Row(ids, labels, len(prefix), "", roles, [0] * len(prefix) + [1] * (len(own) + 1))


OWN = st.lists(st.sampled_from([TextRole.USER, TextRole.TEMPLATE]), min_size=1, max_size=4)
# per row of the batch: per sample: length of the shared prefix, and the branches' own roles
SAMPLE = st.tuples(st.integers(1, 4), st.lists(OWN, min_size=1, max_size=3))
BATCH = st.lists(st.lists(SAMPLE, min_size=1, max_size=3), min_size=1, max_size=3)


@settings(deadline=None)
@given(BATCH)
def test_packed_positions_know_sample_branch_role_and_turn(batch):
    expected, packed_rows = [], []
    for samples in batch:
        positions, packed = [], []
        for number, (prefix, branches) in enumerate(samples):
            shared = list(range(1, prefix + 1))
            rows = [_row(shared, own, place + 1) for place, own in enumerate(branches)]
            # branches begin with different tokens, so nothing but the prefix is shared
            positions += [(0, TextRole.USER, number, -1)] * prefix
            for place, own in enumerate(branches):
                branch = place if len(branches) > 1 else -1
                positions += [(1, role, number, branch) for role in own]
                positions.append((1, TextRole.ASSISTANT, number, branch))
            packed.append(pack(rows))
        expected.append(positions)
        packed_rows.append(join(packed))
    made = batch_packed(packed_rows, 0)
    table = made.token_map
    columns = torch.stack([TOKEN.get(table, name) for name in TEXT_COLUMNS], -1)
    for number, positions in enumerate(expected):
        n = len(positions)
        assert columns[number, :n].tolist() == [list(map(int, one)) for one in positions]
        kinds = TOKEN.get(table[number], "kind")
        assert set(kinds[:n].tolist()) == {TokenKind.TEXT}
        assert set(kinds[n:].tolist()) <= {TokenKind.PAD}
    learned = TOKEN.get(table, "role") == TextRole.ASSISTANT
    assert torch.equal(made.input_ids[learned], made.targets)


@pytest.mark.parametrize("pack_samples", [False, True])
def test_the_model_s_map_of_a_training_batch(pico, data, tmp_path, pack_samples):
    model, processor = pico
    path = tmp_path / "rows.jsonl"
    alone = {"id": "t", "messages": [said("user", "Hi"), said("assistant", "Hello to you.")]}
    rows = [row(str(n), f"images/{n // 2}.png", f"What {n}?", "cup " * n) for n in range(1, 4)]
    write_lines(path, [*rows, alone])
    groups = group_examples(read_examples([path], data), 10)
    collate = QuestionCollator(
        processor, processor.chat_template, PixelEncoder(processor), 2048, pack_samples=pack_samples
    )
    inputs = collate(groups)
    batch = inputs["batch"]
    config = model.model.language_model.config
    with torch.no_grad():
        features = encode_pictures(model, inputs["pictures"])
        produced = model.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=decoder_mask(batch.segments, config, torch.float32, model.device),
            mm_encoder_outputs={"image": features},
            text_map=batch.token_map,
            use_cache=False,
        ).token_map
    for column in TEXT_COLUMNS:
        assert torch.equal(TOKEN.get(produced, column), TOKEN.get(batch.token_map, column)), column
    visual = batch.input_ids == processor.image_token_id
    assert torch.equal(TOKEN.get(produced, "media") >= 0, visual)
    assert int((TOKEN.get(produced, "kind") != TokenKind.PAD).sum()) == batch.tokens
    learned = TOKEN.get(produced, "role") == TextRole.ASSISTANT
    assert torch.equal(batch.input_ids[learned], batch.targets)
    samples = TOKEN.get(produced, "sample")
    assert int(samples.max()) == (2 if pack_samples else 0)
    branches = TOKEN.get(produced, "branch")
    assert {int(b) for b in branches.unique()} == {-1, 0, 1}  # two questions about picture 1
