import pytest
from deepens.datasets import known, load


def test_every_known_name_loads_under_its_own_name():
    assert [load(name).name for name in known()] == list(known())


def test_unknown_name_is_refused_with_the_list_and_the_nearest():
    with pytest.raises(ValueError, match="one of digits, got 'digit'; the nearest is 'digits'"):
        load("digit")
