"""What a notebook needs is importable from ``deepens``, lazily, and prints nothing."""

import subprocess
import sys

import deepens
import pytest
from deepens.metrics import evaluate, evaluate_ood
from PIL import Image


def test_importing_deepens_imports_nothing_heavy():
    code = (
        "import sys, deepens\n"
        "heavy = {'torch', 'lightning', 'pandas', 'matplotlib', 'altair', 'jsonargparse'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", deepens.__all__)
def test_every_public_name_is_there(name):
    assert name in dir(deepens)
    assert getattr(deepens, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = deepens.trian


def test_a_run_is_trained_evaluated_and_loaded_without_a_word(
    tmp_path, few_splits, capfd, unchecked
):
    config = deepens.TrainConfig(data="digits", members=2, epochs=2, out=str(tmp_path / "deep"))
    run = deepens.train(config, splits=few_splits)
    metrics = deepens.evaluate(run)
    predictions = deepens.load_run(tmp_path / "deep").predictions
    assert predictions.metrics["test"] == metrics["test"]
    logits, targets = predictions.logits("test"), predictions.targets("test")
    again = evaluate(logits, targets)
    assert {name: metrics["test"][name] for name in again} == pytest.approx(again, nan_ok=True)
    ood = evaluate_ood(logits, predictions.logits("near_ood/digits-8-9"))
    assert metrics["near_ood/digits-8-9"]["auroc_msp"] == pytest.approx(ood["auroc_msp"])
    assert capfd.readouterr() == ("", "")


def test_predictions_of_a_folder_are_a_data_frame(trained_run, splits, tmp_path):
    for number, image in enumerate(splits["test"].images[:3, 0].numpy()):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_text("not an image")
    frame = deepens.predict(trained_run, tmp_path)
    assert frame.equals(deepens.predict(trained_run, f"folder:{tmp_path}"))
    assert len(frame) == 4
    assert list(frame["class"].isna()) == [False, False, False, True]
    probs = deepens.load_run(trained_run.path).predictions.logits("test").double().softmax(-1)
    expected = probs.mean(0)[:3].amax(-1).tolist()
    assert frame["confidence"][:3].tolist() == pytest.approx(expected, abs=1e-6)
    assert "3.png" in frame["error"][3]
