"""NAAViT: visual tokens pass the FFN and ask nothing, or only themselves, or the text before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from vistoken.models.decoder import MechanismStack, SparseCache
from vistoken.systems.saisa.config import NaavitConfig
from vistoken.systems.saisa.naavit import Naavit

from .conftest import WIDTH
from .prompts import make_prompts
from .reference import naavit_hidden

CLOSE = {"rtol": 0, "atol": 1e-5}
OPTIONS = [(False, False), (True, False), (False, True), (True, True)]
BATCHES = {
    "one": [[3, -9, 5]],
    "first": [[-9, 4]],
    "mixed": [[7], [1, -4, 2, -4, 2], [-9, 2]],
}


def stack_of(own: bool, text: bool) -> MechanismStack:
    return MechanismStack([Naavit(NaavitConfig(naavit_self=own, naavit_text=text))])


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("own", "text"), OPTIONS)
def test_equals_the_reference(gqa: Any, own: bool, text: bool, batch: str, padding: str) -> None:
    prompts = make_prompts(BATCHES[batch], WIDTH, padding)
    embeds = prompts.call(gqa.model.embed_tokens)["inputs_embeds"]
    with torch.no_grad():
        found = gqa(prompts, stack=stack_of(own, text)).last_hidden_state
        expected = naavit_hidden(gqa.model, prompts, embeds, own=own, text=text)
    rows = prompts.mask == 1  # visual rows too: here they are hidden states like any other
    torch.testing.assert_close(found[rows], expected[rows], **CLOSE)


@pytest.mark.parametrize(("own", "text"), OPTIONS)
def test_cached_decoding_equals_one_pass(gqa: Any, own: bool, text: bool) -> None:
    """In two parts, the second with an image of its own."""
    whole = make_prompts([[3, -4, 2, -9, 6]], WIDTH)
    inputs = whole.call(gqa.model.embed_tokens)
    stack = stack_of(own, text)
    with torch.no_grad():
        expected = gqa(whole, stack=stack).last_hidden_state
        cache = SparseCache(3) if stack.own_cache else DynamicCache(config=gqa.model.config)
        for start, stop in ((0, 8), (8, 20), (20, 21), (21, 24)):
            part = gqa(
                whole,
                stack=stack,
                inputs_embeds=inputs["inputs_embeds"][:, start:stop],
                attention_mask=whole.mask[:, :stop],
                position_ids=whole.positions[:, start:stop],
                token_map=whole.table[:, start:stop],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            torch.testing.assert_close(part, expected[:, start:stop], **CLOSE)


def test_text_alone_is_the_stock_model(gqa: Any) -> None:
    prompts = make_prompts([[6]], WIDTH)
    with torch.no_grad():
        found = gqa(prompts, stack=stack_of(True, True)).last_hidden_state
        assert torch.equal(found, gqa.model(prompts.ids).last_hidden_state)


def test_options_differ(gqa: Any) -> None:
    prompts = make_prompts([[3, -9, 5]], WIDTH)
    with torch.no_grad():
        results = [gqa(prompts, stack=stack_of(*o)).last_hidden_state[:, -1] for o in OPTIONS]
    for number, one in enumerate(results):
        assert all((one - other).abs().max() > 1e-4 for other in results[:number])


def test_a_recipe_names_it(build_pico: Any, picture: Any) -> None:
    """Without weights of its own, on any connector: it reads no encoder features."""
    chain = ["mlp", {"part": "pool", "options": {"grid": [2, 2]}}]
    options = {"naavit_self": True, "naavit_text": True}
    model, processor = build_pico(
        connector=chain, mechanisms=[{"part": "naavit", "options": options}]
    )
    assert not any("mechanisms" in name for name in model.state_dict())
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(text=text, images=[picture(40, 56, 1)], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 4
