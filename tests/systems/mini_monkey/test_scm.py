"""Scale compression: reference choice, scores, length, positions, batches, caches, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import vistoken.models.decoder.key_scores as key_scores
from vistoken.core.errors import UsageError
from vistoken.core.registry import make_config
from vistoken.core.tables import TOKEN, TextRole, TokenKind
from vistoken.models.decoder import (
    MechanismContext,
    MechanismStack,
    SparseCache,
    run_decoder,
)
from vistoken.systems.mini_monkey.config import ScmConfig
from vistoken.systems.mini_monkey.internlm2 import llama_state
from vistoken.systems.mini_monkey.scm import Scm


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def embeds(rows, batch=1, width=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, rows, width, generator=generator)


@torch.no_grad()
def direct_scores(model, hidden, layer=1):
    """Layer's probabilities (1, H, T, T) by a plain softmax over everything, as eager gives."""
    eager = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "num_hidden_layers": 4}))
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    out = eager.eval().model(inputs_embeds=hidden, output_attentions=True, use_cache=False)
    return out.attentions[layer]


def chosen(probabilities, table, ratio=0.5):
    """Kept rows by the formula of the specification, one picture after the other."""
    keep = torch.ones(len(table), dtype=torch.bool)
    media, group = (TOKEN.get(table, name) for name in ("media", "group"))
    for medium in media[media >= 0].unique():
        places = torch.nonzero((media == medium) & (group == 1)).flatten()
        score = probabilities[0, :, int(places[-1]) + 1 :, places].mean((0, 1))
        order = score.argsort(descending=True, stable=True)
        keep[places[order[int(len(places) * ratio) :]]] = False
    return keep


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("compat", ["official", "fixed"])
def test_reference_choice(golden, compat, attention):
    folder = golden / "mini-monkey"
    facts = json.loads((folder / "scm_small.json").read_text())
    tensors = load_file(folder / "scm_small.safetensors")
    config = LlamaConfig(
        hidden_size=facts["hidden_size"],
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=facts["heads"],
        num_key_value_heads=facts["kv_heads"],
        rms_norm_eps=facts["rms_norm_eps"],
        rope_theta=facts["rope_theta"],
        hidden_act=facts["hidden_act"],
        vocab_size=8,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).eval()
    weights = {n.removeprefix("w."): t for n, t in tensors.items() if n.startswith("w.")}
    state = llama_state(weights, facts["heads"], facts["kv_heads"])
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    hidden = tensors["in.inputs_embeds"]
    tiles = [1] * facts["high_tokens"]
    tiles += [2] * (facts["total_tiles"] * facts["tokens_per_tile"] - facts["high_tokens"])
    table = TOKEN.make(hidden.shape[1])
    stop = facts["image_start"] + len(tiles)
    table[facts["image_start"] : stop] = TOKEN.make(
        len(tiles), kind=TokenKind.VISUAL, media=0, group=tiles
    )
    mechanism = Scm(ScmConfig(ratio=facts["ratio"], compat=compat), MechanismContext(config, 0))
    with torch.no_grad():
        output = run_decoder(
            model.model,
            stack=MechanismStack([mechanism]),
            inputs_embeds=hidden,
            token_map=table[None],
            use_cache=False,
        )
    wanted = tensors["out.kept_index"].tolist()
    if compat == "fixed":
        wanted = sorted([*wanted, facts["image_start"] + facts["high_tokens"]])
    assert output.rows[0].tolist() == wanted
    assert mechanism.kept_length(table) == len(wanted)


