import math

import numpy as np
import pytest
import scipy.stats
import torch
from deepens.metrics import (
    Draws,
    OODEvaluation,
    SplitEvaluation,
    bootstrap_draws,
    paired_bootstrap,
    paired_intervals,
    resampling_weights,
    sample_values,
    summarize_replicates,
)


def mean_of(values):
    values = torch.as_tensor(values, dtype=torch.float64)
    return lambda weights: {"mean": weights.double() @ values / weights.sum(-1)}


def labelled(seed, n=150, signal=2.0, members=2):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 5
    logits = torch.randn(members, n, 5, generator=generator)
    logits[:, torch.arange(n), targets] += signal
    return sample_values(logits, targets)


def test_summary_equals_numpy_with_one_degree_of_freedom_less():
    values = [0.91, 0.89, 0.94, 0.9]
    summary = summarize_replicates(values)
    assert summary.mean == pytest.approx(np.mean(values), abs=1e-15)
    assert summary.standard_deviation == pytest.approx(np.std(values, ddof=1), abs=1e-15)
    assert summary.count == 4


def test_a_single_replicate_has_no_standard_deviation():
    assert math.isnan(summarize_replicates([0.5]).standard_deviation)


def test_weights_are_multinomial():
    weights = resampling_weights(50, 4000, torch.Generator().manual_seed(0)).double()
    assert (weights.sum(-1) == 50).all()
    np.testing.assert_allclose(weights.mean(0), 1.0, atol=0.08)
    np.testing.assert_allclose(weights.var(0), 49 / 50, atol=0.12)


def test_identical_methods_differ_by_exactly_nothing():
    first, second = SplitEvaluation(labelled(0)), SplitEvaluation(labelled(0))
    for interval in paired_bootstrap([first], [second], sizes=[150], draws=50).values():
        assert interval.estimate == interval.low == interval.high == 0.0


def test_p_value_of_one_replicate_is_that_of_a_paired_z_test():
    values = np.random.default_rng(0).normal(0.0, 1.0, size=(400, 2))
    interval = paired_bootstrap(
        [mean_of(values[:, 0])], [mean_of(values[:, 1] - 0.25)], sizes=[400], draws=4000
    )["mean"]
    differences = values[:, 0] - values[:, 1] + 0.25
    score = differences.mean() / (differences.std() / 20)
    assert 1.0 < score < 3.0  # neither certain nor nothing
    found = scipy.stats.norm.isf(interval.p_value / 2)
    assert found == pytest.approx(score, rel=0.04)  # 4,000 draws: 1 % of the standard error


def test_p_value_of_replicates_is_that_of_welch_s_test_where_images_do_not_matter():
    first, second = (0.1, 0.3, 0.25), (0.0, 0.12, 0.05)
    groups = [[mean_of([value] * 40) for value in each] for each in (first, second)]
    interval = paired_bootstrap(*groups, sizes=[40], draws=50)["mean"]
    expected = scipy.stats.ttest_ind(first, second, equal_var=False).pvalue
    assert interval.p_value == pytest.approx(expected, rel=1e-9)


def test_p_value_of_what_never_varies_is_certain():
    ones, zeros = (mean_of(torch.full((10,), value)) for value in (1.0, 0.0))
    assert paired_bootstrap([ones], [ones], sizes=[10], draws=20)["mean"].p_value == 1.0
    assert paired_bootstrap([ones], [zeros], sizes=[10], draws=20)["mean"].p_value == 0.0


def test_identical_sets_of_replicates_still_carry_replicate_variation():
    replicates = [mean_of(torch.full((30,), value)) for value in (0.0, 1.0, 2.0)]
    interval = paired_bootstrap(replicates, replicates, sizes=[30])["mean"]
    assert interval.estimate == 0.0
    assert interval.low < -0.5 < 0.5 < interval.high


def test_the_estimate_is_the_difference_of_replicate_means():
    first = [SplitEvaluation(labelled(seed)) for seed in range(3)]
    second = [SplitEvaluation(labelled(seed, signal=1.0)) for seed in range(3, 5)]
    intervals = paired_bootstrap(first, second, sizes=[150], draws=100)
    for name, interval in intervals.items():
        a = np.mean([evaluation()[name].item() for evaluation in first])
        b = np.mean([evaluation()[name].item() for evaluation in second])
        assert interval.estimate == pytest.approx(a - b, abs=1e-12)
    assert intervals["accuracy"].low > 0 > intervals["nll"].high


