"""Whatever the logits: finite where defined, the same in any order and in any number of copies."""

import functools
import inspect
import math
import warnings

import pytest
import torch
from deepens import metrics
from deepens.metrics import METRICS, evaluate_ood, sample_values
from deepens.metrics.samples import join_values
from deepens.metrics.suite import evaluate_values
from hypothesis import assume, given, settings
from hypothesis import strategies as st

DOUBTS = ".*(same output|are identical|are of class|other order|exactly the)"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.* is undefined:RuntimeWarning", f"ignore:{DOUBTS}:RuntimeWarning"
)

# What counts samples or whose bins and terms depend on their number, exactly as it should be.
NOT_OF_COPIES = {
    *("n", "n_id", "n_ood", "aurc", "e_aurc", "debiased_calibration_error"),
    "adaptive_calibration_error",
}
UNDEFINED = {  # without errors, or without a right answer
    *("auroc_of_failures", "q_statistic", "error_correlation", "normalized_disagreement"),
    "ensemble_improvement_rate",
}


@st.composite
def problems(draw, dtypes=(torch.float16, torch.bfloat16, torch.float32, torch.float64)):
    """Member logits and labels: few or many, tied, all alike, tiny, huge."""
    members, samples = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    classes = draw(st.integers(2, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(members, samples, classes, generator=generator, dtype=torch.float64)
    scale = draw(st.sampled_from((0.0, 1e-6, 1.0, 30.0, 1e4)))
    if draw(st.booleans()):
        logits = logits.round()
    if draw(st.booleans()):
        logits = logits[:1].expand(members, -1, -1)
    targets = torch.randint(classes, (samples,), generator=generator)
    if draw(st.booleans()):  # nothing but right answers
        targets = logits.softmax(-1).mean(0).argmax(-1)
    return (logits * scale).to(draw(st.sampled_from(dtypes))), targets


def holds_for(*strategies, full=100):
    """Check a property on twelve drawn examples, and on as many as ``full`` in the slow tests."""

    def decorate(check):
        @functools.wraps(check)
        def test(examples, **others):
            settings(max_examples=examples, deadline=None)(given(*strategies)(check))(**others)

        others = inspect.signature(given(*strategies)(check)).parameters.values()
        examples = inspect.Parameter("examples", inspect.Parameter.KEYWORD_ONLY)
        test.__signature__ = inspect.Signature([*others, examples])
        sizes = [12, pytest.param(full, marks=pytest.mark.slow)]
        return pytest.mark.parametrize("examples", sizes)(test)

    return decorate


def evaluate(logits, targets):
    """The suite's, of logits that do not happen to look like probabilities: it refuses those."""
    assume_raw(logits)
    return metrics.evaluate(logits, targets)


def assume_raw(logits):
    exact = logits.double()
    away = (exact.sum(-1) - 1).abs()
    assume(exact.amin() < 0 or exact.amax() > 1 or (away <= 0.05).double().mean() < 0.9)
    assume(exact.amax() > 0 or exact.logsumexp(-1).abs().amax() > 0.02)


def same(found, expected, *, tolerance=1e-9):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerance, nan_ok=True), name


@holds_for(problems(), full=150)
def test_every_metric_of_a_split_is_finite_where_defined_and_within_its_bounds(problem):
    logits, targets = problem
    for name, value in evaluate(logits, targets).items():
        low, high = METRICS[name].bounds
        if math.isnan(value):
            assert name in UNDEFINED
        elif math.isinf(value):  # only where a member rules out what another deems possible
            assert name in ("pairwise_kl", "mean_member_nll", "jensen_gap", "nll")
        else:
            assert low - 1e-9 <= value <= high + 1e-9, name


@holds_for(problems(), st.randoms(use_true_random=False))
def test_order_does_not_matter(problem, random):
    logits, targets = problem
    order = list(range(len(targets)))
    random.shuffle(order)
    same(evaluate(logits[:, order], targets[order]), evaluate(logits, targets))


def test_pooling_of_a_sample_does_not_depend_on_the_samples_beside_it():
    # The mean's logarithm and the sum of exponentials differ in the last digit here.
    logits = torch.tensor([[[-20.0, -20.0, -20.0]], [[20.0, -20.0, 10.0]], [[0.0, 10.0, 10.0]]])
    beside = torch.tensor([[[0.0, 1e4, 0.0]]]).expand(3, 1, 3)
    alone = sample_values(logits.double()).confidence
    together = sample_values(torch.cat([logits, beside], dim=1).double()).confidence
    assert together[:1].equal(alone)


@holds_for(problems(), st.integers(1, 40))
def test_cutting_into_batches_does_not_matter(problem, size):
    logits, targets = problem
    parts = zip(logits.split(size, 1), targets.split(size), strict=True)
    joined = join_values(sample_values(part, labels) for part, labels in parts)
    same(evaluate_values(joined), evaluate(logits, targets))


@holds_for(problems())
def test_copies_of_every_sample_change_nothing_but_what_counts_them(problem):
    logits, targets = problem
    once = evaluate(logits, targets)
    thrice = evaluate(logits.repeat(1, 3, 1), targets.repeat(3))
    kept = once.keys() - NOT_OF_COPIES
    same({k: thrice[k] for k in kept}, {k: once[k] for k in kept})


@holds_for(problems(dtypes=(torch.float64,)))
def test_order_of_members_does_not_matter(problem):
    logits, targets = problem
    once, flipped = evaluate(logits, targets), evaluate(logits.flip(0), targets)
    # Sums over members round otherwise then: what ties exactly need not tie any more.
    for name in (
        "nll",
        "brier",
        "confidence",
        "disagreement",
        "mutual_information",
    ):
        assert flipped[name] == pytest.approx(once[name], abs=1e-9), name


@holds_for(problems(dtypes=(torch.float64,)), st.floats(-50, 50))
def test_a_constant_added_to_a_sample_s_logits_changes_no_probability(problem, shift):
    logits, targets = problem
    if logits.abs().max() > 100:  # where the sum would lose digits of the logits
        logits = logits / 1e3
    stable = ["nll", "brier", "confidence", "mutual_information"]
    first, second = metrics.mixture_log_probs(logits).topk(2, -1).values.unbind(-1)
    if (first - second).min() > 1e-9:  # else rounding may break a tie of classes the other way
        stable += ["accuracy", "smooth_calibration_error"]
    once, moved = evaluate(logits, targets), evaluate(logits + shift, targets)
    same({k: moved[k] for k in stable}, {k: once[k] for k in stable}, tolerance=1e-6)


@holds_for(problems(), problems())
def test_every_metric_of_detection_is_within_its_bounds_and_of_no_order(one, other):
    logits = one[0].double()
    ood = other[0].double()
    members, classes = min(len(logits), len(ood)), min(logits.shape[2], ood.shape[2])
    logits, ood = logits[:members, :, :classes], ood[:members, :, :classes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", DOUBTS)
        if not scores_are_finite(logits, ood):
            return
        assume_raw(logits)
        assume_raw(ood)
        found = evaluate_ood(logits, ood)
        again = evaluate_ood(logits.flip(1), ood.flip(1))
    for name, value in found.items():
        low, high = METRICS[name].bounds
        assert low - 1e-9 <= value <= high + 1e-9, name
    same(again, found)


def scores_are_finite(*parts):
    """Whether no member rules out a class that another deems possible: those scores are refused."""
    return all((part.amax(-1) - part.amin(-1) < 700).all() for part in parts)


GRADED = {
    "ece": metrics.expected_calibration_error,
    "mce": metrics.maximum_calibration_error,
    "rms": metrics.root_mean_square_calibration_error,
    "smooth": metrics.smooth_calibration_error,
    "gap": metrics.confidence_gap,
    "augrc": metrics.area_under_generalized_risk_coverage,
    "coverage": lambda score, flag: metrics.coverage_at_risk(score, flag, risk=0.2),
    "risk": lambda score, flag: metrics.risk_at_coverage(score, flag, coverage=0.7),
    "failures": metrics.auroc_of_failures,
    "auroc": metrics.area_under_roc,
    "precision": metrics.average_precision,
    "fpr": metrics.false_positive_rate,
}
"""Functions of a score and a flag a sample that do not change where every sample comes thrice."""
OF_NUMBER = {
    "aurc": metrics.area_under_risk_coverage,
    "e_aurc": metrics.excess_area_under_risk_coverage,
    "adaptive": metrics.adaptive_calibration_error,
    "debiased": metrics.debiased_squared_calibration_error,
    "scod": lambda score, flag: metrics.scod_risk(score, flag, score.flip(0) * 0.9),
}
"""Those that depend on how many samples there are."""


@st.composite
def graded(draw):
    """Scores in [0, 1], often tied or at the ends, in every precision, and flags."""
    n = draw(st.integers(1, 40))
    exact = st.sampled_from((0.0, 0.25, 0.5, 2 / 3, 1.0))
    scores = draw(st.lists(st.one_of(exact, st.floats(0, 1)), min_size=n, max_size=n))
    flags = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    dtype = draw(st.sampled_from((torch.float16, torch.bfloat16, torch.float32, torch.float64)))
    return torch.tensor(scores, dtype=torch.float64).to(dtype), torch.tensor(flags)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", [*GRADED, *OF_NUMBER])
@holds_for(graded(), full=60)
def test_functions_of_scores_and_flags_are_of_no_order_and_undefined_only_of_one_class(
    name, problem
):
    score, flag = problem
    function = (GRADED | OF_NUMBER)[name]
    found = function(score, flag).item()
    if name in ("failures", "auroc", "precision", "fpr") and flag.all() | ~flag.any():
        assert found != found or 0 <= found <= 1
    else:
        assert -1 <= found <= 2
    order = torch.randperm(len(score), generator=torch.Generator().manual_seed(0))
    assert function(score[order], flag[order]).item() == pytest.approx(
        found, abs=1e-12, nan_ok=True
    )
    if name in GRADED:
        thrice = function(score.repeat(3), flag.repeat(3)).item()
        assert thrice == pytest.approx(found, abs=1e-9, nan_ok=True)
