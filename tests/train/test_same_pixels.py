"""A picture becomes the same views in training, in evaluation and behind the server."""

import json

import pytest
import torch
import yaml
from PIL import Image

import vistoken
from vistoken.eval.run import EvalOptions, evaluate
from vistoken.eval.tasks import read_tasks
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.recipe import load_recipe
from vistoken.serve.asking import ask
from vistoken.serve.engine import Conversation, EmbeddedEngine, Picture, Sampling
from vistoken.train.run import train

from .stages import JOINT, configuration

VIEWS = {
    "pad": "pad",
    "uhd-slices": {"part": "uhd-slices", "options": {"max_slices": 4}},
    "inf-dcm": {"part": "inf-dcm", "options": {"n": 2}},
}


@pytest.fixture
def made(monkeypatch):
    """Pixels and view tables of every picture that is prepared, as they come."""
    found = []
    prepare = VistokenImageProcessor.__call__

    def recorded(self, *args, **kwargs):
        inputs = prepare(self, *args, **kwargs)
        found.append((list(inputs["pixel_values"]), inputs["view_table"]))
        return inputs

    monkeypatch.setattr(VistokenImageProcessor, "__call__", recorded)
    return found


def one_question(folder):
    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    picture.save(folder / "x.png")
    user = [{"type": "image", "path": "x.png"}, {"type": "text", "text": "What?"}]
    said = [{"type": "text", "text": "noise"}]
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": said}]
    row = {"id": "1", "kind": "name", "answer": "noise", "messages": messages}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
    return picture


@pytest.mark.parametrize("views", VIEWS)
def test_training_evaluation_and_server_prepare_a_picture_alike(views, tmp_path, made):
    picture = one_question(tmp_path)
    recipe = load_recipe("pico").model_dump(mode="json", exclude_none=True)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | {"views": VIEWS[views], "connector": ["mlp"]}))
    groups = {"language": JOINT["groups"]["language"]}
    stage = JOINT | {"needs": None, "steps": 1, "groups": groups}
    config = configuration(tmp_path, tmp_path / "run", [stage], recipe=str(path), cache=None)
    train(config)
    trained = made.pop()
    made.clear()

    model, processor = vistoken.load(config.output / "model", device="cpu", dtype="float32")
    tasks = read_tasks([tmp_path / "train.jsonl"])
    evaluate(model, processor, tasks, tmp_path / "results", EvalOptions(max_new_tokens=2))
    asked = made.pop()
    made.clear()

    engine = EmbeddedEngine("own", model.eval(), processor)
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    wanted = Conversation(
        [{"role": "user", "content": content}], [Picture(picture, "x")], Sampling(max_tokens=2)
    )
    list(ask(engine, wanted))
    engine.close()
    served = made.pop()
    for other in (asked, served):
        assert torch.equal(trained[1], other[1])
        assert len(trained[0]) == len(other[0]) > 0
        assert all(torch.equal(one, two) for one, two in zip(trained[0], other[0], strict=True))
