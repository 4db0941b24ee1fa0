from fractions import Fraction

import pytest
from deepens.ensembles.families.packed.widths import MOST_WIDENING, Widths
from hypothesis import given
from hypothesis import strategies as st

widths = st.integers(2, 2048)
alphas = st.fractions(Fraction(1, 2), 4, max_denominator=10)


@given(alphas, st.integers(1, 8), widths, st.sampled_from([1, 2, 3, 4, 8, 12]))
def test_new_width_is_the_least_multiple_that_is_no_narrower(alpha, members, width, multiple):
    rule = Widths(alpha, members, {width: multiple})
    new, exact = rule(width), width * alpha / members
    assert new % multiple == 0
    assert new >= exact > new - multiple


@given(st.integers(1, 8), widths, st.sampled_from([1, 2, 4]))
def test_alpha_equal_to_the_number_of_members_keeps_every_width_its_groups_divide(m, width, groups):
    rule = Widths(Fraction(m), m, {width * groups: groups})
    assert rule(width * groups) == width * groups


def test_width_of_one_stays():
    assert Widths(Fraction(1, 4), 8, everywhere=4)(1) == 1


@given(alphas, st.integers(1, 8), st.lists(widths, min_size=1, max_size=5), st.sampled_from([1, 4]))
def test_smallest_alpha_works_and_the_next_below_it_does_not(alpha, members, several, multiple):
    multiples = dict.fromkeys(several, multiple)

    def works(alpha):
        rule = Widths(alpha, members, multiples)
        return all(rule.widening(width) <= MOST_WIDENING for width in several)

    found = Widths(alpha, members, multiples).smallest_alpha(several)
    assert works(found)
    assert found >= alpha
    below = found - Fraction(1, 100)
    # Those between the bounds are tried by brute force, on the grid that a person types.
    tried = alpha.__ceil__() if alpha.denominator == 1 else alpha
    step = Fraction(1, 100)
    first = -(-tried // step) * step
    while first <= below:
        assert not works(first), first
        first += step


@pytest.mark.parametrize(("width", "groups", "new"), [(64, 4, 32), (58, 2, 30), (116, 1, 58)])
def test_widths_by_hand(width, groups, new):
    assert Widths(Fraction(2), 4, {width: groups})(width) == new
