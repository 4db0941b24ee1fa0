"""Particle flows against brute force, and on targets whose moments are known.

Float64 throughout, but where a lower precision is the subject.
"""

import math

import numpy as np
import pytest
import torch
from deepens.ensembles.objectives import particles as source
from deepens.ensembles.objectives.particles import (
    kde_energies,
    median_bandwidth,
    squared_distances,
    svgd_direction,
)
from one_step import Largest
from scipy.spatial.distance import cdist
from scipy.stats import norm


def draw(members, features, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(members, features, generator=generator, dtype=torch.float64)


def energy_gradient(particles):
    leaf = particles.detach().clone().requires_grad_()
    return torch.autograd.grad(kde_energies(leaf).sum(), leaf)[0]


def kernel_repulsion(particles):
    """SVGD's repulsion: what is left of its direction where no loss has a gradient."""
    return -svgd_direction(particles, torch.zeros_like(particles))


def by_numpy(particles):
    """The paper's bandwidth and kernel."""
    distances = cdist(particles, particles, "sqeuclidean")
    bandwidth = np.median(distances) / math.log(len(particles) + 1)
    return np.exp(-distances / bandwidth), bandwidth


def kernel_gradients(particles, bandwidth):
    """``grad_{x_i} k(x_i, x_j)`` of all pairs, by autograd, one by one."""
    found = torch.zeros(len(particles), *particles.shape, dtype=torch.float64)
    for i in range(len(particles)):
        for j in range(len(particles)):
            x = particles[i].clone().requires_grad_()
            kernel = torch.exp(-((x - particles[j]) ** 2).sum() / bandwidth)
            found[i, j] = torch.autograd.grad(kernel, x)[0]
    return found


# Distances


@pytest.mark.parametrize(("members", "features"), [(1, 3), (2, 1), (5, 7)])
def test_distances_agree_with_scipy(members, features):
    x, y = draw(members, features), draw(members, features, seed=1)
    np.testing.assert_allclose(squared_distances(x, y), cdist(x, y, "sqeuclidean"), rtol=1e-13)
    np.testing.assert_allclose(squared_distances(x), cdist(x, x, "sqeuclidean"), rtol=1e-13)


def test_distances_at_each_image_are_those_of_the_image():
    x, y = draw(15, 7).view(3, 5, 7).requires_grad_(), draw(15, 7, seed=1).view(3, 5, 7)
    expected = torch.stack([squared_distances(x[:, b], y[:, b]) for b in range(5)], dim=-1)
    torch.testing.assert_close(squared_distances(x, y), expected, rtol=1e-13, atol=0)
    assert torch.autograd.gradcheck(squared_distances, (x, y.requires_grad_()))


def test_distances_to_themselves_are_symmetric_with_a_zero_diagonal_exactly():
    distances = squared_distances(draw(6, 9))
    assert torch.equal(distances, distances.T)
    assert torch.equal(distances.diagonal(), torch.zeros(6, dtype=torch.float64))


def test_distances_are_differentiable_by_both_arguments():
    x, y = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(squared_distances, (x, y))
    assert torch.autograd.gradcheck(squared_distances, (x,))
    assert torch.autograd.gradcheck(squared_distances, (x.detach(), y))


def test_distances_of_particles_that_coincide_have_gradient_zero():
    x = torch.ones(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(squared_distances(x).sum(), x)
    assert torch.equal(gradient, torch.zeros(3, 4))


def test_distances_far_from_the_origin_are_right_to_a_few_ulps():
    x = (1e4 + draw(5, 50)).float()
    expected = cdist(x.double(), x.double(), "sqeuclidean")
    ulps = 4 * torch.finfo(torch.float32).eps
    np.testing.assert_allclose(squared_distances(x), expected, rtol=ulps)
    squares = x.square().sum(1)
    gram = squares[:, None] + squares[None] - 2 * x @ x.T
    assert np.abs(gram.numpy() - expected).max() > 0.1 * expected.max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    half, gradients = draw(4, 3000).to(dtype), draw(4, 3000, seed=1).to(dtype)
    for function in (squared_distances, kde_energies, kernel_repulsion):
        result = function(half)
        assert result.dtype == torch.float32
        assert torch.equal(result, function(half.float()))
    direction = svgd_direction(half, gradients)
    assert direction.dtype == torch.float32
    assert torch.equal(direction, svgd_direction(half.float(), gradients.float()))
    leaf = half.clone().requires_grad_()
    (by_half,) = torch.autograd.grad(kde_energies(leaf).sum(), leaf)
    assert torch.equal(by_half, energy_gradient(half.float()).to(dtype))


def test_autocast_changes_nothing():
    x, gradients = draw(4, 30).float(), draw(4, 30, seed=1).float()
    expected = [kde_energies(x), energy_gradient(x), svgd_direction(x, gradients)]
    with torch.autocast("cpu", torch.bfloat16):
        result = [kde_energies(x), energy_gradient(x), svgd_direction(x, gradients)]
    assert all(torch.equal(*pair) for pair in zip(result, expected, strict=True))


def test_blocks_of_features_change_nothing(monkeypatch):
    x, gradients = draw(4, 50), draw(4, 50, seed=1)
    expected = [kde_energies(x), energy_gradient(x), svgd_direction(x, gradients)]
    monkeypatch.setattr(source, "BLOCK", 4 * 4 * 7)
    result = [kde_energies(x), energy_gradient(x), svgd_direction(x, gradients)]
    for pair in zip(result, expected, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-13, atol=1e-13)


def test_differences_of_all_pairs_are_never_held(monkeypatch):
    members, features = 8, 1000
    x, gradients = draw(members, features), draw(members, features, seed=1)
    monkeypatch.setattr(source, "BLOCK", members * features)
    kept = []
    with (
        Largest() as largest,
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.numel()) or t, lambda t: t
        ),
    ):
        energy_gradient(x)
        svgd_direction(x, gradients)
    assert largest.numel == members * features
    assert sum(kept) < 3 * members * features


