"""Averages of an ensemble's weights over training, in place of those of the last step."""

from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import update_bn

from .options import Averaging
from .training import BASE


class WeightAverage(Callback):
    r"""Keeps an average of all trained weights :math:`\theta_t`, and leaves it when training ends.

    - ema: :math:`a \leftarrow d\,a + (1 - d)\,\theta` after each step, with
      :math:`d = \min(\mathrm{decay}, (1 + t) / (10 + t))`. Running statistics of batch
      normalisation are averaged alike.
    - swa: the mean of :math:`\theta` after each epoch from ``start`` on. At the end one pass over
      the training batches estimates the running statistics anew.
    - lookahead: every k steps :math:`a \leftarrow d\,a + (1 - d)\,\theta,\ \theta \leftarrow a`,
      with :math:`d = \mathrm{lookahead}^k (t / T)^3`, which goes on with the average. Running
      statistics are averaged alike; at the end :math:`\theta = a`.

    Validation, and the weights that ``keep: best`` keeps, are those of the average. The average is
    part of the checkpoint, so that a resumed run ends in the same weights.

    Args:
        kind: ema, swa or lookahead.
        options: Decays, k and the start.

    Reference:
        ema: Polyak and Juditsky (1992); swa: Izmailov et al. (2018), arXiv:1803.05407; lookahead:
        Zhang et al. (2019), arXiv:1907.08610, with the schedule of Jordan (2024),
        arXiv:2404.00498.
    """

    def __init__(
        self, kind: Literal["ema", "swa", "lookahead"], options: Averaging | None = None
    ) -> None:
        self.kind, self.options = kind, options or Averaging()
        self.average: dict[str, Tensor] = {}
        self.count = 0
        self._current: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The average so far, and of how many weights it is one."""
        return {"average": self.average, "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from an earlier average."""
        self.average, self.count = dict(state_dict["average"]), state_dict["count"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights there are, or go on with the average of a checkpoint."""
        weights = _weights(pl_module)
        if not self.average and self.kind != "swa":
            self.average = {name: value.clone() for name, value in weights.items()}
        self.average = {name: v.to(weights[name].device) for name, v in self.average.items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *others: Any, **named: Any
    ) -> None:
        """Average after a step."""
        step = trainer.global_step
        if self.kind == "ema":
            self._move(_weights(pl_module), min(self.options.decay, (1 + step) / (10 + step)))
        elif self.kind == "lookahead" and step % self.options.every == 0:
            share = step / int(trainer.estimated_stepping_batches)
            decay = self.options.lookahead**self.options.every * share**3
            weights = _weights(pl_module)
            self._move(weights, decay)
            _copy(self.average, weights)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average, in swa including the epoch that just ended."""
        weights = _weights(pl_module)
        if self.kind == "swa" and trainer.current_epoch + 1 > self.options.start * (
            trainer.max_epochs or 1
        ):
            self.average = self.average or {n: torch.zeros_like(v) for n, v in weights.items()}
            self.count += 1
            self._move(weights, 1 - 1 / self.count)
        if self.average:
            self._current = {name: value.clone() for name, value in weights.items()}
            _copy(self.average, weights)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights of the last step; this comes after validation."""
        if self._current:
            _copy(self._current, _weights(pl_module))
            self._current = {}

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average."""
        if not self.average:
            return
        _copy(self.average, _weights(pl_module))
        if self.kind == "swa":
            ensemble: Any = pl_module.ensemble
            ensemble.set_step(None)
            loader: Any = trainer.train_dataloader
            # Of several processes that share the batches, each goes through all of them.
            batches = loader.whole() if trainer.world_size > 1 else loader
            update_bn((images for images, *_ in batches), ensemble, device=pl_module.device)

    @torch.no_grad()
    def _move(self, weights: dict[str, Tensor], decay: float) -> None:
        for name, value in weights.items():
            self.average[name].lerp_(value, 1 - decay)


def _weights(module: LightningModule) -> dict[str, Tensor]:
    """The ensemble's floating parameters and buffers but those of a frozen base, not copied."""
    state = module.state_dict()
    return {
        name: value
        for name, value in state.items()
        if name.startswith("ensemble.") and not name.startswith(BASE) and value.is_floating_point()
    }


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
