import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vistoken.train.config import StageConfig
from vistoken.train.groups import apply_groups
from vistoken.train.masks import decoder_mask
from vistoken.train.packing import IGNORE, Row, batch_packed, pack, shared_prefix
from vistoken.train.samples import (
    PixelEncoder,
    QuestionCollator,
    group_examples,
    read_examples,
)

IMAGE = 420


def make_row(question, answer, head=(3, IMAGE, IMAGE, 4)):
    ids = [*head, *question, *answer]
    labels = [IGNORE] * (len(head) + len(question)) + list(answer)
    return Row(ids, labels, 3)


def loss_of(model, packed_batch, features=None):
    core = model.model
    ids = packed_batch.input_ids
    named = (
        {"input_ids": ids}
        if features is not None
        else {"inputs_embeds": core.get_input_embeddings()(ids)}  # placeholders stay unfilled
    )
    hidden = core(
        **named,
        position_ids=packed_batch.position_ids,
        attention_mask=decoder_mask(
            packed_batch.segments, core.language_model.config, torch.float32, ids.device
        ),
        mm_encoder_outputs=features,
        use_cache=False,
    ).last_hidden_state.flatten(0, 1)
    logits = model.lm_head(hidden[packed_batch.sources])
    return F.cross_entropy(logits, packed_batch.targets, reduction="none")


@pytest.fixture
def collate(pico, data):
    _, processor = pico
    return QuestionCollator(processor, processor.chat_template, PixelEncoder(processor), 2048)


@pytest.fixture
def groups(data):
    return group_examples(read_examples([data / "train.jsonl"], None), 10)


def image_features(model, inputs):
    pictures = inputs["pictures"]
    return {
        "image": model.get_image_features(
            pixel_values=pictures.pixel_values, view_table=pictures.view_table
        )
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_loss_equals_one_question_at_a_time(pico, collate, groups, attention):
    model = copy.deepcopy(pico[0])
    model.set_attn_implementation(attention)
    together = collate(groups[:1])
    packed = loss_of(model, together["batch"], image_features(model, together))

    single = []
    for number, example in enumerate(groups[0].examples):
        alone = collate([type(groups[0])(groups[0].images, (example,))])
        ids = alone["batch"].input_ids
        # the stock way: a causal mask, positions from 0, labels shifted by one
        start = ids.shape[1] - int((together["batch"].rows == number).sum())
        logits = model(
            input_ids=ids,
            pixel_values=alone["pictures"].pixel_values,
            view_table=alone["pictures"].view_table,
        ).logits[0, start - 1 : -1]
        single.append(F.cross_entropy(logits, ids[0, start:], reduction="none"))
    torch.testing.assert_close(packed, torch.cat(single), atol=1e-5, rtol=1e-5)


def test_packed_gradients_equal_those_of_single_questions(pico, collate, groups):
    stage = StageConfig.model_validate(
        {
            "name": "a",
            "steps": 1,
            "groups": {"connector": {"train": "full"}, "language": {"train": "full"}},
        }
    )

    def gradient(batches):
        model = copy.deepcopy(pico[0])
        apply_groups(model, stage)
        for inputs in batches:
            loss_of(model, inputs["batch"], image_features(model, inputs)).sum().backward()
        return model.model.multi_modal_projector.get_parameter(
            "llava-sp.patch_projector.linear_1.weight"
        ).grad

    group = groups[0]
    alone = [collate([type(group)(group.images, (example,))]) for example in group.examples]
    torch.testing.assert_close(gradient([collate([group])]), gradient(alone), atol=1e-5, rtol=1e-4)


def test_no_branch_sees_its_neighbour(pico):
    """The neighbour says the answer aloud; nothing about the first branch may change."""
    model, _ = pico
    question = make_row([10, 11], [50, 2])
    with torch.no_grad():
        losses = [
            loss_of(model, batch_packed([pack([question, neighbour])], 0))[:2]
            for neighbour in (make_row([12, 13], [14, 2]), make_row([50, 50], [50, 50, 2]))
        ]
    assert torch.equal(losses[0], losses[1])


def test_padding_changes_nothing(pico):
    model, _ = pico
    short, long = pack([make_row([10], [50])]), pack([make_row([10, 11, 12], [50, 51, 2])] * 3)
    with torch.no_grad():
        both = loss_of(model, batch_packed([short, long], 0))
        alone = torch.cat([loss_of(model, batch_packed([s], 0)) for s in (short, long)])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)


def test_the_prefix_predicts_the_first_token_of_several_branches():
    packed = pack([make_row([], [50, 2]), make_row([], [60, 61])])
    assert packed.input_ids.tolist() == [3, IMAGE, IMAGE, 4, 50, 2, 60, 61]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 4, 5]
    assert packed.sources.tolist() == [3, 4, 3, 6]
    assert packed.targets.tolist() == [50, 2, 60, 61]
    assert packed.rows.tolist() == [0, 0, 1, 1]


def test_other_text_before_the_picture_is_refused():
    with pytest.raises(ValueError, match="same text before"):
        pack([make_row([1], [2]), make_row([1], [2], head=(9, IMAGE, IMAGE, 4))])


tokens = st.lists(st.integers(0, 5), max_size=4)


@given(st.lists(st.tuples(tokens, tokens.filter(bool)), min_size=1, max_size=5))
def test_every_branch_keeps_its_tokens_positions_and_targets(pairs):
    rows = [make_row(question, answer) for question, answer in pairs]
    packed = pack(rows)
    prefix = shared_prefix(rows)
    assert prefix >= 3
    mask = packed.mask()
    for number, row in enumerate(rows):
        seen = torch.nonzero((packed.branch == number) | (packed.branch == -1)).flatten()
        assert packed.input_ids[seen].tolist() == row.input_ids
        assert packed.position_ids[seen].tolist() == list(range(len(row.input_ids)))
        # within a branch the mask is the causal one, outside it is empty
        assert torch.equal(
            mask[seen][:, seen], torch.ones(len(seen), len(seen), dtype=torch.bool).tril()
        )
        own = torch.nonzero(packed.branch == number).flatten()
        others = torch.nonzero((packed.branch != number) & (packed.branch != -1)).flatten()
        assert not mask[own][:, others].any()
        assert packed.targets[packed.rows == number].tolist() == [
            label for label in row.labels if label != IGNORE
        ]
        # each source is the position just before its target, in the branch's own counting
        places = packed.position_ids[packed.sources[packed.rows == number]] + 1
        supervised = [i for i, label in enumerate(row.labels) if label != IGNORE]
        assert places.tolist() == supervised
