import torch
from deepens.ensembles.families.packed.drawing import drawn_like, redraw
from scipy import stats
from torch import nn


def test_uniform_entries_stay_uniform_within_their_bounds():
    torch.manual_seed(0)
    given = torch.empty(5000, dtype=torch.float64).uniform_(-0.3, 0.7)
    drawn = drawn_like(given, (4000,))
    assert given.min() <= drawn.min()
    assert drawn.max() <= given.max()
    assert stats.kstest(drawn.numpy(), stats.uniform(-0.3, 1.0).cdf).pvalue > 1e-3


def test_normal_entries_stay_normal():
    torch.manual_seed(0)
    drawn = drawn_like(torch.randn(200_000, dtype=torch.float64) * 0.02, (4000,))
    assert stats.kstest(drawn.numpy(), stats.norm(0, 0.02).cdf).pvalue > 1e-3


def test_constants_stay_constant_and_integers_are_kept():
    assert torch.equal(drawn_like(torch.zeros(3, 3), (2,)), torch.zeros(2))
    assert torch.equal(drawn_like(torch.tensor([7, 7]), (3,)), torch.tensor([7, 7, 7]))


def test_redrawn_network_shares_no_entry_and_keeps_its_spread():
    torch.manual_seed(0)
    before = nn.Linear(100, 100)
    after = redraw(nn.Linear(100, 100))
    assert (before.weight == after.weight).double().mean() < 0.01
    ratio = float(after.weight.std() / before.weight.std())
    assert abs(ratio - 1) < 0.02


def test_draws_are_a_function_of_the_global_generator():
    given = torch.randn(50)
    torch.manual_seed(3)
    first = drawn_like(given, (10,))
    torch.manual_seed(3)
    assert torch.equal(drawn_like(given, (10,)), first)
