"""What training computed: multiply-accumulates of all passes, so that methods can be matched."""

from torch import Tensor, nn

from ...ensembles import Ensemble
from ..config import TrainConfig
from ..store.run import Run, recorded
from .macs import count_macs
from .passes import ImageShape

__all__ = ["forward_macs", "run_training_macs", "training_macs", "why_not_counted"]

BACKWARD = 2
"""A backward pass over a forward one: a product for the inputs and one for the weights."""

_MORE_PASSES = {
    "mixupmp": "which shows each member pseudo-data beside the images",
    "forde": "which differentiates input gradients once more",
    "greedy": "which also runs members on noise",
}
_NO_MORE = ("cross-entropy", "weight-repulsion", "function-repulsion")


def training_macs(forward: int, *, images: int, epochs: int) -> int:
    """Return the multiply-accumulates of a training with one forward and backward pass per image.

    ``(1 + 2) * forward * images * epochs``

    A backward pass counts as two forward ones, an upper bound where some weights are frozen, as in
    a LoRA-ensemble. Validation, the optimiser's own arithmetic and what an objective computes of
    logits or weights are left out.

    Args:
        forward: Of one image through all members that are trained; see :func:`forward_macs`.
        images: That each member sees in an epoch, >= 0 as all arguments.
        epochs: That were trained.

    Example:
        >>> from deepens.experiments.cost.training_compute import training_macs
        >>> training_macs(1_000, images=640, epochs=20)
        38400000
    """
    for name, value in (("forward", forward), ("images", images), ("epochs", epochs)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    return (1 + BACKWARD) * forward * images * epochs


def forward_macs(ensemble: Ensemble, image_shape: ImageShape, *, shared: bool) -> int:
    """Count the multiply-accumulates of one image's way through all members, as in training.

    ``shared`` is whether members see one batch; else each computes what they share for its own.
    """
    return count_macs(ensemble if shared else _OwnBatches(ensemble), image_shape)


class _OwnBatches(nn.Module):
    """An ensemble whose members are each shown a batch of their own."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, images: Tensor) -> Tensor:
        return self.ensemble(images.expand(self.ensemble.num_members, *images.shape).clone())


def why_not_counted(config: TrainConfig) -> str | None:
    """Say why a run's training is not counted, None where it is: it makes more than two passes."""
    names = config.objective.split("+")
    if config.members == 1:  # there is no other member to be repelled from
        names = [name for name in names if name in ("mixupmp", "greedy")]
    more = [_MORE_PASSES.get(n, "which may make more passes") for n in names if n not in _NO_MORE]
    if "function-repulsion" in names and config.members_at_once is not None:
        more.append("which with members_at_once runs members twice")
    return f"training compute of {config.objective} is not counted, {more[0]}" if more else None


def run_training_macs(
    run: Run,
    ensemble: Ensemble,
    image_shape: ImageShape,
    *,
    images: int,
    base: nn.Module | None = None,
) -> int | None:
    """Count the multiply-accumulates of a run's training, None where :func:`why_not_counted` says.

    Args:
        run: The trained run.
        ensemble: Its ensemble.
        image_shape: Channels, height and width of an image.
        images: Number of training images, of which an epoch sees the whole batches.
        base: The network that was trained for the run before its members; None without one.

    Raises:
        ValueError: The run's record of its epochs, or its base's, is missing or damaged.
    """
    if why_not_counted(run.config) is not None:
        return None
    seen = images // run.config.batch_size * run.config.batch_size
    forward = forward_macs(ensemble, image_shape, shared=run.config.batches == "shared")
    total = training_macs(forward, images=seen, epochs=recorded(run, "epochs", int))
    if base is not None:
        once, trained = count_macs(base, image_shape), Run(run.path / "base", run.config)
        total += training_macs(once, images=seen, epochs=recorded(trained, "epochs", int))
    return total
