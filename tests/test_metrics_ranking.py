import pytest
import torch
from deepens.metrics import rank
from deepens.metrics.core.mixture import validate_weights


def test_order_is_descending_and_blocks_end_where_the_score_changes():
    scores = torch.tensor([0.3, 0.9, 0.3, 0.1, 0.9, 0.9])
    ranking = rank(scores)
    assert scores[ranking.order].tolist() == sorted(scores.tolist(), reverse=True)
    assert ranking.block_ends.tolist() == [2, 4, 5]


def test_zero_and_minus_zero_tie():
    assert rank(torch.tensor([0.0, -0.0])).block_ends.tolist() == [1]


@pytest.mark.parametrize("levels", [3, 1000])
def test_cumulative_counts_are_those_at_or_above_each_score(levels):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(levels, (60,), generator=generator).double()
    flagged = torch.rand(60, generator=generator) < 0.4
    weights = torch.randint(0, 3, (4, 60), generator=generator)
    ranking = rank(scores)
    counts = ranking.cumulate(flagged, weights)
    for block, end in enumerate(ranking.block_ends):
        above = scores >= scores[ranking.order[end]]
        assert torch.equal(counts.total[:, block], weights[:, above].sum(-1).double())
        assert torch.equal(counts.flagged[:, block], weights[:, above & flagged].sum(-1).double())
    assert torch.equal(counts.block_total.cumsum(-1), counts.total)
    assert torch.equal(counts.block_unflagged.cumsum(-1), counts.unflagged)


def test_weights_of_one_change_nothing():
    scores, flagged = torch.rand(50).round(decimals=1), torch.rand(50) < 0.5
    plain = rank(scores).cumulate(flagged)
    weighted = rank(scores).cumulate(flagged, torch.ones(50, dtype=torch.int64))
    assert torch.equal(plain.total, weighted.total)
    assert torch.equal(plain.flagged, weighted.flagged)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(0), "scores must hold >= 1 sample, got 0"),
        (torch.tensor([0.1, torch.nan]), r"scores must be finite, got nan at \[1\]"),
        (torch.tensor([torch.inf]), r"scores must be finite, got inf at \[0\]"),
    ],
)
def test_bad_scores_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        rank(scores)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(1, 3), "weights must be integers, got torch.float32"),
        (torch.ones(2, 4, dtype=torch.int64), r"shape \[..., 3\], got \[2, 4\]"),
        (torch.tensor([[1, -1, 3]]), "weights must be >= 0, got -1"),
        (torch.tensor([[1, 0, 2], [0, 0, 0]]), "sum to >= 1 in every draw, got 0"),
        (torch.ones(0, 3, dtype=torch.int64), "weights must hold >= 1 draw"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        validate_weights(weights, num_samples=3)
