"""The gap to single models of the same cost, against numpy's interpolation and Welch's test."""

import math

import numpy as np
import pytest
import torch
from deepens.metrics import Draws, bootstrap_draws
from deepens.metrics.statistics.iso_compute import iso_compute_gap, iso_compute_gaps
from scipy import stats


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def constant(values):
    """Draws of networks on images that do not matter."""
    return Draws({"m": values}, {"m": values.expand(20, -1)}, (5,), 20, 0)


def summary_of(macs, values, frontier_macs, frontier_values, **options):
    """The gap where images do not matter, each cost's single models as one method."""
    singles = [
        (cost.item(), constant(frontier_values[frontier_macs == cost]))
        for cost in frontier_macs.unique()
    ]
    return iso_compute_gaps(macs, constant(values), singles, **options)["m"]


def draw(seed=0, costs=5, replicates=3, ensembles=7, metrics=()):
    """Single models in no order, replicates at each cost, and ensembles between them."""
    random = np.random.default_rng(seed)
    of_costs = np.sort(random.integers(10**8, 10**11, costs))
    macs = random.permutation(np.repeat(of_costs, replicates))
    values = random.normal(size=(*metrics, len(macs)))
    inside = np.exp(random.uniform(*np.log(of_costs[[0, -1]]), ensembles))
    ours = random.normal(size=(*metrics, ensembles))
    return tuple(torch.from_numpy(each) for each in (inside, ours, macs, values))


def by_numpy(macs, values, frontier_macs, frontier_values):
    macs, frontier_macs = macs.numpy().astype(float), frontier_macs.numpy().astype(float)
    costs = np.unique(frontier_macs)
    means = [frontier_values.numpy()[frontier_macs == cost].mean() for cost in costs]
    return values.numpy() - np.interp(np.log(macs), np.log(costs), means)


@pytest.mark.parametrize("seed", range(5))
def test_gap_equals_the_difference_to_numpys_interpolation_in_log_macs(seed):
    data = draw(seed)
    np.testing.assert_allclose(iso_compute_gap(*data), by_numpy(*data), rtol=0, atol=1e-12)


def test_every_metric_is_interpolated_by_itself():
    macs, values, frontier_macs, frontier_values = draw(metrics=(2, 3))
    gaps = iso_compute_gap(macs, values, frontier_macs, frontier_values)
    for i in range(2):
        for j in range(3):
            alone = (macs, values[i, j], frontier_macs, frontier_values[i, j])
            np.testing.assert_allclose(gaps[i, j], by_numpy(*alone), rtol=0, atol=1e-12)


def test_at_a_single_models_cost_the_gap_is_the_exact_difference_to_its_mean():
    _, _, frontier_macs, frontier_values = draw(replicates=1)
    gaps = iso_compute_gap(frontier_macs, frontier_values, frontier_macs, frontier_values)
    assert (gaps == 0).all()
    macs, values = torch.tensor([100, 100, 300]), tensor(1.0, 2.0, 5.0)
    gaps = iso_compute_gap(torch.tensor([100, 300]), tensor(4.0, 4.0), macs, values)
    assert gaps.tolist() == [2.5, -1.0]


def test_a_metric_that_is_linear_in_log_macs_leaves_no_gap_whatever_the_unit_of_cost():
    macs, _, frontier_macs, _ = draw()
    line = lambda cost: 0.3 - 0.02 * cost.double().log()  # noqa: E731
    for unit in (1.0, 1e-9, 2e6):
        ours, theirs = macs * unit, frontier_macs.double() * unit
        gaps = iso_compute_gap(ours, line(macs), theirs, line(frontier_macs))
        assert gaps.abs().max() < 1e-12


def test_the_order_of_the_single_models_does_not_matter():
    macs, values, frontier_macs, frontier_values = draw()
    order = torch.randperm(len(frontier_macs))
    gaps = iso_compute_gap(macs, values, frontier_macs, frontier_values)
    again = iso_compute_gap(macs, values, frontier_macs[order], frontier_values[order])
    torch.testing.assert_close(again, gaps, rtol=0, atol=1e-14)


