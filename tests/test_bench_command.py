"""`deepens bench`: one table of all benchmarks, and what changed. No test asserts a speed."""

import json
import math

import pytest
from deepens.experiments.benchmarks.suite import (
    BENCHMARKS,
    changes,
    chosen,
    read_record,
    rows_of,
    run_benchmarks,
)
from deepens.experiments.cli import main
from deepens.experiments.store.run import read_json, write_json


def record(**ratios):
    """Of one benchmark, whose baseline always takes two seconds."""
    measurements = [
        {
            "name": name,
            "seconds": [2.0 * ratio for ratio in each],
            "baseline": [2.0] * len(each),
            "over": "base",
        }
        for name, each in {"base": [1.0, 1.0], **ratios}.items()
    ]
    return {
        "limit": "small",
        "device": "cpu",
        "environment": {"processor": "one"},
        "benchmarks": {"lora": {"verdicts": [], "measurements": measurements}},
    }


def test_rows_are_ratios_of_each_round_without_the_baseline():
    (row,) = rows_of(record(together=[0.5, 0.75]))
    assert (row.benchmark, row.name, row.over) == ("lora", "together", "base")
    assert row.ratios == (0.5, 0.75)


def test_only_ranges_apart_are_changes():
    old = record(a=[1.0, 2.0], b=[1.0, 2.0], c=[1.0, 2.0], gone=[1.0, 1.0])
    new = record(a=[0.5, 0.9], b=[2.0, 3.0], c=[2.5, 3.0], new=[9.0, 9.0])
    assert [(row.name, how) for _, row, how in changes(old, new)] == [
        ("a", "faster"),
        ("c", "slower"),
    ]
    assert list(changes(old, old)) == []


def test_a_record_of_another_limit_or_device_is_refused(tmp_path):
    file = tmp_path / "old.json"
    write_json(file, record(a=[1.0, 2.0]))
    assert rows_of(read_record(file, limit="small", device="auto"))
    with pytest.raises(ValueError, match=r"measured with --limit small.* with --limit full"):
        read_record(file, limit="full", device="cpu")
    with pytest.raises(ValueError, match=r"measured with --device cpu.* with --device cuda"):
        read_record(file, limit="small", device="cuda")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nix"], "names must be among loader, "),
        (["lora", "lora"], "names must differ"),
        (["--limit", "huge"], "limit must be one of tiny, small, full"),
        (["--device", "cuda"], "torch sees no GPU"),
        (["--against", "missing.json"], "there is no file missing.json"),
        (["--against", "."], "there is no file ."),
        (["--against", "other.json"], "other.json is damaged, or not what deepens bench"),
        (["--against", "cut.json"], "cut.json is damaged, or not what deepens bench"),
        (["--json", "nowhere/new.json"], "there is no directory "),
        (["--json", "."], "json must be a file"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "cut.json").write_text('{"limit": "tiny"')
    assert main(["bench", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_by_default_a_gpu_is_given_what_computes_on_it():
    assert chosen((), "auto") == chosen((), "cpu") == list(BENCHMARKS)
    assert set(chosen((), "cuda")) < set(BENCHMARKS)
    assert "objectives" in chosen((), "cuda")
    assert chosen(["metrics"], "cuda") == ["metrics"]


def test_help_names_every_benchmark(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in BENCHMARKS)


@pytest.mark.filterwarnings("ignore")
def test_what_is_printed_is_what_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DEEPENS_DATA", raising=False)
    file = tmp_path / "bench.json"
    words = ["bench", "predict", "--limit", "tiny", "--device", "cpu", "--quiet"]
    assert main([*words, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    written = read_json(file)
    assert written["environment"]["versions"]["torch"]
    assert list(written["benchmarks"]) == ["predict"]
    rows = rows_of(written)
    assert len(rows) == 2
    for row in rows:
        assert len(row.ratios) == 2
        (line,) = [each for each in printed.splitlines() if row.name in each]
        assert f"{sum(row.ratios) / 2:.3g}" in line
        assert f"{min(row.ratios):.3g} to {max(row.ratios):.3g}" in line
    content = json.loads(file.read_text())
    for each in content["benchmarks"]["predict"]["measurements"]:
        each["baseline"] = [1e6 * value for value in each["baseline"]]
    write_json(file, {key: value for key, value in content.items() if key != "sha256"})
    assert main([*words, "--against", str(file)]) == 0
    assert "times slower" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_benchmark_gives_finite_ratios(monkeypatch):
    """All of them, with little work: within a minute on two idle cores."""
    monkeypatch.delenv("DEEPENS_DATA", raising=False)
    found = list(run_benchmarks((), limit="tiny", device="cpu"))
    assert [len(each["benchmarks"]) for each in found] == list(range(1, len(BENCHMARKS) + 1))
    rows = rows_of(found[-1])
    assert {row.benchmark for row in rows} == set(BENCHMARKS)
    assert len({(row.benchmark, row.name, row.over) for row in rows}) == len(rows)
    assert all(math.isfinite(ratio) and ratio > 0 for row in rows for ratio in row.ratios)
    named = {row.name for row in rows}
    assert {"core suite", "all besides fits", "FoRDE, joint, channels last"} <= named
