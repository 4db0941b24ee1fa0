"""`deepens cascade`: what it writes is what its policies do, and nobody else's members load it."""

import csv
import dataclasses
import json

import pytest
import torch
from deepens.datasets import load
from deepens.datasets.image_format import ImageFormat
from deepens.ensembles.policies import OutOfReachError, WindowPolicy, assess, halves, replay
from deepens.experiments.cli.commands import run_cascade, run_predict
from deepens.experiments.config import TrainConfig
from deepens.experiments.cost.macs import count_macs
from deepens.experiments.evaluation import cascade_measures
from deepens.experiments.evaluation.answers import CASCADE_COLUMNS
from deepens.experiments.evaluation.cascade import (
    WIDTHS,
    StoredCascade,
    calibrate_run,
    checksum,
    load_cascade,
    stage_macs,
)
from deepens.experiments.evaluation.options import CascadeConfig, PredictConfig
from deepens.experiments.evaluation.predict import predict_folder
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import read_json, write_json
from deepens.experiments.training.building import build_base, build_ensemble
from deepens.experiments.training.weights import load_ensemble
from PIL import Image
from stored_logits import load_logits

QUIET = Display(quiet=True)
pytestmark = pytest.mark.usefixtures("unchecked")  # whole trainings; their parts are checked


@pytest.fixture
def run(shared_run, copy_run):
    """A copy of a run without the logits of corrupted images, so that a curve is quick."""
    return copy_run(shared_run("deep-without-logits", shifted=True, members=3, epochs=4))


def config_of(run, **options):
    options = {"target_coverage": 0.8, "order": (2, 0), "quiet": True, **options}
    return CascadeConfig(str(run.path), **options)


def rows_of(run):
    with (run.path / "cascade.csv").open(newline="") as file:
        return {(row["policy"], row["split"]): row for row in csv.DictReader(file)}


def test_every_row_is_what_the_stored_policy_does_on_the_split(run, capsys):
    assert run_cascade(config_of(run)) == 0
    content = json.loads((run.path / "cascade.json").read_text())
    assert content["order"] == [2, 0]
    policy = WindowPolicy.from_dict(content["policy"])
    rows = rows_of(run)
    for split, (logits, targets) in load_logits(run).items():
        answers = replay(policy, [logits[[2]], logits[[0]]])
        row = rows["cascade", split]
        passed = (answers.stage == 2).double().mean().item()
        assert float(row["reached_2"]) == pytest.approx(passed, abs=1e-12)
        expected = content["macs"][0] + passed * content["macs"][1]
        assert float(row["macs"]) == pytest.approx(expected, rel=1e-12)
        if targets is not None:
            right = answers.predicted == targets
            accepted = answers.accepted
            assert float(row["accuracy"]) == pytest.approx(right.double().mean().item())
            assert float(row["coverage"]) == pytest.approx(accepted.double().mean().item())
            assert float(row["risk"]) == pytest.approx(1 - right[accepted].double().mean().item())
        else:
            assert float(row["ood_accepted"]) == pytest.approx(
                answers.accepted.double().mean().item()
            )
    calibration = rows["cascade", "val/calibrate"]
    assert content["reached"][1] == pytest.approx(float(calibration["reached_2"]))
    assert content["average_macs"] == pytest.approx(float(calibration["macs"]))
    printed = capsys.readouterr().out
    assert "calibrated on 74 images, fewer than 200" in printed
    assert (run.path / "cascade.svg").read_text().startswith("<svg")


def test_baselines_stand_beside_it(run):
    run_cascade(config_of(run))
    rows = rows_of(run)
    logits, targets = load_logits(run)["test"]
    for name, members in (("first stage", [2]), ("all stages", [2, 0])):
        mean = logits[members].double().softmax(-1).mean(0)
        accuracy = (mean.argmax(-1) == targets).double().mean().item()
        assert float(rows[name, "test"]["accuracy"]) == pytest.approx(accuracy, abs=1e-12)
        assert float(rows[name, "test"]["macs_over_first"]) == pytest.approx(len(members), abs=0.01)
    on = "val/calibrate"
    single, window = (float(rows[n, on]["macs"]) for n in ("single threshold", "cascade"))
    assert single == pytest.approx(window, rel=0.02)