def test_single_models_beaten_at_less_cost_count():
    macs, values = torch.tensor([1, 10, 100]), tensor(0.9, 0.5, 0.8)
    assert iso_compute_gap(torch.tensor([10]), tensor(0.9), macs, values).item() == 0.4


def test_nothing_is_extrapolated_beyond_the_tolerance():
    macs, values = torch.tensor([100, 200]), tensor(0.5, 0.75)
    for cost, kind in ((99, "cheaper"), (201, "more expensive")):
        with pytest.raises(
            ValueError,
            match=rf"macs must lie within the single models' \[100, 200\], got {cost}: add a "
            rf"single model that is {kind}, or raise tolerance",
        ):
            iso_compute_gap(torch.tensor([150, cost]), tensor(0.0, 0.0), macs, values)
    gaps = iso_compute_gap(
        torch.tensor([99, 201]), tensor(0.0, 0.0), macs, values, tolerance=0.0101
    )
    assert gaps.tolist() == [-0.5, -0.75]  # the ends as they are: no line is extended
    with pytest.raises(ValueError, match="got 203"):
        iso_compute_gap(torch.tensor([203]), tensor(0.0), macs, values, tolerance=0.0101)


@pytest.mark.parametrize("seed", range(4))
def test_summary_is_that_of_the_gaps_of_the_replicates(seed):
    macs, values, frontier_macs, frontier_values = draw(seed)
    cost = macs[0].item()
    same = torch.full_like(values, cost, dtype=torch.float64)
    gaps = by_numpy(same, values, frontier_macs, frontier_values)
    found = summary_of(cost, values, frontier_macs, frontier_values)
    assert found.estimate == pytest.approx(gaps.mean(), abs=1e-12)
    assert found.standard_deviation == pytest.approx(np.std(gaps, ddof=1), abs=1e-12)
    assert found.count == 7
    assert found.single == pytest.approx(values.mean().item() - gaps.mean(), abs=1e-12)


def test_interval_at_a_single_models_cost_is_welchs():
    ours, theirs = [0.3, 0.5, 0.9, 0.4], [0.1, 0.2, 0.15]
    macs = torch.tensor([10, 20, 20, 20, 40])
    found = summary_of(20, tensor(*ours), macs, tensor(0.0, *theirs, 0.0), level=0.9)
    test = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((test.low, test.high), abs=1e-12)
    p_value = stats.ttest_ind(ours, theirs, equal_var=False).pvalue
    assert found.p_value == pytest.approx(p_value, rel=1e-9)


def test_the_interval_ends_at_zero_at_the_level_of_the_p_value():
    macs, values = torch.tensor([10] * 3 + [1000] * 2), tensor(0.1, 0.2, 0.15, 0.6, 0.2)
    ours = 60, tensor(0.45, 0.5, 0.61)
    p_value = summary_of(*ours, macs, values).p_value
    assert 0.01 < p_value < 0.5
    edge = summary_of(*ours, macs, values, level=1 - p_value)
    assert edge.low == pytest.approx(0.0, abs=1e-9)