def test_no_value_is_read_on_the_host():
    x = torch.empty(4, 5, device="meta", requires_grad=True)  # has no values to read
    kde_energies(x).sum().backward()
    assert svgd_direction(x, torch.empty(4, 5, device="meta")).shape == (4, 5)


# The bandwidth


@pytest.mark.parametrize("members", [2, 3, 4, 7])
def test_bandwidth_is_the_median_of_the_whole_matrix(members):
    x = draw(members, 5)
    expected = np.median(cdist(x, x, "sqeuclidean")) / math.log(members + 1)
    bandwidth = median_bandwidth(squared_distances(x)).item()
    assert expected > 0
    np.testing.assert_allclose(bandwidth, expected, rtol=1e-13)


def test_bandwidth_has_no_gradient():
    assert not median_bandwidth(squared_distances(draw(3, 2).requires_grad_())).requires_grad


def test_bandwidth_is_of_the_mean_where_most_pairs_coincide():
    x = torch.tensor([[1.0], [1.0], [1.0], [3.0]], dtype=torch.float64)  # 10 of 16 are 0
    bandwidth = median_bandwidth(squared_distances(x)).item()
    np.testing.assert_allclose(bandwidth, 6 * 4 / 16 / math.log(5), rtol=1e-13)
    push = kernel_repulsion(x)
    assert push[3] > 0
    assert (push[:3] < 0).all()


def test_bandwidth_does_not_hide_what_is_not_finite():
    assert median_bandwidth(torch.full((3, 3), math.nan)).isnan()


# kde-WGD


@pytest.mark.parametrize(("members", "features"), [(2, 1), (3, 4), (6, 2)])
def test_energies_are_the_logarithm_of_the_kernel_sums(members, features):
    x = draw(members, features)
    kernel, _ = by_numpy(x.numpy())
    np.testing.assert_allclose(kde_energies(x), np.log(kernel.sum(1)), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("members", "features"), [(2, 1), (3, 4), (6, 2)])
