"""Packed rows under flex attention: the same structure, states, loss and gradients as under sdpa.

Flex attention's kernels have a backward pass on CUDA only. Here its unfused form runs, with the
block mask of the run; what the fused kernels make of that mask needs a GPU.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention

from vistoken.core.errors import MachineError, UsageError
from vistoken.core.objectives import Clock
from vistoken.train.attention import choose_attention
from vistoken.train.masks import PREFIX, Segments
from vistoken.train.metrics import Meter
from vistoken.train.microbatch import TrainBatch
from vistoken.train.objectives.next_token import NextToken
from vistoken.train.packing import IGNORE, Row, batch_packed, join, pack
from vistoken.train.run import train

from .stages import JOINT, configuration

CUDA = torch.device("cuda")
ROWS = st.lists(  # rows of a batch; samples of a row; branches of a sample; lengths of these
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=3),
    min_size=1,
    max_size=2,
)


def sample(prefix, branches):
    head = list(range(3, 3 + prefix))
    rows = []
    for number, length in enumerate(branches):
        body = [100 + number, *[7] * length]
        rows.append(Row([*head, *body], [IGNORE] * prefix + body, 0))
    return pack(rows)


def materialised(segments):
    """What flex attention would compute: blocks marked full, and the rule in the partial ones."""
    blocks = segments.blocks()
    b, n = segments.sample.shape
    rule = flex_attention.create_mask(segments.rule(), b, 1, n, n, device="cpu")
    size = blocks.BLOCK_SIZE[0]
    block_of = torch.arange(n) // size
    computed = blocks.to_dense()[:, :, block_of][..., block_of].bool()
    return rule & computed


@settings(max_examples=10, deadline=None)
@given(ROWS, st.integers(1, 150))
def test_the_block_mask_is_the_dense_mask(rows, prefix):
    packed = [join([sample(prefix, branches) for branches in row]) for row in rows]
    segments = batch_packed(packed, 0).segments
    expected = segments.dense()
    for number, row in enumerate(packed):  # by the definition, one position at a time
        n = len(row.input_ids)
        places = range(0, n, max(n // 6, 1))
        for q in places:
            for k in places:
                seen = k <= q and row.sample[k] == row.sample[q]
                seen = seen and (row.branch[k] in (PREFIX, row.branch[q]))
                assert expected[number, 0, q, k] == bool(seen)
    assert torch.equal(materialised(segments), expected)


def test_blocks_that_nobody_sees_are_not_computed():
    ids = torch.arange(4).repeat_interleave(128)[None]
    blocks = Segments(ids, torch.full_like(ids, PREFIX)).blocks()
    assert torch.equal(blocks.to_dense()[0, 0], torch.eye(4).int())


@pytest.fixture
def flex(pico):
    model = copy.deepcopy(pico[0])
    model.model.language_model.set_attn_implementation("flex_attention")
    return model


@pytest.fixture
def unfused(monkeypatch):
    """Flex attention without its kernels: dense arithmetic, which has a backward pass here too."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def inputs(pico):
    questions = [sample(9, [3, 5, 2]), sample(4, [6])]
    batch = batch_packed([join(questions), sample(30, [4, 4])], 0)
    return {"batch": batch, "pictures": None}


def loss_and_gradients(model, inputs):
    model = copy.deepcopy(model).requires_grad_(True)
    loss = NextToken().loss(TrainBatch(model, inputs, Meter(), Clock(0, 1, 0.0)))
    loss.mean.backward()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_those_of_sdpa(pico, flex, inputs, unfused):
    expected, expected_grads = loss_and_gradients(pico[0], inputs)
    loss, grads = loss_and_gradients(flex, inputs)
    torch.testing.assert_close(loss.mean, expected.mean, atol=1e-5, rtol=1e-5)
    assert grads.keys() == expected_grads.keys()
    assert any("self_attn.q_proj" in name for name in grads)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], atol=1e-5, rtol=1e-4)


def test_without_its_mask_the_loss_would_differ(flex, inputs, unfused, monkeypatch):
    """The comparison above can fail: plain causal attention lets neighbours see each other."""
    masked = loss_and_gradients(flex, inputs)[0].mean
    segments = inputs["batch"].segments
    same = Segments(torch.zeros_like(segments.sample), torch.zeros_like(segments.branch))
    monkeypatch.setattr(Segments, "blocks", lambda _: flex_blocks(same))
    leaking = loss_and_gradients(flex, inputs)[0].mean
    assert abs(leaking - masked) > 1e-4


def flex_blocks(segments):
    b, n = segments.sample.shape
    return flex_attention.create_block_mask(segments.rule(), b, None, n, n, device="cpu")


def test_flex_never_becomes_something_else(pico, data, tmp_path):
    with pytest.raises(MachineError, match="no backward pass there; set attention: sdpa"):
        train(configuration(data, tmp_path / "a", [JOINT | {"needs": None}], attention="flex"))
    model = copy.deepcopy(pico[0])
    with pytest.raises(UsageError, match="heads of at least 16 channels"):
        choose_attention(model, "flex", CUDA)
    config = model.model.language_model.config
    config.attention_dropout = 0.1
    with pytest.raises(UsageError, match="knows no dropout"):
        choose_attention(model, None, CUDA)
    choose_attention(model, "sdpa", CUDA)
    assert config._attn_implementation == "sdpa"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernels_give_the_same_on_a_gpu(pico, inputs):
    from vistoken.models.build import build
    from vistoken.models.recipe import load_recipe

    recipe = load_recipe("pico")
    wide = {**recipe.language_model.config, "hidden_size": 64, "num_attention_heads": 2}
    recipe.language_model.config.update(wide)
    model = build(recipe)[0].cuda()
    expected, expected_grads = loss_and_gradients(model, inputs)
    choose_attention(model, "flex", CUDA)
    loss, grads = loss_and_gradients(model, inputs)
    torch.testing.assert_close(loss.mean, expected.mean, atol=1e-5, rtol=1e-4)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], atol=1e-4, rtol=1e-3)