def test_interval_between_two_costs_adds_variances_by_their_squared_weights():
    groups = [0.3, 0.5, 0.9, 0.4], [0.1, 0.2, 0.15], [0.6, 0.2]
    macs = torch.tensor([10] * 3 + [10_000] * 2)
    found = summary_of(100, tensor(*groups[0]), macs, tensor(*groups[1], *groups[2]))
    weights = (1, 2 / 3, 1 / 3)  # 100 is a third of the way, in logarithms
    parts = [w**2 * np.var(g, ddof=1) / len(g) for w, g in zip(weights, groups, strict=True)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 2 + parts[2] ** 2)
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    assert found.estimate == pytest.approx(0.525 - 2 / 3 * 0.15 - 1 / 3 * 0.4, abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(reach, abs=1e-12)


def test_interval_between_two_costs_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    macs = torch.tensor([100] * 3 + [400] * 3)
    truth = tensor(*[0.7] * 3, *[0.8] * 3)
    covered, trials = 0, 600
    for _ in range(trials):
        noise = 0.05 * torch.randn(9, generator=generator, dtype=torch.float64)
        found = summary_of(200, 0.78 + noise[:3], macs, truth + noise[3:])
        covered += found.low <= 0.78 - 0.75 <= found.high
    assert covered / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / trials))


def test_an_unknown_spread_leaves_no_interval():
    macs = torch.tensor([10, 20, 20])
    values = tensor(0.1, 0.2, 0.3)
    one = summary_of(20, tensor(0.5), macs, values)
    assert (one.estimate, one.count) == (0.25, 1)
    assert math.isnan(one.standard_deviation)
    assert math.isnan(one.low)
    assert math.isnan(one.p_value)
    between = summary_of(15, tensor(0.5, 0.6), macs, values)  # one single model of cost 10
    assert math.isnan(between.low)
    assert math.isnan(between.high)
    at_end = summary_of(20, tensor(0.5, 0.6), macs, values)  # where that one has no weight
    assert at_end.low < at_end.estimate < at_end.high


def test_what_never_varies_is_certain():
    macs, values = torch.tensor([10, 10, 20, 20]), tensor(0.25, 0.25, 0.5, 0.5)
    found = summary_of(20, tensor(0.75, 0.75), macs, values)
    assert found.low == found.estimate == found.high == 0.25
    assert found.p_value == 0.0
    assert summary_of(20, tensor(0.5, 0.5), macs, values).p_value == 1.0


@pytest.mark.parametrize(
    ("macs", "values", "frontier_macs", "frontier_values", "message"),
    [
        ([0.0], [1.0], [1.0, 2.0], [1.0, 2.0], "^macs must be > 0, got 0"),
        ([1.0], [1.0], [-1.0, 2.0], [1.0, 2.0], "^frontier_macs must be > 0, got -1"),
        ([1.0], [math.nan], [1.0, 2.0], [1.0, 2.0], r"^values must be finite, got nan at \[0\]"),
        ([math.inf], [1.0], [1.0, 2.0], [1.0, 2.0], "^macs must be finite, got inf"),
        ([1.0], [1.0], [1.0, math.nan], [1.0, 2.0], "^frontier_macs must be finite, got nan"),
        ([1.0], [1.0], [1.0, 2.0], [1.0, math.inf], "^frontier_values must be finite, got inf"),
        ([1.0], [1.0], [2.0, 2.0], [1.0, 2.0], "hold >= 2 distinct costs, got 2 only: add single"),
        ([1.0], [1.0], [1.0, 2.0], [1.0], r"^frontier_values must have shape \[..., 2\]"),
        ([1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], r"^values must have shape \[..., 1\]"),
        ([], [], [1.0, 2.0], [1.0, 2.0], "^macs must hold >= 1 sample, got 0"),
    ],
)
def test_bad_input_is_refused(macs, values, frontier_macs, frontier_values, message, unchecked):
    with pytest.raises(ValueError, match=message):
        iso_compute_gap(
            tensor(*macs), tensor(*values), tensor(*frontier_macs), tensor(*frontier_values)
        )