def test_energy_gradient_is_the_kernel_gradients_over_the_kernels(members, features):
    x = draw(members, features)
    kernel, bandwidth = by_numpy(x.numpy())
    expected = kernel_gradients(x, bandwidth).sum(1) / torch.from_numpy(kernel.sum(1))[:, None]
    torch.testing.assert_close(energy_gradient(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_particles_have_energy_log_members_and_no_gradient(members, dtype):
    x = draw(1, 6).to(dtype).expand(members, 6)
    expected = torch.full((members,), math.log(members), dtype=dtype)
    torch.testing.assert_close(kde_energies(x), expected, rtol=1e-6, atol=0)
    assert torch.equal(energy_gradient(x), torch.zeros(members, 6, dtype=dtype))
    assert torch.equal(kernel_repulsion(x), torch.zeros(members, 6, dtype=dtype))


@pytest.mark.parametrize("apart", [1e-10, 1e-17, 1e-20, 1e-30])
def test_particles_nearer_than_float32_can_square_stay_finite(apart):
    x = torch.tensor([[0.0, 1.0], [apart, 1.0]])
    (gradient,) = torch.autograd.grad(1e6 * kde_energies(x.requires_grad_()).sum(), x)
    assert gradient.isfinite().all()
    assert kernel_repulsion(x).isfinite().all()


# SVGD


@pytest.mark.parametrize(("members", "features"), [(2, 1), (3, 4), (6, 2)])
def test_svgd_descends_by_minus_members_times_the_papers_direction(members, features):
    x, gradients = draw(members, features), draw(members, features, seed=1)
    kernel, bandwidth = by_numpy(x.numpy())
    by_first = kernel_gradients(x, bandwidth)
    phi = torch.zeros_like(x)
    for i in range(members):
        for j in range(members):
            phi[i] += (kernel[j, i] * -gradients[j] + by_first[j, i]) / members
    torch.testing.assert_close(svgd_direction(x, gradients), -members * phi, rtol=1e-12, atol=1e-12)


def test_kernel_repulsion_is_the_sum_of_kernel_gradients():
    x = draw(5, 3)
    _, bandwidth = by_numpy(x.numpy())
    expected = kernel_gradients(x, bandwidth).sum(0)  # by x_j, summed over j
    torch.testing.assert_close(kernel_repulsion(x), expected, rtol=1e-12, atol=1e-13)


def test_kernel_repulsion_sums_to_zero_over_particles():
    push = kernel_repulsion(draw(7, 40))
    assert push.sum(0).abs().max() < 1e-12 * push.abs().max()


def test_repulsion_drives_two_particles_apart():
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    for gradient in (energy_gradient(x), svgd_direction(x, torch.zeros_like(x))):
        assert gradient[0] > 0 > gradient[1]  # descending goes the other way


def test_repulsion_is_weighted():
    x, gradients = draw(4, 3), draw(4, 3, seed=1)
    attraction = svgd_direction(x, gradients, repulsion=0.0)
    expected = attraction - 0.3 * kernel_repulsion(x)
    weight = torch.tensor(0.3, dtype=torch.float64)
    for repulsion in (0.3, weight):
        torch.testing.assert_close(
            svgd_direction(x, gradients, repulsion=repulsion), expected, rtol=0, atol=1e-13
        )


def test_one_particle_descends_its_own_gradient_exactly():
    x, gradients = draw(1, 50), draw(1, 50, seed=1)
    assert torch.equal(svgd_direction(x, gradients), gradients)
    assert torch.equal(energy_gradient(x), torch.zeros_like(x))


def test_svgd_follows_the_wider_of_two_precisions():
    x, gradients = draw(3, 4), draw(3, 4, seed=1)
    assert svgd_direction(x.float(), gradients).dtype == torch.float64
    assert svgd_direction(x[:1].bfloat16(), gradients[:1].bfloat16()).dtype == torch.float32


# Symmetries


def test_permuted_members_have_permuted_energies_and_directions():
    x, gradients = draw(6, 4), draw(6, 4, seed=1)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    for function in (
        lambda rows: kde_energies(x[rows]),
        lambda rows: energy_gradient(x[rows]),
        lambda rows: svgd_direction(x[rows], gradients[rows]),
    ):
        whole = function(torch.arange(6))
        torch.testing.assert_close(function(order), whole[order], rtol=1e-12, atol=1e-13)


def test_translation_changes_nothing():
    x = (draw(5, 4) * 2**20).round() / 2**20  # so that the shift is exact
    for function in (kde_energies, energy_gradient, kernel_repulsion):
        assert torch.equal(function(x + 1024), function(x))


def test_scale_changes_no_kernel_and_divides_the_repulsion():
    x = draw(5, 4)  # a power of two, so that scaling is exact
    assert torch.equal(kde_energies(4 * x), kde_energies(x))
    assert torch.equal(4 * energy_gradient(4 * x), energy_gradient(x))
    assert torch.equal(4 * kernel_repulsion(4 * x), kernel_repulsion(x))


# Known targets


def descend(direction, particles, step_size, steps):
    """Plain steps whose size falls linearly to 0."""
    for step in range(steps):
        particles = particles - step_size * (1 - step / steps) * direction(particles)
    return particles


def flow(name, gradient):
    """A flow's direction, and a step size at which it is stable."""
    return {
        "svgd": (lambda x: svgd_direction(x, gradient(x)), 0.02),
        "kde": (lambda x: gradient(x) + energy_gradient(x), 0.1),
        "descent": (gradient, 0.1),
    }[name]


@pytest.mark.parametrize(
    ("name", "lowest", "highest"), [("svgd", 0.85, 1.0), ("kde", 0.66, 0.80), ("descent", 0, 1e-6)]
)
def test_particles_end_with_the_moments_of_a_gaussian(name, lowest, highest):
    """Mean to 0.02; the total variance (the covariance's trace, ddof = 0) over the target's."""
    mean = torch.tensor([3.0, -1.0], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.5], [0.5, 1.5]], dtype=torch.float64)
    precision = covariance.inverse()
    direction, step_size = flow(name, lambda x: (x - mean) @ precision)
    particles = descend(direction, draw(100, 2, scale=2.0), step_size, steps=400)
    assert (particles.mean(0) - mean).abs().max() < 0.02
    found = torch.cov(particles.T, correction=0)
    assert lowest <= found.trace() / covariance.trace() <= highest
    if name == "svgd":  # in every direction, and so in the correlation
        ratios = torch.linalg.eigvals(precision @ found).real
        assert ((ratios > lowest) & (ratios < highest)).all()