def test_swapping_the_methods_of_one_replicate_mirrors_the_interval():
    a, b = SplitEvaluation(labelled(0)), SplitEvaluation(labelled(1))
    forth = paired_bootstrap([a], [b], sizes=[150], draws=60)
    back = paired_bootstrap([b], [a], sizes=[150], draws=60)
    for name, interval in forth.items():
        assert interval.low == pytest.approx(-back[name].high, abs=1e-12)
        assert interval.high == pytest.approx(-back[name].low, abs=1e-12)


def test_images_are_paired():
    generator = torch.Generator().manual_seed(0)
    hardness = 10 * torch.randn(200, generator=generator)
    shift = 0.1 * torch.randn(200, generator=generator) + 1
    interval = paired_bootstrap([mean_of(hardness + shift)], [mean_of(hardness)], sizes=[200])
    assert interval["mean"].high - interval["mean"].low < 0.05


def test_the_interval_is_basic_not_percentile():
    values = torch.arange(40).double() ** 3
    maximum = {"max": lambda weights: {"max": (values * (weights > 0)).amax(-1)}}["max"]
    zero = lambda weights: {"max": torch.zeros(weights.shape[0])}  # noqa: E731
    interval = paired_bootstrap([maximum], [zero], sizes=[40])["max"]
    assert interval.low == pytest.approx(interval.estimate)
    assert interval.high > interval.estimate  # resamples lie below, so the truth lies above


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    covered, width = 0, []
    for trial in range(200):
        difference = torch.randn(60, generator=generator) + 0.3
        interval = paired_bootstrap(
            [mean_of(difference)], [mean_of(torch.zeros(60))], sizes=[60], draws=200, seed=trial
        )["mean"]
        covered += interval.low <= 0.3 <= interval.high
        width.append(interval.high - interval.low)
    assert 0.89 <= covered / 200 <= 0.98
    assert np.mean(width) == pytest.approx(2 * 1.96 / math.sqrt(60), rel=0.08)


def test_interval_adds_the_variances_of_images_and_replicates():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(400, generator=generator, dtype=torch.float64)
    ours = torch.randn(5, generator=generator, dtype=torch.float64) * 0.1
    theirs = torch.randn(3, generator=generator, dtype=torch.float64) * 0.05
    first = [mean_of(images + seed) for seed in ours]
    second = [mean_of(seed.expand(400)) for seed in theirs]
    found = paired_bootstrap(first, second, sizes=[400], draws=4000)["mean"]
    parts = [ours.var().item() / 5, theirs.var().item() / 3]
    image = images.var(correction=0).item() / 400
    freedom = (image + sum(parts)) ** 2 / (parts[0] ** 2 / 4 + parts[1] ** 2 / 2)
    expected = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(image + sum(parts))
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.04)


def test_without_images_the_interval_is_welchs():
    ours, theirs = [0.3, 0.5, 0.9, 0.4], [0.1, 0.2, 0.15]
    constant = lambda value: mean_of(torch.full((50,), value, dtype=torch.float64))  # noqa: E731
    found = paired_bootstrap(
        [constant(v) for v in ours], [constant(v) for v in theirs], sizes=[50], draws=50
    )["mean"]
    test = scipy.stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert found.low == pytest.approx(test.low, abs=1e-9)
    assert found.high == pytest.approx(test.high, abs=1e-9)


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("replicates", [2, 3, 5])
def test_equal_methods_are_found_different_no_more_often_than_claimed(replicates, spread):
    """Draw both methods from one distribution of networks; 5 % of intervals may exclude zero."""
    generator = torch.Generator().manual_seed(1)
    wrong, trials = 0, 300
    for trial in range(trials):
        images = torch.randn(60, generator=generator, dtype=torch.float64)
        seeds = torch.randn(2 * replicates, generator=generator, dtype=torch.float64) * spread
        noise = torch.randn(2 * replicates, 60, generator=generator, dtype=torch.float64) * 0.3
        networks = [mean_of(images + s + n) for s, n in zip(seeds, noise, strict=True)]
        found = paired_bootstrap(
            networks[:replicates], networks[replicates:], sizes=[60], draws=200, seed=trial
        )["mean"]
        wrong += not found.low <= 0 <= found.high
    # Binomial(300, 0.05) exceeds 27 with probability 0.1 %.
    assert wrong <= 27