def test_every_task_runs(run):
    for options in (
        {"task": "ood", "target_coverage": None, "target_tpr": 0.95},
        {"task": "scod", "target_coverage": 0.9, "confidence": "energy"},
        {"task": "accuracy", "target_coverage": None},
        {"policy": "single"},
        {"order": (), "width": 0.0},
    ):
        calibrated = calibrate_run(run, config_of(run, **options))
        content, rows, points = calibrated.content, calibrated.rows, calibrated.points
        assert calibrated.label
        assert {row["policy"] for row in rows} == {
            *("cascade", "single threshold", "first stage", "all stages")
        }
        assert {point.policy for point in points} >= {"first stage"}
        assert content["reached"][0] == 1.0


def test_the_curve_says_which_windows_it_lacks(run, capsys):
    # 74 images: of three stages, only windows that pass most on leave 50 for the next one.
    options = {"order": (0, 1, 2), "width": 1.0}
    calibrated = calibrate_run(run, config_of(run, **options))
    content, points = calibrated.content, calibrated.points
    (note,) = [note for note in content["notes"] if "the curve lacks" in note]
    listed, reason = note.removeprefix("the curve lacks half widths ").split(": ")
    assert reason == "a later window would rest on fewer than 50 images"
    lacking = {float(width) for width in listed.split(", ")}
    drawn = {point.width for point in points if point.policy == "window"}
    between = {width for width in WIDTHS if 0 < width < 1}
    assert lacking & between
    assert drawn == between - lacking
    run_cascade(config_of(run, **options))
    assert f"note: {note}" in capsys.readouterr().out
    assert note in json.loads((run.path / "cascade.json").read_text())["notes"]


def test_a_whole_curve_has_no_note_and_other_errors_are_no_gaps(run, monkeypatch):
    content = calibrate_run(run, config_of(run)).content
    assert not any("curve lacks" in note for note in content["notes"])

    def fail(*_, **__):
        raise ValueError("something else is wrong")

    monkeypatch.setattr(cascade_measures, "risk_at_coverage", fail)
    with pytest.raises(ValueError, match="something else is wrong"):
        calibrate_run(run, config_of(run))


def test_windows_that_cannot_keep_the_target_are_noted(run, monkeypatch):
    original = cascade_measures.calibrate

    def out_of_reach(*arguments, width, **options):
        if width == 0.3:
            raise OutOfReachError("a risk of 0 is out of reach")
        return original(*arguments, width=width, **options)

    monkeypatch.setattr(cascade_measures, "calibrate", out_of_reach)
    calibrated = calibrate_run(run, config_of(run, width=0.1))
    content, points = calibrated.content, calibrated.points
    assert "the curve lacks half widths 0.3: the target is out of reach" in content["notes"]
    assert 0.3 not in {point.width for point in points}


def test_macs_of_stages_are_those_of_the_members(run):
    ensemble, form = load_ensemble(run)
    alone = count_macs(ensemble.member(0), form.shape)
    assert stage_macs(ensemble, form, [1, 0, 2]) == [alone] * 3


def test_what_members_share_is_the_first_stage_s():
    config = TrainConfig(out="unused", ensemble="lora", backbone="vit-micro/4", members=2)
    form = ImageFormat(channels=1, size=(8, 8), classes=tuple("abc"), mean=(0.5,), std=(0.5,))
    ensemble = build_ensemble(config, form, base=build_base(config, form)).eval()
    macs = stage_macs(ensemble, form, [0, 1])
    # Together, members also share what the first of their own blocks takes in: a little less.
    together = count_macs(ensemble, form.shape)
    assert together <= sum(macs) <= 1.05 * together


