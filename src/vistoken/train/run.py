"""Running a configuration: stages in order, each from the one before, resumable."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from vistoken.core.errors import UsageError, WeightsError
from vistoken.models.build import build, references_of
from vistoken.models.checkpoint import save_light
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.processing import VistokenProcessor
from vistoken.models.recipe import load_recipe
from vistoken.models.references import Reference, read_references
from vistoken.models.templates import load_template
from vistoken.train.alignment import NameSpace, scenes_file, vocabulary
from vistoken.train.cache import Compute, FeatureCache, fast_compute
from vistoken.train.config import RunConfig, StageConfig, dump_config
from vistoken.train.groups import GroupRow, apply_groups, format_table
from vistoken.train.samples import (
    CachedEncoder,
    Encoder,
    PixelEncoder,
    QuestionCollator,
    SceneCollator,
    ScenePicture,
    group_examples,
    read_examples,
    read_pictures,
)
from vistoken.train.standardise import standardise
from vistoken.train.trainer import (
    TRAINED,
    VistokenTrainer,
    read_trained,
    training_arguments,
    write_atomically,
    write_trained,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

DONE = "done.json"
MODEL = "model"
_CONFIG = "config.yaml"
_RUN = "run.json"
_METRICS = "metrics.jsonl"
_STANDARDISE_ON = 256
# changing these does not change what is learned
_FREE = ("log_every", "save_every", "keep", "retrieval_every", "retrieval_images", "minutes")


@dataclass(frozen=True)
class StageReport:
    """What a stage trains, or trained.

    Attributes:
        name: The stage.
        groups: What is trained, part by part.
        samples: Samples of one pass over the data.
        steps: Optimiser steps done; 0 in a dry run.
        seconds: Wall time of the training loop.
    """

    name: str
    groups: tuple[GroupRow, ...]
    samples: int
    steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        stages: Its stages, in order.
        model: Folder of the trained model; None in a dry run.
    """

    stages: tuple[StageReport, ...]
    model: Path | None


@dataclass
class _Run:
    config: RunConfig
    model: VistokenForConditionalGeneration
    processor: VistokenProcessor
    references: list[Reference]
    bf16: bool
    device: torch.device
    cache: FeatureCache | None = None
    encode: Encoder = field(init=False)

    def __post_init__(self) -> None:
        if self.config.cache is not None:
            compute: Compute = "bfloat16" if self.bf16 else "float32"
            self.cache = FeatureCache(self.config.cache, self.model, self.processor, compute)
            self.encode = CachedEncoder(self.cache)
        else:
            self.encode = PixelEncoder(self.processor)

    def folder(self, stage: StageConfig) -> Path:
        return self.config.output / "stages" / stage.name

    def data(self, stage: StageConfig) -> tuple[tuple[Path, ...], Path | None]:
        """Data files of a stage and their image root."""
        config = self.config
        files = config.data if stage.data is None else stage.data
        return files, config.image_root if stage.image_root is None else stage.image_root


