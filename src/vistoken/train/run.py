"""Running a configuration: stages in order, each from the one before, resumable."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from vistoken.core.errors import UsageError, WeightsError
from vistoken.models.build import build, references_of
from vistoken.models.checkpoint import save_light
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.processing import VistokenProcessor
from vistoken.models.recipe import load_recipe
from vistoken.models.references import Reference, read_references
from vistoken.train.arguments import training_arguments
from vistoken.train.cache import Compute, FeatureCache, fast_compute
from vistoken.train.groups import GroupRow, apply_groups, format_table
from vistoken.train.run_folder import (
    DONE,
    METRICS,
    MODEL,
    claim,
    describe_run,
    last_checkpoint,
    write_record,
)
from vistoken.train.samples import CachedEncoder, Encoder, PixelEncoder, SceneCollator
from vistoken.train.settings import RunConfig, StageConfig
from vistoken.train.stage_data import name_space, probe_pictures, stage_collator, stage_items
from vistoken.train.standardise import standardise
from vistoken.train.trained import TRAINED, read_trained, write_atomically, write_trained
from vistoken.train.trainer import VistokenTrainer

__all__ = ["DONE", "MODEL", "RunReport", "StageReport", "last_checkpoint", "train"]

logger = logging.getLogger(__name__)

_STANDARDISE_ON = 256


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
        claim(config, resume)
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
    record = describe_run(config, run.device, run.bf16)
    record |= {"wall_s": time.time() - began, "stages": [asdict(report) for report in reports]}
    write_record(config.output, record)
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
    items, images = stage_items(run.config, stage)
    probe = probe_pictures(run.config, stage)
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
        stage_collator(stage, run.processor, encode),
        run.config.output / METRICS,
        name_space(run.config, stage, run.model, run.processor, probe),
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
