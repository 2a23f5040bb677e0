"""Memory of a training step: predicted by `vistoken inspect memory`, and held by a real step.

    python benchmarks/train_memory.py [--size nano] [--modes lora towers] [--out FILE]

The model has the recipe's shapes and random weights; the data are noise. A dispatch mode sees every
tensor that an operator makes and every storage that goes away, so what is held is counted in bytes,
whatever the allocator does with them. Beside it stands how far the process itself grew, the
kernels' workspace and the allocator's fragments included. float32, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import machine, write
from PIL import Image
from torch import Tensor

from vistoken.core.objectives import Clock
from vistoken.models.build import build, load_tokenizer
from vistoken.models.cost import empty_model
from vistoken.models.footprint import Held
from vistoken.models.recipe import Recipe, load_recipe
from vistoken.train.alignment import NameSpace
from vistoken.train.encoders import PixelEncoder
from vistoken.train.examples import Example
from vistoken.train.groups import apply_groups, optimizer_groups
from vistoken.train.memory import predict_memory, saved_bytes
from vistoken.train.metrics import Meter
from vistoken.train.microbatch import TrainBatch
from vistoken.train.objectives import find_objective
from vistoken.train.samples import QuestionCollator, QuestionGroup
from vistoken.train.scenes import Scene
from vistoken.train.settings import StageConfig

RESULT = Path(__file__).parent / "results" / "train_memory.json"
_FULL = {"train": "full"}
_LORA = {"train": "lora", "lora": {"r": 32, "alpha": 64}}
_CONNECTOR = {"connector": _FULL, "spatial": _FULL}
MODES: dict[str, dict[str, Any]] = {
    "lora": {"groups": {**_CONNECTOR, "language": _LORA}},
    "lora-checkpointing": {"groups": {**_CONNECTOR, "language": _LORA}, "checkpointing": True},
    "connector": {"groups": _CONNECTOR},
    "towers": {"groups": {"vision": _FULL, **_CONNECTOR, "language": _LORA}},
    "full": {"groups": {**_CONNECTOR, "language": _FULL}},
    "alignment": {"groups": {"connector": _FULL}, "objective": "name-alignment"},
}
_TOLD = "what is in the picture and where does it lie "


def random_recipe(size: str, folder: Path) -> Recipe:
    """A recipe's shapes with random weights and the packaged tokenizer, filled up to its size."""
    recipe = load_recipe(size)
    tokenizer = load_tokenizer("assets:pico-tokenizer")
    missing = int(recipe.language_model.config["vocab_size"]) - len(tokenizer)
    tokenizer.add_tokens([f"<extra{n}>" for n in range(missing)])
    tokenizer.save_pretrained(folder / "tokenizer")
    language = recipe.language_model.model_copy(
        update={"source": "random", "tokenizer": str(folder / "tokenizer")}
    )
    towers = [tower.model_copy(update={"source": "random"}) for tower in recipe.towers]
    return recipe.model_copy(update={"language_model": language, "towers": towers})


def make_examples(folder: Path, number: int, words: int) -> list[Example]:
    """Pictures of noise, each with a question and an answer of equal length."""
    noise = np.random.default_rng(0)
    examples = []
    for index in range(number):
        path = folder / f"{index}.png"
        pixels = noise.integers(0, 256, (336, 336, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        text = (_TOLD * (words // 9 + 1))[: 5 * words]
        content = [{"type": "image", "path": str(path)}, {"type": "text", "text": text}]
        said = [{"type": "text", "text": text}]
        messages: list[Any] = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": said},
        ]
        examples.append(Example(str(index), messages, (path,), ""))
    return examples


def stage_of(mode: str, samples: int) -> StageConfig:
    """A stage that trains what a mode's name says."""
    values = {"name": "memory", "steps": 1, "images_per_step": samples, **MODES[mode]}
    return StageConfig.model_validate(values)


def measure(recipe: Recipe, mode: str, examples: list[Example]) -> dict[str, Any]:
    """Bytes of a mode, predicted and held."""
    stage = stage_of(mode, len(examples))
    model, processor = build(recipe)
    apply_groups(model, stage)
    model.train()
    if stage.checkpointing:
        model.gradient_checkpointing_enable()
    encode = PixelEncoder(processor)
    template = str(processor.chat_template)
    if stage.objective == "name-alignment":
        words = [f"{first}{second}" for first in "abcdefgh" for second in "ijklmnop"]
        names = NameSpace(model, processor.tokenizer, words)
        scene = Scene("", ("ai",), ((0.0, 0.0, 170.0, 340.0),), "ai")
        batch: Any = {
            "pictures": encode([example.images[0] for example in examples]),
            "scenes": tuple(scene for _ in examples),
        }
        length = supervised = None
    else:
        names = None
        collate = QuestionCollator(processor, template, encode, stage.max_length)
        batch = collate([QuestionGroup(e.images, (e,)) for e in examples])
        length = int(batch["batch"].input_ids.shape[1])
        supervised = len(batch["batch"].targets) // len(examples)
    objective = find_objective(stage.objective)(names)
    optimizer = torch.optim.AdamW(optimizer_groups(model, stage), fused=True)

    def loss() -> Tensor:
        return objective.loss(TrainBatch(model, batch, Meter(), Clock(0, 1, 0.0))).mean

    before = _resident()
    held = Held()
    for tensor in [*model.parameters(), *model.buffers()]:
        held.see(tensor)
    for _ in range(2):  # the optimiser's state is made in the first step
        with held:
            held.peak = held.now
            loss().backward()
            gradients = _size([p.grad for p in model.parameters() if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad()
    grown = _resident() - before
    saved = saved_bytes(model, loss)
    moments = [v for s in optimizer.state.values() for v in s.values() if v.dim() > 0]
    config = recipe.model_config_for()
    predicted = predict_memory(
        empty_model(config),
        recipe.pipeline(config),
        stage,
        bf16=False,
        length=length,
        supervised=supervised,
        words=None if names is None else len(names.words),
    )
    measured = {
        "weights": _size(list(model.parameters())),
        "gradients": gradients,
        "optimizer": _size(moments),
        "saved": saved,
        "total": held.peak,
    }
    foreseen = {
        "weights": predicted.weights,
        "gradients": predicted.gradients,
        "optimizer": predicted.optimizer,
        "saved": predicted.activations + predicted.loss,
        "total": predicted.total,
    }
    return {
        "tokens": predicted.sequence,
        "samples": predicted.samples,
        "measured": measured,
        "predicted": foreseen,
        "ratio": {key: round(foreseen[key] / max(measured[key], 1), 3) for key in measured},
        "process_grew": grown + measured["weights"],
    }


def _size(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure every mode and print or write the table."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="nano", help="a recipe, with random weights")
    parser.add_argument("--modes", nargs="+", choices=sorted(MODES), default=list(MODES))
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--words", type=int, default=40, help="of each question and answer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"size": options.size, "modes": {}, "machine": machine()}
    if options.out.is_file():  # modes may be measured one process after the other
        before = json.loads(options.out.read_text())
        if before["size"] == options.size:
            result["modes"] = before["modes"]
    with tempfile.TemporaryDirectory() as name:
        examples = make_examples(Path(name), options.samples, options.words)
        recipe = random_recipe(options.size, Path(name))
        for mode in options.modes:
            result["modes"][mode] = measure(recipe, mode, examples)
            print(mode, json.dumps(result["modes"][mode]), flush=True)
    write(options.out, result)


if __name__ == "__main__":
    main()
