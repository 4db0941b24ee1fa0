"""What pushes members apart: the abstraction, and the objective that adds it to a likelihood."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..backbones.attention import has_attention
from ..ensemble import Ensemble, Images, Logits
from ..objective import Objective, ObjectiveValue, Targets, TrainingImages, TrainingStep
from ..options import Repulsion
from .likelihood import Likelihood, Shown, of_members
from .passes import random_state, running_statistics_kept, set_random_state, setting
from .second_derivatives import cheap_second_derivatives

ALONE = "one member has no other to be repelled from: the repulsion is bypassed"
MATH = (
    "attention is computed by its plain formula, since the fused ones cannot be differentiated "
    "twice, as input gradients need; that takes more time and memory"
)


@dataclass
class Evaluation:
    """What some members made of the batch's own images, for a repulsion to compare them by.

    Attributes:
        ensemble: The whole ensemble.
        members: The members in question.
        logits: ``[m, B, C]``.
        targets: Of these images, shared or for these members.
        leaves: All images shown ``[m, B', K, H, W]``, the batch's own first, by which gradients
            can be taken; None where no repulsion asks for them.
        differentiable: Whether quantities are to keep their graph.
    """

    ensemble: Ensemble
    members: list[int]
    logits: Logits
    targets: Targets
    leaves: Float[Tensor, "members shown channels height width"] | None
    differentiable: bool


class RepulsionTerm(nn.Module, ABC):
    r"""A repulsive energy :math:`R_m` for each member, of what members are compared by.

    The energies are functions of one quantity per member, and of the other members' only as
    constants: :math:`\partial R_i / \partial q_j = 0` for :math:`j \ne i`.

    Args:
        options: Weight, annealing and kernel.

    Attributes:
        shared_batch: Whether the quantities are comparable only on one batch.
        averages_parts: As of an :class:`~.objective.Objective`.
        input_gradients: Whether the quantity is made of gradients by the images.
        forward_pass: Whether the quantity needs the members' logits at all.
    """

    shared_batch: bool = True
    averages_parts: bool = False
    input_gradients: bool = False
    forward_pass: bool = True

    def __init__(self, options: Repulsion | None = None) -> None:
        super().__init__()
        self.options = options or Repulsion()

    def prepare(self, images: TrainingImages) -> None:
        """Compute what the repulsion needs of the training images: by default nothing."""

    def check(self, ensemble: Ensemble) -> str | None:
        """Refuse an ensemble that it cannot compare the members of, or say what is special."""
        return None

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Refuse training images that it cannot be prepared with: by default none."""

    @abstractmethod
    def quantity(self, evaluation: Evaluation) -> Float[Tensor, "members ..."]:
        """What the members are compared by, as a differentiable function of their parameters."""

    @abstractmethod
    def energies(self, quantity: Float[Tensor, "members ..."]) -> Float[Tensor, "members"]:
        """R of all members, of the quantities of all."""

    @abstractmethod
    def share(self, batch: int) -> float:
        """The energies' factor in a loss that is a batch mean, before their weight."""

    def weight(self, step: TrainingStep | None, batch: int) -> float:
        """The energies' factor at a step; outside a training loop that of a constant weight."""
        options = self.options
        scale = options.scale if step is None else options.weight(step.number, step.total)
        return scale * self.share(batch) if scale > 0 else 0.0


class Repelled(Objective):
    """A likelihood whose members are pushed apart by some terms, in one way or another.

    With one member, or with scales of zero, it is the likelihood, bit for bit.

    Args:
        likelihood: What members are trained on.
        terms: What pushes them apart.

    Raises:
        ValueError: No term, or terms that compare members on images which the likelihood does not
            show them.
    """

    def __init__(self, likelihood: Likelihood, terms: Sequence[RepulsionTerm]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("terms must hold at least one repulsion, got none")
        self.likelihood = likelihood
        self.terms = nn.ModuleList(terms)
        if not likelihood.shows_batch and any(term.forward_pass for term in self._on()):
            raise ValueError(
                "members are compared on the batch's own images, which a mixup.ratio of inf leaves "
                "out; choose a finite one, or weight-repulsion"
            )
        self.shared_batch = any(term.shared_batch for term in self._on())
        self.couples_members = bool(self._on())
        self.averages_parts = all(each.averages_parts for each in (likelihood, *self._on()))
        self._alone = False

    @abstractmethod
    def pushed(
        self, shown: Shown, images: Images, targets: Targets, weights: dict[RepulsionTerm, float]
    ) -> ObjectiveValue:
        """The value for two members or more, with the terms' weights at this step."""

    def check(self, ensemble: Ensemble) -> str | None:
        """Refuse what cannot be compared; say what is bypassed or computed in another way."""
        self.likelihood.check(ensemble)
        if not (terms := self._on()):
            return None
        if ensemble.num_members == 1:
            self._alone = True
            return ALONE
        if ensemble.shares_parameters:
            raise ValueError(
                "repulsion moves each member by itself, but those of a "
                f"{type(ensemble).__name__} share parameters; use cross-entropy"
            )
        said = [reason for term in terms if (reason := term.check(ensemble))]
        if any(term.input_gradients for term in terms) and has_attention(ensemble):
            said.append(MATH)
        return " ".join(said) or None

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Refuse images that a term cannot be prepared with, unless it is bypassed."""
        for term in () if self._alone else self._on():
            term.check_images(shape)

    def prepare(self, images: TrainingImages, context: Sequence[Ensemble] = ()) -> None:
        """Prepare the likelihood and every term, unless they are known to be bypassed."""
        self.likelihood.prepare(images, context)
        for term in () if self._alone else self._on():
            term.prepare(images)

    def forward(self, ensemble: Ensemble, images: Images, targets: Targets) -> ObjectiveValue:
        """The value of one batch."""
        terms = self._on()
        if ensemble.num_members == 1 or not terms:
            if terms and not self._alone:
                warnings.warn(ALONE, stacklevel=2)
                self._alone = True
            return self.likelihood(ensemble, images, targets)
        shown = self.likelihood.shown(ensemble, images, targets)
        weights = {term: term.weight(self.step, images.shape[-4]) for term in terms}
        return self.pushed(shown, images, targets, weights)

    def _on(self) -> list[RepulsionTerm]:
        return [term for term in cast(list[RepulsionTerm], self.terms) if term.options.scale > 0]


class Repulsive(Repelled):
    r"""A likelihood and repulsive energies: :math:`\sum_m \ell_m + \sum_t w_t \sum_m R^t_m`.

    All members' graphs are kept at the same time. With ``members_at_once`` of the likelihood, two
    passes keep only so many, for the same gradients: the first computes every member's quantity q
    without a graph, and :math:`\partial R / \partial q`; the second follows
    :math:`\ell_m + w \langle \partial R / \partial q_m, q_m \rangle` chunk by chunk.

    Where all weights are zero at a step, it is the likelihood, bit for bit. Arguments and errors
    are those of :class:`Repelled`.

    Example:
        >>> import torch
        >>> from deepens.ensembles import CrossEntropy, DeepEnsemble, FoRDE, Repulsive
        >>> network = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> ensemble = DeepEnsemble(network, seeds=[1, 2])
        >>> images, targets = torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 1])
        >>> loss, values = Repulsive(CrossEntropy(), [FoRDE()])(ensemble, images, targets)
        >>> bool(torch.isclose(loss, values.sum()))
        True
    """

    def pushed(
        self, shown: Shown, images: Images, targets: Targets, weights: dict[RepulsionTerm, float]
    ) -> ObjectiveValue:
        """Each member's likelihood and energies."""
        active = {term: weight for term, weight in weights.items() if weight > 0}
        passes = _Passes(shown, targets, active)
        if chunks := self.likelihood.chunks(shown.ensemble):
            return self._in_chunks(chunks, passes, images)
        values, evaluation = passes.run(None)
        for term, weight in active.items():
            values = values + weight * term.energies(term.quantity(evaluation)).to(values)
        return ObjectiveValue(self.likelihood.reduce(values), values.detach())

    def _in_chunks(self, chunks: list[slice], passes: "_Passes", images: Images) -> ObjectiveValue:
        active = passes.terms
        total = passes.shown.gradients(images, border=not passes.leaves)
        states, found = [], []
        for rows in chunks:
            states.append(random_state(images.device))
            found.append(passes.quantities(rows))
        energies, pulls = torch.zeros(()), {}
        for term, weight in active.items():
            joint = torch.cat([own.pop(term) for own in found]).requires_grad_()
            each = term.energies(joint)
            (pulls[term],) = torch.autograd.grad(each.sum(), joint)
            energies = energies + weight * each.detach()
        losses = []
        for rows, state in zip(chunks, states, strict=True):
            set_random_state(images.device, state)  # the dropout of the first pass again
            own, evaluation = passes.run(rows)
            losses.append(own.detach())
            scalar = own.sum()
            for term, weight in active.items():
                scalar = scalar + weight * (term.quantity(evaluation) * pulls[term][rows]).sum()
            total.add(scalar)
        values = torch.cat(losses)
        values = values + energies.to(values)
        return ObjectiveValue(self.likelihood.reduce(values, total.linear()), values)


