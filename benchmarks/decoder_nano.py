"""What nano still answers when its decoder does less for visual tokens: SAISA and YOPO.

    python benchmarks/decoder_nano.py --data SCENES --work FOLDER [--cache DIR] [--steps 400]
        [--grid 12 12] [--scenes 60] [--arms llava saisa] [--keep 0.857 0.667 0.5] [--from-nano]

`llava` is the dense model, `saisa` has visual tokens as keys and values only, `yopo` (not by
default) is the dense model trained under YOPO's pruned graph. One alignment with names is trained
first; every arm starts from it (SAISA's shared projector is the aligned projection) and takes the
same steps on the same questions. With `--from-nano` their language model is nano's, which can
answer about visual tokens already. Then YOPO prunes `llava` without training, at several ratios;
all are asked about held-out scenes, also about a grey picture instead; FLOPs and cache are counted
from the plans, and times taken in turns. Whatever is done is kept in FOLDER and gone on with.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from decoder_nano_costs import count, time_phases
from decoder_nano_prune import prune
from decoder_nano_start import nano_reader
from paired import machine, sha256, write
from safetensors.torch import save

from vistoken.api import load
from vistoken.core.files import write_atomically
from vistoken.eval.run import EvalOptions, evaluate
from vistoken.eval.tasks import read_tasks
from vistoken.models.build import build
from vistoken.models.checkpoint import own_state, read_safetensors
from vistoken.models.recipe import Recipe, load_recipe, parse_recipe
from vistoken.train.cache import fast_compute
from vistoken.train.config import recipe_config
from vistoken.train.run import DONE, MODEL, train
from vistoken.train.trained import TRAINED

RESULT = Path(__file__).parent / "results" / "decoder_nano.json"
PROJECTION = "model.multi_modal_projector.mlp."
SHARED = "model.mechanisms.saisa.projectors.shared."
ALIGN: dict[str, Any] = {
    "name": "align",
    "objective": "name-alignment",
    "groups": {"connector": {"train": "full", "lr": 1.0e-3}},
    "images_per_step": 8,
    "betas": [0.9, 0.98],
    "warmup": 0.02,
}
YOPO = {"mode": "drop", "window": 3, "layer_cut": 15, "mlp_ratio": 2}


def arm_recipe(arm: str, options: argparse.Namespace) -> Recipe:
    """The recipe of an arm, on the coarser grid and with this benchmark's stages."""
    name = options.recipes[1] if arm == "saisa" else options.recipes[0]
    values = load_recipe(name).model_dump(exclude_none=True)
    if options.grid is not None:
        values["connector"][0] = {"part": "concat-grid", "options": {"grid": options.grid}}
    if options.reader is not None:
        values["language_model"]["source"] = str(options.reader)
    if arm == "yopo":
        values["mechanisms"] = [{"part": "yopo", "options": YOPO}]
    joint = dict(values["train"]["stages"][-1])
    for field in ("needs", "epochs", "minutes"):
        joint.pop(field, None)
    projectors = "mechanisms" if arm == "saisa" else "connector"
    joint["groups"] = {
        projectors: {"train": "full", "lr": _projector_rate(arm, options)},
        "language": joint["groups"]["language"],
    }
    values["train"] = {"stages": [{**joint, "steps": options.steps, "save_every": 100}]}
    values["name"] = f"{values['name']}-{arm}"
    return parse_recipe(values, f"arm {arm}")


def _projector_rate(arm: str, options: argparse.Namespace) -> float:
    """SAISA's projectors of deep layers have a longer way to go from the aligned one."""
    return float(options.saisa_rate if arm == "saisa" else options.projector_rate)


def run(recipe: Recipe, stages: list[Any], folder: Path, options: argparse.Namespace, **more: Any
        ) -> Path:  # fmt: skip
    """Train in a folder, or go on there; nothing is done twice."""
    output = folder / "run"
    if (output / MODEL).is_dir():
        return output
    folder.mkdir(parents=True, exist_ok=True)
    plain = yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True))
    write_atomically(folder / "recipe.yaml", plain.encode())
    values = {"data": [str(options.data / "train.jsonl")], "output": str(output), **more}
    if options.cache is not None:
        values["cache"] = str(options.cache)
    config = recipe_config(str(folder / "recipe.yaml"), {"stages": stages}, values)
    train(config, resume=(output / "config.yaml").is_file())
    return output


def align(options: argparse.Namespace) -> Path:
    """Train the projection alone: visual tokens at the names of what they show."""
    files = [str(options.data / f"{split}.jsonl") for split in options.align_on]
    stage = {**ALIGN, "data": files, "steps": options.align_steps}
    output = run(arm_recipe("llava", options), [stage], options.work / "align", options)
    return output / "stages" / "align"


def write_start(recipe: Recipe, aligned: Path, target: Path) -> None:
    """Weights an arm starts from: the aligned connector, and SAISA's projector a copy of it."""
    model, _ = build(recipe)
    state = dict(own_state(model))
    found = read_safetensors(aligned / TRAINED)
    copies = {SHARED + name.removeprefix(PROJECTION): tensor for name, tensor in found.items()
              if name.startswith(PROJECTION)}  # fmt: skip
    # the scale behind the projection is left out where the layers' norms do its work
    taken = {n: t for n, t in {**found, **copies}.items() if n in state}
    new = [name for name in state if name not in taken]
    if new or any(taken[name].shape != state[name].shape for name in taken):
        raise SystemExit(f"{recipe.name} does not fit the alignment in {aligned}: {new}")
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: taken[name].clone() for name in state}
    write_atomically(target / TRAINED, save(tensors, metadata={"format": "pt"}))