def welch_of_both_terms(first, second, name):
    """Whether the interval that counts the interaction of images and networks twice excludes 0."""
    groups = first.observed[name], second.observed[name]
    differences = first.resampled[name].mean(1) - second.resampled[name].mean(1)
    parts = [(each.var().item() / len(each), len(each) - 1) for each in groups]
    variance = differences.var().item() + sum(part for part, _ in parts)
    student = scipy.stats.t.ppf(0.975, variance**2 / sum(p**2 / less for p, less in parts))
    return abs((groups[0].mean() - groups[1].mean()).item()) > student * math.sqrt(variance)


def accuracy_nll_auroc(margins, unknown):
    """A network's metrics by its margins on ID images, and on OOD images."""
    margins, unknown = margins.double(), unknown.double()
    columns = torch.stack([(margins > 0).double(), (-margins).exp().log1p()], dim=1)
    above = (margins[:, None] > unknown).double()

    def metrics(ids, oods):
        ids, oods = ids.double(), oods.double()
        accuracy, nll = (ids @ columns / len(margins)).unbind(-1)
        auroc = ((ids @ above) * oods).sum(-1) / above.numel()
        return {"accuracy": accuracy, "nll": nll, "auroc": auroc}

    return metrics


@pytest.mark.parametrize(
    ("replicates", "interaction", "spread", "trials", "gain"),
    [
        (3, 2.0, 0.0, 60, 0.0),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                (3, 2.0, 0.0, 500, 0.02),
                (5, 2.0, 0.0, 500, 0.08),
                (5, 0.3, 0.0, 500, 0.08),
                (3, 0.3, 0.1, 500, 0.0),
                (5, 0.3, 0.1, 500, 0.0),
            )
        ),
    ],
)
def test_counting_the_interaction_once_keeps_the_rate_and_finds_more(
    replicates, interaction, spread, trials, gain
):
    """Draw both methods from one distribution of networks, then shift one by 2.8 of its errors."""
    generator = torch.Generator().manual_seed(2)
    n_id, n_ood, draws = 120, 60, 100
    names = ("accuracy", "nll", "auroc")
    found = {name: [] for name in names}
    for trial in range(trials):
        hard = 1.5 + 2 * torch.randn(n_id + n_ood, generator=generator)
        hard[n_id:] -= 2
        margins = (
            hard
            + spread * torch.randn(2 * replicates, 1, generator=generator)
            + interaction * torch.randn(2 * replicates, n_id + n_ood, generator=generator)
        )
        networks = [accuracy_nll_auroc(each[:n_id], each[n_id:]) for each in margins]
        options = {"sizes": [n_id, n_ood], "draws": draws, "seed": trial}
        ours, theirs = (
            bootstrap_draws(each, **options)
            for each in (networks[:replicates], networks[replicates:])
        )
        for name in names:
            found[name].append((ours.only([name]), theirs.only([name])))
    wrong, more = [], []
    for name, pairs in found.items():
        error = np.std(
            [(a.observed[name].mean() - b.observed[name].mean()).item() for a, b in pairs]
        )
        shifted = [
            Draws(
                {name: a.observed[name] + 2.8 * error},
                {name: a.resampled[name] + 2.8 * error},
                a.sizes,
                a.draws,
                a.seed,
            )
            for a, _ in pairs
        ]
        null = [paired_intervals(a, b)[name].p_value <= 0.05 for a, b in pairs]
        new = [
            paired_intervals(s, b)[name].p_value <= 0.05
            for s, (_, b) in zip(shifted, pairs, strict=True)
        ]
        old = [welch_of_both_terms(s, b, name) for s, (_, b) in zip(shifted, pairs, strict=True)]
        wrong.append(np.mean(null))
        more.append(np.mean(new) - np.mean(old))
    # 5.5 %, and what 500 trials of three metrics that hang together add by chance.
    assert np.mean(wrong) <= 0.055 + 2 * math.sqrt(0.05 * 0.95 / trials)
    assert min(more) >= -0.02  # the bias of resampling is in one of the two only
    assert np.mean(more) >= gain


def test_id_and_ood_images_are_resampled_apart():
    sums = []

    def record(id_weights, ood_weights):
        sums.append((id_weights.sum(-1), ood_weights.sum(-1), id_weights, ood_weights))
        return {"zero": torch.zeros(id_weights.shape[0])}

    paired_bootstrap([record], [record], sizes=[30, 30], draws=20)
    for id_sum, ood_sum, _, _ in sums:
        assert (id_sum == 30).all()
        assert (ood_sum == 30).all()
    weights = [(ids, oods) for *_, ids, oods in sums if len(ids) > 1]
    assert len(weights) == 2
    assert not torch.equal(*weights[0])
    for ours, theirs in zip(*weights, strict=True):  # shared by the two methods
        assert torch.equal(ours, theirs)