def train(
    config: RunConfig,
    *,
    dry_run: bool = False,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> RunReport:
    """Run a configuration's stages.

    Args:
        config: The run.
        dry_run: Build the model, read the data, work out the groups; train and write nothing.
        resume: Go on in ``config.output`` from its last checkpoint.
        progress: Called with what is being prepared, the number done and the total.

    Raises:
        UsageError: The output folder is in use, or belongs to another configuration.
        DataError: A row, picture or annotation is faulty.
        WeightsError: Weights to start from are missing or do not fit.
    """
    if not dry_run:
        _claim(config, resume)
    began = time.time()
    run = _open(config)
    started = _start_weights(run, resume)
    reports = []
    for stage in config.stages:
        if started.skips(stage):
            continue
        report = _run_stage(run, stage, started, dry_run, resume, progress)
        reports.append(report)
    if dry_run:
        return RunReport(tuple(reports), None)
    if started.weights is not None:  # every stage was done before this session
        apply_groups(run.model, config.stages[-1])
        read_trained(run.model, started.weights)
    out = config.output / MODEL
    if not (out.is_dir() and any(out.iterdir())):
        save_light(run.model.eval(), run.processor, out, run.references)
    _write_record(run, reports, began)
    return RunReport(tuple(reports), out)


class _Started:
    """Which stages are done, and what the next one starts from."""

    def __init__(self, done: list[str], weights: Path | None) -> None:
        self.done = set(done)
        self.weights = weights

    def skips(self, stage: StageConfig) -> bool:
        """Whether a stage is done already; weights of the last one are still to be loaded."""
        return stage.name in self.done

    def check(self, stage: StageConfig, init: Path | None) -> None:
        """Refuse a stage whose earlier stage is missing."""
        if stage.needs is not None and stage.needs not in self.done and init is None:
            raise WeightsError(
                f"stage {stage.name!r} needs the weights of stage {stage.needs!r}; put that stage "
                "before it, or set init to the folder of one that is finished"
            )


def _start_weights(run: _Run, resume: bool) -> _Started:
    done: list[str] = []
    weights: Path | None = None
    if run.config.init is not None:
        weights = run.config.init / TRAINED
        if not weights.is_file():
            raise WeightsError(
                f"init: {weights} does not exist; name the folder of a finished stage, "
                "such as runs/first/stages/align"
            )
    if resume:
        for stage in run.config.stages:
            if (run.folder(stage) / DONE).is_file():
                done.append(stage.name)
                weights = run.folder(stage) / TRAINED
    return _Started(done, weights)


def _run_stage(
    run: _Run,
    stage: StageConfig,
    started: _Started,
    dry_run: bool,
    resume: bool,
    progress: Callable[[str, int, int], None] | None,
) -> StageReport:
    started.check(stage, run.config.init)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.config.seed)
        table = apply_groups(run.model, stage)
    if started.weights is not None:
        read_trained(run.model, started.weights, others_allowed=True)
        started.weights = None
    encode = _stage_encoder(run, stage)
    items, images = _items(run, stage)
    probe = _probe(run, stage)
    report = StageReport(stage.name, tuple(table), len(items))
    logger.info("stage %s, %d samples\n%s", stage.name, len(items), format_table(table))
    started.done.add(stage.name)
    if dry_run:
        return report
    if isinstance(encode, CachedEncoder):
        wanted = [*images, *(picture.image for picture in probe)]
        _fill(encode.cache, wanted, progress)
    run.model.to(run.device)
    standardise(run.model, encode, images[:_STANDARDISE_ON])
    folder = run.folder(stage)
    trainer = VistokenTrainer(
        run.model,
        training_arguments(
            stage, folder, run.config.seed, run.bf16, use_cpu=run.device.type == "cpu"
        ),
        stage,
        items,
        _collator(run, stage, encode),
        run.config.output / _METRICS,
        _names(run, stage, probe),
        probe,
        SceneCollator(encode),
    )
    checkpoint = last_checkpoint(folder) if resume else None
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    write_trained(run.model, folder / TRAINED)
    report = StageReport(stage.name, tuple(table), len(items), result.global_step, trainer.elapsed)
    final = {**asdict(report), **trainer.retrieve_names(), **trainer.meter.read()}
    write_atomically(folder / DONE, (json.dumps(final, indent=2) + "\n").encode())
    return report


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a stage; the Trainer writes its state file last."""
    found = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in folder.glob("checkpoint-*")
        if (path / "trainer_state.json").is_file() and (path / TRAINED).is_file()
    ]
    return max(found)[1] if found else None


def _open(config: RunConfig) -> _Run:
    bf16 = config.precision == "bfloat16" or (
        config.precision == "auto" and fast_compute() == "bfloat16"
    )
    source = Path(config.recipe)
    references: list[Reference]
    if source.is_dir():
        model = VistokenForConditionalGeneration.from_pretrained(source)
        processor = VistokenProcessor.from_pretrained(source)
        references = read_references(source)
    else:
        recipe = load_recipe(config.recipe)
        model, processor = build(recipe)
        references = references_of(recipe)
    if bf16:
        # frozen weights are stored in the type they are used in: autocast would cast them anew
        model.model.language_model.to(torch.bfloat16)
        model.lm_head.to(torch.bfloat16)
        model.tie_weights()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _Run(config, model.to(device), processor, references, bf16, device)


def _stage_encoder(run: _Run, stage: StageConfig) -> Encoder:
    if run.cache is not None and stage.group("vision").train != "frozen":
        raise UsageError(
            f"stage {stage.name!r} trains the vision towers, whose features cannot come from a "
            "cache; set cache: null"
        )
    return run.encode


def _items(run: _Run, stage: StageConfig) -> tuple[list[Any], list[Path]]:
    files, root = run.data(stage)
    if stage.objective == "name-alignment":
        pictures = read_pictures(files, root)
        return list(pictures), [picture.image for picture in pictures]
    examples = read_examples(files, root)
    groups = group_examples(examples, stage.questions_per_image)
    return list(groups), list(dict.fromkeys(image for group in groups for image in group.images))


def _probe(run: _Run, stage: StageConfig) -> list[ScenePicture]:
    if not stage.retrieval_every:
        return []
    files = run.config.validation or run.config.data
    return read_pictures(files, run.config.image_root)[: stage.retrieval_images]


def _names(run: _Run, stage: StageConfig, probe: Sequence[ScenePicture]) -> NameSpace | None:
    if stage.objective != "name-alignment" and not probe:
        return None
    files, root = run.data(stage)
    annotated = [path for path in files if scenes_file(path).is_file()]
    pictures = [*read_pictures(annotated, root), *probe]
    words = vocabulary([picture.scene for picture in pictures])
    return NameSpace(run.model, run.processor.tokenizer, words, stage.temperature)


def _collator(run: _Run, stage: StageConfig, encode: Encoder) -> Any:
    if stage.objective == "name-alignment":
        return SceneCollator(encode)
    template = load_template(stage.template) if stage.template else str(run.processor.chat_template)
    return QuestionCollator(run.processor, template, encode, stage.max_length)


def _fill(
    cache: FeatureCache,
    images: Iterable[Path],
    progress: Callable[[str, int, int], None] | None,
) -> None:
    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress("encode images", done, total)
        if done == total or done % 200 < 8:
            logger.info("encoded %d of %d images", done, total)

    report = cache.fill(list(images), progress=tell)
    logger.info("%d images cached, %.1f img/s", report.images, report.images_per_second)


def _claim(config: RunConfig, resume: bool) -> None:
    path = config.output / _CONFIG
    if path.is_file():
        if not resume:
            raise UsageError(
                f"{config.output} holds a run already; add --resume to go on with it, "
                "or choose another output"
            )
        changed = _differences(yaml.safe_load(path.read_text("utf-8")), _plain(config))
        if changed:
            raise UsageError(
                f"the run in {config.output} was started with another configuration: "
                f"{'; '.join(changed[:5])}. Undo the change or choose another output"
            )
    elif config.output.exists() and any(config.output.iterdir()):
        raise UsageError(f"{config.output} is not empty and holds no run; choose another output")
    config.output.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dump_config(config).encode())


def _plain(config: RunConfig) -> dict[str, Any]:
    plain: dict[str, Any] = config.model_dump(mode="json")
    return plain


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    if place.rpartition(".")[2] in (*_FREE, "cache"):
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        inner = [_differences(old.get(k), new.get(k), f"{place}.{k}".strip(".")) for k in keys]
        return [line for lines in inner for line in lines]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        inner = [
            _differences(a, b, f"{place}.{i}")
            for i, (a, b) in enumerate(zip(old, new, strict=True))
        ]
        return [line for lines in inner for line in lines]
    return [] if old == new else [f"{place} was {old}, is {new}"]


def _write_record(run: _Run, reports: Sequence[StageReport], began: float) -> None:
    record = {
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("vistoken", "torch", "transformers", "peft", "accelerate")
        }
        | {"python": platform.python_version()},
        "seed": run.config.seed,
        "device": str(run.device),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "bfloat16": run.bf16,
        "git": _git_state(),
        "wall_s": time.time() - began,
        "stages": [asdict(report) for report in reports],
    }
    write_atomically(run.config.output / _RUN, (json.dumps(record, indent=2) + "\n").encode())


def _git_state() -> dict[str, Any] | None:
    """Commit of this source tree and whether it is changed; None outside a repository."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *args],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
