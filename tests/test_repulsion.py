"""Members that are pushed apart: what holds in every space, jointly and in chunks."""

import math

import pytest
import torch
from contract import CLASSES, ObjectiveContract
from deepens.ensembles import (
    CrossEntropy,
    DeepEnsemble,
    FoRDE,
    FunctionSpace,
    LoRA,
    LoRAEnsemble,
    Mixup,
    MixupMP,
    Packed,
    PackedEnsemble,
    Repulsion,
    Repulsive,
    SteinVariational,
    TrainingStep,
    WeightSpace,
)
from deepens.ensembles.backbones import build
from one_step import EVERY, SPACES, after, batch, convolutional, made, prepared, same
from torch import nn


class TestFoRDE(ObjectiveContract):
    def make(self):
        return made("pca")


class TestWeightSpace(ObjectiveContract):
    def make(self):
        return made("weights", scale=100.0)


class TestFunctionSpace(ObjectiveContract):
    def make(self):
        return made("functions", scale=10.0)


class OfPacked:
    """Members that are slices of shared tensors."""

    def ensemble(self, num_members):
        return PackedEnsemble(
            lambda: build("small-cnn", num_classes=CLASSES, channels=1, image_size=8),
            seeds=list(range(num_members)),
            image_shape=(1, 8, 8),
        ).double()


class OfLoRA:
    """Members that are adapters and heads, trained for a while: at first one factor is zero."""

    def ensemble(self, num_members):
        base = build("vit-micro/4", num_classes=CLASSES, channels=1, image_size=8)
        options = LoRA(rank=2, blocks=1)
        ensemble = LoRAEnsemble(base, seeds=list(range(num_members)), options=options).double()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in ensemble.parameters():
                if parameter.requires_grad:
                    drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.add_(0.1 * drawn)
        return ensemble


class TestFoRDEOfPacked(OfPacked, TestFoRDE):
    pass


class TestWeightSpaceOfPacked(OfPacked, TestWeightSpace):
    pass


class TestFoRDEOfLoRA(OfLoRA, TestFoRDE):
    pass


class TestWeightSpaceOfLoRA(OfLoRA, TestWeightSpace):
    pass


class TestSteinInWeightSpace(ObjectiveContract):
    def make(self):
        return made("svgd weights", scale=100.0)


class TestSteinInFunctionSpace(ObjectiveContract):
    def make(self):
        return made("svgd functions", scale=10.0)


class TestSeveral(ObjectiveContract):
    def make(self):
        terms = [FoRDE(), WeightSpace(), FunctionSpace()]
        return prepared(Repulsive(CrossEntropy(), terms))


@pytest.mark.parametrize("name", EVERY)
def test_zero_scale_is_a_deep_ensemble_step_bit_for_bit(name):
    plain = after(CrossEntropy(), convolutional(3), *batch())
    off = after(made(name, scale=0.0), convolutional(3), *batch())
    on = after(made(name, scale=50.0), convolutional(3), *batch())
    assert torch.equal(off[0], plain[0])
    assert same(off[2], plain[2])
    assert same(off[3], plain[3])
    assert not same(on[2], plain[2])


@pytest.mark.parametrize("name", EVERY)
def test_one_member_is_plain_and_says_once_that_repulsion_is_bypassed(name):
    objective = made(name)
    with pytest.warns(UserWarning, match="repulsion is bypassed"):
        found = after(objective, convolutional(1), *batch())
    assert same(found[2], after(CrossEntropy(), convolutional(1), *batch())[2])
    after(objective, convolutional(1), *batch())  # warnings of ours are errors: no second one
    fresh = made(name)
    assert "bypassed" in fresh.check(convolutional(1))
    after(fresh, convolutional(1), *batch())