@pytest.mark.parametrize(
    "detailed", [(12,), (7, 5), (1,), (3, 9, 4)], ids=lambda d: "-".join(map(str, d))
)
@pytest.mark.parametrize("block", [1, 3, 1000])
def test_scores_are_those_of_the_full_softmax(scm, monkeypatch, detailed, block):
    """However few rows are worked out at a time."""
    model, table = scm.causal(), scm.prompt(*detailed)
    rows = len(table)
    monkeypatch.setattr(key_scores, "CHUNK_BYTES", 4 * 4 * rows * block)
    hidden = embeds(rows)
    seen = []
    real = key_scores.mean_key_scores

    def watched(*args, **kwargs):
        seen.append(real(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr("vistoken.models.decoder.restart.mean_key_scores", watched)
    output = scm.run(model, table, hidden)
    probabilities = direct_scores(model, hidden)
    media, group = (TOKEN.get(table, name) for name in ("media", "group"))
    for medium, count in enumerate(detailed):
        places = torch.nonzero((media == medium) & (group == 1)).flatten()
        wanted = probabilities[0, :, int(places[-1]) + 1 :, places].mean((0, 1))
        if count > 1:
            torch.testing.assert_close(seen[0][0, places], wanted, rtol=0, atol=1e-6)
    assert output.rows[0].tolist() == torch.nonzero(chosen(probabilities, table)).flatten().tolist()


def test_no_square_of_scores_is_made(scm, monkeypatch):
    """The largest tensor of the whole scoring is smaller than rows x rows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    model, table = scm.causal(), scm.prompt(300, before=3, after=5)
    rows, largest = len(table), []
    monkeypatch.setattr(key_scores, "CHUNK_BYTES", 4 * 4 * rows * 8)

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest.append(result.numel())
            return result

    stack = scm.stack(model)
    from vistoken.models.decoder.restart import LayerScorer
    from vistoken.models.decoder.state import SequenceState

    state = SequenceState(
        embeds(rows), torch.arange(rows)[None], torch.ones(1, rows, dtype=torch.bool), table[None]
    )
    with Largest():
        keep = stack.shorten(state, LayerScorer(model.model, state))
    assert int(keep.sum()) == rows - 150
    assert max(largest) < rows * rows


@settings(max_examples=15, deadline=None)
@given(
    detailed=st.lists(st.integers(1, 14), min_size=0, max_size=3),
    ratio=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    before=st.integers(0, 3),
    after=st.integers(2, 4),
)
def test_length_is_known_and_positions_have_no_gaps(scm, detailed, ratio, before, after):
    model, table = scm.causal(), scm.prompt(*detailed, before=before, after=after)
    cache = SparseCache(4)
    hidden = embeds(len(table))
    output = scm.run(model, table, hidden, ratio=ratio, past_key_values=cache, use_cache=True)
    wanted = len(table) - sum(count - int(count * ratio) for count in detailed)
    mechanism = next(iter(scm.stack(model, ratio=ratio)))
    assert output.last_hidden_state.shape[1] == wanted == mechanism.kept_length(table)
    for layer in cache.sparse_layers:
        assert layer.stored == wanted
    index = cache.sparse_layers[0].index
    assert cache.position_ids.gather(1, index)[0].tolist() == list(range(wanted))
    assert cache.next_positions.tolist() == [wanted]
    assert cache.get_seq_length() == len(table)


def test_the_rest_is_the_shortened_prompt_run_alone(scm):
    model, table = scm.causal(), scm.prompt(12, 6)
    hidden = embeds(len(table))
    output = scm.run(model, table, hidden, use_cache=False)
    with torch.no_grad():
        alone = model.model(inputs_embeds=hidden[:, output.rows[0]], use_cache=False)
    close(output.last_hidden_state, alone.last_hidden_state)


@pytest.mark.parametrize("given", [None, torch.arange(26)[None]])
def test_keeping_all_is_the_identity(scm, given):
    model, table = scm.causal(), scm.prompt(15)
    hidden = embeds(len(table))
    inputs = {} if given is None else {"position_ids": given}
    output = scm.run(model, table, hidden, ratio=1.0, use_cache=False, **inputs)
    with torch.no_grad():
        stock = model.model(inputs_embeds=hidden, use_cache=False)
    assert output.rows is None
    close(output.last_hidden_state, stock.last_hidden_state)


def test_keeping_none_scores_nothing(scm, monkeypatch):
    monkeypatch.setattr("vistoken.models.decoder.restart.mean_key_scores", None)
    table = scm.prompt(8)
    output = scm.run(scm.causal(), table, embeds(len(table)), ratio=0.0, use_cache=False)
    kept = torch.nonzero(TOKEN.get(table, "group") != 1).flatten()
    assert output.rows[0].tolist() == kept.tolist()


def test_equal_scores_keep_the_first(scm):
    """Rows without content attend everywhere alike."""
    table = scm.prompt(9)
    output = scm.run(scm.causal(), table, torch.zeros(1, len(table), 32), use_cache=False)
    detailed = TOKEN.get(table, "group") == 1
    places = torch.nonzero(detailed).flatten().tolist()
    assert [row for row in output.rows[0].tolist() if row in places] == places[:4]


def test_prompts_without_pictures_pass_through(scm):
    model, table = scm.causal(), TOKEN.make(9)
    hidden = embeds(9)
    with torch.no_grad():
        stock = model.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
    for tables in (table, None):
        output = scm.run(model, tables, hidden, use_cache=False)
        assert output.rows is None
        close(output.last_hidden_state, stock)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_equal_singles(scm, family, attention, side):
    model = scm.causal(family, attention)
    tables = [
        scm.prompt(12),
        scm.prompt(5, 8, first_media=1),
        TOKEN.make(7),
        scm.prompt(3, before=0, first_media=3),
    ]
    batch, mask = scm.padded(tables, side=side)
    hidden = embeds(batch.shape[1], len(tables))
    output = scm.run(model, batch, hidden, attention_mask=mask, use_cache=False)
    for number, table in enumerate(tables):
        own = mask[number].bool()
        single = scm.run(model, table, hidden[number : number + 1, own], use_cache=False)
        real = output.rows[number] >= 0
        close(output.last_hidden_state[number, real], single.last_hidden_state[0])
        first = int(own.int().argmax())
        wanted = range(len(table)) if single.rows is None else single.rows[0].tolist()
        assert (output.rows[number, real] - first).tolist() == list(wanted)


def test_sliding_windows(scm):
    """A window narrower than the picture: far rows see nothing of it."""
    model = scm.causal("qwen3", use_sliding_window=True, sliding_window=6, max_window_layers=0)
    table = scm.prompt(10)
    hidden = embeds(len(table))
    output = scm.run(model, table, hidden, use_cache=False)
    eager = scm.causal(
        "qwen3", "eager", use_sliding_window=True, sliding_window=6, max_window_layers=0
    )
    with torch.no_grad():
        weights = eager.model(inputs_embeds=hidden, output_attentions=True).attentions[1]
    assert output.rows[0].tolist() == torch.nonzero(chosen(weights, table)).flatten().tolist()
    with torch.no_grad():
        alone = model.model(inputs_embeds=hidden[:, output.rows[0]], use_cache=False)
    close(output.last_hidden_state, alone.last_hidden_state)


def test_steps_on_the_cache_equal_one_call_without(scm):
    """Answer rows read again do not ask: the choice stays that of the prompt."""
    model, table = scm.causal(), scm.prompt(12)
    rows = len(table)
    answer = TOKEN.make(5, role=TextRole.ASSISTANT)
    hidden = embeds(rows + 5)
    whole = scm.run(model, torch.cat([table, answer]), hidden, use_cache=False)
    cache = SparseCache(4)
    first = scm.run(model, table, hidden[:, :rows], past_key_values=cache, use_cache=True)
    steps = [first.last_hidden_state]
    steps += [
        scm.run(
            model, None, hidden[:, [rows + n]], past_key_values=cache, use_cache=True
        ).last_hidden_state
        for n in range(5)
    ]
    close(torch.cat(steps, 1), whole.last_hidden_state)


def test_other_pictures_can_be_left_out_of_the_queries(scm):
    model, table = scm.causal(), scm.prompt(11, 9)
    hidden = embeds(len(table))
    probabilities = direct_scores(model, hidden)
    media, group = (TOKEN.get(table, name) for name in ("media", "group"))
    places = torch.nonzero((media == 0) & (group == 1)).flatten()
    later = (torch.arange(len(table)) > int(places[-1])) & (group != 1)
    score = probabilities[0][:, later][:, :, places].mean((0, 1))
    kept = places[score.argsort(descending=True)[:5]].sort().values.tolist()
    output = scm.run(model, table, hidden, exclude_other_detailed=True, use_cache=False)
    assert [row for row in output.rows[0].tolist() if row in places.tolist()] == kept


def test_recorded_states_are_those_of_the_shortened_prompt(scm):
    model, table = scm.causal(), scm.prompt(12)
    with torch.no_grad():
        output = run_decoder(
            model.model,
            stack=scm.stack(model),
            inputs_embeds=embeds(len(table)),
            token_map=table[None],
            use_cache=False,
            output_hidden_states=True,
        )
    assert len(output.hidden_states) == 5
    assert {state.shape[1] for state in output.hidden_states} == {len(table) - 6}


def test_training_reads_the_whole_prompt(scm):
    model, table = scm.causal().train(), scm.prompt(12)
    output = run_decoder(
        model.model,
        stack=scm.stack(model),
        inputs_embeds=embeds(len(table)),
        token_map=table[None],
        use_cache=False,
    )
    assert output.rows is None
    assert output.last_hidden_state.shape[1] == len(table)


def test_pieces_of_a_prompt_are_refused(scm):
    model, table = scm.causal(), scm.prompt(12)
    hidden = embeds(len(table))
    with pytest.raises(UsageError, match="put text behind it, in the same call"):
        scm.run(model, table[:8], hidden[:, :8], past_key_values=SparseCache(4), use_cache=True)
    for edge in (1, 20):  # before the picture, and behind it
        cache = SparseCache(4)
        scm.run(model, table[:edge], hidden[:, :edge], past_key_values=cache, use_cache=True)
        with pytest.raises(UsageError, match=rf"more rows behind {edge} cached ones; give the"):
            scm.run(model, table[edge:], hidden[:, edge:], past_key_values=cache, use_cache=True)
    text = SparseCache(4)  # a prompt of text may come in pieces
    for start in (0, 4):
        scm.run(
            model, TOKEN.make(4), hidden[:, start : start + 4], past_key_values=text, use_cache=True
        )
    assert text.seen == 8


def test_refusals(scm):
    model, table = scm.causal(), scm.prompt(12)
    hidden = embeds(len(table))
    end = 2 + 12
    with pytest.raises(UsageError, match="prompt 0 ends with the detailed tiles of a picture"):
        scm.run(model, table[:end], hidden[:, :end], use_cache=False)
    with pytest.raises(UsageError, match="stock key/value cache"):
        scm.run(model, table, hidden, past_key_values=DynamicCache(), use_cache=True)
    square = torch.ones(1, 1, len(table), len(table), dtype=torch.bool)
    with pytest.raises(UsageError, match="'scm' cannot run on packed samples"):
        scm.run(model, table, hidden, attention_mask=square, use_cache=False)
    with pytest.raises(UsageError, match="layer 4 is beyond the language model's 4 layers"):
        scm.stack(model, layer=4)

    class Reads(Scm):
        name, shortens, side_inputs = "reads", False, ("encoder_features",)

    other = Reads(ScmConfig(), MechanismContext(model.config, 0))
    with pytest.raises(UsageError, match="'scm' leaves visual tokens out .* 'reads' needs all"):
        MechanismStack([*scm.stack(model), other])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, "ratio must be between 0 and 1, got 1.5"),
        ({"ratio": -0.1}, "ratio must be between 0 and 1"),
        ({"layer": -1}, "layer must be a whole number of at least 0"),
        ({"compat": "new"}, "compat must be one of official, fixed"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UsageError, match=message):
        make_config(ScmConfig, options, "mechanism 'scm'")