def test_ood_detection_is_compared_like_any_metric():
    good = OODEvaluation(labelled(0, signal=5.0), labelled(1, signal=0.0))
    poor = OODEvaluation(labelled(2, signal=1.0), labelled(3, signal=0.0))
    intervals = paired_bootstrap([good], [poor], sizes=[150, 150], draws=100)
    assert intervals["auroc_msp"].low > 0 > intervals["fpr95_msp"].high


def test_results_depend_on_the_seed_alone_not_on_chunks(monkeypatch):
    a, b = mean_of(torch.rand(40)), mean_of(torch.rand(40))
    whole = paired_bootstrap([a, b], [b], sizes=[40], draws=100, seed=3)
    assert paired_bootstrap([a, b], [b], sizes=[40], draws=100, seed=4) != whole
    monkeypatch.setattr("deepens.metrics.statistics.draws.CHUNK", 40 * 7)
    chunked = paired_bootstrap([a, b], [b], sizes=[40], draws=100, seed=3)
    for end in ("estimate", "low", "high"):
        expected = pytest.approx(getattr(whole["mean"], end), abs=1e-12)
        assert getattr(chunked["mean"], end) == expected


def one_by_one(first, second, *, sizes, draws, seed):
    """Every draw by itself, both methods beside each other, from the definition in the docs."""
    rows = max(1, 2**16 // sum(sizes))
    generator = torch.Generator().manual_seed(seed)
    resampled = {}
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        weights = [resampling_weights(size, count, generator) for size in sizes]
        for row in range(count):
            here = [each[row : row + 1] for each in weights]
            ours, theirs = ([evaluation(*here) for evaluation in each] for each in (first, second))
            for name in ours[0]:
                values = [[each[name].item() for each in method] for method in (ours, theirs)]
                resampled.setdefault(name, []).append(values)
    once = [torch.ones(1, size, dtype=torch.int64) for size in sizes]
    z = scipy.stats.norm.ppf(0.975)
    found = {}
    for name, drawn in resampled.items():
        # [draws, replicates] of either method
        tables = [np.array([row[which] for row in drawn]) for which in (0, 1)]
        ours, theirs = ([e(*once)[name].item() for e in method] for method in (first, second))
        differences = tables[0].mean(1) - tables[1].mean(1)
        image = np.var(differences, ddof=1)
        below, middle, above = np.quantile(differences, [0.025, 0.5, 0.975])
        estimate = np.mean(ours) - np.mean(theirs)
        centre = 2 * estimate - middle
        spread = [np.var(each, ddof=1) / len(each) for each in (ours, theirs)]
        shared = []
        for table in tables:
            deviations = table - table.mean(1, keepdims=True)
            count = table.shape[1]
            shared.append(deviations.var(0, ddof=1).sum() / (count - 1) / count)
        either = []
        for taken in ((0.0, 0.0), shared):
            error = sum(max(s - t, 0.0) for s, t in zip(spread, taken, strict=True))
            less = [len(each) - 1 for each in (ours, theirs)]
            freedom = (image + error) ** 2 / sum(
                s**2 / n for s, n in zip(spread, less, strict=True)
            )
            student = scipy.stats.t.ppf(0.975, freedom)
            reach = student * math.sqrt(error)
            p_value = 2 * scipy.stats.t.sf(abs(centre) / math.sqrt(image + error), freedom)
            low = centre - math.hypot((above - middle) * student / z, reach)
            high = centre + math.hypot((middle - below) * student / z, reach)
            either.append((student * math.sqrt(image + error), low, high, p_value))
        _, low, high, _ = min(either)
        found[name] = estimate, low, high, min(each[-1] for each in either)
    return found


@pytest.mark.parametrize(
    ("n_id", "n_ood", "draws"),  # more draws than one chunk has: 9 and 93
    [(4000, 3000, 12), pytest.param(400, 300, 110, marks=pytest.mark.slow)],
)
def test_intervals_equal_those_of_draws_evaluated_one_by_one(n_id, n_ood, draws):
    first = [OODEvaluation(labelled(s, n_id), labelled(s + 9, n_ood, 0.5)) for s in range(3)]
    second = [OODEvaluation(labelled(s, n_id, 1.5), labelled(s, n_ood, 0.5)) for s in (5, 6)]
    options = {"sizes": [n_id, n_ood], "draws": draws, "seed": 4}
    found = paired_bootstrap(first, second, **options)
    expected = one_by_one(first, second, **options)
    assert found.keys() == expected.keys()
    for name, interval in found.items():
        ours = (interval.estimate, interval.low, interval.high, interval.p_value)
        np.testing.assert_allclose(ours, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("counts", [(1, 1), (3, 2), (9, 17)])
def test_methods_drawn_apart_give_to_the_last_bit_what_they_give_together(counts):
    first, second = (
        [SplitEvaluation(labelled(base + s, signal=1.0 + base)) for s in range(count)]
        for base, count in enumerate(counts)
    )
    options = {"sizes": [150], "draws": 500, "seed": 7}
    together = paired_bootstrap(first, second, **options)
    # Evaluated on the same weights in one go, as columns of one table.
    joint = bootstrap_draws([*first, *second], **options)
    ours, theirs = (bootstrap_draws(each, **options) for each in (first, second))
    for name, values in joint.resampled.items():
        assert torch.equal(values, torch.cat([ours.resampled[name], theirs.resampled[name]], 1))
        assert torch.equal(
            joint.observed[name], torch.cat([ours.observed[name], theirs.observed[name]])
        )
    assert paired_intervals(ours, theirs) == together


def test_draws_of_some_metrics_are_those_of_all():
    draws = [bootstrap_draws([SplitEvaluation(labelled(s))], sizes=[150], draws=50) for s in (0, 1)]
    whole = paired_intervals(*draws)
    some = paired_intervals(*(each.only(["nll", "ece"]) for each in draws))
    assert some == {name: whole[name] for name in ("nll", "ece")}


def test_draws_that_are_not_the_same_are_refused():
    options = {"sizes": [30], "draws": 20, "seed": 1}
    draw = lambda **changes: bootstrap_draws([mean_of(torch.rand(30))], **options | changes)  # noqa: E731
    longer = bootstrap_draws([mean_of(torch.rand(31))], **options | {"sizes": [31]})
    for other, message in (
        (longer, r"the same sizes, got \(30,\) and \(31,\)"),
        (draw(draws=21), "the same draws, got 20 and 21"),
        (draw(seed=2), "the same seed, got 1 and 2"),
        (draw().only([]), "must name the same metrics"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_intervals(draw(), other)
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 1.0"):
        paired_intervals(draw(), draw(), level=1.0)
    with pytest.raises(ValueError, match="evaluations must hold >= 1 replicate, got 0"):
        bootstrap_draws([], sizes=[3])


def test_bad_arguments_are_refused():
    one = mean_of(torch.rand(5))
    other = lambda weights: {"median": torch.zeros(weights.shape[0])}  # noqa: E731
    for arguments, options, message in (
        (([], [one]), {"sizes": [5]}, "first and second must hold >= 1 replicate, got 0 and 1"),
        (([one], [one]), {"sizes": []}, r"sizes must be >= 1, got \[\]"),
        (([one], [one]), {"sizes": [0]}, r"sizes must be >= 1, got \[0\]"),
        (([one], [one]), {"sizes": [5], "draws": 1}, "draws must be >= 2, got 1"),
        (([one], [one]), {"sizes": [5], "level": 1.0}, r"level must lie in \(0, 1\), got 1.0"),
        (([one], [other]), {"sizes": [5]}, "same metrics, got .*mean.* and .*median"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_bootstrap(*arguments, **options)
    with pytest.raises(ValueError, match="values must hold >= 1 replicate, got 0"):
        summarize_replicates([])


def test_the_centre_is_corrected_for_what_resampling_adds():
    # Of equal values the squared mean is 0; of resampled ones it is never below 0.
    values = torch.tensor([1.0, -1.0] * 50, dtype=torch.float64)

    def squared(weights):
        mean = weights.double() @ values / weights.sum(-1)
        return {"squared": mean.square()}

    zero = mean_of(torch.zeros(100))

    def nothing(weights):
        return {"squared": zero(weights)["mean"]}

    interval = paired_bootstrap([squared], [nothing], sizes=[100])["squared"]
    assert interval.estimate == 0.0
    draws = [
        squared(each)["squared"]
        for each in resampling_weights(100, 1000, torch.Generator().manual_seed(0)).split(1)
    ]
    middle = torch.cat(draws).median().item()
    assert middle > 0.002  # what resampling adds
    assert (interval.low + interval.high) / 2 < -middle / 2
    assert interval.high <= 0.0  # the basic interval turns the percentile one over
