"""Detectors against their formulas, by NumPy, SciPy and scikit-learn on a member's features."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from deepens.datasets import Pipeline, batches, load
from deepens.ensembles import DeepEnsemble
from deepens.ensembles.backbones import build
from deepens.ensembles.families.member_heads import MemberHeads
from deepens.experiments.evaluation import detectors as fitting
from deepens.experiments.evaluation.detector_kinds import (
    FITS,
    TrainingFeatures,
    principal_dimension,
)
from deepens.experiments.evaluation.detectors import (
    choose_detectors,
    features_and_logits,
    fit_detectors,
    fit_on,
    notes,
    predict_batches,
)
from deepens.metrics.core.catalogue import DETECTORS
from scipy.special import logsumexp, softmax
from sklearn.neighbors import NearestNeighbors
from torch import nn

WIDTHS = (1.0, 0.5, 1.5)


@pytest.fixture(scope="module")
def splits():
    return load("digits")


@pytest.fixture(scope="module")
def pipeline(splits):
    return Pipeline(splits.mean, splits.std)


@pytest.fixture(scope="module")
def ensemble():
    """Members of different widths, whose features are of different sizes."""
    make = [
        lambda width=width: build("small-cnn", num_classes=8, channels=1, image_size=8, width=width)
        for width in WIDTHS
    ]
    return DeepEnsemble(make, seeds=[1, 2, 3]).eval()


def _features(ensemble, split, pipeline):
    parts = [
        features_and_logits(ensemble, images)
        for images, _ in batches(split, batch_size=100, pipeline=pipeline)
    ]
    members = range(ensemble.num_members)
    return [torch.cat([part[0][i] for part in parts]) for i in members], torch.cat(
        [part[1] for part in parts], dim=1
    )


@pytest.fixture(scope="module")
def seen(ensemble, splits, pipeline):
    return _features(ensemble, splits["train"], pipeline)


@pytest.fixture(scope="module")
def asked(ensemble, splits, pipeline):
    return _features(ensemble, splits["near_ood/digits-8-9"], pipeline)


@pytest.fixture(scope="module")
def scored(ensemble, splits, pipeline):
    """All detectors' scores, fitted and asked as an evaluation does."""
    names = choose_detectors(["all"])
    fitted = fit_on(ensemble, splits["train"], names, seed=0, batch_size=256, pipeline=pipeline)
    loaded = batches(splits["near_ood/digits-8-9"], batch_size=256, pipeline=pipeline)
    return predict_batches(ensemble, loaded, fitted)


def _unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _distances(points, centre, precision):
    return np.einsum("nd,de,ne->n", points - centre, precision, points - centre)


def _knn(z, train, y, w, b):
    found = NearestNeighbors(n_neighbors=50, algorithm="brute").fit(_unit(train))
    return found.kneighbors(_unit(z))[0][:, -1] ** 2


def _class_distances(z, train, y):
    centres = np.stack([train[y == label].mean(0) for label in np.unique(y)])
    within = train - centres[np.searchsorted(np.unique(y), y)]
    precision = np.linalg.pinv(within.T @ within / len(train), hermitian=True)
    return np.stack([_distances(z, centre, precision) for centre in centres], axis=1)


def _mahalanobis(z, train, y, w, b):
    return _class_distances(z, train, y).min(1)


def _relative(z, train, y, w, b):
    precision = np.linalg.pinv(np.cov(train.T, bias=True), hermitian=True)
    background = _distances(z, train.mean(0), precision)
    return (_class_distances(z, train, y) - background[:, None]).min(1)


