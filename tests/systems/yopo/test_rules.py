"""YOPO's plans against a slow reference and the released code's numbers."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.systems.yopo.neighbours import neighbours, visual_rows

from .conftest import KEEP
from .reference import near_of, prompt_table, reference

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
MASK = torch.tensor([[int(d) for d in row] for row in KEEP])


def released(golden, name):
    """Model, tensors, table and options of a golden case."""
    folder = golden / "yopo"
    case = json.loads((folder / f"{name}.json").read_text())["config"]
    tensors = load_file(folder / f"{name}.safetensors")
    names = ("image_start", "grid", "window", "layer_cut", "mlp_cut_ratio")
    start, grid, window, cut, ratio = (case.pop(k) for k in names)
    model = LlamaForCausalLM(LlamaConfig(**case)).eval()
    weights = {k.removeprefix("w."): v for k, v in tensors.items() if k.startswith("w.")}
    missing, unexpected = model.load_state_dict(weights, strict=True)
    assert not missing
    assert not unexpected
    text = tensors["inputs_embeds"].shape[1] - start - grid[0] * grid[1]
    table = prompt_table(start, tuple(grid), text)
    keep = ["".join(str(int(v)) for v in row) for row in tensors["head_keep"].tolist()]
    options = {"window": window, "layer_cut": cut, "mlp_ratio": ratio, "head_keep": keep}
    return model, tensors, table, options


@pytest.mark.parametrize("name", ["model_a", "model_b", "model_c"])
def test_logits_of_the_release(golden, yopo, run, name):
    model, tensors, table, options = released(golden, name)
    embeds = tensors["inputs_embeds"]
    batch = len(embeds)
    tables = torch.stack(
        [TOKEN.set(table, media=torch.where(TOKEN.get(table, "media") >= 0, b, -1))
         for b in range(batch)]
    )  # fmt: skip
    mechanism = yopo(model, mode="exact", **options)
    logits, out = run(model, mechanism, inputs_embeds=embeds, token_map=tables, use_cache=True)
    torch.testing.assert_close(logits, tensors["prefill_logits"], rtol=0, atol=2e-4)
    steps = []
    for ids in tensors["decode_ids"].unbind(1):
        step, out = run(
            model,
            mechanism,
            input_ids=ids[:, None],
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        steps.append(step)
    if steps:
        decoded = torch.cat(steps, dim=1)
        torch.testing.assert_close(decoded, tensors["decode_logits"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["model_a", "model_b", "model_c"])
def test_neighbours_of_the_release(golden, name):
    _, tensors, table, options = released(golden, name)
    visual = visual_rows(table[None], [TokenKind.VISUAL])
    near = neighbours(table[None], visual, options["window"])[0]
    block = near[visual[0]][:, visual[0]]
    assert torch.equal(block, tensors["local_allowed"].bool())
    assert near.sum() == block.sum()


@pytest.mark.parametrize("name", ["model_a", "model_c"])
def test_the_reference_is_the_release(golden, name):
    model, tensors, table, options = released(golden, name)
    keep = tensors["head_keep"]
    _, logits = reference(
        model,
        tensors["inputs_embeds"][0],
        table,
        window=options["window"],
        cut=options["layer_cut"],
        keep=keep,
        ratio=options["mlp_ratio"],
    )
    torch.testing.assert_close(logits, tensors["prefill_logits"][0], rtol=0, atol=2e-4)


def test_corner_edge_and_inner_neighbours():
    table = prompt_table((4, 4))
    visual = visual_rows(table[None], [TokenKind.VISUAL])
    near = neighbours(table[None], visual, 3)[0]
    assert torch.equal(near, near.T)
    assert near.sum(1).tolist() == [4, 6, 6, 4, 6, 9, 9, 6, 6, 9, 9, 6, 4, 6, 6, 4]


@pytest.mark.parametrize("window", [1, 3, 7])
def test_neighbours_stay_in_their_picture_on_any_grid(window):
    table = prompt_table(2, (2, 5), 1, (3, 2), 2)
    visual = visual_rows(table[None], [TokenKind.VISUAL])
    near = neighbours(table[None], visual, window)[0]
    assert torch.equal(near, near_of(table, window))


def test_square_pictures_need_no_places():
    table = prompt_table(1, (3, 3), 1, (2, 2))
    blank = TOKEN.set(table, row=-1, col=-1)
    visual = visual_rows(table[None], [TokenKind.VISUAL])
    with_places = neighbours(table[None], visual, 3)
    assert torch.equal(neighbours(blank[None], visual, 3), with_places)
    oblong = TOKEN.set(prompt_table(1, (2, 3)), row=-1, col=-1)[None]
    visual = visual_rows(oblong, [TokenKind.VISUAL])
    with pytest.raises(UsageError, match="6 visual tokens without row and column"):
        neighbours(oblong, visual, 3)


CASES = [
    {"mode": "exact", "window": 3, "layer_cut": 2, "head_keep": KEEP, "mlp_ratio": 4},
    {"mode": "exact", "window": 3, "causal_local": True, "head_keep": KEEP},
    {"mode": "exact", "layer_cut": 0},
    {"mode": "drop", "window": 3, "layer_cut": 2, "head_keep": KEEP, "mlp_ratio": 2},
    {"mode": "drop", "window": 5, "causal_local": True, "layer_cut": 3, "head_keep": KEEP},
    {"mode": "drop", "layer_cut": 0},
    {"mode": "training_free", "layer_cut": 3, "head_keep": KEEP},
]
PROMPTS = [
    [(3, 3), 4],  # a picture at the start
    [2, (2, 4), 3, (3, 2), 4],  # two pictures, not square
    [9],  # no picture
    [5, (4, 4), 3],
]


def expected(model, embeds, table, options, steps=0):
    """Rows and logits of one prompt by the reference."""
    names = {"layer_cut": "cut", "mlp_ratio": "ratio", "causal_local": "causal"}
    options = {names.get(k, k): v for k, v in options.items()}
    if "head_keep" in options:
        options["keep"] = MASK
        del options["head_keep"]
    return reference(model, embeds, torch.cat([table, TOKEN.make(steps)]), **options)


def batch_of(prompts, padding, width, generator):
    """Embeddings, padding mask and table of prompts, and each one's rows."""
    tables = [prompt_table(*p, media=10 * i) for i, p in enumerate(prompts)]
    rows = max(len(t) for t in tables)
    embeds = torch.randn(len(prompts), rows, width, generator=generator)
    mask = torch.zeros(len(prompts), rows, dtype=torch.int64)
    table = TOKEN.make(rows, kind=TokenKind.PAD).repeat(len(prompts), 1, 1)
    places = []
    for i, own in enumerate(tables):
        start = rows - len(own) if padding == "left" else 0
        place = slice(start, start + len(own))
        mask[i, place], table[i, place] = 1, own
        places.append(place)
    return embeds, mask, table, tables, places


