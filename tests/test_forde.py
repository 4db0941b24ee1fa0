"""FoRDE: energies of input gradients, lengthscales and the basis."""

import math

import pytest
import torch
from deepens.ensembles import (
    CrossEntropy,
    DeepEnsemble,
    FoRDE,
    Repulsion,
    Repulsive,
    WeightSpace,
)
from deepens.ensembles.backbones import build
from deepens.ensembles.objectives import particles
from deepens.ensembles.objectives.forde import input_gradient_energies, principal_components
from one_step import Images, Largest, after, batch, convolutional, made, same
from sklearn.datasets import load_digits


def gradients(members=4, images=5, features=12):
    generator = torch.Generator().manual_seed(3)
    shape = (members, images, features)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_input_gradient_energies_equal_their_formula():
    """Written out image by image and pair by pair."""
    g = gradients()
    generator = torch.Generator().manual_seed(4)
    vectors, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))
    scales = torch.rand(12, generator=generator, dtype=torch.float64)
    members, images, _ = g.shape
    total = torch.zeros(members, dtype=torch.float64)
    s = [[(scales.sqrt() * (vectors.T @ (v / v.norm()))) for v in row] for row in g]
    for b in range(images):
        for j in range(members):
            d = [float((s[i][b] - s[j][b]) @ (s[i][b] - s[j][b])) for i in range(members)]
            middle = sorted(d)[1:3]
            h = sum(middle) / 2 / math.log(members) + 1e-12
            for i in range(members):
                total[i] += math.exp(-d[i] / h) / images
    found = input_gradient_energies(g, vectors, scales)
    torch.testing.assert_close(found, total.log(), rtol=1e-12, atol=1e-12)


def test_identical_members_have_energy_ln_m_and_no_gradient():
    g = gradients()[:1].repeat(4, 1, 1).requires_grad_()
    energies = input_gradient_energies(g)
    torch.testing.assert_close(energies, torch.full((4,), math.log(4), dtype=torch.float64))
    energies.sum().backward()
    assert g.grad.abs().max() == 0


def test_energy_moves_by_the_members_own_gradients_alone():
    g = gradients().requires_grad_()
    energies = input_gradient_energies(g)
    for i in range(4):
        (by,) = torch.autograd.grad(energies[i], g, retain_graph=True)
        assert by[i].abs().max() > 0
        by[i] = 0
        assert by.abs().max() == 0


def test_energy_takes_no_notice_of_the_gradients_norm():
    g = gradients().requires_grad_()
    input_gradient_energies(g).sum().backward()
    assert abs(float((g.detach() * g.grad).sum())) < 1e-7
    assert g.grad.norm() > 1e-3
    scaled = g.detach() * torch.tensor([1.0, 10.0, 0.1, 3.0]).double()[:, None, None]
    torch.testing.assert_close(input_gradient_energies(scaled), input_gradient_energies(g.detach()))


@pytest.mark.parametrize("members", [2, 3, 5])
def test_energy_of_fresh_networks_is_near_that_of_equal_distances(members):
    """Where all distances are alike; with two members the median is half of the distance."""
    g = gradients(members, 64, 3072)
    kernel = math.exp(-2 * math.log(2)) if members == 2 else 1 / members
    expected = math.log(1 + (members - 1) * kernel)
    found = input_gradient_energies(g)
    torch.testing.assert_close(
        found, torch.full((members,), expected, dtype=torch.float64), rtol=0, atol=0.02
    )


def test_energy_of_five_fresh_networks_is_near_that_of_equal_distances():
    """New networks on real images, in training mode: R near ln(1 + 4/5) = 0.588 within 0.03.

    Were the members alike, it would be ln 5 = 1.61.
    """
    digits = load_digits()
    images = torch.tensor(digits.images[:32, None]) / 16
    ensemble = DeepEnsemble(
        lambda: build("resnet8", num_classes=10, channels=1, image_size=8), seeds=list(range(5))
    )
    targets = torch.tensor(digits.target[:32])
    objective, seen = Repulsive(CrossEntropy(), [FoRDE()]), []
    energies = objective.terms[0].energies
    objective.terms[0].energies = lambda quantity: (seen.append(energies(quantity)), seen[-1])[1]
    objective(ensemble.double().train(), images, targets)
    (found,) = seen
    assert found.tolist() == pytest.approx([math.log(1.8)] * 5, abs=0.03)


