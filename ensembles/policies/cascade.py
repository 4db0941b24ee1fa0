"""Stages that run one after the other, each only on the images that the one before passed on."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ...metrics.core.mixture import validate_choice, validate_logits
from ...metrics.io.arrays import read_logits
from ..ensemble import Ensemble
from ..policy import Answers, Policy
from .models import check_expected

Stage = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From the previous stage's state, indexable by image, to the next state and the logits
``[m, B, C]`` of the stage's own members."""

POOLS = ("mean", "last")
FIELDS = tuple(field.name for field in fields(Answers))


class Cascade:
    """A policy over stages, which computes nothing for images that have their answer.

    After each stage the images that continue are gathered into a smaller batch, and the answers are
    scattered back in order.

    Args:
        stages: One function per stage, of networks in evaluation mode.
        policy: Of as many stages.
        pool: ``"mean"`` averages the members of all stages that ran, ``"last"`` takes the last
            stage's alone, as a multi-exit network does.

    Raises:
        ValueError: If the policy has another number of stages, the pool is unknown, or stages
            expect different images (`model_stages`).

    Example:
        >>> import torch
        >>> from deepens.ensembles.policies import Cascade, WindowPolicy
        >>> stage = lambda images: (images, images.flatten(1)[None])
        >>> cascade = Cascade([stage, stage], WindowPolicy([(0.0, 0.9)]))
        >>> cascade(torch.tensor([[9.0, 0.0], [1.0, 0.0]])).stage.tolist()
        [1, 2]

    Reference: Xia & Bouganis (2023), arXiv:2303.08010
    """

    def __init__(self, stages: Sequence[Stage], policy: Policy, *, pool: str = "mean") -> None:
        if len(stages) != policy.num_stages:
            raise ValueError(
                f"policy must be of {len(stages)} stages, as there are, got {policy.num_stages}"
            )
        validate_choice(pool, "pool", POOLS)
        check_expected(stages)
        self.stages, self.policy, self.pool = list(stages), policy, pool

    @torch.inference_mode()
    def __call__(self, images: Shaped[Tensor, "images ..."]) -> Answers:
        """Return the answers, in the order of the images."""
        return run_stages(self.stages, self.policy, images, pool=self.pool)


def ensemble_stages(ensemble: Ensemble, order: Sequence[int] | None = None) -> list[Stage]:
    """Return one stage per member of an ensemble in evaluation mode (``Ensemble.stages``).

    What members share is computed once. ``order`` is that in which the members run.

    Raises:
        ValueError: If ``order`` is empty, names a member that does not exist or one twice, or the
            members cannot run in it.
    """
    members = ensemble.chosen(order)
    if len(set(members)) < len(members):
        raise ValueError(f"order must name each member once, got {members}")
    return list(ensemble.stages(members))


def run_stages(
    stages: Sequence[Stage],
    policy: Policy,
    state: Shaped[Tensor, "images ..."],
    *,
    pool: str = "mean",
) -> Answers:
    """Run the stages on a batch, each on the images that continue; arguments as for `Cascade`."""
    validate_choice(pool, "pool", POOLS)
    held: Tensor | None = None
    kept: Tensor | None = None
    found: Answers | None = None
    for number, stage in enumerate(stages, start=1):
        state, answers, held = _step(stage, number, policy, state, held, pool)
        if found is None or kept is None:
            found = answers
        else:
            for name in FIELDS:
                getattr(found, name).index_copy_(0, kept, getattr(answers, name))
        if number == len(stages):
            break
        going = policy.should_continue(number, answers.confidence).nonzero().squeeze(-1)
        if not len(going):
            break
        if len(going) < len(answers):  # where all continue, nothing is copied
            state, held = _take(state, going), held.index_select(1, going)
            kept = going if kept is None else kept[going]
    assert found is not None  # there is a stage
    return found


def replay(policy: Policy, logits: Sequence[Any], *, pool: str = "mean") -> Answers:
    """Return the answers of a `Cascade` from the stored logits ``[m, N, C]`` of all its stages.

    Of one member ``[N, C]``; tensors, or whatever `deepens.metrics.evaluate` takes.

    Raises:
        ValueError: If the logits are not finite, not of as many stages as the policy, or of
            different images or classes.
    """
    logits = [read_logits(each) for each in logits]
    for each in logits:
        validate_logits(each)
    if len(logits) != policy.num_stages or len({each.shape[1:] for each in logits}) > 1:
        raise ValueError(
            f"logits must be of {policy.num_stages} stages on the same images and classes, got "
            f"shapes {[list(each.shape) for each in logits]}"
        )

    def at_hand(number: int) -> Stage:
        return lambda kept: (kept, logits[number].index_select(1, kept))

    everything = torch.arange(logits[0].shape[1], device=logits[0].device)
    return run_stages([at_hand(n) for n in range(len(logits))], policy, everything, pool=pool)