def test_other_members_or_another_order_do_not_load_it(run, shared_run):
    run_cascade(config_of(run))
    file = run.path / "cascade.json"
    stored = load_cascade(run, file)
    assert isinstance(stored, StoredCascade)
    assert stored.order == (2, 0)
    other = shared_run("other-deep", members=3, epochs=1, seed=1)
    with pytest.raises(ValueError, match="calibrated on other members, or another order of them"):
        load_cascade(other, file)
    content = json.loads(file.read_text())
    for key in ("policy", "order", "weights", "checksum"):
        file.write_text(json.dumps({k: v for k, v in content.items() if k != key}))
        with pytest.raises(ValueError, match="is not a cascade, or was changed since"):
            load_cascade(run, file)
    for change in ({"order": [0, 2]}, {"order": "20"}, {"reached": [0.5, 0.2]}, {"images": 0}):
        file.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match="is not a cascade, or was changed since"):
            load_cascade(run, file)
    with pytest.raises(ValueError, match=r"config.yaml is not a cascade, .*`deepens cascade RUN`"):
        load_cascade(run, run.path / "config.yaml")
    with pytest.raises(ValueError, match="nope.json does not exist; run `deepens cascade"):
        load_cascade(run, run.path / "nope.json")


def test_nothing_but_a_cascade_is_written_over(run):
    before = (run.path / "metrics.json").read_text()
    with pytest.raises(ValueError, match=r"metrics.json exists and is not a cascade"):
        run_cascade(config_of(run, out=str(run.path / "metrics.json")))
    assert (run.path / "metrics.json").read_text() == before
    run_cascade(config_of(run))
    with pytest.raises(ValueError, match=r"made with other options \(target_coverage\)"):
        run_cascade(config_of(run, target_coverage=0.9))
    run_cascade(config_of(run, target_coverage=0.9, overwrite=True))


def test_a_budget_is_chosen_on_one_half_and_reported_on_the_other(run, capsys, monkeypatch):
    with pytest.raises(ValueError, match="a budget needs >= 100 images, .*, got 74"):
        calibrate_run(run, config_of(run, budget=1.3))
    for module in ("calibration", "search"):
        monkeypatch.setattr(f"deepens.ensembles.policies.{module}.FEWEST", 20)
    run_cascade(config_of(run, budget=1.3))
    content = json.loads((run.path / "cascade.json").read_text())
    logits, targets = load_logits(run)["val/calibrate"]
    chosen_on, other = halves(len(targets), seed=0)
    policy = WindowPolicy.from_dict(content["policy"])
    on_other = assess(policy, [logits[[i]][:, other] for i in (2, 0)], targets[other])
    assert content["images"] == len(other) == 37
    for name in ("coverage", "risk"):
        assert content[name] == content["held_out"][name] == getattr(on_other, name)
    assert content["reached"] == list(on_other.reached)
    on_chosen = assess(policy, [logits[[i]][:, chosen_on] for i in (2, 0)], targets[chosen_on])
    assert on_chosen.average_macs(content["macs"]) <= 1.3 * content["macs"][0]
    assert "on the 37 calibration images on which nothing was chosen" in capsys.readouterr().out


def test_rejected_images_are_flagged_in_detection(run):
    options = {"task": "ood", "target_coverage": None, "target_tpr": 0.8}
    content = calibrate_run(run, config_of(run, **options)).content
    assert content["ood_threshold"] == content["policy"]["threshold"]


def test_corrupted_images_without_logits_are_said_to_be_left_out(run):
    content = calibrate_run(run, config_of(run)).content
    assert any("corrupted images are left out" in note for note in content["notes"])