def test_bad_options_are_refused(unchecked):
    data = torch.tensor([100, 200]), tensor(0.5, 0.75)
    with pytest.raises(ValueError, match=r"tolerance must lie in \[0, 1\), got -0.1"):
        iso_compute_gap(*data, *data, tolerance=-0.1)
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 1.0"):
        summary_of(100, tensor(0.5), *data, level=1.0)
    with pytest.raises(ValueError, match="macs must be > 0, got 0"):
        summary_of(0, tensor(0.5), *data)
    with pytest.raises(ValueError, match="^frontier_macs must hold >= 1 sample, got 0"):
        iso_compute_gaps(100, constant(tensor(0.5)), [])
    other = Draws({"m": tensor(0.5)}, {"m": tensor(0.5).expand(20, -1)}, (6,), 20, 0)
    with pytest.raises(ValueError, match="must be drawn with the same sizes"):
        iso_compute_gaps(100, other, [(each, constant(tensor(0.5))) for each in (50, 200)])


def test_single_models_of_nearly_one_cost_count_as_of_their_mean():
    singles = (
        torch.tensor([100.0, 198.0, 201.0]).double(),
        torch.tensor([0.70, 0.80, 0.74], dtype=torch.float64),
    )
    for macs in (197.9, 199.5, 201.0):
        found = iso_compute_gap(
            torch.tensor([macs], dtype=torch.float64),
            torch.tensor([0.0]).double(),
            *singles,
            tolerance=0.02,
        )
        share = min(1.0, math.log(macs / 100) / math.log(199.5 / 100))
        assert found.item() == pytest.approx(-(0.70 + share * 0.07), abs=1e-12)
    apart = iso_compute_gap(torch.tensor([201.0]).double(), torch.tensor([0.0]).double(), *singles)
    assert apart.item() == pytest.approx(-0.74, abs=1e-12)


def networks(truth, count, images, own, noise, generator):
    """Shares of networks of one method, which differ little where all find one image hard."""
    scores = truth + own + noise * torch.randn(count, len(images), generator=generator).double()
    values = images + scores
    return bootstrap_draws(
        [lambda w, v=v: {"m": w.double() @ v / w.sum(-1)} for v in values],
        sizes=[len(images)],
        draws=200,
    )


@pytest.mark.parametrize(
    ("own", "noise", "trials"),
    [
        (1.0, 0.05, 150),
        *(pytest.param(o, n, 1000, marks=pytest.mark.slow) for o, n in ((1.0, 0.05), (0.3, 1.0))),
    ],
)
def test_gaps_of_nothing_are_found_no_more_often_than_claimed_where_replicates_agree(
    own, noise, trials
):
    """Methods suit different images, by ``own``: without images half of these would be found."""
    generator = torch.Generator().manual_seed(0)
    found = 0
    for _ in range(trials):
        images = torch.randn(60, generator=generator, dtype=torch.float64)
        ours, *singles = (
            networks(
                truth,
                3,
                images,
                own * torch.randn(60, generator=generator, dtype=torch.float64),
                noise,
                generator,
            )
            for truth in (0.5, 0.4, 0.6)
        )
        gap = iso_compute_gaps(200, ours, list(zip((100, 400), singles, strict=True)))["m"]
        found += gap.p_value <= 0.05
    # Of 150, Binomial(150, 0.05) exceeds 16 with probability 0.2 %; of 1,000, 6 % is 60.
    assert found <= (16 if trials == 150 else 60)


def test_gap_that_is_there_is_found_and_costs_in_any_order_give_one_gap():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(400, generator=generator, dtype=torch.float64)
    ours, low, high = (networks(truth, 3, images, 0.0, 0.3, generator) for truth in (0.7, 0.4, 0.6))
    gap = iso_compute_gaps(200, ours, [(100, low), (400, high)])["m"]
    assert 0.1 < gap.low < gap.estimate < gap.high < 0.3
    assert iso_compute_gaps(200, ours, [(400, high), (100, low)])["m"] == gap
    # Half way in log MACs: the mean of the two differences.
    with_low = iso_compute_gaps(100, ours, [(100, low), (400, high)])["m"]
    with_high = iso_compute_gaps(400, ours, [(100, low), (400, high)])["m"]
    assert gap.estimate == pytest.approx((with_low.estimate + with_high.estimate) / 2, abs=1e-12)
