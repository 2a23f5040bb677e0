"""The transformers Trainer with this project's batches, groups, loss, metrics and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from vistoken.core.objectives import Clock, StepLoss
from vistoken.data.sampling import ModalityLengthSampler, ShuffledSampler
from vistoken.train.alignment import NameSpace
from vistoken.train.arguments import schedule
from vistoken.train.checkpoints import AtomicCheckpoints
from vistoken.train.data_time import TimedData
from vistoken.train.distributed import greatest, run_through
from vistoken.train.empty_batches import MeansOfFilled
from vistoken.train.examples import Items, Numbers, ScenePicture
from vistoken.train.feeds import FEEDS
from vistoken.train.finite import FiniteSteps, NamedBatches
from vistoken.train.groups import optimizer_groups
from vistoken.train.held_out import HeldOut
from vistoken.train.interrupts import StopOnSignal
from vistoken.train.left_out import LEFT_OUT, LeftOutLog, RecordsLeftOut
from vistoken.train.log_file import JsonLines
from vistoken.train.metrics import Meter, Progress, peak_memory
from vistoken.train.microbatch import TrainBatch
from vistoken.train.objectives import find_objective
from vistoken.train.probe import NameProbe
from vistoken.train.resuming import CurrentSettings
from vistoken.train.samples import SceneCollator
from vistoken.train.session import KeepsSession
from vistoken.train.settings import StageConfig
from vistoken.train.validation import Validation
from vistoken.train.workers import NumberedBatches, OpensBatches

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration

__all__ = ["VistokenTrainer", "schedule"]


class VistokenTrainer(
    KeepsSession,
    AtomicCheckpoints,
    FiniteSteps,
    CurrentSettings,
    RecordsLeftOut,
    MeansOfFilled,
    TimedData,
    OpensBatches,
    Trainer,
):
    """Trains one stage.

    Args:
        model: The model, its parts already frozen or not (:func:`apply_groups`).
        args: Made by :func:`training_arguments`.
        stage: The stage.
        items: Question groups or annotated pictures.
        collate: Makes batches of them.
        metrics: File of the metrics log.
        names: Words for alignment and retrieval; None without annotations.
        probe: Annotated pictures for name retrieval.
        probe_collate: Makes a batch of them.
        lengths: Grouping length of each item, for ``order: modality-length``.
        left_out: Where samples that are not trained on are recorded; beside the metrics when None.
        held_out: Samples like ``items``, for validation.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: VistokenForConditionalGeneration,
        args: TrainingArguments,
        stage: StageConfig,
        items: Sequence[Any],
        collate: Any,
        metrics: Path,
        names: NameSpace | None = None,
        probe: Sequence[ScenePicture] = (),
        probe_collate: SceneCollator | None = None,
        lengths: Sequence[int] | Numbers = (),
        left_out: LeftOutLog | None = None,
        held_out: Sequence[Any] = (),
    ) -> None:
        self.stage = stage
        self.keep_best = stage.keep_best
        objective = find_objective(stage.objective)
        self.objective = objective(names)
        validation = Validation(
            objective(names),
            held_out,
            collate,
            stage.images_per_step,
            lambda lacking: self.left_out.add_validation(self.state.global_step, lacking),
        )
        probe_names = NameProbe(names, probe, probe_collate)
        self.held_out = HeldOut(
            {
                "retrieval": lambda: probe_names(self.model),
                "val": lambda: validation(self.model, self._clock()),
            }
        )
        self.meter = Meter()
        self.lengths = lengths
        self.left_out = left_out or LeftOutLog(metrics.with_name(LEFT_OUT), stage.name)
        self.progress = Progress(stage.name, self._time_left)
        self.interrupt = StopOnSignal()
        self._elapsed_before = 0.0
        self._began = time.perf_counter()
        named = NamedBatches(collate, FEEDS[objective.rows].names)
        super().__init__(
            model=model,
            args=args,
            train_dataset=Items(range(len(items))),
            data_collator=NumberedBatches(items, named),
            callbacks=[self.progress, JsonLines(metrics, stage.name), self.interrupt],
        )
        self.remove_callback(PrinterCallback)
        # With tokens the Trainer counts a step's targets and leaves the division to compute_loss;
        # otherwise it divides the mean of a micro-batch by the number of micro-batches.
        self.model_accepts_loss_kwargs = stage.loss_average == "tokens"
        self._loss_shifts_labels = False

    # -- order and optimisation --------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        if self.stage.order == "shuffle":
            return ShuffledSampler(len(self.train_dataset), self.args.seed)
        together = self.accelerator.num_processes * self.stage.accumulate
        return ModalityLengthSampler(
            self.lengths, self.stage.images_per_step, together, self.args.seed
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the stage's parameter groups."""
        if self.optimizer is None:
            groups = optimizer_groups(self.model, self.stage)
            self.optimizer = AdamW(groups, betas=self.stage.betas, eps=self.stage.eps, fused=True)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """Warm-up, then the stage's shape, over steps or over the clock, whichever is further."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer, lambda step: self._rate(step / num_training_steps)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _rate(self, progress: float) -> float:
        if self.stage.minutes is not None:
            progress = max(progress, self._time_used())
        return schedule(progress, self.stage.schedule, self.stage.warmup)

    def _time_used(self) -> float:
        """Share of the stage's minutes, on all processes that of the slowest clock."""
        # with clocks of their own they would step at different rates and stop at different steps
        return greatest(self.elapsed) / (60 * (self.stage.minutes or math.inf))

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch; stops the stage when its time is over."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.stage.minutes is not None and self._time_used() > 1:
            self.control.should_training_stop = True
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of a micro-batch, as its step's average needs it."""
        # through the wrapper, which exchanges the gradients; past it every process trains alone
        batch = TrainBatch(self.model, inputs, self.meter, self._clock())
        step: StepLoss = run_through(model, self.model, lambda: self.objective.loss(batch))
        if num_items_in_batch is None:
            loss = self.over_filled(step.mean)
        else:
            loss = self._share(step, num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def _share(self, step: StepLoss, targets_of_step: Tensor | int) -> Tensor:
        """What a micro-batch adds to the mean over all targets of a step."""
        # gradients are averaged over the processes whose targets were counted together
        summed = self.args.average_tokens_across_devices
        processes = self.accelerator.num_processes if summed else 1
        return step.mean * (step.targets * processes / max(float(targets_of_step), 1.0))

    def _clock(self) -> Clock:
        state = self.state
        return Clock(state.global_step, state.max_steps, float(state.epoch or 0.0))

    # -- reports -----------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add our metrics to a record."""
        if "loss" in logs:
            logs = {**logs, **self.meter.read(self.objective.unit), **self.objective.scores()}
            logs |= {key: float(count) for key, count in self.left_out.counts.items()}
            logs["peak_memory_mb"] = peak_memory() / 1e6
            logs["eta_s"] = self.progress.eta(self.state)
            logs["elapsed_s"] = self.elapsed
            logs |= self.held_out.due(self.stage, self.state.global_step)
        super().log(logs, start_time)

    def _time_left(self) -> float:
        """Seconds until the stage's minutes are over."""
        return max(60 * (self.stage.minutes or math.inf) - self.elapsed, 0.0)

    # -- checkpoints -------------------------------------------------------------------------

    def checkpoint_score(self, metric: str) -> float | None:
        """A metric of the weights that are being saved."""
        found = self.held_out.find(metric, self.state.global_step)
        return super().checkpoint_score(metric) if found is None else found
