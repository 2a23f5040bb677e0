"""Chunked cross-entropy: the same loss and gradients in a fraction of the memory."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vistoken.train.loss import chunk_rows, summed_cross_entropy, summed_divergence


def both(rows, targets=37, width=16, vocabulary=50):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(targets, width, generator=generator, dtype=torch.float64)
    wanted = torch.randint(vocabulary, (targets,), generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)

    def run(loss_of):
        states = hidden.clone().requires_grad_()
        head = nn.Linear(width, vocabulary, bias=False, dtype=torch.float64)
        head.weight = nn.Parameter(weight.clone())
        loss, predicted = loss_of(head, states)
        loss.backward()
        return loss.detach(), states.grad, head.weight.grad, predicted

    def full(head, states):
        logits = head(states)
        return F.cross_entropy(logits, wanted, reduction="sum"), logits.argmax(-1)

    return run(lambda h, s: summed_cross_entropy(h, s, wanted, rows)), run(full)


@pytest.mark.parametrize("rows", [1, 10, 36, 37, 100])
def test_loss_and_gradients_equal_those_of_full_logits(rows):
    (loss, states, weight, predicted), expected = both(rows)
    torch.testing.assert_close(loss.double(), expected[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(states, expected[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(weight, expected[2], atol=1e-6, rtol=1e-6)
    assert torch.equal(predicted, expected[3])


def test_a_frozen_head_still_passes_the_gradient_on():
    head = nn.Linear(4, 9, bias=False).requires_grad_(False)
    states = torch.randn(6, 4, requires_grad=True)
    loss, _ = summed_cross_entropy(head, states, torch.arange(6), rows=2)
    loss.backward()
    assert states.grad.abs().sum(-1).gt(0).all()


def test_rows_of_a_slice_follow_the_vocabulary():
    assert chunk_rows(32_000, 1 << 27) == 1048
    assert chunk_rows(128_256, 1 << 27) == 261
    assert chunk_rows(10**9, 1 << 20) == 1


@pytest.mark.parametrize("rows", [1, 10, 37])
def test_divergence_from_an_earlier_head_equals_that_of_full_logits(rows):
    """The head has moved as well: its weight then is not its weight now."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (37, 37, 50, 50)]
    states, before, now, then = drawn
    head = nn.Linear(16, 50, bias=False, dtype=torch.float64)
    head.weight = nn.Parameter(now.clone())

    @contextmanager
    def earlier():
        head.weight.data = then
        yield
        head.weight.data = now

    states.requires_grad_()
    found = summed_divergence(head, states, before, earlier, rows)
    found.backward()
    mine = states.detach().clone().requires_grad_()
    weight = now.clone().requires_grad_()
    wanted = torch.log_softmax(before @ then.T, -1)
    expected = (wanted.exp() * (wanted - torch.log_softmax(mine @ weight.T, -1))).sum()
    expected.backward()
    assert found.item() > 1
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(states.grad, mine.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.weight.grad, weight.grad, atol=1e-4, rtol=1e-5)
