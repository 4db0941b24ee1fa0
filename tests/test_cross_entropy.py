"""Member cross-entropy against float64 arithmetic by hand."""

import numpy as np
import pytest
import torch
from contract import CLASSES, ObjectiveContract
from deepens.ensembles import CrossEntropy, DeepEnsemble, Ensemble, LoRA, LoRAEnsemble
from deepens.ensembles.backbones import build
from deepens.ensembles.objectives.likelihood import member_losses
from stacked import StackedLinear
from torch import nn


class TestCrossEntropyObjective(ObjectiveContract):
    def make(self):
        return CrossEntropy()


class TestCrossEntropyMeanOfMembers(ObjectiveContract):
    def make(self):
        return CrossEntropy(reduction="mean_members")


class TestCrossEntropyTwoMembersAtOnce(ObjectiveContract):
    def make(self):
        return CrossEntropy(members_at_once=2)


def _by_hand(logits, probabilities):
    logits = logits.numpy()
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -(probabilities * log_probs).sum(-1).mean(-1)


@pytest.mark.parametrize("leading", [(6,), (3, 6)])
def test_hard_targets_agree_with_the_equation(leading):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(5, leading, generator=generator)
    expected = _by_hand(logits, np.eye(5)[targets.numpy()])
    result = member_losses(logits, targets)
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("leading", [(6,), (3, 6)])
def test_soft_targets_agree_with_the_equation(leading):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    soft = torch.rand(*leading, 5, generator=generator, dtype=torch.float64)
    soft = soft / soft.sum(-1, keepdim=True)
    result = member_losses(logits, soft)
    np.testing.assert_allclose(result.numpy(), _by_hand(logits, soft.numpy()), rtol=0, atol=1e-12)


def test_gradient_of_a_member_does_not_depend_on_how_many_others_there_are():
    images = torch.randn(6, 1, 2, 2, dtype=torch.float64)
    targets = torch.tensor([0, 1, 0, 1, 1, 0])
    gradients = []
    for seeds in ([3], [3, 4, 5]):
        ensemble = DeepEnsemble(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), seeds=seeds
        ).double()
        CrossEntropy()(ensemble, images, targets).loss.backward()
        gradients.append(ensemble.member_parameters(0)[0][0].grad)
    assert torch.equal(*gradients)


def test_mean_over_members_divides_the_gradient_by_their_number():
    images, targets = torch.randn(6, 1, 2, 2), torch.tensor([0, 1, 0, 1, 1, 0])
    ensemble = DeepEnsemble(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), seeds=[1, 2])
    total = CrossEntropy()(ensemble, images, targets).loss
    mean = CrossEntropy(reduction="mean_members")(ensemble, images, targets).loss
    torch.testing.assert_close(mean, total / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_widened_first(dtype):
    logits = torch.randn(2, 6, 5).to(dtype)
    targets = torch.zeros(6, dtype=torch.long)
    result = member_losses(logits, targets)
    assert result.dtype == torch.float32
    assert torch.equal(result, member_losses(logits.float(), targets))


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        (torch.tensor([0, -100]), r"targets must be in \[0, 3\), got -100"),
        (torch.tensor([0, 1, 2]), r"targets must have shape \[2\] or \[4, 2\]"),
        (torch.zeros(2, 2), r"targets must have shape \[2, 3\] or \[4, 2, 3\]"),
    ],
)
def test_targets_that_do_not_fit_are_refused(unchecked, targets, line):
    with pytest.raises(ValueError, match=line):
        member_losses(torch.zeros(4, 2, 3), targets)


def test_unknown_reduction_is_refused(unchecked):
    with pytest.raises(ValueError, match="reduction must be 'sum' or 'mean_members', got 'max'"):
        CrossEntropy(reduction="max")


def _network():
    return build("resnet8", num_classes=3, channels=1, image_size=8)  # with batch normalisation


def _deep():
    return DeepEnsemble(_network, seeds=[1, 2, 3])


def _stacked():
    return StackedLinear(64, 3, seeds=[1, 2, 3])


def _lora(**options):
    torch.manual_seed(0)
    base = build("vit-micro/4", num_classes=3, channels=1, image_size=8)
    return LoRAEnsemble(base, seeds=[1, 2, 3], options=LoRA(rank=2, blocks=2, **options))