def train_arm(arm: str, aligned: Path, options: argparse.Namespace) -> Path:
    """Train an arm from the alignment; its run's folder."""
    recipe = arm_recipe(arm, options)
    start = options.work / arm / "start"
    if not (start / TRAINED).is_file():
        write_start(recipe, aligned, start)
    stages = (recipe.train or {})["stages"]
    return run(recipe, stages, options.work / arm, options, init=str(start))


def ask(name: str, checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy by kind of question, beside the grey picture and the prior."""
    model, processor = load(checkpoint, dtype=fast_compute())
    tasks = read_tasks([options.data / f"{s}.jsonl" for s in options.splits], limit=options.scenes)
    asking = EvalOptions(
        grey=True,
        prior=options.data / "train.jsonl",
        limit=options.scenes,
        cache=options.cache,
    )
    folder = options.work / "answers" / name
    print(f"asking {name}", flush=True)
    return dict(evaluate(model, processor, tasks, folder, asking, name)["tasks"])


def training(run_folder: Path) -> dict[str, Any]:
    """Steps and seconds of a run's last stage."""
    (stage,) = (run_folder / "stages").iterdir()
    done = json.loads((stage / DONE).read_text(encoding="utf-8"))
    return {key: done[key] for key in ("steps", "seconds", "samples", "questions")}


def table(models: dict[str, Any], split: str) -> str:
    """Accuracy beside cost, one line a model."""
    lines = [f"{'':16} right  grey  prior  kept | prefill  decode  cache  time"]
    base = models["llava"]["accuracy"][split]["all"]["model"]["value"]
    for name, row in models.items():
        found = {k: v["value"] for k, v in row["accuracy"][split]["all"].items() if "_" not in k
                 and isinstance(v, dict)}  # fmt: skip
        cost = row["cost"]["ratio"]
        lines.append(
            f"{name:16} {found['model']:.3f} {found['grey']:.3f} {found['prior']:.3f} "
            f"{found['model'] / max(base, 1e-9):6.3f} | {cost['prefill_flops']:.3f}   "
            f"{cost['decode_flops']:.3f}   {cost['cache_bytes']:.3f}  "
            f"{row['time']['prefill']['ratio']:.3f}"
        )
    return "\n".join(lines)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of `vistoken data make`")
    parser.add_argument("--work", type=Path, required=True, help="runs and answers; gone on with")
    parser.add_argument("--cache", type=Path, help="feature cache; encodes every time without")
    parser.add_argument("--arms", nargs="+", default=["llava", "saisa"],
                        choices=["llava", "saisa", "yopo"])  # fmt: skip
    parser.add_argument("--steps", type=int, default=400, help="of every arm")
    parser.add_argument("--align-steps", type=int, default=1000)
    parser.add_argument("--align-on", nargs="+", default=["dense", "train"], help="splits")
    parser.add_argument("--from-nano", action="store_true", help="start from nano's language model")
    parser.add_argument("--projector-rate", type=float, default=1e-4)
    parser.add_argument("--saisa-rate", type=float, default=1e-3, help="of SAISA's projectors")
    parser.add_argument("--grid", type=int, nargs=2, default=[12, 12], metavar=("ROWS", "COLS"),
                        help="of the fused features; 24 24 is the towers' own")  # fmt: skip
    parser.add_argument("--keep", type=float, nargs="*", default=[0.857, 0.667, 0.5],
                        help="share of layers and of heads that YOPO keeps")  # fmt: skip
    parser.add_argument("--samples", type=int, default=100, help="pictures of the calibration")
    parser.add_argument("--splits", nargs="+", default=["val"], help="asked about")
    parser.add_argument("--scenes", type=int, default=60, help="pictures of each split")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--recipes", nargs=2, default=["llava-nano", "saisa-nano"])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(words)
    options.reader = None
    options.arms = ["llava", *(arm for arm in options.arms if arm != "llava")]
    return options


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Train, prune, ask, count, and write the result."""
    options = parse(words)
    torch.set_num_threads(options.threads)
    aligned = align(options)
    if options.from_nano:
        options.reader = nano_reader(options.work / "language-model")
    runs = {arm: train_arm(arm, aligned, options) for arm in options.arms}
    checkpoints = {arm: folder / MODEL for arm, folder in runs.items()}
    for keep in options.keep:
        name = f"llava-yopo-{keep:g}"
        checkpoints[name] = prune(checkpoints["llava"], keep, options.work / name, options)
    answers = {name: ask(name, path, options) for name, path in checkpoints.items()}
    costs, times = count(checkpoints), time_phases(checkpoints, options.rounds)
    models = {
        name: {
            "cost": costs[name],
            "time": times[name],
            "accuracy": answers[name],
            **({"training": training(runs[name])} if name in runs else {}),
        }
        for name in checkpoints
    }
    asked = ("steps", "from_nano", "align_steps", "projector_rate", "saisa_rate", "grid",
             "keep", "samples", "scenes", "recipes", "threads")  # fmt: skip
    result = {
        "what": "share of questions answered exactly, beside what the decoder computes; ratios are "
        "to llava, which is dense; yopo-R keeps R of the layers and heads, without training",
        "settings": {name: getattr(options, name) for name in asked},
        "alignment": training(options.work / "align" / "run"),
        "data": sha256(options.data / "make.json"),
        "models": models,
        "machine": machine(),
    }
    write(options.out, result)
    for split in options.splits:
        print(f"{split}\n{table(models, split)}", flush=True)
    return result


if __name__ == "__main__":
    main()
