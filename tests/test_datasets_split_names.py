"""Names of splits: parsing and writing them are inverse, and nothing else is accepted."""

import re

import pytest
from deepens.datasets import SplitName
from hypothesis import given
from hypothesis import strategies as st

_WORD = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
_SET = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True).filter(
    lambda name: not name.endswith(".encoded")
)
_NAMES = st.one_of(
    st.sampled_from([SplitName("train"), SplitName("test"), SplitName("shift")]),
    st.builds(SplitName, st.just("val"), st.sampled_from(["select", "calibrate", "conform"])),
    st.builds(SplitName, st.just("shift"), _WORD, st.integers(1, 5)),
    st.builds(
        SplitName, st.sampled_from(["near_ood", "far_ood"]), _SET, st.none(), encoded=st.booleans()
    ),
)


@given(_NAMES)
def test_parsing_what_was_written_gives_the_same_fields(name):
    assert SplitName.parse(str(name)) == name


@given(st.one_of(st.text(max_size=20), _NAMES.map(str), _NAMES.map(lambda name: f"{name}/1")))
def test_whatever_text_is_accepted_is_written_back_unchanged(text):
    try:
        name = SplitName.parse(text)
    except ValueError:
        return
    assert str(name) == text


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("train", SplitName("train")),
        ("val/calibrate", SplitName("val", "calibrate")),
        ("shift/gaussian_noise/3", SplitName("shift", "gaussian_noise", 3)),
        ("shift", SplitName("shift")),
        ("near_ood/digits-8-9", SplitName("near_ood", "digits-8-9")),
        ("far_ood/mnist.encoded", SplitName("far_ood", "mnist", encoded=True)),
        ("far_ood/a.b", SplitName("far_ood", "a.b")),
    ],
)
def test_todays_texts_have_these_fields(text, fields):
    assert SplitName.parse(text) == fields
    assert str(fields) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "val",
        "val/",
        "val/other",
        "test/",
        "test/1",
        "test.encoded",
        "shift/",
        "shift/noise",
        "shift/noise/0",
        "shift/noise/6",
        "shift/noise/03",
        "shift/noise/3.encoded",
        "near_ood",
        "near_ood/",
        "near_ood/.encoded",
        "far_ood/a b",
        "far_ood/a/b",
        "ood/a",
        "test\n",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=re.escape(f"got {text!r}")):
        SplitName.parse(text)


def test_the_kinds_of_a_split_exclude_each_other():
    texts = ("train", "val/select", "test", "shift/blur/1", "near_ood/a", "far_ood/a.encoded")
    names = [SplitName.parse(text) for text in texts]
    assert [name.is_validation for name in names] == [False, True, False, False, False, False]
    assert [name.is_shift for name in names] == [False, False, False, True, False, False]
    assert [name.is_ood for name in names] == [False, False, False, False, True, True]
    assert not any(name.is_mean for name in names)
    assert SplitName("shift").is_mean
