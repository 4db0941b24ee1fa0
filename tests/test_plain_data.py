"""Files of plain data are read within bounds, and their values are of the declared types."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
from deepens.datasets.plain_data import conform, construct, parse_json, read_text, read_yaml

DOUBLING = "a0: &a0 [1, 1]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("epochs: " + "[" * 500 + "]" * 500, "nested more than 32 levels deep"),
        ("a: &a [*a]", r"the alias \*a stands inside what it names"),
        ("a: &a {b: *a}", r"the alias \*a stands inside what it names"),
        ("a: *nothing", r"the alias \*nothing stands"),
        (DOUBLING, "holds more than 100000 values with its aliases"),
        ("caveat: " + "x" * 2**20, "must have at most 1048576 bytes, got 1048584"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: 2020-13-45", "not valid YAML"),
        ("epochs: " + "9" * 5000, "not valid YAML"),
        ("[1]: [", "not valid YAML"),
    ],
)
def test_yaml_beyond_its_bounds_is_refused_with_the_file(tmp_path, text, line):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=line) as refused:
        read_yaml(tmp_path / "a.yaml")
    assert str(tmp_path / "a.yaml") in str(refused.value)


def test_aliases_within_the_bounds_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}\n")
    assert read_yaml(tmp_path / "a.yaml")["c"] == {"x": 1, "y": 2}


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="is not a regular file"):
            read_text(path)


def test_json_that_is_nested_too_deeply_is_refused():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000 + "]" * 100_000)


@dataclasses.dataclass(frozen=True)
class Inner:
    low: float = 0.0


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()
    pair: tuple[int, int] = (1, 2)
    costs: Mapping[str, Inner] = dataclasses.field(default_factory=dict)
    rate: float | None = None


def test_values_of_the_declared_types_are_taken():
    values = {
        **{"count": 3, "kind": "b", "sizes": [1, 2], "pair": [3, 4], "rate": None},
        "costs": {"x": {"low": 1}},
    }
    assert construct(Outer, values, "file") == Outer(3, "b", (1, 2), (3, 4), {"x": Inner(1)}, None)
    assert construct(Outer, {"count": 3, "new": 1}, "file", more=True) == Outer(3)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([1], r"file must hold values by name, got a list of 1"),
        ({}, "file lacks count"),
        ({"count": 3, "new": 1}, "file holds an unknown value 'new'"),
        ({"count": None}, "file.count must have a value, got none"),
        ({"count": True}, "file.count must be a whole number, got True"),
        ({"count": "3"}, "file.count must be a whole number, got '3'"),
        ({"count": 10**400}, "file.count must be a whole number of at most 64 bits"),
        ({"count": 3, "rate": 10**400}, "file.rate must be a number of at most 64 bits"),
        ({"count": 3, "rate": {}}, "file.rate must be a number, got a dict of 0"),
        ({"count": 3, "kind": 1}, "file.kind must be one of a, b, got 1"),
        ({"count": 3, "sizes": "12"}, "file.sizes must be a list, got '12'"),
        ({"count": 3, "sizes": [1, None]}, r"file.sizes\[1\] must have a value, got none"),
        ({"count": 3, "pair": [1]}, "file.pair must be a list of 2, got a list of 1"),
        ({"count": 3, "costs": {"x": 3}}, "file.costs.x must hold values by name, got 3"),
        ({"count": 3, "costs": {3: {}}}, "file.costs must hold values by name"),
    ],
)
def test_values_of_other_types_are_refused_by_name(values, line):
    with pytest.raises(ValueError, match=line):
        construct(Outer, values, "file")


def test_true_is_no_number():
    with pytest.raises(ValueError, match="a must be one of 1, 2, got True"):
        conform(True, Literal[1, 2], "a")


def test_a_name_that_stands_twice_is_refused_with_its_lines(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("epochs: 1\noptimizer:\n  lr: 0.1\n  lr: 0.2\n")
    with pytest.raises(ValueError, match="lr stands twice, in lines 3 and 4; keep one of them"):
        read_yaml(file)
    file.write_text("base: &base {epochs: 1}\nall: {<<: *base, lr: 2}\n")
    assert read_yaml(file)["all"] == {"epochs": 1, "lr": 2}
