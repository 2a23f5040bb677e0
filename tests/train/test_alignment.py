import copy
import json

import pytest
import torch

from vistoken.core.errors import DataError
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.train.alignment import NameSpace, PatchTokens, patch_tokens, score
from vistoken.train.scenes import Scene, cell_words, read_scenes, scenes_file, vocabulary

SCENE = Scene("a.png", ("cup", "dog"), ((0, 0, 20, 20), (10, 10, 40, 40)), "red")


def token_map(*boxes, kind=TokenKind.VISUAL):
    table = TOKEN.make(len(boxes), kind=kind)
    top, left, bottom, right = torch.tensor(boxes, dtype=torch.float64).T
    return TOKEN.set(table, top=top, left=left, bottom=bottom, right=right)


def test_the_centre_of_a_cell_decides_and_the_last_drawn_object_wins():
    cells = token_map((0, 0, 10, 10), (10, 10, 20, 20), (30, 0, 40, 10), (38, 38, 42, 42))
    assert cell_words(cells, SCENE) == ["cup", "dog", "red", "red"]


def test_only_patches_show_something_and_painted_text_is_left_out():
    assert cell_words(token_map((0, 0, 10, 10), kind=TokenKind.SPATIAL), SCENE) == [None]
    scene = Scene("a.png", (), (), "red", ignored=((0, 0, 10, 10),))
    assert cell_words(token_map((0, 0, 10, 10), (10, 0, 20, 10)), scene) == [None, "red"]
    assert cell_words(token_map((0, 0, 10, 10)), Scene("a.png", (), (), None)) == [None]


def test_tokens_that_lie_at_the_names_are_found(pico):
    model, processor = pico
    space = NameSpace(model, processor.tokenizer, vocabulary([SCENE]))
    cells = token_map((0, 0, 10, 10), (12, 12, 20, 20), (30, 0, 40, 10))
    right = torch.stack([space.points[space.words.index(w)] for w in ("cup", "dog", "red")])
    loss, found = score(space, [PatchTokens(right + space.centre, cells)], [SCENE])
    assert (found.names, found.colours) == ((2, 2), (1, 1))
    assert (found.name_accuracy, found.colour_accuracy) == (1, 1)
    wrong, missed = score(space, [PatchTokens(right.flip(0) + space.centre, cells)], [SCENE])
    assert wrong > loss
    assert missed.names == (1, 2)  # the middle one stays


def test_a_name_is_the_mean_of_its_tokens(pico):
    model, processor = pico
    space = NameSpace(model, processor.tokenizer, ["cup", "dog"])
    table = model.get_input_embeddings().weight
    means = []
    for word in ("cup", "dog"):
        ids = processor.tokenizer(" " + word, add_special_tokens=False)["input_ids"]
        means.append(table[ids].mean(0))
    expected = torch.nn.functional.normalize(means[0] - (means[0] + means[1]) / 2, dim=-1)
    torch.testing.assert_close(space.points[0], expected)


def test_patch_tokens_are_the_models_without_its_spatial_ones(pico, data):
    model, processor = pico
    inputs = processor.image_processor([str(data / "images" / f"{n}.png") for n in range(2)])
    with torch.no_grad():
        features, _ = model.model.encode(inputs["pixel_values"], inputs["view_table"])
        patches = patch_tokens(model, features, inputs["view_table"])
        whole = model.get_image_features(inputs["pixel_values"], inputs["view_table"])
    for number, picture in enumerate(patches):
        kept = TOKEN.get(whole.token_map[number], "kind") == TokenKind.VISUAL
        torch.testing.assert_close(picture.tokens, whole.pooler_output[number][kept])
        assert torch.equal(picture.token_map, whole.token_map[number][kept])
    assert (TOKEN.get(whole.token_map[0], "kind") == TokenKind.SPATIAL).any()


def test_gradients_reach_the_patch_projection(pico, data):
    model = copy.deepcopy(pico[0])
    processor = pico[1]
    scenes = read_scenes(data / "train.scenes.jsonl")
    inputs = processor.image_processor([str(data / scene.image) for scene in scenes])
    features, _ = model.model.encode(inputs["pixel_values"], inputs["view_table"])
    space = NameSpace(model, processor.tokenizer, vocabulary(scenes))
    loss, _ = score(space, patch_tokens(model, features, inputs["view_table"]), scenes)
    loss.backward()
    projector = model.model.multi_modal_projector.get_submodule("llava-sp").patch_projector
    assert projector.linear_1.weight.grad.abs().sum() > 0


def test_annotation_files(tmp_path, data):
    assert scenes_file(data / "train.jsonl") == data / "train.scenes.jsonl"
    assert len(read_scenes(data / "train.scenes.jsonl")) == 4
    with pytest.raises(DataError, match="does not exist"):
        read_scenes(tmp_path / "gone.scenes.jsonl")
    bad = tmp_path / "bad.scenes.jsonl"
    bad.write_text(json.dumps({"image": "a.png", "objects": [{"name": "cup"}]}), encoding="utf-8")
    with pytest.raises(DataError, match="line 1"):
        read_scenes(bad)


def test_nothing_known_is_an_error(pico):
    model, processor = pico
    space = NameSpace(model, processor.tokenizer, ["cup"])
    picture = PatchTokens(torch.zeros(1, 32), token_map((0, 0, 1, 1)))
    with pytest.raises(DataError, match=r"a\.png"):
        score(space, [picture], [Scene("a.png", (), (), "red")])