def test_bad_input_gets_one_line(run, tmp_path):
    with pytest.raises(ValueError, match=r"order must name >= 2 members, each once, got \[1\]"):
        calibrate_run(run, config_of(run, order=(1,)))
    with pytest.raises(ValueError, match=r"order must name members in \[0, 3\), got "):
        calibrate_run(run, config_of(run, order=(0, 7)))
    with pytest.raises(ValueError, match=r"order must name >= 2 members, each once, got \[0, 0\]"):
        calibrate_run(run, config_of(run, order=(0, 0)))
    with pytest.raises(ValueError, match="takes exactly one of target_risk, target_coverage"):
        calibrate_run(run, config_of(run, target_coverage=None))
    with pytest.raises(ValueError, match="would be calibrated on .* images, of at least 50"):
        calibrate_run(run, config_of(run, order=()))
    with pytest.raises(ValueError, match="budget is searched for with policy window only"):
        config_of(run, policy="single", budget=1.5)
    with pytest.raises(ValueError, match="width is chosen within a budget, got both"):
        config_of(run, width=0.2, budget=1.5)
    with pytest.raises(ValueError, match="out must end in .json, got 'x.csv'"):
        config_of(run, out="x.csv")
    index = run.path / "predictions" / "index.json"
    content = read_json(index)
    content["splits"] = [name for name in content["splits"] if "_ood/" not in name]
    write_json(index, content)
    with pytest.raises(ValueError, match="the task ood needs OOD images, and .* predictions of no"):
        calibrate_run(run, config_of(run, task="ood", target_coverage=None, target_tpr=0.9))
    content["splits"].remove("val/calibrate")
    write_json(index, content)
    with pytest.raises(ValueError, match="no predictions of val/calibrate, on which to calibrate"):
        calibrate_run(run, config_of(run))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predictions_of_a_folder_are_the_cascade_s(run, tmp_path, suffix):
    run_cascade(config_of(run))
    stored = load_cascade(run, run.path / "cascade.json")
    images = load("digits")["test"].images[:40, 0].numpy()
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{number:03d}.png")
    out = tmp_path / f"out{suffix}"
    assert not predict_folder(
        run, f"folder:{tmp_path / 'images'}", out, display=QUIET, cascade=stored
    )
    if suffix == ".csv":
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = parquet.read_table(out).to_pylist()
        assert isinstance(rows[0]["stage"], int)
    logits = load_logits(run)["test"][0][:, :40]
    answers = replay(stored.policy, [logits[[2]], logits[[0]]])
    assert list(rows[0]) == list(CASCADE_COLUMNS)
    for place, row in enumerate(rows):
        assert row["class"] == str(int(answers.predicted[place]))
        assert float(row["confidence"]) == pytest.approx(answers.confidence[place].item(), abs=1e-6)
        assert int(row["stage"]) == answers.stage[place]
        assert row["decision"] == ("accept" if answers.accepted[place] else "abstain")
        flagged = answers.confidence[place] < stored.ood_threshold
        assert row["ood"] == ("yes" if flagged else "no")


def test_the_command_warns_of_drift_also_when_it_is_quiet(run, tmp_path, capsys):
    run_cascade(config_of(run))
    file = run.path / "cascade.json"
    content = json.loads(file.read_text())
    content["policy"]["windows"] = [[0.0, 1.0]]
    content["checksum"] = checksum(content)
    file.write_text(json.dumps(content))
    (tmp_path / "images").mkdir()
    for number in range(120):
        Image.new("L", (8, 8), number).save(tmp_path / "images" / f"{number:03d}.png")
    out = str(tmp_path / "out.csv")
    images = f"folder:{tmp_path / 'images'}"
    config = PredictConfig(str(run.path), images, out, cascade=str(file), quiet=True)
    assert run_predict(config) == 0
    assert "deepens: stage 2 runs on 100.0% of 120 images" in capsys.readouterr().err


def test_images_unlike_the_calibration_s_are_warned_of(run, tmp_path):
    run_cascade(config_of(run))
    stored = load_cascade(run, run.path / "cascade.json")
    everything = [(0.0, 1.0)]
    drifting = dataclasses.replace(stored, policy=WindowPolicy(everything))
    (tmp_path / "images").mkdir()
    for number in range(120):
        Image.new("L", (8, 8), number).save(tmp_path / "images" / f"{number:03d}.png")
    with pytest.warns(RuntimeWarning, match="stage 2 runs on 100.0% of 120 images"):
        predict_folder(
            run,
            f"folder:{tmp_path / 'images'}",
            tmp_path / "out.csv",
            display=QUIET,
            cascade=drifting,
        )
    assert torch.is_inference_mode_enabled() is False
