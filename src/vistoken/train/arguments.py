"""A stage's settings in the Trainer's terms, and the course of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainingArguments

from vistoken.train.settings import StageConfig
from vistoken.train.workers import START_METHOD


def training_arguments(
    stage: StageConfig,
    folder: Path,
    seed: int,
    bf16: bool,
    use_cpu: bool,
    report_to: Sequence[str] = (),
    workers: int = 0,
) -> TrainingArguments:
    """The Trainer's arguments of a stage.

    Args:
        stage: The stage.
        folder: Its folder.
        seed: Seed of the data order.
        bf16: Whether to compute in bfloat16.
        use_cpu: Whether to stay on the CPU.
        report_to: Trackers to log to (see :func:`vistoken.train.trackers.prepare_trackers`).
        workers: Processes that make batches ahead.
    """
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=-1 if stage.steps is None else stage.steps,
        num_train_epochs=stage.epochs or 1.0,
        per_device_train_batch_size=stage.images_per_step,
        gradient_accumulation_steps=stage.accumulate,
        max_grad_norm=stage.clip,
        logging_steps=stage.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=stage.save_every,
        save_total_limit=stage.keep,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=list(report_to),
        run_name=stage.name,
        project="vistoken",
        trackio_space_id=None,
        trackio_static_space_id=False,
        seed=seed,
        data_seed=seed,
        bf16=bf16,
        use_cpu=use_cpu,
        dataloader_num_workers=workers,
        dataloader_multiprocessing_context=START_METHOD if workers else None,
        dataloader_pin_memory=False,
        **({"gradient_checkpointing": True} if stage.checkpointing else {}),
    )


def schedule(progress: float, shape: str, warmup: float) -> float:
    """Factor of the learning rate.

    Args:
        progress: Share of the stage that is done.
        shape: ``cosine``, ``linear`` or ``constant``.
        warmup: Share of the stage with a rising rate.
    """
    if progress < warmup:
        return progress / warmup
    rest = min((progress - warmup) / (1 - warmup), 1.0)
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    return 1.0 if shape == "constant" else 1 - rest
