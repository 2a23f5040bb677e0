"""Going on from a checkpoint with the settings of now, not with those that it was saved with.

A checkpoint stores the intervals of logging and saving, and the optimiser's and schedule's numbers,
beside their state. The Trainer takes both back; here the numbers come from the configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LambdaLR

from vistoken.train.groups import optimizer_groups
from vistoken.train.settings import StageConfig

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class CurrentSettings(_Trainer):
    """Mixin before ``Trainer``: a resumed stage has its configuration's intervals and rates."""

    stage: StageConfig

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        done = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        return done

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not isinstance(self.lr_scheduler, LambdaLR):
            return
        wanted = optimizer_groups(self.model, self.stage)
        groups = self.optimizer.param_groups
        for group, config in zip(groups, wanted, strict=True):
            group |= {"weight_decay": config["weight_decay"], "betas": self.stage.betas}
            group |= {"eps": self.stage.eps}
        rates = [config["lr"] for config in wanted]
        self.lr_scheduler.base_lrs = rates
        factors = [rule(self.lr_scheduler.last_epoch) for rule in self.lr_scheduler.lr_lambdas]
        for group, rate, factor in zip(groups, rates, factors, strict=True):
            group["initial_lr"] = rate
            group["lr"] = rate * factor
        self.lr_scheduler._last_lr = [group["lr"] for group in groups]