def at_rows(logits, out, sample, rows):
    """Logits of the given rows of the call, wherever they are in the output."""
    if out.get("rows") is None:
        return logits[sample, rows]
    where = {int(r): i for i, r in enumerate(out.rows[sample]) if r >= 0}
    return torch.stack([logits[sample, where[int(r)]] for r in rows])


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("options", CASES, ids=lambda o: f"{o['mode']}-{len(o)}")
def test_batches_equal_the_reference(build, yopo, run, options, padding, family, cached):
    model = build(family)
    generator = torch.Generator().manual_seed(1)
    embeds, mask, table, tables, places = batch_of(PROMPTS, padding, 32, generator)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits, out = run(
        model,
        yopo(model, **options),
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=positions,
        token_map=table,
        use_cache=cached,
    )
    for sample, (own, place) in enumerate(zip(tables, places, strict=True)):
        left, wanted = expected(model, embeds[sample, place], own, options)
        produced = at_rows(logits, out, sample, left + place.start)
        torch.testing.assert_close(produced, wanted, **CLOSE)


@pytest.mark.parametrize("options", CASES, ids=lambda o: f"{o['mode']}-{len(o)}")
def test_decoding_equals_one_long_prompt(build, yopo, run, options):
    model = build()
    mechanism = yopo(model, **options)
    generator = torch.Generator().manual_seed(2)
    embeds, mask, table, tables, places = batch_of(PROMPTS, "left", 32, generator)
    steps = torch.randint(3, 40, (len(PROMPTS), 3), generator=generator)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    _, out = run(
        model,
        mechanism,
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=positions,
        token_map=table,
        use_cache=True,
    )
    decoded = []
    for number, ids in enumerate(steps.unbind(1)):
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.int64)], dim=1)
        logits, out = run(
            model,
            mechanism,
            input_ids=ids[:, None],
            attention_mask=mask,
            position_ids=positions[:, -1:] + 1 + number,
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        decoded.append(logits)
    decoded = torch.cat(decoded, dim=1)
    for sample, (own, place) in enumerate(zip(tables, places, strict=True)):
        more = model.model.embed_tokens(steps[sample])
        whole = torch.cat([embeds[sample, place], more])
        _, wanted = expected(model, whole, own, options, steps=3)
        torch.testing.assert_close(decoded[sample], wanted[-3:], **CLOSE)


def test_rows_without_pictures_are_the_stock_model(build, yopo, run):
    model = build()
    ids = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(3))
    mechanism = yopo(model, mode="exact", window=3, layer_cut=1, head_keep=KEEP, mlp_ratio=4)
    with torch.no_grad():
        stock = model(input_ids=ids).logits
    without, _ = run(model, mechanism, input_ids=ids)
    assert torch.equal(without, stock)
    text, _ = run(model, mechanism, input_ids=ids, token_map=TOKEN.make(9).repeat(2, 1, 1))
    assert torch.equal(text, stock)


