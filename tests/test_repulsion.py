"""Members that are pushed apart: by input gradients, in weight space and in function space."""

import copy
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
from deepens.ensembles.objectives.forde import input_gradient_energies, principal_components
from torch import nn


class Images:
    """Training images in batches."""

    def __init__(self, *shape, seed=2):
        self.all = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.all)

    def __iter__(self):
        return iter(self.all.split(7))


def prepared(objective, *shape):
    objective.prepare(Images(*(shape or (40, 1, 8, 8))))
    return objective


SPACES = {
    "identity": lambda **options: FoRDE(Repulsion(**options)),
    "pca": lambda **options: FoRDE(Repulsion(lengthscale="pca", **options)),
    "tuned": lambda **options: FoRDE(Repulsion(lengthscale="tuned", **options)),
    "weights": lambda **options: WeightSpace(Repulsion(**options)),
    "functions": lambda **options: FunctionSpace(Repulsion(**options)),
}


def made(name, likelihood=None, **options):
    likelihood = likelihood or CrossEntropy()
    if name.startswith("svgd "):
        objective = SteinVariational(likelihood, SPACES[name[5:]](update="svgd", **options))
    else:
        objective = Repulsive(likelihood, [SPACES[name](**options)])
    return prepared(objective)


EVERY = (*SPACES, "svgd weights", "svgd functions")


class TestFoRDE(ObjectiveContract):
    def make(self):
        return made("pca")


class TestWeightSpace(ObjectiveContract):
    def make(self):
        return made("weights", scale=100.0)


class TestFunctionSpace(ObjectiveContract):
    def make(self):
        return made("functions", scale=10.0)


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


def convolutional(num_members, *, dropout=0.0):
    def factory():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(4 * 36, CLASSES),
        )

    return DeepEnsemble(factory, seeds=range(1, num_members + 1)).double()


def batch(count=6):
    contract = ObjectiveContract()
    return contract.batch(count)


def after(objective, ensemble, images, targets):
    """A copy's gradients, running statistics and value after one pass."""
    ensemble = copy.deepcopy(ensemble).train()
    loss, values = objective(ensemble, images, targets)
    loss.backward()
    gradients = [p.grad for p in ensemble.parameters() if p.requires_grad]
    return loss.detach(), values, gradients, list(ensemble.buffers())


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


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


def gradients(members=4, images=5, features=12):
    generator = torch.Generator().manual_seed(3)
    shape = (members, images, features)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_input_gradient_energies_equal_their_formula():
    """Written out image by image and pair by pair."""
    g = gradients()
    generator = torch.Generator().manual_seed(4)
    vectors, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))
    scales = torch.rand(12, generator=generator, dtype=torch.float64)
    members, images, _ = g.shape
    total = torch.zeros(members, dtype=torch.float64)
    s = [[(scales.sqrt() * (vectors.T @ (v / v.norm()))) for v in row] for row in g]
    for b in range(images):
        for j in range(members):
            d = [float((s[i][b] - s[j][b]) @ (s[i][b] - s[j][b])) for i in range(members)]
            middle = sorted(d)[1:3]
            h = sum(middle) / 2 / math.log(members) + 1e-12
            for i in range(members):
                total[i] += math.exp(-d[i] / h) / images
    found = input_gradient_energies(g, vectors, scales)
    torch.testing.assert_close(found, total.log(), rtol=1e-12, atol=1e-12)


def test_identical_members_have_energy_ln_m_and_no_gradient():
    g = gradients()[:1].repeat(4, 1, 1).requires_grad_()
    energies = input_gradient_energies(g)
    torch.testing.assert_close(energies, torch.full((4,), math.log(4), dtype=torch.float64))
    energies.sum().backward()
    assert g.grad.abs().max() == 0


def test_energy_moves_by_the_members_own_gradients_alone():
    g = gradients().requires_grad_()
    energies = input_gradient_energies(g)
    for i in range(4):
        (by,) = torch.autograd.grad(energies[i], g, retain_graph=True)
        assert by[i].abs().max() > 0
        by[i] = 0
        assert by.abs().max() == 0


def test_energy_takes_no_notice_of_the_gradients_norm():
    g = gradients().requires_grad_()
    input_gradient_energies(g).sum().backward()
    assert abs(float((g.detach() * g.grad).sum())) < 1e-7
    assert g.grad.norm() > 1e-3
    scaled = g.detach() * torch.tensor([1.0, 10.0, 0.1, 3.0]).double()[:, None, None]
    torch.testing.assert_close(input_gradient_energies(scaled), input_gradient_energies(g.detach()))


@pytest.mark.parametrize("members", [2, 3, 5])
def test_energy_of_fresh_networks_is_near_that_of_equal_distances(members):
    """Where all distances are alike; with two members the median is half of the distance."""
    g = gradients(members, 64, 3072)
    kernel = math.exp(-2 * math.log(2)) if members == 2 else 1 / members
    expected = math.log(1 + (members - 1) * kernel)
    found = input_gradient_energies(g)
    torch.testing.assert_close(
        found, torch.full((members,), expected, dtype=torch.float64), rtol=0, atol=0.02
    )


def test_two_members_have_a_bandwidth():
    g = gradients(2).requires_grad_()
    input_gradient_energies(g).sum().backward()
    assert torch.isfinite(g.grad).all()
    assert g.grad.norm() > 1e-3


def test_quantity_is_each_members_own_input_gradient_of_the_true_class():
    ensemble = convolutional(2).train()
    images, targets = batch()
    objective = made("identity")
    seen = []
    term = objective.terms[0]
    energies = term.energies
    term.energies = lambda quantity: (seen.append(quantity.detach()), energies(quantity))[1]
    objective(ensemble, images, targets)
    for index in range(2):
        leaf = images.clone().requires_grad_()
        logits = ensemble.networks[index](leaf)
        (expected,) = torch.autograd.grad(logits[range(6), targets].sum(), leaf)
        torch.testing.assert_close(seen[0][index], expected.flatten(1))


