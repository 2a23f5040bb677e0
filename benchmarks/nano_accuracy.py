"""What nano answers rightly: on scenes, on a grey picture instead, and beside the answer prior.

    python benchmarks/nano_accuracy.py --data SCENES [--scenes 100] [--cache DIR] [--checkpoint DIR]

SCENES is a folder made by `vistoken data make`: val holds new compositions of known drawings, style
drawings in a style that training never saw. A question counts when every token of the greedy answer
and its end token are right. All questions about a picture are read in one packed pass: the arg-max
at every answer position is right exactly when greedy decoding gives that answer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from card import write_table
from paired import machine, sha256, write
from PIL import Image
from torch import Tensor

import vistoken
from vistoken.eval.scoring import answer_prior, bootstrap_mean, prior_hits
from vistoken.models.images import open_image
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.outputs import ImageFeatures
from vistoken.models.processing import VistokenProcessor
from vistoken.train.cache import FeatureCache, fast_compute
from vistoken.train.masks import decoder_mask
from vistoken.train.packing import PackedBatch
from vistoken.train.samples import (
    CachedEncoder,
    Encoder,
    Example,
    Pictures,
    PixelEncoder,
    QuestionCollator,
    QuestionGroup,
    group_examples,
    read_examples,
)

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "src/vistoken/assets/nano"
RESULT = Path(__file__).parent / "results" / "nano_accuracy.json"
GREY = (128, 128, 128)
NAMING = ("name1", "nameN")
TARGET_POINTS = 20


@dataclass(frozen=True)
class Outcome:
    """One question: who answered it rightly."""

    image: str
    kind: str
    model: bool
    grey: bool
    prior: bool


class GreyEncoder:
    """Gives a grey picture of the same size for every picture; each size is encoded once."""

    def __init__(
        self, model: VistokenForConditionalGeneration, processor: VistokenProcessor
    ) -> None:
        self.model, self.processor = model, processor
        self.by_size: dict[tuple[int, int], Pictures] = {}

    def __call__(self, images: Sequence[Path]) -> Pictures:
        """Encode grey pictures as large as the files."""
        parts = [self._of_size(open_image(image).size) for image in images]
        features = [maps for part in parts for maps in part.tower_features or []]
        return Pictures(torch.cat([part.view_table for part in parts]), features)

    def _of_size(self, size: tuple[int, int]) -> Pictures:
        if size not in self.by_size:
            inputs = self.processor.image_processor([Image.new("RGB", size, GREY)])
            features, _ = self.model.model.encode(inputs["pixel_values"], inputs["view_table"])
            self.by_size[size] = Pictures(inputs["view_table"], features)
        return self.by_size[size]


def greedy_tokens(
    model: VistokenForConditionalGeneration, batch: PackedBatch, features: ImageFeatures
) -> Tensor:
    """What greedy decoding writes at every target (M,), given that all before it is right."""
    core = model.model
    table = core.get_input_embeddings().weight
    mask = decoder_mask(batch.segments, core.language_model.config, table.dtype, table.device)
    hidden = core(
        input_ids=batch.input_ids.to(table.device),
        position_ids=batch.position_ids.to(table.device),
        attention_mask=mask,
        mm_encoder_outputs={"image": features},
        use_cache=False,
    ).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.sources.to(table.device)])
    logits[:, model.generation_config.suppress_tokens or []] = -torch.inf
    return logits.argmax(-1).cpu()


def rows_right(batch: PackedBatch, tokens: Tensor) -> list[bool]:
    """Whether all targets of a row are met, for every row of a batch."""
    wrong = batch.rows[tokens != batch.targets].tolist()
    return [row not in wrong for row in range(len(batch.kinds))]


@torch.inference_mode()
def answer(
    model: VistokenForConditionalGeneration, collate: QuestionCollator, group: QuestionGroup
) -> list[bool]:
    """Whether each question about a picture is answered rightly."""
    inputs = collate([group])
    pictures = inputs["pictures"]
    features = model.get_image_features(
        pictures.pixel_values, pictures.view_table, pictures.tower_features
    )
    return rows_right(inputs["batch"], greedy_tokens(model, inputs["batch"], features))


def evaluate(
    model: VistokenForConditionalGeneration,
    processor: VistokenProcessor,
    encode: Encoder,
    groups: Sequence[QuestionGroup],
    prior: dict[str, str],
) -> list[Outcome]:
    """Ask everything about every picture, in sight of it and of a grey one."""
    template, longest = processor.chat_template, model.config.text_config.max_position_embeddings
    see = QuestionCollator(processor, template, encode, longest)
    blind = QuestionCollator(processor, template, GreyEncoder(model, processor), longest)
    outcomes: list[Outcome] = []
    for number, group in enumerate(groups, start=1):
        given = kinds_and_answers(group.examples)
        columns = (
            answer(model, see, group),
            answer(model, blind, group),
            prior_hits(prior, given),
        )
        name = group.images[0].name
        rows = zip(given, *columns, strict=True)
        outcomes += [Outcome(name, kind, *hits) for (kind, _), *hits in rows]
        if number % 10 == 0 or number == len(groups):
            print(f"{number} of {len(groups)} pictures", flush=True)
    return outcomes


def kinds_and_answers(examples: Iterable[Example]) -> list[tuple[str, str]]:
    """Kind and right answer of questions."""
    return [
        (example.kind, "".join(p["text"] for p in example.messages[-1]["content"] if "text" in p))
        for example in examples
    ]


def summarise(outcomes: Sequence[Outcome], seed: int) -> dict[str, dict[str, Any]]:
    """By kind, for both naming kinds and for all: accuracies with their intervals."""
    kinds = {kind: (kind,) for kind in sorted({outcome.kind for outcome in outcomes})}
    kinds |= {"naming": NAMING, "all": tuple(kinds)}
    table = {}
    for name, members in kinds.items():
        chosen = [outcome for outcome in outcomes if outcome.kind in members]
        if chosen:
            table[name] = _row(chosen, seed)
    return table


def _row(chosen: Sequence[Outcome], seed: int) -> dict[str, Any]:
    images = [outcome.image for outcome in chosen]
    columns: dict[str, list[float]] = {
        "model": [outcome.model for outcome in chosen],
        "grey": [outcome.grey for outcome in chosen],
        "prior": [outcome.prior for outcome in chosen],
        "model_minus_grey": [outcome.model - outcome.grey for outcome in chosen],
    }
    row: dict[str, Any] = {"n": len(chosen), "pictures": len(set(images))}
    for name, values in columns.items():
        estimate = bootstrap_mean(values, images, seed=seed)
        row[name] = {k: round(v, 4) for k, v in asdict(estimate).items() if k != "n"}
    return row


def digests(checkpoint: Path, data: Path) -> dict[str, Any]:
    """What exactly was measured: the checkpoint's files and the data's recipe."""
    kept = [p for p in sorted(checkpoint.rglob("*")) if p.suffix in (".safetensors", ".json")]
    return {
        "checkpoint": {str(path.relative_to(checkpoint)): sha256(path) for path in kept},
        "data": {
            "make.json": sha256(data / "make.json"),
            "seed": json.loads((data / "make.json").read_text(encoding="utf-8"))["seed"],
        },
    }


def main() -> None:
    """Measure, print, write the result and the model card's table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", type=Path, required=True, help="folder of `vistoken data make`")
    parser.add_argument("--splits", nargs="+", default=["val", "style"])
    parser.add_argument("--scenes", type=int, default=100, help="pictures of each split")
    parser.add_argument("--cache", type=Path, help="feature cache of training")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--card", type=Path, help="default: README.md of the checkpoint")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    provenance = digests(options.checkpoint, options.data)  # fails before the work, not after
    model, processor = vistoken.load(options.checkpoint, dtype=options.dtype)
    encode: Encoder = PixelEncoder(processor)
    if options.cache is not None:
        encode = CachedEncoder(FeatureCache(options.cache, model, processor, fast_compute()))
    prior = answer_prior(kinds_and_answers(read_examples([options.data / "train.jsonl"], None)))
    splits = {}
    for split in options.splits:
        examples = read_examples([options.data / f"{split}.jsonl"], None)
        groups = group_examples(examples, len(examples))[: options.scenes]
        outcomes = evaluate(model, processor, encode, groups, prior)
        splits[split] = summarise(outcomes, options.seed)
    result = {
        "what": "share of questions answered exactly: the model, the model shown a uniform grey "
        "picture of the same size, and the most common training answer of the kind",
        "interval": "95 %, bootstrap over pictures",
        "target": f"naming on val: model minus grey at least {TARGET_POINTS / 100}",
        "seed": options.seed,
        "dtype": str(model.dtype).removeprefix("torch."),
        "cached_features": None if options.cache is None else fast_compute(),
        "threads": options.threads,
        **provenance,
        "prior": prior,
        "splits": splits,
        "machine": machine(),
    }
    write(options.out, result)
    print(write_table(options.card or options.checkpoint / "README.md", splits))


if __name__ == "__main__":
    main()
