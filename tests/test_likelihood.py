"""A new likelihood is one method: label smoothing and focal loss, against their own formulas."""

import pytest
import torch
import torch.nn.functional as F
from contract import CLASSES, ObjectiveContract
from deepens.ensembles import FoRDE, Greedy, Likelihood, Mixup, MixupMP, Repulsive
from deepens.ensembles.objectives.likelihood import example_cross_entropy, soft_labels
from one_step import after, batch, convolutional, prepared
from torch import nn

EPSILON, GAMMA = 0.1, 2.0


class LabelSmoothing(Likelihood):
    """Szegedy et al. (2016): the label is mixed with the uniform distribution over C classes."""

    def loss(self, logits, targets):
        smooth = (1 - EPSILON) * soft_labels(targets, logits) + EPSILON / logits.shape[-1]
        return example_cross_entropy(logits, smooth)


class Focal(Likelihood):
    """Lin et al. (2017): the cross-entropy of a class weighs (1 - p)^gamma."""

    def loss(self, logits, targets):
        log_probs = logits.log_softmax(-1)
        weighted = (1 - log_probs.exp()) ** GAMMA * log_probs
        return -(soft_labels(targets, logits) * weighted).sum(-1)


class TestLabelSmoothing(ObjectiveContract):
    def make(self):
        return LabelSmoothing()


class TestFocalOneMemberAtOnce(ObjectiveContract):
    def make(self):
        return Focal(members_at_once=1)


def smoothed(logits, targets):
    return F.cross_entropy(logits, targets, label_smoothing=EPSILON)


def focal(logits, targets):
    probs = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    labels = targets if targets.is_floating_point() else torch.eye(CLASSES).double()[targets]
    return -(labels * (1 - probs) ** GAMMA * torch.log(probs)).sum() / len(logits)


@pytest.mark.parametrize("at_once", [None, 1])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("kind", "formula"), [(LabelSmoothing, smoothed), (Focal, focal)])
def test_a_loss_of_one_method_has_the_values_and_gradients_of_its_formula(
    kind, formula, own, soft, at_once
):
    contract = ObjectiveContract()
    images, targets = contract.batch(*((3, 6) if own else (6,)))
    if soft:
        generator = torch.Generator().manual_seed(1)
        targets = torch.rand(*targets.shape, CLASSES, generator=generator).double().softmax(-1)
    ensemble = convolutional(3)
    _, values, gradients, _ = after(kind(members_at_once=at_once), ensemble, images, targets)
    expected, slopes = [], []
    for index, network in enumerate(ensemble.train().networks):
        loss = formula(
            network(images[index] if own else images), targets[index] if own else targets
        )
        expected.append(loss.detach())
        slopes += torch.autograd.grad(loss, list(network.parameters()))
    torch.testing.assert_close(values, torch.stack(expected), rtol=1e-10, atol=0)
    for gradient, slope in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)


def test_other_losses_go_with_repulsion_and_greedy_training():
    plain = after(Focal(), convolutional(2), *batch())
    repelled = after(prepared(Repulsive(Focal(), [FoRDE()])), convolutional(2), *batch())
    chunked = after(
        prepared(Repulsive(Focal(members_at_once=1), [FoRDE()])), convolutional(2), *batch()
    )
    assert (repelled[1] > plain[1]).all()  # energies are positive
    torch.testing.assert_close(chunked[1], repelled[1], rtol=1e-10, atol=0)
    torch.testing.assert_close(chunked[2], repelled[2], rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(after(Greedy(Focal()), convolutional(2), *batch())[1], plain[1])


def test_mixup_composes_with_a_loss_that_is_linear_in_the_label():
    class SmoothedMixup(MixupMP):
        loss = LabelSmoothing.loss

    ensemble = convolutional(2).train()
    ensemble.set_step(3)
    objective = SmoothedMixup(Mixup(ratio=1.0))
    images, targets = batch()
    shown = objective.examples(ensemble, images, targets)
    one_hot = nn.functional.one_hot(torch.stack([own for own, _ in shown.labels]), CLASSES)
    mixed = torch.stack([weights for _, weights in shown.labels])[..., None] * one_hot
    expected = [
        -((1 - EPSILON) * label + EPSILON / CLASSES * label.sum(-1, keepdim=True))
        .mul(network(own).log_softmax(-1))
        .sum()
        for network, own, label in zip(ensemble.networks, shown.images, mixed.sum(0), strict=True)
    ]
    values = objective(ensemble, images, targets).values
    torch.testing.assert_close(values, torch.stack(expected).detach(), rtol=1e-10, atol=0)