@pytest.mark.parametrize(
    ("name", "off_share", "second", "within"),
    [
        ("svgd", (0.0, 0.10), (0.92, 1.02), (1.5, 2.0)),
        ("kde", (0.0, 0.12), (0.72, 0.86), (0.6, 0.9)),
        ("descent", (0.15, 0.30), (0.60, 0.70), (0.0, 1e-6)),
    ],
)
def test_particles_spread_over_two_modes_where_descent_collapses(name, off_share, second, within):
    """One third of N((-2, 0), I) and two thirds of N((2, 0), I), 60 particles from N(0, 9 I).

    Intervals for: how far the share of particles on the right is from the target's; the second
    moment about the origin over the target's; the total variance within each half (the target's is
    about 2). Descent leaves the share as it started, in the basins of attraction.
    """
    weights = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    modes = torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=torch.float64)

    def gradient(x):
        differences = x[:, None] - modes
        posterior = torch.softmax(weights.log() - differences.square().sum(-1) / 2, dim=1)
        return (posterior[..., None] * differences).sum(1)

    direction, step_size = flow(name, gradient)
    particles = descend(direction, draw(60, 2, scale=3.0), step_size, steps=600)
    right = particles[:, 0] > 0
    share = norm.cdf(-2) / 3 + 2 * norm.cdf(2) / 3
    assert off_share[0] <= abs(right.double().mean().item() - share) <= off_share[1]
    moment = particles.square().sum(1).mean().item() / (4 + 2)
    assert second[0] <= moment <= second[1]
    for half in (particles[right], particles[~right]):
        assert within[0] <= half.var(0, correction=0).sum().item() <= within[1]


# Errors


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (2, 3, 4, 5), (2, 3, 4)])
def test_particles_of_another_shape_are_refused(shape):
    x, line = torch.zeros(shape), r"particles must be \[members, features\]"
    if len(shape) != 3:  # distances are of particles at each image, too
        with pytest.raises(ValueError, match=line):
            squared_distances(x)
    for function in (kernel_repulsion, lambda x: svgd_direction(x, x), kde_energies):
        with pytest.raises(ValueError, match=line):
            function(x)


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_match_the_particles_is_refused():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"others must have .* \(3, 2\), got \(2, 2\)"):
        squared_distances(x, x[:2])
    with pytest.raises(ValueError, match=r"gradients must have .* \(3, 2\), got \(3, 1\)"):
        svgd_direction(x, x[:, :1])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(0, 0), (2, 3), (4,)])
def test_distances_that_are_no_matrix_of_pairs_are_refused(shape):
    with pytest.raises(ValueError, match="distances must be square and not empty"):
        median_bandwidth(torch.zeros(shape))


@pytest.mark.parametrize("repulsion", [-0.5, math.nan, math.inf])
def test_repulsion_below_zero_or_not_finite_is_refused(repulsion):
    with pytest.raises(ValueError, match=f"repulsion must be finite and >= 0, got {repulsion}"):
        svgd_direction(draw(2, 3), draw(2, 3), repulsion=repulsion)