def neutral(model, run, mechanism, embeds, table):
    return run(model, mechanism, inputs_embeds=embeds, token_map=table)[0]


@pytest.mark.parametrize("mode", ["exact", "drop"])
def test_neutral_settings(build, yopo, run, mode, family):
    """Everything kept: the dense model if causal, else one with a bidirectional picture."""
    model = build(family)
    table = prompt_table(2, (3, 4), 5)[None]
    embeds = torch.randn(1, 19, 32, generator=torch.Generator().manual_seed(4))
    options = {"mode": mode, "window": 7, "layer_cut": 4, "head_keep": ["1111"] * 4}
    with torch.no_grad():
        dense = model(inputs_embeds=embeds).logits
        allowed = torch.ones(19, 19, dtype=torch.bool).tril()
        allowed[2:14, 2:14] = True
        bidirectional = model(inputs_embeds=embeds, attention_mask=allowed[None, None]).logits
    causal = neutral(model, run, yopo(model, causal_local=True, **options), embeds, table)
    torch.testing.assert_close(causal, dense, **CLOSE)
    both_ways = neutral(model, run, yopo(model, **options), embeds, table)
    torch.testing.assert_close(both_ways, bidirectional, **CLOSE)
    assert (both_ways - dense).abs().max() > 1e-2


def test_exact_and_drop_at_layer_cut_0(build, yopo, run):
    """Exact: text depends on visual keys, not on values. Drop: on neither."""
    model = build()
    table = prompt_table(3, (3, 3), 4)[None]
    embeds = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(5))
    text = torch.cat([torch.arange(3), torch.arange(12, 16)])
    other = embeds.clone()
    other[:, 3:12] = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(6))

    def logits(mode, inputs):
        out_logits, out = run(
            model, yopo(model, mode=mode, layer_cut=0), inputs_embeds=inputs, token_map=table
        )
        return at_rows(out_logits, out, 0, text)

    assert (logits("exact", other) - logits("exact", embeds)).abs().max() > 1e-3  # keys
    torch.testing.assert_close(logits("drop", other), logits("drop", embeds), **CLOSE)
    with torch.no_grad():
        alone = model(inputs_embeds=embeds[:, text], position_ids=text[None]).logits[0]
    torch.testing.assert_close(logits("drop", embeds), alone, **CLOSE)
    before = logits("exact", embeds)
    with torch.no_grad():
        values = [layer.self_attn.v_proj for layer in model.model.layers]
        handles = [v.register_forward_hook(lambda m, i, o: _spoil(o)) for v in values]
    torch.testing.assert_close(logits("exact", embeds), before, **CLOSE)
    for handle in handles:
        handle.remove()


def _spoil(values):
    values = values.clone()
    values[:, 3:12] += 10.0
    return values


