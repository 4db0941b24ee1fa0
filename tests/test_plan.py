"""What a comparison will do, and what will be missing from it, is known before any training."""

import pytest
from deepens.experiments.cli import entry as cli
from deepens.experiments.comparison.compare import compare, plan
from deepens.experiments.config import CascadePolicy, CompareConfig
from deepens.experiments.store.progress import Display

SMALL = {"corruptions": ("none",), "epochs": 1, "replicates": 1, "draws": 100, "quiet": True}


def planned(tmp_path, **options):
    return plan(CompareConfig(**SMALL | options, out=str(tmp_path / "out")))


def test_costs_batches_and_time_of_every_method_are_planned_and_nothing_is_written(tmp_path):
    methods = ("single", "wide", "deep", "forde")
    found = planned(tmp_path, methods=methods, replicates=2, share_members=False)
    rows = {row.name: row for row in found.methods}
    assert rows["deep"].macs == 4 * rows["single"].macs
    assert rows["wide"].macs == pytest.approx(rows["deep"].macs, rel=0.02)
    assert {name: row.batches for name, row in rows.items()} == {
        **{"single": "own", "wide": "own", "deep": "own"},
        "forde": "shared",
    }
    assert found.seconds == 2 * sum(row.seconds for row in rows.values()) > 0
    assert found.warnings == ()
    assert not (tmp_path / "out").exists()


def test_members_that_methods_share_are_planned_once(tmp_path):
    found = planned(tmp_path, methods=("single", "deep-2", "deep", "wide"))
    rows = {row.name: row for row in found.methods}
    assert {name: row.source for name, row in rows.items()} == {
        **{"single": "deep", "deep-2": "deep"},
        **{"deep": "", "wide": ""},
    }
    assert (rows["deep-2"].seconds, rows["deep-2"].members) == (None, 2)
    assert found.seconds == rows["deep"].seconds + rows["wide"].seconds > 0


def test_an_ensemble_without_a_partner_is_named_with_what_to_add(tmp_path):
    (deep, packed) = planned(tmp_path, methods=("single", "deep", "packed")).warnings
    assert "deep will have no verdict" in deep
    assert "add wide to --methods" in deep
    assert "add wide-packed to --methods" in packed


def test_a_cascade_that_would_rest_on_too_few_images_is_named_with_the_number(tmp_path):
    methods = ("single", "wide", "deep", "cascade-deep")
    (few,) = planned(tmp_path, methods=methods).warnings
    assert "last window would rest on about 3 of 74 calibration images, of at least 50" in few
    assert "--validation-size 1250" in few
    wide = CascadePolicy(width=0.45)
    assert planned(tmp_path, methods=methods, cascade=wide).warnings == ()


def test_cascades_that_will_not_be_known_under_shift_are_named_with_the_option(tmp_path):
    wide, methods = CascadePolicy(width=0.45), ("single", "wide", "deep", "cascade-deep")
    options = {"methods": methods, "cascade": wide, "corruptions": ()}
    (line,) = planned(tmp_path, **options).warnings
    assert line.startswith("cascade-deep will have no measures and no verdicts under shift")
    assert line.endswith("give --keep-logits true to keep these")
    for change in ({"keep_logits": True}, {"evaluate": "quick"}, {"methods": methods[:3]}):
        assert planned(tmp_path, **options | change).warnings == ()


def test_a_comparison_says_so_before_it_trains(tmp_path, few_splits, capsys, monkeypatch):
    def train(*arguments, **options):
        raise ValueError("training")

    monkeypatch.setattr("deepens.experiments.comparison.compare.train_and_evaluate_together", train)
    config = CompareConfig(**SMALL, methods=("single", "deep"), out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="training"):
        compare(config, splits=few_splits, display=Display())
    assert "deep will have no verdict" in capsys.readouterr().err


def test_the_command_prints_the_plan(tmp_path, capsys):
    words = ["compare", "--dry-run", "--methods", "single,deep", "--corruptions", "none"]
    assert cli.main([*words, "--quiet", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "training takes about" in said
    assert "caution: deep will have no verdict" in said
    assert not (tmp_path / "out").exists()