@pytest.mark.parametrize("name", [*SPACES])
def test_vanishing_scale_tends_to_the_deep_ensemble(name):
    plain = after(CrossEntropy(), convolutional(3), *batch())
    almost = after(made(name, scale=1e-9), convolutional(3), *batch())
    for first, second in zip(almost[2], plain[2], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-7)
    assert same(almost[3], plain[3])


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("name", EVERY)
def test_chunks_have_the_joint_gradients_and_running_statistics(name, at_once):
    joint = after(made(name, scale=50.0), convolutional(3), *batch())
    objective = made(name, CrossEntropy(members_at_once=at_once), scale=50.0)
    chunked = after(objective, convolutional(3), *batch())
    torch.testing.assert_close(chunked[0], joint[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(chunked[1], joint[1], rtol=1e-10, atol=0)
    for first, second in zip(chunked[2], joint[2], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-9)
    assert same(chunked[3], joint[3])


@pytest.mark.parametrize("name", ["identity", "functions", "svgd functions"])
def test_chunks_repeat_the_dropout_of_their_first_pass(name):
    torch.manual_seed(7)
    joint = after(made(name, scale=50.0), convolutional(3, dropout=0.5), *batch())
    torch.manual_seed(7)
    objective = made(name, CrossEntropy(members_at_once=1), scale=50.0)
    chunked = after(objective, convolutional(3, dropout=0.5), *batch())
    for first, second in zip(chunked[2], joint[2], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("at_once", [None, 1])
@pytest.mark.parametrize("name", EVERY)
def test_running_statistics_move_once_a_step(name, at_once):
    objective = made(name, CrossEntropy(members_at_once=at_once), scale=50.0)
    found = after(objective, convolutional(2), *batch())[3]
    assert same(found, after(CrossEntropy(), convolutional(2), *batch())[3])


@pytest.mark.parametrize("annealing", ["rise", "fall"])
def test_annealing_changes_the_weight_over_the_steps(annealing):
    objective = made("identity", scale=8.0, annealing=annealing, annealing_share=0.5)
    loss = []
    for number in (0, 2, 4, 6):
        objective.set_step(TrainingStep(number, 8))
        loss.append(after(objective, convolutional(3), *batch())[0])
    plain = after(CrossEntropy(), convolutional(3), *batch())[0]
    shares = [(x - plain) / (max(loss) - plain) for x in loss]
    expected = [0, 0.5, 1, 1] if annealing == "rise" else [1, 0.5, 0, 0]
    assert [float(s) for s in shares] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("execution", ["loop", "grouped"])
@pytest.mark.parametrize("at_once", [None, 1])
def test_packed_members_are_repelled_in_every_execution_that_can_be(execution, at_once):
    def packed(execution):
        return PackedEnsemble(
            lambda: build("small-cnn", num_classes=CLASSES, channels=1, image_size=8),
            seeds=[1, 2, 3],
            options=Packed(execution=execution),
            image_shape=(1, 8, 8),
        ).double()

    likelihood = CrossEntropy(members_at_once=at_once)
    objective = prepared(Repulsive(likelihood, [SPACES["identity"](scale=50.0)]))
    found = after(objective, packed(execution), *batch())
    loop = after(made("identity", scale=50.0), packed("loop"), *batch())
    for first, second in zip(found[2], loop[2], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["identity", "weights", "functions", "svgd weights"])
def test_lora_members_are_repelled_by_adapters_and_heads(name, checkpointing):
    base = build("vit-micro/4", num_classes=CLASSES, channels=1, image_size=8)
    options = LoRA(rank=2, blocks=1, checkpointing=checkpointing)
    ensemble = LoRAEnsemble(base, seeds=[1, 2], options=options).double()
    if name == "identity" and checkpointing:
        with pytest.raises(ValueError, match="checkpointed; set --lora.checkpointing false"):
            made(name).check(ensemble)
        return
    joint = after(made(name, scale=50.0), ensemble, *batch())
    chunked = after(made(name, CrossEntropy(members_at_once=1), scale=50.0), ensemble, *batch())
    plain = after(CrossEntropy(), ensemble, *batch())
    assert not same(joint[2], plain[2])
    for first, second in zip(chunked[2], joint[2], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-9)


def test_attention_is_announced():
    base = build("vit-micro/4", num_classes=CLASSES, channels=1, image_size=8)
    ensemble = LoRAEnsemble(base, seeds=[1, 2])
    assert "plain formula" in made("identity").check(ensemble)
    assert made("functions").check(ensemble) is None


def test_kernel_is_in_float32_under_mixed_precision():
    ensemble = convolutional(2).float()
    images, targets = batch()
    objective = made("identity", scale=50.0)
    seen = []
    energies = objective.terms[0].energies
    objective.terms[0].energies = lambda q: (seen.append(energies(q)), seen[-1])[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = objective(ensemble, images.float(), targets)
    loss.backward()
    assert seen[0].dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in ensemble.parameters())


@pytest.mark.parametrize("name", [*SPACES, "svgd weights"])
def test_repulsion_adds_to_mixup(name):
    ensemble = convolutional(2)
    ensemble.set_step(3)
    likelihood = MixupMP(Mixup(ratio=0.5))
    plain = after(likelihood, ensemble, *batch())
    found = after(made(name, likelihood, scale=50.0), ensemble, *batch())
    assert not same(found[2], plain[2])
    assert same(found[3], plain[3])


def test_sums_that_make_no_sense_are_refused():
    mixed = MixupMP(Mixup(ratio=math.inf))
    with pytest.raises(ValueError, match="on the batch's own images"):
        Repulsive(mixed, [FoRDE()])
    Repulsive(mixed, [WeightSpace()])
    with pytest.raises(ValueError, match="mixup shows each member its own"):
        SteinVariational(MixupMP(), FunctionSpace())
    with pytest.raises(ValueError, match="at least one repulsion"):
        Repulsive(CrossEntropy(), [])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"scale": -1.0}, "repulsion.scale must be >= 0 and finite, got -1"),
        ({"blend": 2.0}, r"repulsion.blend must be in \[0, 1\], got 2"),
        ({"annealing_share": 0.0}, r"repulsion.annealing_share must be in \(0, 1\], got 0"),
    ],
)
def test_options_out_of_bounds_are_refused(options, line):
    with pytest.raises(ValueError, match=line):
        Repulsion(**options)


def test_members_of_different_sizes_have_no_common_weight_space():
    networks = iter([nn.Linear(64, CLASSES), nn.Linear(64, CLASSES, bias=False)])
    ensemble = DeepEnsemble(lambda: nn.Sequential(nn.Flatten(), next(networks)), seeds=[1, 2])
    with pytest.raises(ValueError, match="weight space compares members of one size"):
        made("weights").check(ensemble)