def _vim(z, train, y, w, b):
    origin = -np.linalg.pinv(w) @ b
    centred = train - origin
    _, vectors = np.linalg.eigh(centred.T @ centred / len(train))
    rest = vectors[:, : train.shape[1] - train.shape[1] // 2]
    alpha = (train @ w.T + b).max(1).mean() / np.linalg.norm(centred @ rest, axis=1).mean()
    virtual = alpha * np.linalg.norm((z - origin) @ rest, axis=1)
    return virtual - logsumexp(z @ w.T + b, axis=1)


def _react(z, train, y, w, b):
    clipped = np.minimum(z, np.percentile(train, 90))
    return -logsumexp(clipped @ w.T + b, axis=1)


def _shaped(z, w, b, keep):
    kept = z.shape[1] - round(0.65 * z.shape[1])
    top = np.zeros_like(z)
    order = np.argsort(-z, axis=1, kind="stable")[:, :kept]
    np.put_along_axis(top, order, np.take_along_axis(z, order, 1), 1)
    factor = np.exp(z.sum(1) / top.sum(1))[:, None]
    return -logsumexp(factor * (z if keep else top) @ w.T + b, axis=1)


def _nnguide(z, train, y, w, b):
    bank = _unit(train) * logsumexp(train @ w.T + b, axis=1)[:, None]
    guidance = np.sort(_unit(z) @ bank.T, axis=1)[:, -10:].mean(1)
    return -guidance * logsumexp(z @ w.T + b, axis=1)


def _gen(z, train, y, w, b):
    p = softmax(z @ w.T + b, axis=1)
    return (p**0.1 * (1 - p) ** 0.1).mean(1)


FORMULAS = {
    "knn": _knn,
    "mahalanobis": _mahalanobis,
    "relative_mahalanobis": _relative,
    "vim": _vim,
    "react": _react,
    "ash": lambda z, train, y, w, b: _shaped(z, w, b, keep=False),
    "scale": lambda z, train, y, w, b: _shaped(z, w, b, keep=True),
    "nnguide": _nnguide,
    "gen": _gen,
}


@pytest.mark.parametrize("name", DETECTORS)
def test_scores_of_every_member_follow_the_formula(name, ensemble, splits, seen, asked, scored):
    found = scored[1][name]
    assert found.dtype == torch.float64
    for index, width in enumerate(WIDTHS):
        head = ensemble.networks[index].head
        w, b = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
        z, train = asked[0][index].double().numpy(), seen[0][index].double().numpy()
        expected = FORMULAS[name](z, train, splits["train"].targets.numpy(), w, b)
        assert train.shape[1] == round(32 * width)
        # ViM finds its principal space in float32, and directions of like variance mix in it.
        near = 5e-4 if name == "vim" else 1e-5
        np.testing.assert_allclose(found[index].numpy(), expected, rtol=near, atol=near)


def test_catalogue_and_fits_name_the_same_detectors():
    assert list(FITS) == list(DETECTORS) == list(FORMULAS)


def test_logits_are_those_of_the_ensemble_bit_for_bit(ensemble, splits, pipeline, scored):
    loaded = batches(splits["near_ood/digits-8-9"], batch_size=256, pipeline=pipeline)
    plain, nothing = predict_batches(ensemble, loaded)
    assert torch.equal(scored[0], plain)
    assert not nothing


def test_each_member_runs_once_a_batch(ensemble, splits, pipeline):
    calls = []
    handles = [n.body.register_forward_hook(lambda *_: calls.append(1)) for n in ensemble.networks]
    names = ("knn", "react")
    fitted = fit_on(ensemble, splits["train"], names, seed=0, batch_size=644, pipeline=pipeline)
    assert len(calls) == 3
    predict_batches(ensemble, batches(splits["test"], batch_size=577, pipeline=pipeline), fitted)
    assert len(calls) == 6
    for handle in handles:
        handle.remove()


def test_scores_do_not_depend_on_the_batches(ensemble, splits, pipeline, scored):
    names = choose_detectors(["all"])
    fitted = fit_on(ensemble, splits["train"], names, seed=0, batch_size=256, pipeline=pipeline)
    loaded = batches(splits["near_ood/digits-8-9"], batch_size=50, pipeline=pipeline)
    for name, values in predict_batches(ensemble, loaded, fitted)[1].items():
        torch.testing.assert_close(values, scored[1][name], rtol=1e-4, atol=1e-5)


def test_fitting_images_are_drawn_by_the_seed_and_bounded(
    ensemble, splits, pipeline, monkeypatch, seen
):
    taken = []

    def fit(names, training):
        taken.append(training)
        return fit_detectors(names, training)

    monkeypatch.setattr(fitting, "MOST_IMAGES", 60)
    monkeypatch.setattr(fitting, "fit_detectors", fit)
    for seed in (0, 0, 1):
        fit_on(ensemble, splits["train"], ["gen"], seed=seed, batch_size=64, pipeline=pipeline)
    first, again, other = ([each.features for each in training] for training in taken)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    for member, own in zip(seen[0], taken[0], strict=True):
        nearest = torch.cdist(own.features, member).argmin(1)
        assert len(set(nearest.tolist())) == 60
        assert torch.equal(splits["train"].targets[nearest], own.targets)


def _training(features, targets, classes=3):
    head = nn.Linear(features.shape[1], classes).requires_grad_(False)
    return TrainingFeatures(features, targets, head)


def _drawn(n=60, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, size, generator=generator), torch.arange(n) % 3


def test_directions_without_variance_change_no_distance_and_break_nothing():
    features, targets = _drawn()
    dead = torch.cat([features, torch.zeros(60, 2), features[:, :1] * 2], dim=1)
    asked, _ = _drawn(20, seed=1)
    names = choose_detectors(["all"])
    more = torch.cat([asked, torch.rand(20, 2), asked[:, :1] * 2], dim=1)
    logits = torch.randn(1, 20, 3)
    whole = fit_detectors(names, [_training(dead, targets)])([more], logits)
    assert all(values.isfinite().all() for values in whole.values())
    plain = fit_detectors(names, [_training(features, targets)])([asked], logits)
    for name in ("mahalanobis", "relative_mahalanobis"):
        torch.testing.assert_close(whole[name], plain[name], rtol=1e-6, atol=1e-6)


def test_constant_features_are_scored():
    features, targets = torch.ones(60, 4), torch.arange(60) % 3
    found = fit_detectors(choose_detectors(["all"]), [_training(features, targets)])
    scores = found([torch.rand(5, 4)], torch.zeros(1, 5, 3))
    assert all(values.isfinite().all() for values in scores.values())
    assert scores["mahalanobis"].eq(0).all()


def test_image_without_any_activation_has_the_energy_of_the_bias():
    features, targets = _drawn()
    training = _training(features, targets)
    scores = fit_detectors(["ash", "scale"], [training])([torch.zeros(1, 6)], torch.zeros(1, 1, 3))
    for values in scores.values():
        torch.testing.assert_close(values[0, 0], -training.head.bias.double().logsumexp(0))


def test_fewer_training_images_than_neighbours_are_all_used_with_a_note():
    features, targets = _drawn(6)
    found = fit_detectors(["knn", "nnguide"], [_training(features, targets)])
    asked = torch.rand(4, 6)
    distances = torch.cdist(*(nn.functional.normalize(each.double()) for each in (asked, features)))
    scores = found([asked], torch.zeros(1, 4, 3))
    torch.testing.assert_close(scores["knn"][0], distances.amax(1).square(), rtol=1e-5, atol=1e-6)
    assert notes(["knn", "vim", "nnguide"], 6) == [
        "detector knn looks at 6 neighbours, not 50: there are no more training images",
        "detector nnguide looks at 6 neighbours, not 10: there are no more training images",
    ]
    assert notes(["knn", "nnguide"], 50) == []


def test_class_without_a_fitting_image_has_no_centre():
    features, targets = _drawn()
    moved = torch.where(targets == 1, 2, targets)
    asked, _ = _drawn(20, seed=1)
    scores = fit_detectors(["mahalanobis"], [_training(features, moved)])(
        [asked], torch.zeros(1, 20, 3)
    )
    expected = _class_distances(
        asked.double().numpy(), features.double().numpy(), moved.numpy()
    ).min(1)
    np.testing.assert_allclose(scores["mahalanobis"][0].numpy(), expected, rtol=1e-6)


def test_vim_reads_what_the_last_linear_map_reads():
    features, targets = _drawn()
    heads = MemberHeads(1, 6, 3, norm=True).requires_grad_(False)
    heads.draw(0, torch.Generator().manual_seed(3))
    heads.norm_weight.add_(torch.rand(1, 6))
    head = heads.plain(0).requires_grad_(False)
    asked, _ = _drawn(20, seed=1)
    scores = FITS["vim"](TrainingFeatures(features, targets, head))(asked, torch.zeros(20, 3))
    norm, linear = head
    z, train = norm(asked).double().numpy(), norm(features).double().numpy()
    expected = _vim(z, train, None, linear.weight.double().numpy(), linear.bias.double().numpy())
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="vim needs a head that ends in a linear map, got Tanh"):
        FITS["vim"](TrainingFeatures(features, targets, nn.Tanh()))


