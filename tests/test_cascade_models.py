"""Different models as stages: their answers are the replay's, and unlike images are refused."""

import re

import pytest
import torch
from deepens.ensembles import DeepEnsemble
from deepens.ensembles.policies import (
    Cascade,
    ExpectedImages,
    WindowPolicy,
    model_stages,
    replay,
)
from torch import nn

CLASSES = 4
DIGITS = ExpectedImages(mean=(0.13,), std=(0.31,), size=(6, 6))


def models():
    torch.manual_seed(0)

    def plain(hidden):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(36, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES)
        )

    ensemble = DeepEnsemble(lambda: plain(16), seeds=[1, 2])
    return [model.double().eval() for model in (plain(4), plain(32), ensemble)]


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_a_small_a_large_network_and_an_ensemble_answer_as_their_logits_replayed(pool):
    networks = models()
    images = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        small, large, both = (model(images) for model in networks)
    logits = [small[None], large[None], both]
    middle = float(replay(WindowPolicy.first(3), logits).confidence.median())
    policy = WindowPolicy([(0.0, middle), (0.0, 1.0)])
    expected = replay(policy, logits, pool=pool)
    assert expected.stage.unique().tolist() == [1, 3]
    answers = Cascade(model_stages(networks, [DIGITS, None, DIGITS]), policy, pool=pool)(images)
    torch.testing.assert_close(answers.log_probs, expected.log_probs, rtol=0, atol=1e-12)
    assert torch.equal(answers.stage, expected.stage)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (ExpectedImages(mean=(0.5,)), "stage 1 expects mean (0.13,), and stage 3 (0.5,): put a"),
        (ExpectedImages(std=(0.5,)), "stage 1 expects std (0.31,), and stage 3 (0.5,): put a"),
        (ExpectedImages(size=(8, 8)), "stage 1 expects size (6, 6), and stage 3 (8, 8): put a"),
    ],
)
def test_stages_that_expect_other_images_are_refused(other, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        model_stages(models(), [DIGITS, None, other])
    stages = [
        *model_stages(models()[:1], [DIGITS]),
        lambda images: (images, images.flatten(1)[None]),
        *model_stages(models()[1:2], [other]),
    ]
    with pytest.raises(ValueError, match=re.escape(line)):
        Cascade(stages, WindowPolicy.full(3))


def test_what_only_one_of_two_says_is_not_compared():
    expected = [ExpectedImages(mean=(0.13,)), ExpectedImages(size=(6, 6)), None]
    assert len(model_stages(models(), expected)) == 3


def test_another_number_of_descriptions_than_models_is_refused():
    with pytest.raises(ValueError, match="one description for each of the 3 models, got 1"):
        model_stages(models(), [DIGITS])
