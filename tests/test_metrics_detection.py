"""Detection by any score: the metrics of the suite, exact on ties, of a mean and of each member."""

import itertools

import pytest
import torch
from deepens.metrics.detection.ood import detect, evaluate_members
from deepens.metrics.samples import SampleValues
from deepens.metrics.suite import OODEvaluation, evaluate_ood_values
from sklearn.metrics import average_precision_score, roc_auc_score


def _draw(n, members=3, shift=0, seed=0):
    """Scores with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, (members, n), generator=generator).double() + shift


def _brute_force(id_scores, ood_scores):
    pairs = list(itertools.product(id_scores.tolist(), ood_scores.tolist()))
    flagged = [
        float((id_scores >= threshold).double().mean())
        for threshold in ood_scores
        if (ood_scores >= threshold).double().mean() >= 0.95
    ]
    return {
        "auroc": sum((o > i) + (o == i) / 2 for i, o in pairs) / len(pairs),
        "fpr95": min(flagged),
    }


def test_detection_equals_brute_force_and_scikit_learn_on_ties():
    id_scores, ood_scores = _draw(40)[0], _draw(25, shift=2, seed=1)[0]
    found = {k: v.item() for k, v in detect("any", id_scores, ood_scores).items()}
    scores, is_ood = torch.cat([id_scores, ood_scores]), torch.arange(65) >= 40
    expected = _brute_force(id_scores, ood_scores) | {
        "aupr_out": average_precision_score(is_ood, scores),
        "aupr_in": average_precision_score(~is_ood, -scores),
    }
    assert found == pytest.approx({f"{k}_any": v for k, v in expected.items()}, abs=1e-12)


def test_by_member_is_the_mean_of_each_members_own():
    id_scores, ood_scores = _draw(40), _draw(25, shift=1, seed=1)
    found = evaluate_members({"knn": id_scores, "gen": id_scores}, {"knn": ood_scores})
    assert set(found) == {f"{m}_knn_member" for m in ("auroc", "aupr_out", "aupr_in", "fpr95")}
    is_ood = torch.arange(65) >= 40
    pairs = zip(id_scores, ood_scores, strict=True)
    own = [roc_auc_score(is_ood, torch.cat(pair)) for pair in pairs]
    assert found["auroc_knn_member"] == pytest.approx(sum(own) / 3, abs=1e-12)


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must be of the 3 members of id_scores, got 2"):
        evaluate_members({"knn": _draw(4)}, {"knn": _draw(4, members=2)})
    with pytest.raises(ValueError, match="ood_scores must be finite, got nan"):
        detect("knn", torch.zeros(2), torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match="id_scores must hold >= 1 sample, got 0"):
        detect("knn", torch.zeros(0), torch.zeros(2))


def _values(n, detectors, seed):
    generator = torch.Generator().manual_seed(seed)
    columns = torch.rand(4, n, generator=generator, dtype=torch.float64)
    return SampleValues(*columns, detectors=detectors)


def test_detectors_that_both_sets_have_are_told_and_never_resampled():
    id_scores, ood_scores = _draw(40)[0], _draw(25, seed=1)[0]
    first = _values(40, {"knn": id_scores, "vim": id_scores}, 0)
    second = _values(25, {"knn": ood_scores, "gen": ood_scores}, 1)
    found = evaluate_ood_values(first, second)
    expected = detect("knn", id_scores, ood_scores)
    assert {k: found[k] for k in expected} == {k: v.item() for k, v in expected.items()}
    assert not any(key.endswith(("_vim", "_gen")) for key in found)
    assert not any(key.endswith("_knn") for key in OODEvaluation(first, second)())
