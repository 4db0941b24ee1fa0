"""One training step as benchmarks take it, and the memory that it adds at its peak."""

import torch
from torch import Tensor

from ...ensembles import Ensemble, Objective
from ..cost.memory import LiveStorages


class Step:
    """A training step of an ensemble in training mode, repeatedly on one batch."""

    def __init__(
        self, ensemble: Ensemble, objective: Objective, images: Tensor, targets: Tensor
    ) -> None:
        self.ensemble, self.objective = ensemble, objective
        self.images, self.targets = images, targets
        trained = [p for p in ensemble.parameters() if p.requires_grad]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            trained, lr=1e-4, weight_decay=0.0
        )

    def __call__(self) -> None:
        """Take the step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, _ = self.objective(self.ensemble, self.images, self.targets)
        loss.backward()
        self.optimizer.step()

    def held(self) -> list[Tensor]:
        """What is stored between steps: weights, buffers, the optimiser's state, the batch."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return [
            *self.ensemble.parameters(),
            *self.ensemble.buffers(),
            *(value for value in states if isinstance(value, Tensor)),
            self.images,
            self.targets,
        ]


def memory_of(step: Step, device: torch.device) -> int:
    """Bytes that a step adds at its peak: activations, gradients and temporaries.

    Weights, buffers, the optimiser's state (created by a step before) and the batch do not count.
    On a CUDA device the kernels' own allocations and the allocator's rounding do.
    """
    step()
    step.optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveStorages(known=[t.untyped_storage().data_ptr() for t in step.held()]) as watch:
        step()
    return watch.peak
