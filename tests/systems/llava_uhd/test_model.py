"""LLaVA-UHD in a model: released tokens, towers of any size, batches, checkpoints, neighbours."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

import vistoken
from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, VIEW, TokenKind, ViewKind
from vistoken.models.build import build
from vistoken.models.encoder import hidden_states, tower_features
from vistoken.models.recipe import parse_recipe
from vistoken.models.scatter import scatter_rows

SIZES = {0: (32, 32), 2: (36, 48), 6: (96, 64)}


def load_tower(tower, tensors, prefix):
    """Put a reference tower's weights in ours, whose newer library may have one level less."""
    ours = tower.state_dict()
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if not set(weights) <= set(ours):
        weights = {k.removeprefix("vision_model."): v for k, v in weights.items()}
    tower.load_state_dict(weights)


def test_towers_of_any_picture_size_equal_the_released_code(case):
    meta, tensors = case("clip_varsize")
    config = {k: v for k, v in meta["vision"].items() if k != "transformers_version"}
    tower = AutoModel.from_config(AutoConfig.for_model(**config)).eval()
    load_tower(tower, tensors, "w.")
    with torch.no_grad():
        for number, (rows, cols) in enumerate(meta["sizes_hw_patches"]):
            pixels = tensors[f"in.pixels_{number}"]
            _, features = tower_features(tower, pixels, -2, config["patch_size"])
            assert features.shape[1:3] == (rows, cols)
            expected = tensors[f"out.features_{number}"]
            found = features.flatten(1, 2)
            torch.testing.assert_close(found, expected, rtol=0, atol=meta["tolerance"])
        square = tensors["in.pixels_0"]
        stock = tower(pixel_values=square, output_hidden_states=True).hidden_states
        assert all(map(torch.equal, hidden_states(tower, square), stock))


def test_slices_of_one_size_are_encoded_in_one_batch(uhd, picture):
    model, processor = uhd
    inputs = processor.image_processor([picture(96, 64), picture(96, 64, 1)])
    shapes = []
    handle = model.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["pixel_values"].shape), with_kwargs=True
    )
    with torch.no_grad():
        together = model.model.encode(inputs["pixel_values"], inputs["view_table"])[0]
    assert sorted(len(s) and s[0] for s in shapes) == [2, 12]
    handle.remove()
    for row, view in enumerate(inputs["pixel_values"]):
        with torch.no_grad():
            alone = tower_features(model.model.vision_tower, view[None], -2, 8)[1][0]
        torch.testing.assert_close(together[row][0], alone, rtol=0, atol=1e-5)


def test_embeddings_equal_the_released_layout(case, uhd_recipe):
    meta, tensors = case("layout_batch")
    vision = {k: v for k, v in meta["vision"].items() if k != "transformers_version"}
    values = uhd_recipe(
        connector=[
            {
                "part": "uhd-resampler",
                "options": {
                    "grid": meta["grid_size"],
                    "heads": meta["num_heads"],
                    "compat": "official",
                },
            }
        ]
    )
    values["towers"] = [{**values["towers"][0], "config": vision, "size": [28, 28]}]
    table = tensors["w.model.embed_tokens.weight"]
    text = {"hidden_size": table.shape[1], "num_attention_heads": 2, "num_key_value_heads": 2}
    values["language_model"]["config"] |= text
    model, _ = build(parse_recipe(values, "golden"))
    load_tower(model.model.vision_tower, tensors, "w.model.vision_tower.vision_tower.")
    stem = "w.model.mm_projector."
    stage = model.model.multi_modal_projector.stages[0]
    stage.load_state_dict({k.removeprefix(stem): v for k, v in tensors.items() if stem in k})
    comma, newline = (meta[name] for name in ("comma_id", "newline_id"))
    ours = model.model.layout.vocabulary_ids()
    with torch.no_grad():
        embedding = model.model.get_input_embeddings().weight
        embedding[: len(table)] = table
        embedding[list(ours)] = table[[comma, newline]]

    pixels, rows = [], []
    for image in range(2):
        overview = tensors[f"in.overview_{image}"]
        rows.append(view_row(overview, index=0))
        pixels.append(overview)
        for number, view in enumerate(tensors.get(f"in.slices_{image}", [])):
            cols, count_rows = meta["grids_cols_rows"][image]
            place = {"row": number // cols, "col": number % cols, "rows": count_rows, "cols": cols}
            kind = {"kind": ViewKind.SLICE, "group": 1, "source": number + 1}
            rows.append(view_row(view, index=number + 1, **kind, **place))
            pixels.append(view)
    with torch.no_grad():
        features = model.get_image_features(pixels, torch.cat(rows))
    assert [len(r) for r in features.pooler_output] == [4 * 9 + 4 + 9, 9]
    for image in range(2):
        kept = tensors["in.attention_mask"][image].bool()
        ids, labels = (tensors[f"in.{n}"][image][kept] for n in ("input_ids", "labels"))
        count = len(features.pooler_output[image])
        repeats = torch.where(ids == meta["image_token"], count, 1)
        spread, mask = ids.repeat_interleave(repeats), (ids == -200).repeat_interleave(repeats)
        with torch.no_grad():
            embeds = torch.nn.functional.embedding(spread.clamp(min=0), table)[None]
            one = type(features)(pooler_output=[features.pooler_output[image]])
            embeds = scatter_rows(mask[None], embeds, one)[0]
        attended = tensors["out.attention_mask"][image].bool()
        assert int(attended.sum()) == len(embeds)
        expected = tensors["out.inputs_embeds"][image]
        torch.testing.assert_close(embeds, expected[attended], rtol=0, atol=meta["tolerance"])
        supervised = labels.repeat_interleave(repeats).masked_fill(mask, meta["ignore_index"])
        assert torch.equal(supervised, tensors["out.labels"][image][attended])


def view_row(pixels, **columns):
    height, width = pixels.shape[-2:]
    size = {"height": height, "width": width, "bottom": height, "right": width}
    return VIEW.make(1, **size, orig_height=height, orig_width=width, **columns)


@pytest.fixture
def prompts(uhd, picture):
    """Pictures of 0, 2 and 6 slices with a question each."""
    _, processor = uhd
    pictures = [picture(*size, seed) for seed, size in enumerate(SIZES.values())]
    for slices, image in zip(SIZES, pictures, strict=True):
        table = processor.image_processor.view_table(image.height, image.width)
        assert len(table) == slices + 1
    return pictures, [f"<image>\n{word}" for word in ("what", "where is it", "who")]


def test_a_batch_equals_its_samples_alone(uhd, prompts):
    model, processor = uhd
    pictures, texts = prompts
    batch = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    batch.pop("mm_token_type_ids", None)
    with torch.no_grad():
        together = model(**batch).logits
        for number, (image, text) in enumerate(zip(pictures, texts, strict=True)):
            one = processor(images=[image], text=[text], return_tensors="pt")
            one.pop("mm_token_type_ids", None)
            alone = model(**one).logits[0]
            torch.testing.assert_close(together[number, -len(alone) :], alone, rtol=0, atol=1e-4)


def test_a_saved_model_is_the_same(uhd, prompts, tmp_path):
    model, processor = uhd
    pictures, texts = prompts
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = vistoken.load(tmp_path, device="cpu", dtype="float32")
    for image, text in zip(pictures, texts, strict=True):
        inputs = processor(images=[image], text=[text], return_tensors="pt")
        other = processor_again(images=[image], text=[text], return_tensors="pt")
        for values in (inputs, other):
            values.pop("mm_token_type_ids", None)
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, again(**other).logits)
    assert again.model.layout.vocabulary_ids() == model.model.layout.vocabulary_ids()