def test_principal_space_is_the_authors_for_large_features_and_half_for_small():
    assert [principal_dimension(d) for d in (1, 32, 767, 768, 2047, 2048)] == [
        0, 16, 383, 512, 512, 1000
    ]  # fmt: skip


def test_default_precision_is_as_it_was():
    features, targets = _drawn()
    FITS["relative_mahalanobis"](_training(features, targets))
    assert torch.get_default_dtype() == torch.float32


def test_features_and_scores_that_are_not_finite_name_their_member():
    features, targets = _drawn()
    good, bad = _training(features, targets), features.clone()
    bad[4, 2] = float("nan")
    with pytest.raises(
        ValueError, match="features of training images must be finite, got nan .* 1"
    ):
        fit_detectors(["knn"], [good, _training(bad, targets)])
    found = fit_detectors(["knn"], [good, good])
    with pytest.raises(
        ValueError, match="features of images must be finite, got nan from member 0"
    ):
        found([bad, features], torch.zeros(2, 60, 3))
    found = fit_detectors(["scale"], [good])
    # What is negative as a whole has no factor: exp(sum / sum of the largest) is beyond float32.
    skew = torch.full((1, 6), -1e3)
    skew[0, :2] = -1e-3
    with pytest.raises(ValueError, match="detector scale must give finite scores, .* for member 0"):
        found([skew], torch.zeros(1, 1, 3))


