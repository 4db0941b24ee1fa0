"""Temperatures: found where calculus says, in all three places, and refused where they are none."""

import json
import math
import warnings

import pytest
import torch
from deepens.metrics import evaluate, mixture_log_probs, negative_log_likelihood
from deepens.metrics.calibration.temperature import WAYS, Temperature, fit_temperature
from scipy import optimize


def draw(members=3, n=4000, classes=5, factor=2.0, seed=0):
    """Over-confident members: labels come from the mixture of what they are before the factor."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    own = torch.randn(members, n, classes, generator=generator, dtype=torch.float64)
    honest = 1.5 * shared + 0.5 * own
    probs = mixture_log_probs(honest).exp()
    targets = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
    return factor * honest, targets


def nll(logits, targets):
    return negative_log_likelihood(mixture_log_probs(logits), targets).mean().item()


@pytest.mark.parametrize("way", WAYS)
def test_slope_is_zero_and_no_other_temperature_is_better(way):
    logits, targets = draw()
    found = fit_temperature(logits, targets, way)
    best = nll(found.scale(logits), targets)
    for factor in (0.3, 0.9, 0.999, 1.001, 1.1, 3.0):
        other = Temperature(way, tuple(factor * value for value in found.values))
        if way != "member":  # whose temperatures are each their own member's best
            assert nll(other.scale(logits), targets) > best
        for member, value in enumerate(found.values) if way == "member" else []:
            one = logits[member : member + 1]
            assert nll(one / (factor * value), targets) > nll(one / value, targets)


@pytest.mark.parametrize("way", WAYS)
def test_equals_an_independent_optimiser(way):
    logits, targets = draw()
    found = fit_temperature(logits, targets, way)
    parts = logits.split(1) if way == "member" else [logits]
    for part, value in zip(parts, found.values, strict=True):

        def loss(log_temperature, part=part):
            kind = "joint" if way == "member" else way
            scaled = Temperature(kind, (math.exp(log_temperature),)).scale(part)
            return nll(scaled, targets)

        reference = optimize.minimize_scalar(loss, bounds=(-3, 3), options={"xatol": 1e-10})
        assert math.log(value) == pytest.approx(reference.x, abs=1e-6)


def test_joint_temperature_recovers_the_factor_by_which_logits_were_sharpened():
    logits, targets = draw(n=60_000, factor=2.0)
    assert fit_temperature(logits, targets, "joint").values[0] == pytest.approx(2.0, rel=0.02)


def test_single_recovers_the_factor_too():
    logits, targets = draw(members=1, n=60_000, factor=0.5)
    assert fit_temperature(logits, targets).values[0] == pytest.approx(0.5, rel=0.02)


def test_three_ways_are_one_for_one_member():
    logits, targets = draw(members=1)
    scaled = [fit_temperature(logits, targets, way).scale(logits) for way in WAYS]
    probs = [mixture_log_probs(each) for each in scaled]
    torch.testing.assert_close(probs[0], probs[1], rtol=0, atol=1e-9)
    assert torch.equal(probs[1], probs[2])


def test_joint_minimum_is_the_global_one_where_there_are_two():
    # One member is right and unsure, the other wrong and sure: two valleys in T.
    sure, wrong = [[0.3, 0.0]] * 99 + [[0.0, 0.3]], [[0.0, 40.0]] * 99 + [[0.0, 9.0]]
    logits = torch.tensor([sure, wrong], dtype=torch.float64)
    targets = torch.tensor([0] * 99 + [1])
    with pytest.warns(RuntimeWarning, match="bound of its search, 0.05"):
        found = fit_temperature(logits, targets, "joint").values[0]
    grid = torch.logspace(math.log10(0.051), math.log10(20), 400).tolist()
    best = min(grid, key=lambda value: nll(logits / value, targets))
    assert nll(logits / found, targets) <= nll(logits / best, targets) + 1e-12


def test_pooled_keeps_every_prediction():
    logits, targets = draw()
    scaled = fit_temperature(logits, targets, "pooled").scale(logits)
    assert torch.equal(scaled[0].argmax(-1), mixture_log_probs(logits).argmax(-1))


def test_pool_of_calibrated_members_is_under_confident():
    logits, targets = draw(n=20_000)
    scaled = fit_temperature(logits, targets, "member").scale(logits)
    found = evaluate(scaled, targets)
    assert found["confidence"] < found["accuracy"]
    members = scaled.softmax(-1)
    assert (members.mean(0).amax(-1) <= members.amax(-1).mean(0) + 1e-12).all()


def test_result_does_not_depend_on_order_or_on_repetition():
    logits, targets = draw(n=500)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    expected = fit_temperature(logits, targets, "joint").values[0]
    shuffled = fit_temperature(logits[:, order], targets[order], "joint").values[0]
    repeated = fit_temperature(logits.repeat(1, 2, 1), targets.repeat(2), "joint").values[0]
    assert [shuffled, repeated] == pytest.approx([expected] * 2, abs=1e-7)


@pytest.mark.parametrize("sign", [1, -1])
def test_separable_data_stop_at_a_bound_with_a_warning(sign):
    logits = torch.eye(3)[None] * 5
    targets = torch.arange(3) if sign > 0 else (torch.arange(3) + 1) % 3
    bound = "0.05" if sign > 0 else "20"
    with pytest.warns(RuntimeWarning, match=f"bound of its search, {bound}: .* 3 samples"):
        assert fit_temperature(logits, targets).values[0] == pytest.approx(float(bound))


@pytest.mark.parametrize("way", ["pooled", "joint", "member"])
def test_logits_that_say_nothing_have_no_temperature_and_none_that_would_be_better(way):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_temperature(torch.full((2, 9, 3), 4.0), torch.arange(9) % 3, way)
    assert set(found.values) == {1.0}
    assert found.unidentified.startswith("the same logit for every class")


def test_json_gives_the_same_temperature_back():
    found = Temperature("member", (0.1 + 0.2, 1 / 3))
    assert Temperature.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("way", "values", "message"),
    [
        ("both", (1.0,), "way must be one of pooled, joint, member, got 'both'"),
        ("pooled", (1.0, 2.0), "values must hold one temperature for 'pooled', got 2"),
        ("member", (), "values must hold one temperature for 'member', got 0"),
        ("joint", (0.0,), "values must be > 0 and finite, got 0.0"),
        ("joint", (math.nan,), "values must be > 0 and finite, got nan"),
    ],
)
def test_temperatures_that_are_none_are_refused(way, values, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Temperature(way, values)


def test_what_holds_no_temperature_is_refused():
    with pytest.raises(ValueError, match="must hold way and values"):
        Temperature.from_dict({"way": "joint"})


def test_another_number_of_members_is_refused():
    with pytest.raises(ValueError, match="must have 2 members, one for each temperature, got 3"):
        Temperature("member", (1.0, 2.0)).scale(torch.zeros(3, 4, 5))


def test_unknown_way_is_refused(unchecked):
    with pytest.raises(ValueError, match="way must be one of"):
        fit_temperature(torch.zeros(1, 2, 3), torch.tensor([0, 1]), "all")
