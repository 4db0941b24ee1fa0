"""The one training loop: a Lightning module for every ensemble and every objective."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from ..metrics.core.mixture import mixture_log_probs
from .ensemble import Ensemble
from .objective import Objective, TrainingStep
from .optimization import build_optimizer, build_schedule, clip_members
from .options import Optimizer, Schedule
from .parts import Part

BASE = "ensemble.base."
"""How the names of a frozen base's weights begin."""

CHECK_EVERY = 50
"""Steps between looks at the losses on a GPU, where each look waits for the device."""


class EnsembleModule(LightningModule):
    """Trains any ensemble on any objective.

    Logged once an epoch: ``train/loss`` and, for each member i, ``train/loss_i``; ``val/nll``,
    ``val/accuracy`` of the mixture and ``val/nll_i``, ``val/accuracy_i`` of each member. Where
    several processes have a part of each batch, these are of all of it.

    Args:
        ensemble: What is trained.
        objective: What its members minimise.
        optimizer: Options of the optimiser.
        schedule: Options of the learning-rate schedule.
        labels: The members' numbers in the logs, for a part of an ensemble; 0 to M - 1 by default.

    Raises:
        FloatingPointError: During training, when a member's loss is not finite, with the member,
            the step and the likely cause.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        objective: Objective,
        *,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        labels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.objective = objective
        self.options = optimizer or Optimizer()
        self.schedule = schedule or Schedule()
        self.labels = list(range(ensemble.num_members)) if labels is None else list(labels)
        members = ensemble.num_members
        # Sums over an epoch, on the device, so that no step waits for the host.
        self._losses = torch.zeros(members)
        self._first_bad = torch.full((members,), -1)
        self._batches = self._total_steps = 0
        self._correct = self._nll = torch.zeros(members + 1, dtype=torch.float64)
        self._samples = 0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimiser over all members, and its schedule by steps."""
        optimizer = build_optimizer(self.ensemble, self.options)
        self._total_steps = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs or 1
        schedule = build_schedule(optimizer, self.schedule, self._total_steps, epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen base out: it does not change, and may be large."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith(BASE)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the frozen base as it is here."""
        checkpoint["state_dict"] = self.with_base(checkpoint["state_dict"])

    def with_base(self, state: dict[str, Any]) -> dict[str, Any]:
        """Weights of a checkpoint, and those of the frozen base, which checkpoints leave out."""
        return {k: v for k, v in self.state_dict().items() if k.startswith(BASE)} | state

    def on_train_epoch_start(self) -> None:
        """Empty the sums of the last epoch."""
        self._losses = torch.zeros(self.ensemble.num_members, device=self.device)
        self._first_bad = torch.full((self.ensemble.num_members,), -1, device=self.device)
        self._batches = 0

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """The objective of one batch."""
        images, targets, *indices = batch
        part = Part(self.trainer.global_rank, self.trainer.world_size)
        self.ensemble.set_step(self.global_step, part.rank)
        known = indices[0] if indices else None
        step = TrainingStep(self.global_step, self._total_steps, known, part)
        self.objective.set_step(step)
        loss, values = self.objective(self.ensemble, images, targets)
        self._losses += values
        self._batches += 1
        bad = ~torch.isfinite(values) & (self._first_bad < 0)
        self._first_bad = torch.where(bad, self.global_step, self._first_bad)
        if self.device.type == "cpu" or batch_idx % CHECK_EVERY == CHECK_EVERY - 1:
            self._stop_if_not_finite(images)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each member by its own norm, instead of Lightning's one norm over all."""
        if self.options.clip is not None:
            clip_members(self.ensemble, self.options.clip)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean losses."""
        self._stop_if_not_finite(None)
        losses = self._over_processes(self._losses, "mean") / max(1, self._batches)
        self.log("train/loss", losses.sum())
        for label, value in zip(self.labels, losses, strict=True):
            self.log(f"train/loss_{label}", value)

    def on_validation_epoch_start(self) -> None:
        """Empty the validation sums; the last entry is the mixture's."""
        self._stop_if_not_finite(None)
        shape = (2, self.ensemble.num_members + 1)
        self._nll, self._correct = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self._samples = 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add up each member's and the mixture's negative log-likelihood and accuracy."""
        images, targets = batch
        logits = self.ensemble(images).float()
        self._stop_if_logits_not_finite(logits)
        log_probs = torch.cat([logits.log_softmax(-1), mixture_log_probs(logits)[None]])
        chosen = targets.expand(len(log_probs), -1)[..., None]
        self._nll -= log_probs.gather(-1, chosen)[..., 0].double().sum(1)
        self._correct += (log_probs.argmax(-1) == targets).double().sum(1)
        self._samples += len(targets)

    def on_validation_epoch_end(self) -> None:
        """Log what was added up."""
        names = [*(f"_{label}" for label in self.labels), ""]
        nlls = self._over_processes(self._nll, "sum")
        corrects = self._over_processes(self._correct, "sum")
        samples = self._over_processes(torch.tensor(self._samples, device=self.device), "sum")
        for name, nll, correct in zip(names, nlls, corrects, strict=True):
            self.log(f"val/nll{name}", (nll / samples).float())
            self.log(f"val/accuracy{name}", (correct / samples).float())

    def _over_processes(self, values: Tensor, how: str) -> Tensor:
        """The sum or mean of what the processes that share the batches have; of one, its own."""
        return self.trainer.strategy.reduce(values.clone(), reduce_op=how)

    def _stop_if_logits_not_finite(self, logits: Tensor) -> None:
        for label, member in zip(self.labels, logits, strict=True):
            if not bool(torch.isfinite(member).all()):
                raise FloatingPointError(
                    f"the validation logits of member {label} are not finite after step "
                    f"{self.global_step} (epoch {self.current_epoch + 1}): "
                    f"{self._likely_cause(None, label)}"
                )

    def _stop_if_not_finite(self, images: Tensor | None) -> None:
        first = self._first_bad.tolist()
        bad = [(step, label) for step, label in zip(first, self.labels, strict=True) if step >= 0]
        if bad:
            step, label = min(bad)
            raise FloatingPointError(
                f"the loss of member {label} is not finite at step {step} "
                f"(epoch {self.current_epoch + 1}): {self._likely_cause(images, label)}"
            )

    def _likely_cause(self, images: Tensor | None, label: int) -> str:
        if images is not None and not bool(torch.isfinite(images).all()):
            return "the images hold NaN or infinity; check their values and their normalisation"
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        parameters = self.ensemble.member_parameters(self.labels.index(label))
        if self.global_step == 0 and all(bool(torch.isfinite(p).all()) for p, _ in parameters):
            return "the network overflows before its first update; check its initial weights"
        return (
            f"the updates probably diverged; try a learning rate below {rate:.3g} "
            "(--optimizer.lr), a warm-up (--schedule.warmup) or clipping (--optimizer.clip 1)"
        )
