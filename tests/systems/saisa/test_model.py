"""Whole models with SAISA: generation, images encoded once, splitting, checkpoints, company."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StaticCache

from vistoken.core.errors import UsageError, WeightsError
from vistoken.core.parts import FEATURES
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models import VistokenForConditionalGeneration
from vistoken.models.checkpoint import save_full, save_light
from vistoken.models.references import Reference
from vistoken.systems.saisa.precompute import precompute_visual_kv, split_projectors
from vistoken.systems.saisa.visual_kv import VISUAL_KV
from vistoken.train.config import parse_config
from vistoken.train.groups import apply_groups, optimizer_groups

CLOSE = {"rtol": 0, "atol": 1e-5}
SHARED = [{"part": "saisa", "options": {"projector_sharing": "shared_then_split"}}]


def prompt(processor: Any, images: int, question: str) -> str:
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )


def inputs_for(processor: Any, picture: Any, *images: int, padding_side: str = "left") -> Any:
    pictures = [picture(40 + 8 * i, 56 - 4 * i, i) for i in range(sum(images))]
    texts = [prompt(processor, count, "What?" * (n + 1)) for n, count in enumerate(images)]
    return processor(
        text=texts,
        images=pictures or None,
        return_tensors="pt",
        padding=True,
        padding_side=padding_side,
    )


def text_logits(model: Any, inputs: Any, **changes: Any) -> list[Tensor]:
    """Logits of each prompt's text rows."""
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(**{**inputs, "position_ids": positions, **changes}).logits
    wanted = (mask == 1) & (inputs["input_ids"] != model.config.image_token_id)
    return [row[rows] for row, rows in zip(logits, wanted, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_of_eight_mixed_prompts_equals_singles(
    pico_saisa: Any, picture: Any, side: str
) -> None:
    model, processor = pico_saisa
    counts = (0, 1, 2, 1, 0, 3, 1, 2)
    together = text_logits(model, inputs_for(processor, picture, *counts, padding_side=side))
    start = 0
    for row, count in enumerate(counts):
        pictures = [picture(40 + 8 * i, 56 - 4 * i, i) for i in range(start, start + count)]
        single = processor(
            text=prompt(processor, count, "What?" * (row + 1)),
            images=pictures or None,
            return_tensors="pt",
        )
        torch.testing.assert_close(together[row], text_logits(model, single)[0], **CLOSE)
        start += count


def test_text_alone_is_the_plain_language_model(pico_saisa: Any, picture: Any) -> None:
    model, processor = pico_saisa
    inputs = inputs_for(processor, picture, 0, 0)
    with torch.no_grad():
        found = model(**inputs).logits
        stock = model.model.language_model(
            **{k: inputs[k] for k in ("input_ids", "attention_mask")}
        ).last_hidden_state
    assert torch.equal(found, model.lm_head(stock))


@pytest.mark.parametrize("side_by_side", [False, True])
def test_greedy_generation_equals_one_pass(
    pico_saisa: Any, picture: Any, side_by_side: bool
) -> None:
    model, processor = pico_saisa
    inputs = inputs_for(processor, picture, *((1, 0, 2) if side_by_side else (1,)))
    tokens = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    length = inputs["input_ids"].shape[1]
    assert tokens.shape[1] == length + 6
    whole = {**inputs, "input_ids": tokens[:, :-1]}
    whole["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 5), value=1)
    whole.pop("mm_token_type_ids", None)
    for row, logits in enumerate(text_logits(model, whole)):
        logits[:, [model.config.image_token_id, 2]] = -torch.inf  # suppressed; not the end yet
        assert logits[-6:].argmax(-1).tolist() == tokens[row, length:].tolist()


@pytest.fixture(scope="module", params=[None, {}, {"naavit_self": True, "naavit_text": True}])
def acting(request: pytest.FixtureRequest, pico_saisa: Any, build_pico: Callable[..., Any]) -> Any:
    """Models with SAISA, with NAAViT, and with NAAViT and its options."""
    if request.param is None:
        return pico_saisa
    return build_pico(mechanisms=[{"part": "naavit", "options": request.param}])


def test_beams_score_what_they_say(acting: Any, picture: Any) -> None:
    model, processor = acting
    inputs = inputs_for(processor, picture, 1, 2)
    out = model.generate(
        **inputs,
        max_new_tokens=5,
        min_new_tokens=5,
        num_beams=3,
        num_return_sequences=2,
        do_sample=False,
        length_penalty=1.0,
        return_dict_in_generate=True,
        output_scores=True,
        eos_token_id=None,
        suppress_tokens=None,
    )
    length = inputs["input_ids"].shape[1]
    features = model.get_image_features(inputs["pixel_values"], inputs["view_table"])
    for number, sequence in enumerate(out.sequences):
        owner = number // 2
        media = [0] if owner == 0 else [1, 2]
        row = sequence[inputs["attention_mask"][owner].argmax() :][None]
        image = type(features)(
            pooler_output=[features.pooler_output[m] for m in media],
            token_map=[TOKEN.set(features.token_map[m], media=n) for n, m in enumerate(media)],
            side={name: [values[m] for m in media] for name, values in features.side.items()},
        )
        with torch.no_grad():
            logits = model(input_ids=row, mm_encoder_outputs={"image": image}).logits[0]
        kept = out.sequences.shape[1] - length
        steps = logits[-kept - 1 : -1].log_softmax(-1)
        score = steps.gather(-1, row[0, -kept:, None]).sum() / kept
        torch.testing.assert_close(score, out.sequences_scores[number], rtol=0, atol=1e-4)


def test_static_cache_is_refused(pico_saisa: Any, picture: Any) -> None:
    model, processor = pico_saisa
    inputs = inputs_for(processor, picture, 1)
    cache = StaticCache(config=model.config.text_config, max_cache_len=64)
    with pytest.raises(UsageError, match="'saisa' cannot run on a static cache"):
        model(**inputs, past_key_values=cache, use_cache=True)


def counted_calls(model: Any) -> list[str]:
    """Names of the projectors that run from now on."""
    calls: list[str] = []
    for name, projector in model.model.mechanisms["saisa"].projectors.items():
        projector.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


def test_images_are_projected_once(build_pico: Callable[..., Any], picture: Any) -> None:
    model, processor = build_pico(
        mechanisms=[{"part": "saisa", "options": {"projector_sharing": "independent"}}]
    )
    calls = counted_calls(model)
    texts = [
        prompt(processor, 1, "Where is it, then?"),
        "Some words first. " + prompt(processor, 1, "Who?"),
    ]
    inputs = [processor(text=t, images=[picture(40, 56, 3)], return_tensors="pt") for t in texts]
    expected = [text_logits(model, i)[0] for i in inputs]
    assert sorted(calls) == sorted(["0", "1", "2"] * 2)
    calls.clear()
    features = model.get_image_features(inputs[0]["pixel_values"], inputs[0]["view_table"])
    image = precompute_visual_kv(model, features)
    assert sorted(calls) == ["0", "1", "2"]
    calls.clear()
    for question, wanted in zip(inputs, expected, strict=True):
        text = {k: question[k] for k in ("input_ids", "attention_mask")}
        found = text_logits(model, text, mm_encoder_outputs={"image": image})[0]
        torch.testing.assert_close(found, wanted, **CLOSE)
        tokens = model.generate(
            **text, mm_encoder_outputs={"image": image}, max_new_tokens=4, do_sample=False
        )
        assert calls == []  # nothing was projected again
        again = model.generate(
            **text, mm_encoder_outputs={"image": features}, max_new_tokens=4, do_sample=False
        )
        assert torch.equal(tokens, again)
        calls.clear()  # those of `again`
    stored = image.side[VISUAL_KV][0]
    assert len(stored) == 16
    assert stored.nbytes == 3 * 2 * 16 * 2 * 8 * 4  # layers, K and V, tokens, heads, size, float32
    assert torch.equal(stored.to("cpu").keys[1], stored.keys[1])


def test_no_projector_runs_with_ready_keys(build_pico: Callable[..., Any], picture: Any) -> None:
    model, processor = build_pico()
    inputs = inputs_for(processor, picture, 1, 2)
    features = model.get_image_features(inputs["pixel_values"], inputs["view_table"])
    image = precompute_visual_kv(model, features)
    calls = counted_calls(model)
    text = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    for beams in (1, 3):
        model.generate(
            **text,
            mm_encoder_outputs={"image": image},
            max_new_tokens=3,
            num_beams=beams,
            do_sample=False,
        )
    assert calls == []
    torch.testing.assert_close(
        text_logits(model, text, mm_encoder_outputs={"image": image})[1],
        text_logits(model, inputs)[1],
        **CLOSE,
    )


def test_what_precomputing_needs(pico_saisa: Any, pico: Any, picture: Any) -> None:
    model, processor = pico_saisa
    inputs = inputs_for(processor, picture, 1)
    features = model.get_image_features(inputs["pixel_values"], inputs["view_table"])
    with pytest.raises(UsageError, match="no decoder mechanism 'saisa'"):
        precompute_visual_kv(pico[0], features)
    features.side = None
    with pytest.raises(UsageError, match="needs the encoder's features"):
        precompute_visual_kv(model, features)
    text = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    with pytest.raises(UsageError, match="needs the encoder's features"):
        model(**text, mm_encoder_outputs={"image": features})


def test_shared_to_split_keeps_the_logits(build_pico: Callable[..., Any], picture: Any) -> None:
    model, processor = build_pico(mechanisms=SHARED)
    inputs = inputs_for(processor, picture, 1, 2)
    before = text_logits(model, inputs)
    shared = sum(p.numel() for p in model.model.mechanisms.parameters())
    split_projectors(model)
    assert sum(p.numel() for p in model.model.mechanisms.parameters()) == 3 * shared
    assert all(torch.equal(a, b) for a, b in zip(text_logits(model, inputs), before, strict=True))
    (mechanism,) = model.config.decoder_config["mechanisms"]
    assert mechanism["options"] == {"projector_sharing": "independent"}
    with pytest.raises(UsageError, match="split already"):
        split_projectors(model)
    projectors = model.model.mechanisms["saisa"].projectors
    optimiser = torch.optim.SGD(projectors.parameters(), lr=0.1)
    ids = inputs["input_ids"]
    model(
        **inputs, labels=ids.masked_fill(ids == model.config.image_token_id, -100)
    ).loss.backward()
    optimiser.step()
    weights = [projectors[str(layer)].linear_1.weight for layer in range(3)]
    assert all((a - b).abs().max() > 1e-6 for a, b in itertools.pairwise(weights))


def test_splitting_needs_something_to_split(pico_saisa: Any, pico: Any) -> None:
    with pytest.raises(UsageError, match="split already"):
        split_projectors(pico_saisa[0])
    with pytest.raises(UsageError, match="no decoder mechanism 'saisa'"):
        split_projectors(pico[0])


@pytest.mark.parametrize("kind", ["full", "light"])
@pytest.mark.parametrize("sharing", ["shared_then_split", "independent"])
def test_checkpoints_come_back(
    build_pico: Callable[..., Any], picture: Any, tmp_path: Any, kind: str, sharing: str
) -> None:
    model, processor = build_pico(mechanisms=SHARED)
    if sharing == "independent":
        split_projectors(model)
        with torch.no_grad():
            for number, projector in enumerate(model.model.mechanisms["saisa"].projectors.values()):
                projector.linear_2.bias += number
    out = tmp_path / kind
    if kind == "full":
        save_full(model, processor, out)
    else:
        parts = [
            Reference.to("vision_tower.clip", "random", 0),
            Reference.to("language_model", "random", 0),
        ]
        save_light(model, processor, out, parts, dtype=torch.float32)
    again = VistokenForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
    inputs = inputs_for(processor, picture, 1)
    found, expected = text_logits(again, inputs)[0], text_logits(model, inputs)[0]
    if kind == "full":
        assert torch.equal(found, expected)
    own = {n: t for n, t in model.state_dict().items() if "mechanisms" in n}
    assert len(own) == 4 * (3 if sharing == "independent" else 1)
    for name, tensor in own.items():
        assert torch.equal(again.state_dict()[name], tensor)
    half = VistokenForConditionalGeneration.from_pretrained(out, dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.mechanisms.parameters()} == {torch.bfloat16}
    assert torch.isfinite(text_logits(half, inputs)[0]).all()


def test_weights_do_not_load_into_a_plain_llava(
    build_pico: Callable[..., Any], tmp_path: Any
) -> None:
    model, processor = build_pico()
    save_full(model, processor, tmp_path / "full")
    config = copy.deepcopy(model.config)
    config.decoder_config = {"mechanisms": []}
    with pytest.raises(WeightsError, match=r"mechanisms\.saisa\.projectors\S+ is unexpected"):
        VistokenForConditionalGeneration.from_pretrained(tmp_path / "full", config=config)
    plain, processor = build_pico(mechanisms=[])
    save_full(plain, processor, tmp_path / "plain")
    with pytest.raises(WeightsError, match=r"mechanisms\.saisa\.projectors\S+ is missing"):
        VistokenForConditionalGeneration.from_pretrained(tmp_path / "plain", config=model.config)


def stage(**groups: Any) -> Any:
    values = {"recipe": "r", "data": ["d"], "output": "o"}
    values["stages"] = [{"name": "a", "steps": 1, "groups": groups}]
    return parse_config(values).stages[0]


def test_projectors_are_a_part_of_their_own(build_pico: Callable[..., Any]) -> None:
    model, _ = build_pico(mechanisms=SHARED)
    only = stage(mechanisms={"train": "full", "lr": 1e-3})
    apply_groups(model, only)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(n.startswith("model.mechanisms.saisa.projectors.shared") for n in trained)
    assert {g["name"] for g in optimizer_groups(model, only)} == {
        "mechanisms",
        "mechanisms-no-decay",
    }


def test_lora_beside_saisa(build_pico: Callable[..., Any], picture: Any) -> None:
    """LoRA and SAISA compose: adapters merged into the weights give the same logits."""
    model, processor = build_pico()
    inputs = inputs_for(processor, picture, 1, 0)
    both = stage(
        mechanisms={"train": "full"}, language={"train": "lora", "lora": {"r": 2, "alpha": 4}}
    )
    apply_groups(model, both)
    adapters = [n for n, _ in model.named_parameters() if "lora_" in n]
    assert adapters
    assert not any("mechanisms" in n for n in adapters)
    before = text_logits(model, inputs)[0]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    adapted = text_logits(model, inputs)[0]
    assert (adapted - before).abs().max() > 1e-3
    merged = copy.deepcopy(model)
    from vistoken.models.checkpoint import merge_adapter

    merge_adapter(merged)
    torch.testing.assert_close(text_logits(merged, inputs)[0], adapted, rtol=1e-4, atol=1e-4)
    ids = inputs["input_ids"]
    model(
        **inputs, labels=ids.masked_fill(ids == model.config.image_token_id, -100)
    ).loss.backward()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            assert weight.grad.abs().sum() > 0, name


def test_spatial_tokens_stay_in_the_text_stream(
    build_pico: Callable[..., Any], picture: Any
) -> None:
    """LLaVA-SP's tokens have no encoder feature: they are queries, the patches keys and values."""
    chain = load_chain()
    model, processor = build_pico(connector=chain)
    inputs = inputs_for(processor, picture, 1, 2)
    with torch.no_grad():
        found = model(**inputs)
    kinds = TOKEN.get(found.token_map, "kind")
    spatial, visual = kinds == TokenKind.SPATIAL, kinds == TokenKind.VISUAL
    assert spatial.sum() == 3 * 2
    assert visual.sum() == 3 * 16
    expected = overwritten(model, inputs, visual)
    rows = (inputs["attention_mask"] == 1) & ~visual
    torch.testing.assert_close(found.logits[rows], expected[rows], rtol=0, atol=1e-4)


def load_chain() -> list[Any]:
    from vistoken.models.recipe import load_recipe

    return load_recipe("pico").model_dump()["connector"]


def overwritten(model: Any, inputs: Any, visual: Tensor) -> Tensor:
    """Logits of a dense decoder whose visual rows are overwritten before every layer."""
    core, n = model.model, inputs["input_ids"].shape[1]
    features = core.get_image_features(inputs["pixel_values"], inputs["view_table"])
    flat = torch.cat(features.side[FEATURES])
    hidden = core.get_input_embeddings()(inputs["input_ids"])
    slots = inputs["input_ids"] == model.config.image_token_id
    hidden = hidden.masked_scatter(slots.unsqueeze(-1), torch.cat(features.pooler_output))
    allowed = torch.ones(n, n, dtype=torch.bool).tril() & (inputs["attention_mask"] == 1)[:, None]
    allowed = allowed | torch.eye(n, dtype=torch.bool)
    mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None]
    positions = torch.arange(n)[None]
    rotary = core.language_model.rotary_emb(hidden, positions)
    with torch.no_grad():
        for number, layer in enumerate(core.language_model.layers):
            hidden = hidden.clone()
            hidden[visual] = core.mechanisms["saisa"].project(number, flat)
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        return model.lm_head(core.language_model.norm(hidden))


def test_fewer_tokens_than_features_are_refused(
    build_pico: Callable[..., Any], picture: Any
) -> None:
    chain = ["mlp", {"part": "pool", "options": {"grid": [2, 2]}}]
    model, processor = build_pico(connector=chain)
    with pytest.raises(UsageError, match="4 tokens of 16 features; leave the 'reduce'"):
        model(**inputs_for(processor, picture, 1))


def test_packed_rows_equal_unpacked_ones(acting: Any, picture: Any) -> None:
    """Training's ready 4-D mask: two questions behind one picture."""
    model, processor = acting
    texts = [prompt(processor, 1, q) for q in ("What is it?", "What colour has it?")]
    rows = [processor(text=t, images=[picture(40, 56, 1)], return_tensors="pt") for t in texts]
    ids = [row["input_ids"][0].tolist() for row in rows]
    prefix = next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    expected = [
        text_logits(model, row)[0][-(len(own) - prefix) :]
        for row, own in zip(rows, ids, strict=True)
    ]
    packed = torch.tensor([ids[0] + ids[1][prefix:]])
    branch = torch.tensor(
        [-1] * prefix + [0] * (len(ids[0]) - prefix) + [1] * (len(ids[1]) - prefix)
    )
    positions = torch.tensor([[*range(len(ids[0])), *range(prefix, len(ids[1]))]])
    same = (branch[:, None] == branch[None]) | (branch[None] == -1)
    mask = (torch.ones_like(same).tril() & same)[None, None]
    with torch.no_grad():
        logits = model(
            input_ids=packed,
            position_ids=positions,
            attention_mask=mask,
            pixel_values=rows[0]["pixel_values"],
            view_table=rows[0]["view_table"],
            use_cache=False,
        ).logits[0]
    for number, wanted in enumerate(expected):
        torch.testing.assert_close(logits[branch == number], wanted, **CLOSE)


def test_unknown_option_and_family(build_pico: Callable[..., Any], pico_saisa: Any) -> None:
    with pytest.raises(UsageError, match="projector_sharing must be"):
        build_pico(mechanisms=[{"part": "saisa", "options": {"projector_sharing": "both"}}])
    values = {**pico_saisa[0].config.text_config.to_dict(), "model_type": "gemma2", "head_dim": 8}
    lm = {"source": "random", "tokenizer": "assets:pico-tokenizer", "config": values}
    with pytest.raises(UsageError, match="gemma2"):
        build_pico(language_model=lm)