class _SharedTrunk(Ensemble):
    """A trained trunk with batch normalisation, gone through once, and a head a member."""

    def __init__(self):
        super().__init__([1, 2, 3])
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8))
        self.heads = nn.Parameter(torch.randn(3, 8, 3))

    def prefix(self, images):
        flat = images.flatten(0, 1) if images.ndim == 5 else images
        features = self.trunk(flat)
        return features.unflatten(0, images.shape[:2]) if images.ndim == 5 else features

    def features(self, images, members):
        return [images[k] if images.ndim == 3 else images for k in range(len(members))]

    def head(self, features, members):
        return torch.stack([f @ self.heads[i] for f, i in zip(features, members, strict=True)])

    def member(self, index):
        raise NotImplementedError

    def member_parameters(self, index):
        return [(self.heads, index)]

    def member_state(self, index):
        return {"head": self.heads.detach()[index]}


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean_members"])
@pytest.mark.parametrize(
    "make", [_deep, _stacked, _lora, lambda: _lora(execution="loop"), _SharedTrunk]
)
def test_a_few_members_at_a_time_have_the_joint_loss_gradients_and_buffers(
    make, reduction, own, at_once
):
    generator = torch.Generator().manual_seed(0)
    leading = (3, 6) if own else (6,)
    images = torch.randn(*leading, 1, 8, 8, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, leading, generator=generator)
    results = []
    for members_at_once in (None, at_once):
        ensemble = make().double().train()
        leaf = images.clone().requires_grad_()
        objective = CrossEntropy(reduction=reduction, members_at_once=members_at_once)
        loss, values = objective(ensemble, leaf, targets)
        (2.5 * loss).backward()
        gradients = {n: p.grad for n, p in ensemble.named_parameters() if p.requires_grad}
        buffers = dict(ensemble.named_buffers())
        results.append(({"loss": loss, "values": values, "images": leaf.grad}, gradients, buffers))
    for joint, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, joint, rtol=0, atol=1e-12)


def test_soft_targets_of_each_member_follow_its_chunk():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    soft = torch.rand(3, 6, 3, generator=generator, dtype=torch.float64)
    ensemble = _stacked().double()
    joint = CrossEntropy()(ensemble, images, soft)
    chunked = CrossEntropy(members_at_once=2)(ensemble, images, soft)
    torch.testing.assert_close(chunked.values, joint.values, rtol=0, atol=1e-12)


def test_a_few_members_at_a_time_hold_one_chunk_s_graph():
    """What waits for the backward pass at a time, in entries, without the weights."""
    alive, most, weights = [0], [0], set()

    class _Counted:
        def __init__(self, tensor):
            self.tensor = tensor.detach()  # an output would hold the graph that holds it
            self.size = 0 if tensor.data_ptr() in weights else tensor.numel()
            alive[0] += self.size
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= self.size

    images, targets = torch.randn(6, 1, 8, 8), torch.randint(3, (6,))
    peaks = {}
    for at_once in (None, 1):
        most[0] = 0
        ensemble = _lora().train()
        weights.update(p.data_ptr() for p in ensemble.parameters())
        with torch.autograd.graph.saved_tensors_hooks(_Counted, lambda counted: counted.tensor):
            loss, _ = CrossEntropy(members_at_once=at_once)(ensemble, images, targets)
        peaks[at_once] = most[0]
        del loss
    trained = sum(p.numel() for p in ensemble.parameters() if p.requires_grad)
    assert peaks[1] <= 0.4 * peaks[None] + trained  # the linear loss keeps the gradients


def test_without_gradients_nothing_is_differentiated():
    with torch.no_grad():
        loss, values = CrossEntropy(members_at_once=1)(
            _stacked(), torch.zeros(6, 1, 8, 8), torch.zeros(6, dtype=torch.long)
        )
    assert not loss.requires_grad
    torch.testing.assert_close(loss, values.sum())


def test_wrong_number_of_member_wise_batches_is_refused_in_chunks_too():
    with pytest.raises(ValueError, match="one batch for each of the 3 chosen members, got 2"):
        CrossEntropy(members_at_once=1)(
            _stacked(), torch.zeros(2, 6, 1, 8, 8), torch.zeros(6, dtype=torch.long)
        )


def test_members_at_once_below_one_is_refused():
    with pytest.raises(ValueError, match="members_at_once must be >= 1, got 0"):
        CrossEntropy(members_at_once=0)


@pytest.mark.parametrize("leading", [(), (3,)])
def test_label_smoothing_spreads_a_share_of_the_label_over_all_classes(leading):
    logits = torch.randn(3, 5, CLASSES, dtype=torch.float64)
    hard = torch.randint(CLASSES, (*leading, 5))
    soft = torch.rand(*leading, 5, CLASSES, dtype=torch.float64).softmax(-1)
    loss = CrossEntropy(smoothing=0.2).loss
    for targets in (hard, soft):
        labels = targets if targets is soft else torch.nn.functional.one_hot(hard, CLASSES).double()
        expected = -((0.8 * labels + 0.2 / CLASSES) * logits.log_softmax(-1)).sum(-1).mean(-1)
        found = member_losses(logits, targets, loss=loss)
        torch.testing.assert_close(found, expected.expand(3), rtol=0, atol=1e-12)


def test_label_smoothing_out_of_bounds_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 1"):
        CrossEntropy(smoothing=1)
