"""Whatever changed on disk since it was written is refused, or made again."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from deepens.datasets.sources.decoding import Decoding, Silent, decode
from deepens.datasets.tensor_files import UNCHECKED, load_tensors, save_tensors, stored_checksum
from deepens.experiments.cli import main
from deepens.experiments.evaluation.evaluate import evaluate
from deepens.experiments.evaluation.predictions import Predictions, load_metrics
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate
from deepens.experiments.store.run import Run, read_json, write_json
from deepens.experiments.training.weights import load_ensemble
from image_folders import write_images
from safetensors.torch import save_file

GOLDEN = Path(__file__).parent / "golden"


def flip(file, position, bit=6):
    """Flip one bit; the position counts from the end where it is negative."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {
        "half": torch.randn(5, 3).bfloat16(),
        "scalar": torch.tensor(3.0),
        "none": torch.zeros(0, 4),
        "whole": torch.arange(6).view(2, 3),
        "bits": torch.tensor([True, False]),
    }
    save_tensors(path, tensors, {"config": {"lr": 0.1, "name": "é"}, "list": [1, None]})
    return path


def test_every_single_flipped_bit_is_noticed(file):
    whole = file.read_bytes()
    for position in range(len(whole)):
        flip(file, position, bit=position % 8)
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            load_tensors(file)
        file.write_bytes(whole)
    assert load_tensors(file)[1]["list"] == [1, None]


def test_tensors_that_swapped_their_names_are_noticed(file):
    tensors, content = load_tensors(file)
    tensors["bits"], tensors["scalar"] = tensors["scalar"], tensors["bits"]
    header = {"deepens/2": f"{stored_checksum(file)} {json.dumps(content)}"}
    save_file(tensors, file, header)
    with pytest.raises(ValueError, match=r"x\.safetensors is truncated or damaged \(its checksum"):
        load_tensors(file)


def test_files_of_earlier_versions_have_no_checksum_and_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "old.safetensors", {UNCHECKED: "[1]"})
    tensors, content = load_tensors(tmp_path / "old.safetensors")
    assert (tensors["a"].tolist(), content) == ([1.0, 1.0], [1])
    assert stored_checksum(tmp_path / "old.safetensors") is None


COMMANDS = [
    ["evaluate", "RUN", "--predict"],
    ["evaluate", "RUN"],
    ["predict", "RUN", "--images", "folder:IMAGES", "--out", "x.csv"],
    ["cascade", "RUN", "--target-coverage", "0.9"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:3:2]))
def test_no_command_uses_flipped_weights(run, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", 2)
    metrics = run.metrics.read_bytes()
    flip(run.weights, -1)  # the exponent of the last weight
    words = {"RUN": str(run.path), "folder:IMAGES": f"folder:{tmp_path / 'images'}"}
    assert main([words.get(word, word) for word in command]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert "weights.safetensors is truncated or damaged" in said
    assert run.metrics.read_bytes() == metrics


def test_flipped_weights_of_earlier_versions_are_noticed_by_their_predictions(tmp_path):
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    load_ensemble(run)
    flip(run.weights, -1)
    with pytest.raises(ValueError, match=r"is not the file that .*test\.safetensors was made with"):
        evaluate(run, predict=True)
    shutil.rmtree(tmp_path / "run" / "predictions")
    load_ensemble(run)


def test_flipped_predictions_are_refused_with_the_remedy(run, splits):
    before = load_metrics(run)
    flip(run.prediction("test"), -1)
    with pytest.raises(ValueError, match=r"test\.safetensors is .*damaged.*evaluate .* --predict`"):
        evaluate(run)
    assert evaluate(run, predict=True, splits=splits) == before


def test_predictions_from_a_backup_are_not_mixed_with_others(run):
    tensors, content = load_tensors(run.prediction("test"))
    tensors["logits"] = tensors["logits"].flip(1)
    save_tensors(run.prediction("test"), tensors, content)
    with pytest.raises(ValueError, match="holds other predictions than those that were recorded"):
        Predictions(run).logits("test")


def test_metrics_of_other_predictions_are_refused_and_computed_again(run, splits):
    before = load_metrics(run)
    index = run.path / "predictions" / "index.json"
    write_json(index, {**read_json(index), "when": "later"})
    with pytest.raises(ValueError, match=r"metrics\.json is of other predictions .*evaluate"):
        load_metrics(run)
    again = train_and_evaluate(run.config, splits=splits)
    assert load_metrics(again) == before


def read_all(predictions):
    predictions.check()
    predictions.scaled()


@pytest.mark.parametrize("name", ["metrics.json", "temperature.json", "predictions/index.json"])
def test_a_changed_digit_in_json_is_noticed(run, name):
    file = run.path / name
    text = file.read_text()
    place = re.search(r"\.\d", text).end() - 1
    file.write_text(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}")
    with pytest.raises(ValueError, match=rf"{file.name} was damaged or edited.*run `deepens eval"):
        read_all(Predictions(run))


def test_an_edit_is_used_without_its_checksum(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1, 2: (0.1, float("nan"))})
    assert read_json(tmp_path / "x.json") == {"a": 1, "2": [0.1, None]}
    (tmp_path / "x.json").write_text('{"a": 2}')
    assert read_json(tmp_path / "x.json") == {"a": 2}


class Said(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_a_damaged_cache_of_images_is_decoded_again_and_said(tmp_path):
    paths, said = write_images(tmp_path / "images", 3), Said()
    how = Decoding(3, (8, 8), tmp_path / "cache")
    expected, _ = decode(paths, how, name="photos", watcher=said)
    draws = random.Random(0)
    for file in (tmp_path / "cache").iterdir():
        whole = file.read_bytes()
        for _ in range(20):
            flip(file, draws.randrange(len(whole)), bit=draws.randrange(8))
            images, bad = decode(paths, how, name="photos", watcher=said)
            assert torch.equal(images, expected)
            assert bad == {}
            file.write_bytes(whole)
    assert said.lines
    assert all("decoded again" in line for line in said.lines)


def test_a_cache_of_other_images_is_not_taken(tmp_path):
    how = Decoding(3, (8, 8), tmp_path / "cache")
    first, second = (write_images(tmp_path / name, 2) for name in "ab")
    expected, _ = decode(first, how, name="a", watcher=Silent())
    (file,) = (tmp_path / "cache").glob("images-*")
    decode(second, how, name="b", watcher=Silent())
    (other,) = set((tmp_path / "cache").glob("images-*")) - {file}
    shutil.copy(other, file)
    assert torch.equal(decode(first, how, name="a", watcher=Silent())[0], expected)
