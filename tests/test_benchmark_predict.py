"""The measurement of the streamed prediction: both sides do the same, and the table says what."""

import json

import pytest
from deepens.experiments.benchmarks import predict


def test_both_sides_write_the_same_table(tmp_path, monkeypatch):
    monkeypatch.delenv("DEEPENS_DATA", raising=False)
    work = predict.Work(images=300, photographs=3)
    for kind, side in predict.SIDES.items():
        name, paths = predict.write_images(kind, work, tmp_path)
        for candidate in predict.make_candidates(
            name, paths, predict.make_answer(work, side), tmp_path
        ):
            assert candidate.measure() > 0
        tables = [(tmp_path / f"{side}.csv").read_text() for side in ("in-turns", "streamed")]
        assert tables[0] == tables[1]
        lines = tables[0].splitlines()[1:]
        assert len(lines) == len(paths)
        assert all(line.startswith(str(path)) for line, path in zip(lines, paths, strict=True))
        assert all(line.endswith(",") for line in lines), "an image could not be read"


@pytest.mark.parametrize(("bound", "kept"), [(0.0, True), (1e9, False)])
def test_every_round_is_kept_and_a_broken_bound_is_said(tmp_path, monkeypatch, capsys, bound, kept):
    monkeypatch.delenv("DEEPENS_DATA", raising=False)
    monkeypatch.setattr(predict, "LEAST_SPEEDUP", bound)
    out = tmp_path / "rounds.json"
    words = ["--images", "8", "--photographs", "2", "--rounds", "2", "--out", str(out)]
    assert bool(predict.main(words)) is kept
    printed = capsys.readouterr().out
    assert "untrained weights" in printed
    assert ("BROKEN" in printed) is not kept
    measurements = json.loads(out.read_text())["measurements"]
    assert len(measurements) == 4
    assert all(len(each["seconds"]) == 2 for each in measurements)
