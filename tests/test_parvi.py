"""Repulsion in weight and function space, against the formulas written out."""

import math

import torch
from contract import CLASSES
from deepens.ensembles import CrossEntropy
from one_step import SPACES, after, batch, convolutional, made


def test_weight_space_adds_the_kernels_gradient_over_the_number_of_images():
    """kde-WGD: sum of kernel gradients over sum of kernels, of whole networks, by hand."""
    ensemble, scale = convolutional(3), 50.0
    plain = after(CrossEntropy(), ensemble, *batch())[2]
    found = after(made("weights", scale=scale), ensemble, *batch())[2]
    size = len(plain) // 3
    rows = torch.stack(
        [torch.cat([p.detach().flatten() for p in n.parameters()]) for n in ensemble.networks]
    )
    d = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    h = d.quantile(0.5) / math.log(4)
    k = (-d / h).exp()
    for i in range(3):
        ours = torch.cat([g.flatten() for g in found[i * size : (i + 1) * size]])
        base = torch.cat([g.flatten() for g in plain[i * size : (i + 1) * size]])
        pull = sum(-2 / h * k[i, j] * (rows[i] - rows[j]) for j in range(3)) / k[i].sum()
        torch.testing.assert_close(ours, base + scale / 40 * pull, rtol=1e-9, atol=1e-12)


def test_svgd_in_weight_space_mixes_gradients_by_the_kernel():
    ensemble, scale = convolutional(2), 50.0
    with torch.no_grad():  # near each other, so that the kernel is not small
        for ours, theirs in zip(*(n.parameters() for n in ensemble.networks), strict=True):
            ours.copy_(theirs + 0.01)
    plain = after(CrossEntropy(), ensemble, *batch())[2]
    found = after(made("svgd weights", scale=scale), ensemble, *batch())[2]
    size = len(plain) // 2
    rows = [torch.cat([p.detach().flatten() for p in n.parameters()]) for n in ensemble.networks]
    slopes = [torch.cat([g.flatten() for g in plain[i * size : (i + 1) * size]]) for i in (0, 1)]
    d = (rows[0] - rows[1]).square().sum()
    h = d / 2 / math.log(3)
    k = (-d / h).exp()
    ours = torch.cat([g.flatten() for g in found[:size]])
    expected = slopes[0] + k * slopes[1] - scale / 40 * (2 / h) * k * (rows[0] - rows[1])
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-12)


def test_constant_shifts_of_logits_are_no_repulsion():
    term = SPACES["functions"]()
    logits = torch.randn(3, 4, CLASSES, dtype=torch.float64)
    shifted = logits + torch.randn(3, 4, 1).double()
    torch.testing.assert_close(_quantity(term, shifted), _quantity(term, logits))


def _quantity(term, logits):
    from deepens.ensembles.objectives.repulsion import Evaluation

    targets = torch.zeros(logits.shape[1], dtype=torch.long)
    return term.quantity(
        Evaluation(convolutional(3), [0, 1, 2], logits, targets, None, differentiable=True)
    )