def test_differences_of_all_pairs_are_never_held(monkeypatch):
    members, images, features = 8, 4, 500
    g = gradients(members, images, features).requires_grad_()
    monkeypatch.setattr(particles, "BLOCK", members * images * features)
    kept = []
    with (
        Largest() as largest,
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.numel()) or t, lambda t: t
        ),
    ):
        input_gradient_energies(g).sum().backward()
    assert largest.numel == g.numel()
    assert sum(kept) < 8 * g.numel()  # by all pairs at a time: 8 for each of their tensors


def test_two_members_have_a_bandwidth():
    g = gradients(2).requires_grad_()
    input_gradient_energies(g).sum().backward()
    assert torch.isfinite(g.grad).all()
    assert g.grad.norm() > 1e-3


def test_quantity_is_each_members_own_input_gradient_of_the_true_class():
    ensemble = convolutional(2).train()
    images, targets = batch()
    objective = made("identity")
    seen = []
    term = objective.terms[0]
    energies = term.energies
    term.energies = lambda quantity: (seen.append(quantity.detach()), energies(quantity))[1]
    objective(ensemble, images, targets)
    for index in range(2):
        leaf = images.clone().requires_grad_()
        logits = ensemble.networks[index](leaf)
        (expected,) = torch.autograd.grad(logits[range(6), targets].sum(), leaf)
        torch.testing.assert_close(seen[0][index], expected.flatten(1))


def test_principal_components_are_those_of_the_covariance():
    images = Images(50, 2, 3, 3)
    values, vectors = principal_components(images)
    centred = images.all.flatten(1).double()
    centred = centred - centred.mean(0)
    covariance = centred.T @ centred / 50
    rebuilt = vectors.double() @ torch.diag(values.double()) @ vectors.double().T
    torch.testing.assert_close(rebuilt, covariance, rtol=0, atol=1e-6)
    assert (values.diff() <= 0).all()


def test_a_basis_of_too_many_pixels_is_refused():
    with pytest.raises(ValueError, match=r"at most 12288 .* use --repulsion.lengthscale identity"):
        principal_components(Images(2, 3, 65, 65))


def test_tuned_lengthscales_run_from_identity_to_pca():
    images, targets = batch()
    loss = {}
    for name, blend in [("tuned", 0.0), ("tuned", 1.0), ("pca", 0.2), ("identity", 0.2)]:
        objective = made(name, blend=blend)
        loss[name, blend] = after(objective, convolutional(3), images, targets)[0]
    torch.testing.assert_close(loss["tuned", 1.0], loss["pca", 0.2])
    torch.testing.assert_close(loss["tuned", 0.0], loss["identity", 0.2], rtol=0, atol=1e-6)
    assert abs(loss["pca", 0.2] - loss["identity", 0.2]) > 1e-5


def test_a_basis_that_was_kept_is_taken_instead_of_computed():
    first = made("pca")
    again = Repulsive(CrossEntropy(), [FoRDE(Repulsion(lengthscale="pca"))])
    again.restore(first.state_dict())
    again.prepare(Images(40, 1, 8, 8, seed=99))
    assert same(again.buffers(), first.buffers())
    with pytest.raises(ValueError, match="is no buffer of this objective"):
        again.restore({"terms.0.other": torch.zeros(1)})


def test_unprepared_repulsions_say_so():
    with pytest.raises(ValueError, match="call prepare with them first"):
        Repulsive(CrossEntropy(), [FoRDE(Repulsion(lengthscale="pca"))])(convolutional(2), *batch())
    with pytest.raises(ValueError, match="call prepare with them first"):
        Repulsive(CrossEntropy(), [WeightSpace()])(convolutional(2), *batch())
