"""Input gradients of members: those of plain networks, for every family, on chosen images."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from contract import CLASSES
from deepens.datasets import Pipeline, Split
from deepens.ensembles import DeepEnsemble, LoRA, LoRAEnsemble, Packed, PackedEnsemble
from deepens.ensembles.backbones import build
from deepens.experiments.evaluation.input_gradients import (
    evenly_spaced,
    member_gradients,
    split_similarity,
)
from small_transformers import drawn, own
from stacked import StackedLinear
from torch import nn

PIPELINE = Pipeline((0.4,), (0.3,))
SEEDS = (3, 5, 8)


def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(4 * 36, CLASSES),
    )  # fmt: skip


def small_cnn():
    return build("small-cnn", num_classes=CLASSES, channels=1, image_size=8)


def packed(execution):
    options = Packed(alpha=2.0, execution=execution)
    return PackedEnsemble(small_cnn, seeds=SEEDS, options=options, image_shape=(1, 8, 8))


def lora(options):
    return LoRAEnsemble(drawn(own), seeds=SEEDS, options=options)


FAMILIES = {
    "deep": lambda: DeepEnsemble(network, seeds=SEEDS),
    "deep grouped": lambda: DeepEnsemble(network, seeds=SEEDS, execution="grouped"),
    "packed loop": lambda: packed("loop"),
    "packed grouped": lambda: packed("grouped"),
    "lora": lambda: lora(LoRA(rank=2)),
    "lora loop": lambda: lora(LoRA(rank=2, execution="loop")),
    "lora checkpointing": lambda: lora(LoRA(rank=2, blocks=1, checkpointing=True)),
    "stacked": lambda: StackedLinear(64, CLASSES, seeds=SEEDS),
}


def draw(count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % CLASSES


def by_hand(ensemble, images, classes):
    """One image and one member at a time, through plain networks in float64."""
    found = torch.zeros(ensemble.num_members, len(images), images[0].numel(), dtype=torch.float64)
    for member in range(ensemble.num_members):
        plain = ensemble.member(member).double().eval()
        for index, (image, label) in enumerate(zip(images, classes, strict=True)):
            leaf = image.double()[None].requires_grad_()
            plain(leaf)[0, label].backward()
            found[member, index] = leaf.grad.flatten()
    return found


def cosines(gradients):
    """The mean over pairs of members, image by image."""
    rows = []
    for each in gradients.double().transpose(0, 1).numpy():
        units = [gradient / np.linalg.norm(gradient) for gradient in each]
        rows.append(np.mean([a @ b for a, b in itertools.combinations(units, 2)]))
    return np.array(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_plain_networks(family):
    ensemble = FAMILIES[family]()
    images, classes = draw()
    images = PIPELINE.normalized(images)
    expected = by_hand(ensemble, images, classes)
    found = member_gradients(ensemble.double(), images.double(), classes)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    chosen = member_gradients(ensemble, images.double(), classes, members=[2, 0])
    torch.testing.assert_close(chosen, expected[[2, 0]], rtol=1e-9, atol=1e-11)


def test_nothing_is_left_behind_and_members_are_in_evaluation_mode():
    ensemble = DeepEnsemble(network, seeds=SEEDS).train()
    before = copy.deepcopy(ensemble.state_dict())
    images, classes = draw()
    images = PIPELINE.normalized(images)
    found = [member_gradients(ensemble, images, classes) for _ in range(2)]
    assert torch.equal(*found)  # no dropout
    assert not found[0].requires_grad
    assert all(parameter.grad is None for parameter in ensemble.parameters())
    assert all(torch.equal(before[name], value) for name, value in ensemble.state_dict().items())
    assert ensemble.training
    with torch.no_grad():
        assert torch.equal(member_gradients(ensemble, images, classes), found[0])
    with torch.inference_mode():
        assert torch.equal(member_gradients(ensemble, images.clone(), classes), found[0])


def split_result(ensemble, split, **options):
    with torch.inference_mode():
        logits = ensemble.eval()(PIPELINE.normalized(split.images))
    return split_similarity(ensemble, split, logits, pipeline=PIPELINE, **options)


@pytest.mark.parametrize("most", [5, 512])
@pytest.mark.parametrize("labelled", [True, False])
def test_similarity_is_the_mean_cosine_on_the_chosen_images(labelled, most):
    ensemble = DeepEnsemble(network, seeds=SEEDS).double().eval()
    images, classes = draw(23)
    inputs = PIPELINE.normalized(images).double()
    if not labelled:
        with torch.no_grad():
            classes = ensemble(inputs).softmax(-1).mean(0).argmax(-1)
    chosen = evenly_spaced(23, most)
    expected = cosines(by_hand(ensemble, inputs[chosen], classes[chosen])).mean()
    split = Split(images, classes if labelled else None)
    # The pipeline normalises in float32, of which these images and weights are the double.
    found = split_result(ensemble.float(), split, most=most, batch_size=4)
    assert found["n_gradients"] == min(most, 23)
    assert found["input_gradient_similarity"] == pytest.approx(expected, abs=1e-5)
    whole = split_result(ensemble, split, most=most)
    assert whole == pytest.approx(found, abs=1e-6)


def test_identical_members_are_alike_and_negated_logits_opposed():
    split = Split(*draw(9))
    with pytest.warns(UserWarning, match="identical parameters"):
        ensemble = DeepEnsemble(lambda: drawn(network), seeds=[1, 2])
    assert split_result(ensemble, split)["input_gradient_similarity"] == pytest.approx(1, abs=1e-12)
    with torch.no_grad():
        for parameter in ensemble.networks[1].body[-1].parameters():
            parameter.neg_()
    found = split_result(ensemble, split)["input_gradient_similarity"]
    assert found == pytest.approx(-1, abs=1e-12)


def test_a_gradient_that_is_not_finite_makes_the_similarity_undefined():
    class Root(nn.Module):
        def forward(self, images):
            return (images - images.detach()).abs().sqrt()  # infinite slope at 0

    def rooted():
        return nn.Sequential(Root(), nn.Flatten(), nn.Linear(64, CLASSES))

    found = split_result(DeepEnsemble(rooted, seeds=SEEDS), Split(*draw(9)))
    assert np.isnan(found["input_gradient_similarity"])
    assert found["n_gradients"] == 9


def test_positions_are_distinct_even_and_within_the_split():
    for count, most in itertools.product((1, 2, 7, 128, 577, 10_000), (1, 3, 128, 512)):
        chosen = evenly_spaced(count, most)
        steps = chosen.diff()
        assert len(chosen) == min(count, most)
        assert 0 <= chosen[0] <= chosen[-1] < count
        if len(chosen) > 1:
            assert steps.min() >= 1
            assert steps.max() - steps.min() <= 1
            assert abs(int(chosen[0]) - int(count - 1 - chosen[-1])) <= 1
    with pytest.raises(ValueError, match="count and most must be >= 1, got 0 and 4"):
        evenly_spaced(0, 4)


def test_order_of_members_does_not_matter():
    ensemble = DeepEnsemble(network, seeds=SEEDS)
    split = Split(*draw(9))
    before = split_result(ensemble, split)
    ensemble.networks = nn.ModuleList(reversed(list(ensemble.networks)))
    assert split_result(ensemble, split) == pytest.approx(before, abs=1e-12)


def test_order_of_pixels_in_memory_does_not_matter():
    ensemble = DeepEnsemble(network, seeds=SEEDS).eval()
    split = Split(*draw(9))
    logits = ensemble(PIPELINE.normalized(split.images)).detach()
    other = dataclasses.replace(PIPELINE, channels_last=True)
    found = [split_similarity(ensemble, split, logits, pipeline=p) for p in (PIPELINE, other)]
    assert found[0] == pytest.approx(found[1], abs=1e-6)
