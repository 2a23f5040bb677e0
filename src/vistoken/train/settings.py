"""The fields of a run configuration, and what may stand in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vistoken.core.errors import UsageError
from vistoken.core.registry import load_part
from vistoken.models.pipeline import PartSpec
from vistoken.train.group_settings import GroupConfig, GroupName, Strict

TooLong = Literal["error", "drop-turns", "drop-sample"]
Tracker = Literal["tensorboard", "trackio", "wandb"]
Attention = Literal["sdpa", "flex"]
_METRIC = r"^((val/)?(loss|exact/.+)|retrieval/(names|colours|loss))$"


class StageConfig(Strict):
    """One stage of training.

    Args:
        name: Unique in the run; names the stage's folder.
        objective: ``next-token``, ``keep-language`` (rows without a picture change nothing),
            ``name-alignment`` (stage 0, no language-model pass), or another registered part of
            kind ``objective``.
        needs: Stage whose weights this one starts from; it must be done before.
        template: Chat template of this stage; the recipe's own when None.
        views: View function of this stage, a name or ``{part: ..., options: {...}}``; the recipe's
            own when None. The trained model keeps the recipe's.
        labels: What is supervised: ``exact`` is every answer with its terminator; ``official`` are
            the masks of released LLaVA code, by the released name in ``template``.
        data: Data files of this stage; the run's when None.
        image_root: Folder of this stage's image paths; the run's when None.
        mechanisms: Options of decoder mechanisms to change before this stage, by mechanism; the
            model computes the same after it (``saisa: {projector_sharing: independent}``).
        groups: Train mode and rate by part; a part not named is frozen.
        steps: Optimiser steps; or
        epochs: passes over the data.
        minutes: The schedule ends no later than this, by the clock (see ``schedule``).
        images_per_step: Images (next-token: sequences) in a micro-batch.
        accumulate: Micro-batches per optimiser step.
        questions_per_image: Most branches behind one image prefix; the rest form further samples.
        loss_average: With ``accumulate`` or several devices: ``micro-batch`` is the mean of the
            micro-batches' means (the released recipe), ``tokens`` the mean over all targets of a
            step, so that it does not matter how a step is cut into micro-batches.
        max_length: Most tokens of a sample; of a row with ``pack_samples``.
        too_long: A longer sample is an ``error``, loses rounds at its end (``drop-turns``) or is
            left out (``drop-sample``); counted in the metrics. Nothing is cut inside a round.
        pack_samples: Put the samples of a micro-batch into as few rows as hold them, instead of
            padding each to the longest. Results do not change.
        order: ``shuffle``, or ``modality-length``: every step has either pictures or text only,
            and samples of similar length side by side.
        schedule: Shape of the learning rate after the warm-up; ``cosine`` and ``linear`` end at 0.
        warmup: Share of the steps with a rising rate.
        clip: Largest gradient norm; 0 does not clip.
        betas: AdamW's decay rates.
        eps: AdamW's epsilon.
        checkpointing: Recompute activations in the backward pass.
        temperature: Of the alignment's softmax.
        log_every: Steps between metric lines.
        save_every: Steps between checkpoints.
        keep: Checkpoints that are kept, the latest ones.
        keep_best: Metric whose best checkpoint is kept beside them: ``loss``, ``exact/KIND``,
            their ``val/`` forms, or ``retrieval/names``; the least of a loss, the most of others.
        finish: What the stage ends with: its ``last`` weights, or those of the ``best`` checkpoint.
        validate_every: Steps between losses on the run's ``validation`` files; 0 never (a
            ``keep_best`` of ``val/`` is computed for every checkpoint).
        validation_samples: Samples of a validation, from the beginning of the files.
        retrieval_every: Steps between name retrievals from the connector's output; 0 never.
        retrieval_images: Images of a name retrieval.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    objective: str = "next-token"
    needs: str | None = None
    template: str | None = None
    views: dict[str, Any] | str | None = None
    labels: Literal["exact", "official"] = "exact"
    data: tuple[Path, ...] | None = Field(default=None, min_length=1)
    image_root: Path | None = None
    mechanisms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    groups: dict[GroupName, GroupConfig]
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    images_per_step: int = Field(default=1, ge=1)
    accumulate: int = Field(default=1, ge=1)
    questions_per_image: int = Field(default=10, ge=1)
    loss_average: Literal["micro-batch", "tokens"] = "micro-batch"
    max_length: int = Field(default=2048, ge=8)
    too_long: TooLong = "error"
    pack_samples: bool = False
    order: Literal["shuffle", "modality-length"] = "shuffle"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)
    clip: float = Field(default=1.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    checkpointing: bool = False
    temperature: float = Field(default=0.05, gt=0)
    log_every: int = Field(default=10, ge=1)
    save_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    keep_best: str | None = Field(default=None, pattern=_METRIC)
    finish: Literal["last", "best"] = "last"
    validate_every: int = Field(default=0, ge=0)
    validation_samples: int = Field(default=64, ge=1)
    retrieval_every: int = Field(default=0, ge=0)
    retrieval_images: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _check(self) -> StageConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        for name, group in self.groups.items():
            if group.train == "lora" and name == "mechanisms":
                raise ValueError("groups.mechanisms.train: mechanisms have no lora; use full")
            if group.quantization is not None and (group.train != "lora" or name != "language"):
                raise ValueError(f"groups.{name}.quantization needs train: lora, on language")
        if all(group.train == "frozen" for group in self.groups.values()):
            raise ValueError("every part is frozen; set train: full or lora for one of groups")
        if self.finish == "best" and self.keep_best is None:
            raise ValueError("finish: best needs keep_best, the metric to judge by")
        self._check_objective()
        self._check_views()
        return self

    def _check_views(self) -> None:
        if self.views is None:
            return
        try:
            load_part("views", PartSpec.read(self.views, "views").part)
        except UsageError as error:
            raise ValueError(str(error)) from error

    def _check_objective(self) -> None:
        from vistoken.train.objectives import find_objective  # objectives read these settings

        try:
            objective = find_objective(self.objective)
        except UsageError as error:
            raise ValueError(str(error)) from error
        if objective.runs_language_model:
            return
        if self.group("language").train != "frozen":
            raise ValueError(f"{self.objective} never runs the language model; freeze it")
        if self.loss_average == "tokens" or self.order != "shuffle":
            raise ValueError(f"loss_average and order do not apply to {self.objective}")

    def group(self, name: GroupName) -> GroupConfig:
        """Settings of a part; frozen when the stage does not name it."""
        return self.groups.get(name, GroupConfig())

    @property
    def needs_validation(self) -> bool:
        """Whether a loss on held-out rows is asked for."""
        return self.validate_every > 0 or (self.keep_best or "").startswith("val/")

    @property
    def needs_probe(self) -> bool:
        """Whether names are to be read off the connector's output."""
        return self.retrieval_every > 0 or (self.keep_best or "").startswith("retrieval/")


class RunConfig(Strict):
    """A training run.

    Args:
        recipe: Recipe name, recipe file, or a checkpoint directory to go on from.
        start: From the recipe's parts with ``new`` weights of ours, or from the ``trained`` weights
            that come with the package. A checkpoint directory's own are always gone on from.
        data: What ``data check`` reads: the messages schema, LLaVA's or ShareGPT's records, as JSON
            Lines, a JSON list, Parquet, or a folder that ``datasets`` saved.
        validation: Files for validation losses and name retrievals, never trained on.
        image_root: Folder of the image paths; each data file's own when None.
        output: Folder of the run.
        seed: Seed of the data order and of new weights.
        init: Finished stage of another run to start from (its folder).
        cache: Folder of the feature cache; None encodes every time.
        precision: Arithmetic of the language model and connector; ``auto`` is bfloat16 where the
            hardware computes in it.
        attention: Attention function of the language model, ``sdpa`` or ``flex`` (CUDA only, for
            packed rows); None keeps the one that the model was loaded with.
        workers: Processes that read and prepare batches ahead; 0 does it between the steps. Results
            do not change.
        on_bad_sample: A faulty row or picture is an ``error``, or ``skip`` counts it and names it
            in ``left_out.jsonl``.
        report_to: Trackers beside ``metrics.jsonl``, none by default; they write into the run's
            folder, off the network unless their own variables say otherwise.
        stages: Stages in order.
    """

    recipe: str
    start: Literal["new", "trained"] = "new"
    data: tuple[Path, ...] = Field(min_length=1)
    validation: tuple[Path, ...] = ()
    image_root: Path | None = None
    output: Path
    seed: int = Field(default=0, ge=0)
    init: Path | None = None
    cache: Path | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Attention | None = None
    workers: int = Field(default=0, ge=0)
    on_bad_sample: Literal["error", "skip"] = "error"
    report_to: tuple[Tracker, ...] = ()
    stages: tuple[StageConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        for stage in self.stages:
            if stage.needs_validation and not self.validation:
                raise ValueError(f"stage {stage.name!r} validates, which needs validation files")
        adapted = [s.group("language") for s in self.stages if s.group("language").train == "lora"]
        if len({group.quantization for group in adapted}) > 1:
            raise ValueError(
                "stages share one model with LoRA; give all of them the same "
                "groups.language.quantization"
            )
        return self