def test_separators_are_the_language_models_own_rows(uhd, picture):
    model, processor = uhd
    features = model.get_image_features(**processor.image_processor([picture(96, 64)]))
    kind = TOKEN.get(features.token_map[0], "kind")
    table = model.model.get_input_embeddings().weight
    comma, newline = model.model.layout.vocabulary_ids()
    rows = features.pooler_output[0]
    for name, token in ((TokenKind.SEPARATOR, comma), (TokenKind.NEWLINE, newline)):
        mine = rows[kind == name]
        assert torch.equal(mine, table[token].expand_as(mine))
        assert len(mine) == 3
    rows.sum().backward()
    trained = torch.nonzero(table.grad.abs().sum(-1)).flatten().tolist()
    assert trained == sorted([comma, newline])
    model.zero_grad()


def test_more_tokens_than_the_language_model_has_positions(uhd_recipe, picture):
    values = uhd_recipe()
    values["language_model"]["config"]["max_position_embeddings"] = 60
    model, processor = build(parse_recipe(values, "short"))
    with pytest.raises(UsageError, match=r"69 visual tokens \(6 slices\).* 60 positions; lower"):
        processor(images=[picture(96, 64)], text=["<image> what"])
    assert len(processor.image_processor.token_map(36, 48)) == 29
    assert model.config.layout_config["options"]["max_tokens"] == 60


def test_llava_sp_on_slices_is_refused_with_the_reason(uhd_recipe, picture):
    values = uhd_recipe(
        connector=[{"part": "llava-sp", "options": {"variant": "pooling", "width": 8}}]
    )
    _, processor = build(parse_recipe(values, "sp"))
    with pytest.raises(
        UsageError,
        match=r"llava-sp was built for a feature grid of 4x4 and got a view of 3x4; .*pad",
    ):
        processor(images=[picture(36, 48)], text=["<image> what"])
    assert len(processor.image_processor.token_map(32, 32)) > 16  # a view of the nominal size


def test_later_stages_see_the_grid_of_queries(uhd_recipe, picture):
    values = uhd_recipe(
        connector=[
            {"part": "uhd-resampler", "options": {"grid": 4}},
            {"part": "pool", "options": {"grid": [2, 2]}},
        ]
    )
    model, processor = build(parse_recipe(values, "pooled"))
    with torch.no_grad():
        features = model.get_image_features(**processor.image_processor([picture(96, 64)]))
    assert len(features.pooler_output[0]) == 6 * 4 + 6 + 4


def test_two_towers_read_the_same_slices(uhd_recipe, picture):
    values = uhd_recipe(
        connector=["concat-grid", {"part": "uhd-resampler", "options": {"grid": 3}}]
    )
    first = values["towers"][0]
    second = {**first["config"], "patch_size": 4, "image_size": 16, "hidden_size": 24}
    values["towers"] = [first, {**first, "name": "fine", "config": second, "size": [16, 16]}]
    model, processor = build(parse_recipe(values, "two"))
    with torch.no_grad():
        features = model.get_image_features(**processor.image_processor([picture(96, 64)]))
    assert len(features.pooler_output[0]) == 6 * 9 + 6 + 9