def test_principal_components_are_those_of_the_covariance():
    images = Images(50, 2, 3, 3)
    values, vectors = principal_components(images)
    centred = images.all.flatten(1).double()
    centred = centred - centred.mean(0)
    covariance = centred.T @ centred / 50
    rebuilt = vectors.double() @ torch.diag(values.double()) @ vectors.double().T
    torch.testing.assert_close(rebuilt, covariance, rtol=0, atol=1e-6)
    assert (values.diff() <= 0).all()


def test_a_basis_of_too_many_pixels_is_refused():
    with pytest.raises(ValueError, match=r"at most 12288 .* use --repulsion.lengthscale identity"):
        principal_components(Images(2, 3, 65, 65))


def test_tuned_lengthscales_run_from_identity_to_pca():
    images, targets = batch()
    loss = {}
    for name, blend in [("tuned", 0.0), ("tuned", 1.0), ("pca", 0.2), ("identity", 0.2)]:
        objective = made(name, blend=blend)
        loss[name, blend] = after(objective, convolutional(3), images, targets)[0]
    torch.testing.assert_close(loss["tuned", 1.0], loss["pca", 0.2])
    torch.testing.assert_close(loss["tuned", 0.0], loss["identity", 0.2], rtol=0, atol=1e-6)
    assert abs(loss["pca", 0.2] - loss["identity", 0.2]) > 1e-5


def test_a_basis_that_was_kept_is_taken_instead_of_computed():
    first = made("pca")
    again = Repulsive(CrossEntropy(), [FoRDE(Repulsion(lengthscale="pca"))])
    again.restore(first.state_dict())
    again.prepare(Images(40, 1, 8, 8, seed=99))
    assert same(again.buffers(), first.buffers())
    with pytest.raises(ValueError, match="is no buffer of this objective"):
        again.restore({"terms.0.other": torch.zeros(1)})


def test_unprepared_repulsions_say_so():
    with pytest.raises(ValueError, match="call prepare with them first"):
        Repulsive(CrossEntropy(), [FoRDE(Repulsion(lengthscale="pca"))])(convolutional(2), *batch())
    with pytest.raises(ValueError, match="call prepare with them first"):
        Repulsive(CrossEntropy(), [WeightSpace()])(convolutional(2), *batch())


def test_weight_space_adds_the_kernels_gradient_over_the_number_of_images():
    """kde-WGD: sum of kernel gradients over sum of kernels, of whole networks, by hand."""
    ensemble, scale = convolutional(3), 50.0
    plain = after(CrossEntropy(), ensemble, *batch())[2]
    found = after(made("weights", scale=scale), ensemble, *batch())[2]
    size = len(plain) // 3
    rows = torch.stack(
        [torch.cat([p.detach().flatten() for p in n.parameters()]) for n in ensemble.networks]
    )
    d = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    h = d.quantile(0.5) / math.log(4)
    k = (-d / h).exp()
    for i in range(3):
        ours = torch.cat([g.flatten() for g in found[i * size : (i + 1) * size]])
        base = torch.cat([g.flatten() for g in plain[i * size : (i + 1) * size]])
        pull = sum(-2 / h * k[i, j] * (rows[i] - rows[j]) for j in range(3)) / k[i].sum()
        torch.testing.assert_close(ours, base + scale / 40 * pull, rtol=1e-9, atol=1e-12)


def test_svgd_in_weight_space_mixes_gradients_by_the_kernel():
    ensemble, scale = convolutional(2), 50.0
    with torch.no_grad():  # near each other, so that the kernel is not small
        for ours, theirs in zip(*(n.parameters() for n in ensemble.networks), strict=True):
            ours.copy_(theirs + 0.01)
    plain = after(CrossEntropy(), ensemble, *batch())[2]
    found = after(made("svgd weights", scale=scale), ensemble, *batch())[2]
    size = len(plain) // 2
    rows = [torch.cat([p.detach().flatten() for p in n.parameters()]) for n in ensemble.networks]
    slopes = [torch.cat([g.flatten() for g in plain[i * size : (i + 1) * size]]) for i in (0, 1)]
    d = (rows[0] - rows[1]).square().sum()
    h = d / 2 / math.log(3)
    k = (-d / h).exp()
    ours = torch.cat([g.flatten() for g in found[:size]])
    expected = slopes[0] + k * slopes[1] - scale / 40 * (2 / h) * k * (rows[0] - rows[1])
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-12)


def test_constant_shifts_of_logits_are_no_repulsion():
    term = SPACES["functions"]()
    logits = torch.randn(3, 4, CLASSES, dtype=torch.float64)
    shifted = logits + torch.randn(3, 4, 1).double()
    torch.testing.assert_close(_quantity(term, shifted), _quantity(term, logits))


def _quantity(term, logits):
    from deepens.ensembles.objectives.repulsion import Evaluation

    targets = torch.zeros(logits.shape[1], dtype=torch.long)
    return term.quantity(
        Evaluation(convolutional(3), [0, 1, 2], logits, targets, None, differentiable=True)
    )


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


@pytest.mark.parametrize("execution", ["loop", "grouped", "vmap"])
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


def test_compiled_members_are_refused_with_the_reason():
    ensemble = convolutional(2)
    ensemble.execution = "compiled"
    with pytest.raises(ValueError, match=r"torch.compile has no double backward; use loop"):
        made("identity").check(ensemble)
    assert made("weights").check(ensemble) is None


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
