"""Benchmarks: that the arithmetic is right and that they run. No test asserts a speed."""

import json
import re

import pytest
import torch
from deepens.experiments.benchmarks import loader, training_step
from deepens.experiments.benchmarks.harness import (
    Candidate,
    Measurement,
    Spread,
    compare,
    table,
    verdict,
)


def _scripted(name: str, seconds: list[float], calls: list[str]) -> Candidate:
    left = iter(seconds)

    def measure() -> float:
        calls.append(name)
        return next(left)

    return Candidate(name, measure)


def test_ratios_are_medians_over_rounds_and_not_ratios_of_medians():
    calls: list[str] = []
    slow = _scripted("slow", [100.0, 4.0, 10.0, 6.0], calls)
    fast = _scripted("fast", [100.0, 2.0, 1.0, 6.0], calls)
    found = compare([slow, fast], rounds=3)
    assert found["fast"].seconds == (2.0, 1.0, 6.0)  # the first round warms up
    assert found["fast"].baseline == found["slow"].seconds == (4.0, 10.0, 6.0)
    assert found["fast"].speedup == Spread(2.0, 1.0, 10.0)
    assert found["fast"].slowdown == Spread(0.5, 0.1, 1.0)
    assert found["slow"].slowdown == Spread(1.0, 1.0, 1.0)


def test_candidates_take_turns_and_every_second_round_runs_backwards():
    calls: list[str] = []
    candidates = [_scripted(name, [1.0] * 4, calls) for name in "abc"]
    compare(candidates, rounds=3)
    assert "".join(calls) == "abccbaabccba"


def test_what_cannot_be_compared_is_refused():
    same = Candidate("a", lambda: 1.0)
    with pytest.raises(ValueError, match="different names"):
        compare([same, same], rounds=1)
    with pytest.raises(ValueError, match="different names"):
        compare([], rounds=1)
    with pytest.raises(ValueError, match="rounds must be >= 1"):
        compare([same], rounds=0)


def test_verdicts_hold_up_to_the_bound():
    assert verdict("speed", 8.0, least=8).endswith("at least 8: kept")
    assert verdict("speed", 7.99, least=8).endswith("BROKEN")
    assert verdict("time", 1.1, most=1.1).endswith("at most 1.1: kept")
    assert verdict("time", 1.11, most=1.1).endswith("BROKEN")


def test_spread_is_median_and_extremes():
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0)
    assert table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc   d"
    assert Measurement("x", (2.0,), (4.0,)).speedup.median == 2.0


def test_both_sides_of_the_loader_benchmark_see_the_same_images():
    split, _ = loader.cifar_split(64)
    work = loader.Work(images=64, passed=64, batch_size=8, rounds=1)
    theirs = loader.torchvision_loader("basic", split, work).dataset
    assert torch.equal(torch.from_numpy(theirs.data), split.images.movedim(1, -1))
    assert split.images.movedim(1, -1).is_contiguous()
    image, label = theirs[3]
    assert image.shape == (3, 32, 32)
    assert label == split.targets[3]
    ours = next(iter(loader.our_loader("basic", split, 8)))[0]
    assert ours.shape == (1, 8, 3, 32, 32)


@pytest.mark.filterwarnings("ignore")
def test_loader_benchmark_prints_what_it_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DEEPENS_DATA", raising=False)
    monkeypatch.setattr(loader, "resident_megabytes", lambda images, batch_size: 12.5)
    out = tmp_path / "rounds.json"
    options = {"images": 64, "passed": 64, "batch-size": 16, "rounds": 2, "out": out}
    kept = loader.main([f"--{name}={value}" for name, value in options.items()])
    printed = capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["megabytes"] == 12.5
    assert "generated, uniform noise" in printed
    seconds = {each["name"]: each["seconds"] for each in written["measurements"]}
    assert len(seconds) == 6
    theirs, ours = seconds["torchvision, basic"], seconds["resident, basic"]
    assert len(theirs) == len(ours) == 2
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    (shown,) = re.findall(r"over torchvision's, crop and flip: ([\d.e+]+)", printed)
    assert float(shown) == pytest.approx(sum(ratios) / 2, rel=1e-3)
    (rate,) = re.findall(r"^crop, flip +([\d,]+)/s", printed, re.M)
    assert float(rate.replace(",", "")) == pytest.approx(2 / sum(theirs), rel=0.01, abs=1)
    assert bool(kept) == ("BROKEN" not in printed)


@pytest.mark.slow  # two processes that import the library
def test_memory_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.delenv("DEEPENS_DATA", raising=False)
    few, many = (loader.resident_megabytes(images, 16) for images in (64, 12_000))
    if few is None:
        pytest.skip("the system does not tell a process's anonymous memory")
    # 12,000 images of 3,072 bytes, held once.
    assert 30 < many - few < 55


@pytest.mark.filterwarnings("ignore")
def test_training_step_benchmark_prints_what_it_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DEEPENS_DATA", raising=False)
    out = tmp_path / "rounds.json"
    options = {"images": 48, "batch-size": 8, "steps": 2, "rounds": 2, "threads": 1, "out": out}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    arguments += ["--backbone=small-cnn", "--precisions=32", "--members", "1", "2"]
    kept = training_step.main([*arguments, "--processor-time"])
    printed = capsys.readouterr().out
    measurements = {each["name"]: each for each in json.loads(out.read_text())["measurements"]}
    assert list(measurements) == [
        *("bare, 1 member, 32", "Lightning, 1 member, 32"),
        *("bare, 2 members, 32", "Lightning, 2 members, 32"),
    ]
    for name in ("1 member, 32", "2 members, 32"):
        bare, ours = (measurements[f"{side}, {name}"]["seconds"] for side in ("bare", "Lightning"))
        ratios = [a / b for a, b in zip(ours, bare, strict=True)]
        (shown,) = re.findall(rf"bare loop's, {name}: ([\d.]+)", printed)
        assert float(shown) == pytest.approx(sum(ratios) / 2, rel=1e-3)
    assert bool(kept) == ("BROKEN" not in printed)


@pytest.mark.filterwarnings("ignore")
def test_the_bare_loop_takes_the_steps_of_the_fit(monkeypatch):
    """The same losses, so that the same work is timed."""
    monkeypatch.delenv("DEEPENS_DATA", raising=False)
    work = training_step.Work(images=48, steps=2, rounds=1, batch_size=8, backbone="small-cnn")
    config = training_step.make_config(work, 2, "32")
    split, _ = loader.cifar_split(work.images)
    made = []
    build = training_step.make_module
    monkeypatch.setattr(training_step, "make_module", lambda c: made.append(build(c)) or made[-1])
    copies = []
    member = type(build(config).ensemble).member
    monkeypatch.setattr(
        type(build(config).ensemble),
        "member",
        lambda self, index: copies.append(member(self, index)) or copies[-1],
    )
    bare = training_step.bare_steps(config, split, work)
    fit = training_step.lightning_steps(config, split, work)
    bare(), fit()
    for index, network in enumerate(copies[:2]):
        for own, other in zip(
            network.parameters(), made[1].ensemble.networks[index].parameters(), strict=True
        ):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