class _Passes:
    """Passes through an ensemble from which quantities can be read."""

    def __init__(self, shown: Shown, targets: Targets, terms: dict[RepulsionTerm, float]) -> None:
        self.shown, self.targets, self.terms = shown, targets, terms
        self.leaves = any(term.input_gradients for term in terms)

    def run(self, rows: slice | None) -> tuple[Float[Tensor, "members"], Evaluation]:
        """Losses of some members or of all, and what they are compared by, with one graph."""
        logits, leaves = self._logits(rows)
        rows = rows or slice(None)
        return self.shown.losses(logits, rows), self._evaluation(logits, leaves, rows)

    def quantities(self, rows: slice) -> dict[RepulsionTerm, Tensor]:
        """What some members are compared by, without a graph and without traces in the ensemble."""
        ensemble = self.shown.ensemble
        shape = (rows.stop - rows.start, self.shown.examples.originals, 0)
        logits, leaves = torch.zeros(shape), None  # of terms that look at no logits
        frozen = setting(ensemble.parameters(), "requires_grad", False)
        with running_statistics_kept(ensemble), frozen, torch.set_grad_enabled(self.leaves):
            if any(term.forward_pass for term in self.terms):
                logits, leaves = self._logits(rows)
        evaluation = self._evaluation(logits, leaves, rows, differentiable=False)
        return {term: term.quantity(evaluation).detach() for term in self.terms}

    def _logits(self, rows: slice | None) -> tuple[Tensor, Tensor | None]:
        if not self.leaves:
            return self.shown.logits(rows), None
        with sdpa_kernel(SDPBackend.MATH), cheap_second_derivatives():
            return self.shown.logits_of_leaves(rows or slice(None))

    def _evaluation(
        self, logits: Tensor, leaves: Tensor | None, rows: slice, *, differentiable: bool = True
    ) -> Evaluation:
        ensemble, cut = self.shown.ensemble, self.shown.examples.originals
        targets = of_members(self.targets, rows)
        members = ensemble.chosen(None)[rows]
        return Evaluation(ensemble, members, logits[:, :cut], targets, leaves, differentiable)
