"""Where a run computes: one thread for small work, torch's own for the rest."""

import pytest
import torch
from deepens.datasets import Augmentation, load
from deepens.datasets.image_format import ImageFormat
from deepens.ensembles.backbones import build
from deepens.experiments.config import TrainConfig
from deepens.experiments.training.devices import (
    compute_device,
    pipeline_for,
    suitable_threads,
    threads,
)


def test_small_batches_get_one_thread_and_large_ones_torchs_own():
    form = ImageFormat.of(load("digits"))
    network = build("small-cnn", num_classes=8, channels=1, image_size=8)
    assert suitable_threads(network, form, 64) == 1
    assert suitable_threads(network, form, 64_000) is None


def test_number_of_threads_is_restored_even_after_an_error():
    before = torch.get_num_threads()

    def fail():
        with threads(1):
            assert torch.get_num_threads() == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.get_num_threads() == before
    with threads(None):
        assert torch.get_num_threads() == before


def test_asking_for_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compute_device(TrainConfig(device="auto")) == torch.device("cpu")
    with pytest.raises(ValueError, match="device: cuda was asked for, but torch sees no GPU"):
        compute_device(TrainConfig(device="cuda"))


def test_augmentation_is_the_one_the_options_ask_for():
    form = ImageFormat.of(load("digits"))
    options = {"crop_padding": 2, "flip": True, "resized_crop": 0.25}
    options |= {"rand_augment": 2, "magnitude": 9, "cutout": 3}
    assert pipeline_for(TrainConfig(**options), form).augmentation == Augmentation(**options)
    default = pipeline_for(TrainConfig(), form).augmentation
    assert default == Augmentation(crop_padding=1)


def test_augmentation_that_leaves_nothing_of_the_image_is_refused():
    form = ImageFormat.of(load("digits"))
    with pytest.raises(ValueError, match="crop_padding must be < 8, the images' side, got 8"):
        pipeline_for(TrainConfig(crop_padding=8), form)
    with pytest.raises(ValueError, match="cutout must be < 16, twice the images' side, got 16"):
        pipeline_for(TrainConfig(cutout=16), form)