def test_unknown_detectors_are_refused_with_the_nearest_one():
    with pytest.raises(
        ValueError, match="unknown detector 'mahalanobi'; did you mean 'mahalanobis'"
    ):
        choose_detectors(["knn", "mahalanobi"])
    assert choose_detectors(["vim", "gen", "knn", "vim"]) == ("knn", "vim", "gen")
    assert choose_detectors(["vim", "all"]) == tuple(DETECTORS)
    assert choose_detectors([]) == ()


def test_missing_package_is_named_with_what_installs_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pytorch_ood" else find(name)
    )
    assert choose_detectors([]) == ()
    with pytest.raises(ValueError, match=r"not installed: pip install 'deepens\[ood\]'"):
        choose_detectors(["knn"])


def test_gen_tells_sure_networks_apart():
    score = FITS["gen"](None)
    logits = torch.zeros(3, 10)
    logits[:, 0] = torch.tensor([20.0, 40.0, 60.0])
    scores = score(torch.zeros(3, 4), logits)
    assert scores[0].item() == pytest.approx(0.1387, abs=1e-4)  # bounded by 1e-7: 0.1995
    # p^0.1 (1 - p)^0.1 of the first class and of nine others
    expected = [(9**0.1 + 9) * math.exp(-gap / 10) / 10 for gap in (40.0, 60.0)]
    assert scores[1:].tolist() == pytest.approx(expected, rel=1e-8)


def test_gen_takes_the_hundred_largest_probabilities():
    logits = torch.arange(150.0)[None] / 30
    p = logits.double().softmax(1)[0, 50:]
    expected = (p**0.1 * (1 - p) ** 0.1).mean().item()
    assert FITS["gen"](None)(torch.zeros(1, 4), logits).item() == pytest.approx(expected, rel=1e-12)
