"""Several different samples in one row: the same results, nothing leaks, nothing is halved."""

import copy

import pytest
import torch
from PIL import Image

from vistoken.core.errors import DataError
from vistoken.core.objectives import Clock
from vistoken.data.reading import BadSamples
from vistoken.train.metrics import Meter
from vistoken.train.microbatch import TrainBatch
from vistoken.train.objectives.next_token import NextToken
from vistoken.train.packing import IGNORE, Row, fit_rows, join, pack
from vistoken.train.samples import PixelEncoder, QuestionCollator, group_examples, read_examples

from .conftest import row, write_lines


def text(words):
    return {"type": "text", "text": words}


def image(number):
    return {"type": "image", "path": f"images/{number}.png"}


def talk(name, *rounds):
    messages = []
    for question, answer in rounds:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": [text(answer)]})
    return {"id": name, "messages": messages}


@pytest.fixture
def read(data, tmp_path):
    """Rows -> groups."""

    def groups(*rows):
        path = tmp_path / "rows.jsonl"
        write_lines(path, rows)
        return group_examples(read_examples([path], data), 10)

    return groups


@pytest.fixture
def mixed(read):
    """Two questions about a picture, one text-only, one of two pictures, one of two rounds."""
    return read(
        row("a", "images/0.png", "What is it?", "cup"),
        row("b", "images/0.png", "Is there a dog?", "no"),
        talk("c", ([text("Say something long about cups.")], "Cups hold tea and coffee.")),
        talk("d", ([image(1), image(2), text("Are they alike?")], "no")),
        talk("e", ([image(3), text("What?")], "cup"), ([image(0), text("And this?")], "a cup")),
    )


@pytest.fixture
def collator(pico):
    _, processor = pico

    def make(max_length=2048, **options):
        encode = PixelEncoder(processor)
        return QuestionCollator(processor, processor.chat_template, encode, max_length, **options)

    return make


def gradients(model, inputs):
    model = copy.deepcopy(model).requires_grad_(True)
    loss = NextToken().loss(TrainBatch(model, inputs, Meter(), Clock(0, 1, 0.0)))
    loss.mean.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss, grads


@pytest.mark.parametrize("budget", [2048, 150])
def test_packed_samples_have_the_loss_and_gradients_of_padded_ones(pico, collator, mixed, budget):
    apart, together = collator(budget)(mixed), collator(budget, pack_samples=True)(mixed)
    assert apart["batch"].input_ids.shape[0] == 4
    assert together["batch"].input_ids.shape[0] < 4
    assert together["batch"].tokens == apart["batch"].tokens
    expected, expected_grads = gradients(pico[0], apart)
    loss, grads = gradients(pico[0], together)
    assert loss.targets == expected.targets
    torch.testing.assert_close(loss.mean, expected.mean, atol=1e-5, rtol=1e-5)
    assert set(grads) == set(expected_grads)
    assert any("vision_tower" in name for name in grads)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], atol=1e-5, rtol=1e-4)


def test_a_neighbour_that_holds_the_answer_changes_nothing(pico):
    model, _ = pico
    question = pack([Row([3, 10, 11, 50, 2], [IGNORE] * 3 + [50, 2], 0)])
    losses = []
    for neighbour in ([7, 8, 9, 14, 2], [50, 50, 50, 50, 50]):
        before = pack([Row(neighbour, [IGNORE] * 3 + neighbour[3:], 0)])
        packed = join([before, question])
        with torch.no_grad():
            hidden = model.model(
                input_ids=packed.input_ids[None],
                position_ids=packed.position_ids[None],
                attention_mask=packed.mask()[None, None],
                use_cache=False,
            ).last_hidden_state[0]
        losses.append(hidden[packed.sources][packed.rows == 1])
    assert torch.equal(losses[0], losses[1])


def test_joined_sequences_keep_positions_targets_and_blocks():
    a = pack([Row([1, 2, 3], [IGNORE, IGNORE, 3], 0), Row([1, 2, 4], [IGNORE, IGNORE, 4], 0)])
    b = pack([Row([5, 6], [IGNORE, 6], 0)])
    joined = join([a, b, a])
    assert joined.position_ids.tolist() == [0, 1, 2, 2, 0, 1, 0, 1, 2, 2]
    assert joined.sample.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert joined.targets.tolist() == [3, 4, 6, 3, 4]
    assert joined.sources.tolist() == [1, 1, 4, 7, 7]
    assert joined.rows.tolist() == [0, 1, 2, 3, 4]
    expected = torch.block_diag(a.mask().int(), b.mask().int(), a.mask().int()).bool()
    assert torch.equal(joined.mask(), expected)


def test_rows_are_filled_longest_first_and_none_overflows():
    assert fit_rows([3, 8, 5, 2], 10) == [[0, 2], [1, 3]]
    assert fit_rows([30, 8], 10) == [[0], [1]]
    assert fit_rows([], 10) == []


ROUNDS = tuple(([text(f"Question {n}?")], "cup " * 6) for n in range(4))


def test_rounds_are_dropped_at_the_end(collator, read):
    groups = read(talk("a", *ROUNDS))
    whole = collator()(groups)
    limit = whole["batch"].tokens - 1
    make = collator(limit, too_long="drop-turns")
    batch = make(groups)["batch"]
    assert batch.tokens <= limit
    assert len(batch.targets) == len(whole["batch"].targets) * 3 // 4
    assert (make.make.counts.turns, make.make.counts.samples) == (1, 0)


def test_a_dropped_round_takes_its_picture_along(pico, collator, read):
    groups = read(talk("a", ([image(0), text("What?")], "cup"), ([image(1), text("?")], "no")))
    whole = collator()(groups)
    inputs = collator(whole["batch"].tokens - 1, too_long="drop-turns")(groups)
    placeholders = int((inputs["batch"].input_ids == pico[0].config.image_token_id).sum())
    expected = int((whole["batch"].input_ids == pico[0].config.image_token_id).sum())
    assert placeholders == expected // 2
    assert gradients(pico[0], inputs)[0].targets > 0


@pytest.mark.parametrize("policy", ["drop-turns", "drop-sample"])
def test_a_sample_that_cannot_be_shortened_goes_and_is_counted(pico, collator, read, policy):
    groups = read(talk("a", ROUNDS[0]), talk("b", ([text("Why?")], "no")))
    lengths = [collator()([group])["batch"].tokens for group in groups]
    make = collator(lengths[1], too_long=policy)
    assert make(groups)["batch"].tokens == lengths[1]
    assert make.make.counts.samples == 1
    nothing = make(groups[:1])
    assert nothing["batch"] is None
    loss, grads = gradients(pico[0], nothing)
    assert (loss.mean.item(), loss.targets) == (0, 0)
    assert all(not grad.any() for grad in grads.values())


def test_too_long_is_an_error_unless_told_otherwise(collator, read):
    with pytest.raises(DataError, match=r"'a'.*max_length is 8"):
        collator(8)(read(talk("a", ROUNDS[0])))


def test_a_broken_picture_is_skipped_with_its_samples(collator, read, data, tmp_path):
    Image.new("RGB", (8, 8)).save(data / "images" / "broken.png")
    groups = read(
        row("a", "images/broken.png", "What?", "cup"), row("b", "images/1.png", "What?", "cup")
    )
    (data / "images" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        collator()(groups)
    bad = BadSamples("skip")
    batch = collator(bad=bad)(groups)["batch"]
    assert (bad.skipped, len(batch.kinds)) == (1, 1)
    assert "'a'" in bad.first[0]