def _step(
    stage: Stage, number: int, policy: Policy, state: Tensor, held: Tensor | None, pool: str
) -> tuple[Tensor, Answers, Tensor]:
    state, logits = stage(state)
    if held is not None and held.shape[-1] != logits.shape[-1]:
        raise ValueError(
            f"stages must answer the same classes, got {held.shape[-1]}, and {logits.shape[-1]} of "
            f"stage {number}"
        )
    held = logits if held is None or pool == "last" else torch.cat([held, logits])
    answers = policy.judge(held)
    answers.stage.fill_(number)
    return state, answers, held


def _take(state: Tensor, places: Tensor) -> Tensor:
    """Some images of a batch, in its memory layout."""
    taken = state.index_select(0, places)
    if state.ndim == 4 and state.is_contiguous(memory_format=torch.channels_last):
        return taken.contiguous(memory_format=torch.channels_last)
    return taken


Finished = list[tuple[list[Hashable], Answers]]
"""Keys of images, and their answers."""


@dataclass
class _Waiting:
    """Images that wait for a stage."""

    keys: list[Hashable] = field(default_factory=list)
    since: list[float] = field(default_factory=list)
    state: list[Tensor] = field(default_factory=list)
    held: list[Tensor] = field(default_factory=list)


class CascadeQueue:
    """A cascade across batches: images wait until a later stage has a full batch, or too long.

    Use it to serve a stream of small batches. The first stage runs on each batch as it comes; the
    images that continue are gathered into full batches for the later stages, and none waits longer
    for a stage than the deadline, as long as `poll` is called.

    Args:
        cascade: The cascade.
        batch_size: Images that a later stage waits for.
        deadline: Longest time in seconds that an image waits for a stage.
        clock: Returns the time in seconds.

    Raises:
        ValueError: If ``batch_size`` is below 1, or ``deadline`` is below 0.
    """

    def __init__(
        self,
        cascade: Cascade,
        *,
        batch_size: int,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if not deadline >= 0:
            raise ValueError(f"deadline must be >= 0 seconds, got {deadline}")
        self.cascade, self.batch_size, self.deadline = cascade, batch_size, deadline
        self._clock = clock
        self._waiting = [_Waiting() for _ in cascade.stages]

    def __len__(self) -> int:
        """How many images wait."""
        return sum(len(waiting.keys) for waiting in self._waiting)

    @torch.inference_mode()
    def submit(self, keys: Sequence[Hashable], images: Shaped[Tensor, "images ..."]) -> Finished:
        """Add a batch of images, each with a key; return what has its answer now, by keys.

        Raises:
            ValueError: If there is not one key per image, or no image.
        """
        if len(keys) != len(images) or not len(keys):
            raise ValueError(
                f"keys must be one per image, of at least one, got {len(keys)} and {len(images)}"
            )
        finished: Finished = []
        self._run(0, list(keys), images, None, finished)
        return self._drain(finished, lambda batch: len(batch.keys) >= self.batch_size)

    @torch.inference_mode()
    def poll(self) -> Finished:
        """Run what has waited for too long, and return what has its answer now."""
        return self._drain([], lambda batch: self._clock() - batch.since[0] >= self.deadline)

    @torch.inference_mode()
    def close(self) -> Finished:
        """Run everything that waits, and return the answers."""
        return self._drain([], lambda batch: True)

    def _drain(self, finished: Finished, due: Callable[[_Waiting], bool]) -> Finished:
        for number in range(1, len(self._waiting)):
            while self._waiting[number].keys and due(self._waiting[number]):
                self._flush(number, finished)
        return finished

    def _flush(self, number: int, finished: Finished) -> None:
        waiting, most = self._waiting[number], self.batch_size
        state, held = torch.cat(waiting.state), torch.cat(waiting.held, dim=1)
        keys, rest = waiting.keys[:most], waiting.keys[most:]
        self._run(number, keys, state[:most], held[:, :most], finished)
        self._waiting[number] = _Waiting(  # only now: a stage that fails loses nothing
            rest,
            waiting.since[most:],
            [state[most:]] if rest else [],
            [held[:, most:]] if rest else [],
        )

    def _run(
        self,
        number: int,
        keys: list[Hashable],
        state: Tensor,
        held: Float[Tensor, "members images classes"] | None,
        finished: Finished,
    ) -> None:
        cascade = self.cascade
        state, answers, held = _step(
            cascade.stages[number], number + 1, cascade.policy, state, held, cascade.pool
        )
        if number + 1 == len(cascade.stages):
            finished.append((keys, answers))
            return
        going = cascade.policy.should_continue(number + 1, answers.confidence)
        ending = (~going).nonzero().squeeze(-1)
        if len(ending):
            done = Answers(*(getattr(answers, name).index_select(0, ending) for name in FIELDS))
            finished.append(([keys[place] for place in ending.tolist()], done))
        places = going.nonzero().squeeze(-1)
        if len(places):
            waiting, now = self._waiting[number + 1], self._clock()
            waiting.keys += [keys[place] for place in places.tolist()]
            waiting.since += [now] * len(places)
            waiting.state.append(_take(state, places))
            waiting.held.append(held.index_select(1, places))
