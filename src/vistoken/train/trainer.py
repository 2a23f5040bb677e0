"""The transformers Trainer with this project's batches, groups, loss, metrics and checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainingArguments

from vistoken.core.errors import DataError
from vistoken.train.alignment import NameSpace, PatchTokens, patch_tokens, score
from vistoken.train.arguments import schedule, training_arguments
from vistoken.train.groups import optimizer_groups
from vistoken.train.metrics import JsonLines, Meter, Progress
from vistoken.train.packing import decoder_mask
from vistoken.train.samples import Items, Pictures, SceneCollator, ScenePicture
from vistoken.train.settings import StageConfig
from vistoken.train.trained import (
    TRAINED,
    read_trained,
    trained_state,
    write_atomically,
    write_trained,
)

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.outputs import ImageFeatures

__all__ = [
    "TRAINED",
    "VistokenTrainer",
    "read_trained",
    "schedule",
    "trained_state",
    "training_arguments",
    "write_atomically",
    "write_trained",
]

_SESSION = "session.json"


class VistokenTrainer(Trainer):
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
    ) -> None:
        self.stage = stage
        self.meter = Meter()
        self.names = names
        self.probe = list(probe)
        self.probe_collate = probe_collate
        self.progress = Progress(stage.name)
        self._elapsed_before = 0.0
        self._began = time.perf_counter()
        self._retrieved: dict[str, float] = {}
        super().__init__(
            model=model,
            args=args,
            train_dataset=Items(items),
            data_collator=collate,
            callbacks=[self.progress, JsonLines(metrics, stage.name)],
        )
        self.remove_callback(PrinterCallback)
        # the loss is a mean over all targets of a step; num_items_in_batch is its divisor
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False

    # -- optimisation ------------------------------------------------------------------------

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

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, earlier sessions included."""
        return self._elapsed_before + time.perf_counter() - self._began

    def _rate(self, progress: float) -> float:
        if self.stage.minutes is not None:
            progress = max(progress, self.elapsed / (60 * self.stage.minutes))
        return schedule(progress, self.stage.schedule, self.stage.warmup)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch; stops the stage when its time is over."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise DataError(
                f"stage {self.stage.name!r}: the loss is {loss.item()} at step "
                f"{self.state.global_step}; lower the learning rate or look at the batch"
            )
        if self.stage.minutes is not None and self.elapsed > 60 * self.stage.minutes:
            self.control.should_training_stop = True
        return loss

    # -- loss --------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of a micro-batch, so scaled that a step's micro-batches add up to the mean."""
        if self.stage.objective == "name-alignment":
            loss = self._alignment_loss(inputs) / self.current_gradient_accumulation_steps
        else:
            loss = self._question_loss(inputs, num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def _question_loss(self, inputs: dict[str, Any], divisor: Tensor | int | None) -> Tensor:
        batch = inputs["batch"]
        core = self.model.model
        table = core.get_input_embeddings().weight
        device = table.device
        mask = decoder_mask(
            batch.attention_mask.to(device), core.language_model.config, table.dtype
        )
        features = self._features(inputs["pictures"])
        outputs = core(
            input_ids=batch.input_ids.to(device),
            position_ids=batch.position_ids.to(device),
            attention_mask=mask,
            mm_encoder_outputs=None if features is None else {"image": features},
            use_cache=False,
        )
        hidden = outputs.last_hidden_state.flatten(0, 1)[batch.sources.to(device)]
        logits = self.model.lm_head(hidden).float()
        targets = batch.targets.to(device)
        total = F.cross_entropy(logits, targets, reduction="sum")
        visual = 0 if features is None else sum(len(rows) for rows in features.pooler_output)
        self.meter.add(batch, logits.detach().argmax(-1), visual)
        return total / (len(targets) if divisor is None else divisor)

    def _alignment_loss(self, inputs: dict[str, Any]) -> Tensor:
        if self.names is None:
            raise ValueError("name-alignment needs names")
        patches = self._patches(inputs["pictures"])
        loss, found = score(self.names, patches, inputs["scenes"])
        images = len(inputs["scenes"])
        tokens = sum(len(picture.tokens) for picture in patches)
        self.meter.count(images, tokens, found.names[1] + found.colours[1], tokens)
        self._retrieved = {
            "train_retrieval/names": found.name_accuracy,
            "train_retrieval/colours": found.colour_accuracy,
        }
        return loss

    def _features(self, pictures: Pictures | None) -> Any:
        if pictures is None:
            return None
        features: ImageFeatures = self.model.get_image_features(
            pixel_values=pictures.pixel_values,
            view_table=pictures.view_table,
            tower_features=pictures.tower_features,
        )
        return features

    def _patches(self, pictures: Pictures) -> list[PatchTokens]:
        features = pictures.tower_features
        if features is None:
            features, _ = self.model.model.encode(pictures.pixel_values, pictures.view_table)
        return patch_tokens(self.model, features, pictures.view_table)

    @torch.no_grad()
    def retrieve_names(self) -> dict[str, float]:
        """How often the connector's tokens of the probe pictures are nearest to the right word."""
        if self.names is None or self.probe_collate is None or not self.probe:
            return {}
        names, colours = [0, 0], [0, 0]
        for start in range(0, len(self.probe), 8):
            batch = self.probe_collate(self.probe[start : start + 8])
            _, found = score(self.names, self._patches(batch["pictures"]), batch["scenes"])
            names = [a + b for a, b in zip(names, found.names, strict=True)]
            colours = [a + b for a, b in zip(colours, found.colours, strict=True)]
        return {
            "retrieval/names": names[0] / max(names[1], 1),
            "retrieval/colours": colours[0] / max(colours[1], 1),
        }

    def _eta(self) -> float:
        seconds = self.progress.eta(self.state)
        if self.stage.minutes is None:
            return seconds
        return min(seconds, max(60 * self.stage.minutes - self.elapsed, 0.0))

    # -- reports -----------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add our metrics to a record."""
        if "loss" in logs:
            logs = {**logs, **self.meter.read(), **self._retrieved}
            if self.stage.objective == "name-alignment":
                logs["images_per_s"] = logs.pop("questions_per_s")
                logs["images"] = logs.pop("questions")
            logs["eta_s"] = self._eta()
            logs["elapsed_s"] = self.elapsed
            every = self.stage.retrieval_every
            if every and self.state.global_step % every < self.stage.log_every:
                logs.update(self.retrieve_names())
        super().log(logs, start_time)

    # -- checkpoints -------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write what is trained, not the frozen weights."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_trained(self.model, folder / TRAINED)
        session = {"elapsed": self.elapsed, "meter": self.meter.state()}
        write_atomically(folder / _SESSION, json.dumps(session).encode())

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Read what :meth:`_save` wrote."""
        folder = Path(resume_from_checkpoint)
        read_trained(self.model, folder / TRAINED)
        session = json.loads((folder / _SESSION).read_text(encoding="utf-8"))
        self._elapsed_before = session["elapsed"]
        self._began = time.perf_counter()
        self.meter.load(session["meter"])
