"""Rows over the length limit lose whole rounds or go; nothing is ever cut inside one."""

import pytest

from vistoken.core.errors import DataError
from vistoken.data.bad_samples import BadSamples
from vistoken.data.labels import IGNORE_LABEL
from vistoken.train.examples import Example
from vistoken.train.labelling import ExactLabels
from vistoken.train.rows import RowMaker

COUNTS = [9, 4, 6]
ANSWERS = ["a cup", "two cups", "no"]


def conversation(images_by_round):
    messages = []
    for number, images in enumerate(images_by_round):
        content = [{"type": "image", "path": "x.png"}] * images
        content = [*content, {"type": "text", "text": f"Question {number}?"}]
        messages.append({"role": "user", "content": content})
        answer = [{"type": "text", "text": ANSWERS[number]}]
        messages.append({"role": "assistant", "content": answer})
    return Example("rows.jsonl, line 3: sample 'long'", messages, (), "", "long")


@pytest.fixture
def maker(pico):
    _, processor = pico
    label = ExactLabels(processor, processor.chat_template)

    def make(limit, too_long, **options):
        return RowMaker(label, limit, too_long, **options)

    return make


def learned(processor, row):
    return processor.tokenizer.decode([n for n in row.labels if n != IGNORE_LABEL])


@pytest.mark.parametrize("images", [(0, 0, 0), (3, 0, 0), (1, 1, 1), (0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("policy", ["drop-turns", "drop-sample"])
def test_whatever_the_limit_rounds_and_pictures_stay_whole(pico, maker, images, policy):
    _, processor = pico
    example, counts = conversation(images), COUNTS[: sum(images)]
    whole = maker(10_000, "error")(example, counts, keep_images=False).row
    lengths = [  # of the first one, two, three rounds
        len(
            maker(10_000, "error")(
                conversation(images[:rounds]), counts[: sum(images[:rounds])], keep_images=False
            ).row.input_ids
        )
        for rounds in (1, 2, 3)
    ]
    assert lengths[-1] == len(whole.input_ids)
    edges = {edge for length in lengths for edge in (length - 1, length)}
    for limit in sorted({*edges, *range(lengths[0] - 5, lengths[-1] + 1, 25)}):
        told = []
        make = maker(limit, policy, bad=BadSamples("error", told.append))
        made = make(example, counts, keep_images=False)
        rounds = sum(length <= limit for length in lengths)
        if policy == "drop-sample" and rounds < 3:
            rounds = 0
        if not rounds:
            assert made is None
            assert (make.counts.turns, make.counts.samples) == (0, 1)
            assert [(one.reason, one.sample) for one in told] == [("too_long_samples", "long")]
            continue
        assert len(made.row.input_ids) == lengths[rounds - 1] <= limit
        assert made.images == sum(images[:rounds])
        shown = made.row.input_ids.count(processor.image_token_id)
        assert shown == sum(counts[: made.images])
        text = learned(processor, made.row)
        assert [answer in text for answer in ANSWERS] == [n < rounds for n in range(3)]
        assert made.row.input_ids == whole.input_ids[: len(made.row.input_ids)]
        assert (make.counts.turns, make.counts.samples) == (3 - rounds, 0)
        assert sum(one.count for one in told) == 3 - rounds


def test_pictures_that_others_share_are_never_dropped(maker):
    example = conversation((1, 1, 0))
    whole = maker(10_000, "error")(example, COUNTS[:2], keep_images=True).row
    without_text = maker(len(whole.input_ids) - 1, "drop-turns")
    assert without_text(example, COUNTS[:2], keep_images=True).images == 2
    two = len(without_text(example, COUNTS[:2], keep_images=True).row.input_ids)
    without_picture = maker(two - 1, "drop-turns")
    assert without_picture(example, COUNTS[:2], keep_images=True) is None
    assert without_picture(example, COUNTS[:2], keep_images=False).images == 1
    assert without_picture.counts.samples == 1


def test_an_error_names_sample_length_and_ways_out(maker):
    says = r"line 3: sample 'long': \d+ tokens, max_length is 20; .*drop-turns or drop-sample"
    with pytest.raises(DataError, match=says):
        maker(20, "error")(conversation((1, 1, 1)), COUNTS, keep_images=False)


def test_a_sample_without_a_supervised_token_stops_the_run_by_name(maker):
    example = conversation((0,))
    mute = Example(example.where, example.messages[:1], (), "", "long")
    with pytest.raises(DataError, match=r"line 3: sample 'long': no token would be supervised"):
        maker(100, "drop-turns")(mute, [], keep_images=False)
    told = []
    skipping = maker(100, "drop-turns", bad=BadSamples("skip", told.append))
    assert skipping(mute, [], keep_images=False) is None
    assert [(one.reason, one.sample) for one in told] == [("bad_samples", "long")]
    assert skipping.bad.skipped == 1