def test_drop_mode_drops_rows_and_cache(build, yopo, run):
    model = build()
    generator = torch.Generator().manual_seed(7)
    embeds, mask, table, tables, _ = batch_of(PROMPTS, "left", 32, generator)
    mechanism = yopo(model, mode="drop", layer_cut=2, head_keep=KEEP)
    _, out = run(
        model, mechanism, inputs_embeds=embeds, attention_mask=mask, token_map=table, use_cache=True
    )
    sizes = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    text = max(int((TOKEN.get(t, "kind") == TokenKind.TEXT).sum()) for t in tables)
    assert sizes == [embeds.shape[1]] * 2 + [text] * 2
    assert out.past_key_values.get_seq_length() == embeds.shape[1]


def test_training_gives_every_kept_weight_a_gradient(build, yopo, run):
    from vistoken.models.decoder import MechanismStack, run_decoder

    model = build()
    table = prompt_table(2, (3, 3), 5)[None]
    embeds = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(8), requires_grad=True)
    mechanism = yopo(model, window=3, layer_cut=2, head_keep=KEEP, mlp_ratio=2)
    out = run_decoder(
        model.model, stack=MechanismStack([mechanism]), inputs_embeds=embeds, token_map=table
    )
    out.last_hidden_state[:, -1].sum().backward()
    assert torch.isfinite(embeds.grad).all()
    assert (embeds.grad[0, 2:11].abs().sum(-1) > 0).all()  # every visual row was read


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer_cut": 5}, "beyond the language model's 4 layers"),
        ({"layer_cut": -1}, "at least 0"),
        ({"head_keep": ["1111"] * 3}, "3 layers of 4 heads"),
        ({"head_keep": ["11111"] * 4}, "4 layers of 5 heads"),
        ({"head_keep": ["1121"] * 4}, "0 and 1 only"),
        ({"head_keep": ["1111", "111", "1111", "1111"]}, "as many digits"),
        ({"head_keep": "heads.npy"}, "--set mask=FILE"),
        ({"mlp_ratio": 5}, "does not divide the 48"),
        ({"mlp_ratio": 0}, "at least 1"),
        ({"window": 0}, "at least 1"),
        ({"mode": "fast"}, "exact, drop, training_free"),
        ({"mode": "training_free", "window": 3}, "neither window nor mlp_ratio"),
        ({"kinds": ["text"]}, "out of visual"),
        ({"windw": 3}, "did you mean 'window'"),
    ],
)
def test_options_that_do_not_fit(build, yopo, options, words):
    with pytest.raises(UsageError, match=words):
        yopo(build(), **options)


def test_an_even_window_is_read_as_odd(build, yopo, caplog):
    with caplog.at_level(logging.WARNING, "vistoken"):
        assert yopo(build(), window=4).config.window == 3
    assert "window 4 is read as 3" in caplog.text


def test_a_prompt_that_ends_with_a_picture(build, yopo, run):
    model = build()
    table = prompt_table(2, (3, 3))[None]
    embeds = torch.zeros(1, 11, 32)
    with pytest.raises(UsageError, match="prompt 0 ends with a picture"):
        run(model, yopo(model, layer_cut=2), inputs_embeds=embeds, token_map=table)
    run(model, yopo(model, mode="exact", layer_cut=2), inputs_embeds=embeds, token_map=table)


def test_a_piece_that_ends_inside_a_picture(build, yopo, run):
    model = build()
    mechanism = yopo(model, mode="exact", window=3)
    table = prompt_table(2, (3, 3), 4)[None]
    embeds = torch.randn(1, 15, 32, generator=torch.Generator().manual_seed(9))
    whole, _ = run(model, mechanism, inputs_embeds=embeds, token_map=table)

    def in_pieces(edge):
        first, out = run(
            model,
            mechanism,
            inputs_embeds=embeds[:, :edge],
            token_map=table[:, :edge],
            use_cache=True,
        )
        second, _ = run(
            model,
            mechanism,
            inputs_embeds=embeds[:, edge:],
            token_map=table[:, edge:],
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        return torch.cat([first, second], dim=1)

    for edge in (1, 2, 11, 13):
        torch.testing.assert_close(in_pieces(edge), whole, **CLOSE)
    with pytest.raises(UsageError, match="inside a medium"):
        in_pieces(5)
