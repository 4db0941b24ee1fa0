"""LoRA-ensembles: the contract for every structure, and what is particular to the method."""

import copy

import pytest
import timm
import torch
from contract import CLASSES, EnsembleContract
from deepens.ensembles import CrossEntropy, DeepEnsemble, LoRA, LoRAEnsemble, Network, Optimizer
from deepens.ensembles.backbones import Normalisation, Preprocessing, build
from deepens.ensembles.backbones.transformers import as_network
from deepens.ensembles.optimization import build_optimizer
from deepens.experiments.cost.macs import count_macs
from deepens.experiments.cost.memory import LiveStorages
from small_transformers import (
    drawn,
    hugging_face,
    own,
    timm_model,
    torchvision_model,
    unknown,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

SEEDS = [7, 8, 9]
OPTIONS = LoRA(rank=2)


class _LoRA(EnsembleContract):
    shares_weights = True
    options = OPTIONS
    base = staticmethod(own)

    def make(self, num_members):
        return LoRAEnsemble(drawn(self.base), seeds=SEEDS[:num_members], options=self.options)

    def plain(self):
        return Network(as_network(drawn(self.base)).body, self.make(1).member(0).head)


class TestOwnTransformer(_LoRA):
    pass


class TestTorchvisionTransformer(_LoRA):
    base = staticmethod(torchvision_model)
    image_shape = (3, 8, 8)


class TestTimmTransformer(_LoRA):
    base = staticmethod(timm_model)


class TestHuggingFaceTransformer(_LoRA):
    base = staticmethod(hugging_face)


class TestTransformerOfUnknownStructure(_LoRA):
    base = staticmethod(unknown)


class TestAdaptersInTheLastBlockOnly(_LoRA):
    options = LoRA(rank=2, blocks=1)


class TestOneMemberAfterAnother(_LoRA):
    options = LoRA(rank=2, blocks=3, execution="loop")


class TestCheckpointing(_LoRA):
    options = LoRA(rank=2, checkpointing=True)


class TestSomeProjectionsAndHeadsWithNorm(_LoRA):
    options = LoRA(rank=2, projections=("value", "query"), head_norm=True, scaling=0.5)


class TestBehindAPreprocessing(_LoRA):
    @staticmethod
    def base():
        expected = Normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        front = Preprocessing(None, expected, channels=1, size=8, interpolation="bicubic")
        network = as_network(torchvision_model())
        return Network(nn.Sequential(front, network.body), network.head)

    image_shape = (1, 12, 12)


STRUCTURES = [own, torchvision_model, timm_model, hugging_face, unknown]


def _make(base=own, options=OPTIONS, seeds=SEEDS, spread=True):
    """A float64 ensemble; ``spread`` moves adapters off their zero and heads apart."""
    ensemble = LoRAEnsemble(drawn(base), seeds=seeds, options=options).double()
    generator = torch.Generator().manual_seed(1)
    for index in range(len(seeds) if spread else 0):
        for value in ensemble.member_state(index).values():
            value.add_(torch.randn(value.shape, generator=generator, dtype=value.dtype) * 0.3)
    return ensemble


def _images(*leading, base=own):
    channels = 3 if base is torchvision_model else 1
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*leading, channels, 8, 8, generator=generator, dtype=torch.float64)


def _targets(*leading):
    return torch.randint(CLASSES, leading, generator=torch.Generator().manual_seed(4))


def _gradients(ensemble, images, targets=None):
    ensemble.zero_grad()
    targets = _targets(images.shape[-4]) if targets is None else targets
    CrossEntropy()(ensemble.train(), images, targets).loss.backward()
    return {n: p.grad.clone() for n, p in ensemble.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("base", STRUCTURES)
def test_before_training_with_the_base_s_head_it_is_the_base(base):
    options = LoRA(rank=2, head="base")
    ensemble = _make(base, options, spread=False).eval()
    images = _images(4, base=base)
    expected = drawn(base).double().eval()(images)
    for logits in ensemble(images):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("base", STRUCTURES)
def test_at_the_start_a_has_no_gradient_and_b_has_one(base):
    gradients = _gradients(_make(base, spread=False), _images(4, base=base))
    for name, gradient in gradients.items():
        if name.endswith(".down"):
            assert not gradient.any(), name
        else:
            assert gradient.flatten(1).any(dim=1).all(), name


@pytest.mark.parametrize("base", STRUCTURES)
def test_merged_weights_reproduce_a_member_in_a_plain_network(base):
    ensemble = _make(base, LoRA(rank=2, scaling=0.7)).eval()
    images = _images(4, base=base)
    logits = ensemble(images)
    for index in range(3):
        member = ensemble.member(index)
        torch.testing.assert_close(member.eval()(images), logits[index], rtol=0, atol=1e-4)
        expected = {name: type(part) for name, part in as_network(drawn(base)).named_modules()}
        assert {name: type(part) for name, part in member.named_modules()} == expected
        assert all(parameter.requires_grad for parameter in member.parameters())


def test_number_of_trained_parameters_of_a_vit_b_32_is_that_of_the_paper():
    with torch.device("meta"):
        base = build("torchvision:vit_b_32", num_classes=10, channels=3, image_size=224)
        ensemble = LoRAEnsemble(base, seeds=range(4))
    trained = sum(p.numel() for p in ensemble.parameters() if p.requires_grad)
    assert trained == 4 * (589_824 + 769 * 10)
    with pytest.raises(ValueError, match="got one on the meta device"):
        ensemble.base_hash()


def test_a_is_xavier_uniform_with_the_gain():
    ensemble = LoRAEnsemble(drawn(own), seeds=range(80), options=LoRA(rank=8, gain=10.0))
    down = ensemble.adapters["0"]["query"].down
    expected = 10 * (2 / (8 + 24)) ** 0.5
    assert down.std().item() == pytest.approx(expected, rel=0.02)
    assert down.abs().max().item() <= 3**0.5 * expected


@pytest.mark.parametrize("base", STRUCTURES)
@pytest.mark.parametrize("leading", [(4,), (3, 4)])
@pytest.mark.parametrize("projections", [("query", "value"), ("query", "key", "value", "output")])
def test_loop_equals_vectorised(base, leading, projections):
    images = _images(*leading, base=base)
    together = _make(base, LoRA(rank=2, projections=projections))
    alone = _make(base, LoRA(rank=2, projections=projections, execution="loop"))
    expected = _gradients(together, images)
    torch.testing.assert_close(alone(images), together(images), rtol=0, atol=1e-10)
    for name, gradient in _gradients(alone, images).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("execution", ["vectorised", "loop"])
def test_checkpointing_changes_no_gradient(execution):
    images = _images(4)
    expected = _gradients(_make(options=LoRA(rank=2, execution=execution)), images)
    options = LoRA(rank=2, checkpointing=True, execution=execution)
    for name, gradient in _gradients(_make(options=options), images).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12)


def _count_rows(modules):
    """How many rows each module reads in all, in the passes that follow."""
    rows = [0] * len(modules)

    def hook(index):
        def add(module, arguments, result):
            rows[index] += len(arguments[0])

        return add

    for index, module in enumerate(modules):
        module.register_forward_hook(hook(index), prepend=True)
    return rows


@pytest.mark.parametrize("execution", ["vectorised", "loop"])
def test_what_members_share_runs_once(execution):
    ensemble = _make(options=LoRA(rank=2, blocks=2, execution=execution))
    body = ensemble.base.body
    first, second = body.blocks[2], body.blocks[3]
    rows = _count_rows([body.embedding, body.blocks[0], body.blocks[1].mlp, second.attn.qkv])
    ensemble(_images(4))
    assert rows == [4, 4, 4, 12]
    rows = _count_rows([first.norm1, first.attn.qkv, first.norm2, first.attn.proj])
    ensemble(_images(4))
    if execution == "vectorised":
        assert rows == [4, 4, 12, 12]
        ensemble(_images(3, 4))
        assert rows == [16, 16, 24, 24]


@pytest.mark.parametrize("execution", ["vectorised", "loop"])
@pytest.mark.parametrize("base", [own, torchvision_model, timm_model])
def test_macs_are_those_of_the_shared_and_the_member_s_parts(base, execution):
    members, rank, blocks = 3, 2, 2
    options = LoRA(rank=rank, blocks=blocks, execution=execution)
    ensemble = LoRAEnsemble(drawn(base), seeds=SEEDS, options=options)
    plain = as_network(drawn(base))
    shape = (3 if base is torchvision_model else 1, 8, 8)
    width = plain.head.in_features
    block = (plain.body.encoder.layers if base is torchvision_model else plain.body.blocks)[0]
    tokens = 4 if base is own else 5
    of_block = count_macs(_TokensOf(block, tokens, width), (1, 1, 1))
    head = width * CLASSES
    shared = count_macs(plain, shape) - head - blocks * of_block
    adapters = blocks * 4 * tokens * rank * 2 * width
    expected = shared + members * (blocks * of_block + adapters + head)
    if execution == "vectorised":
        expected -= (members - 1) * tokens * width * 3 * width
    assert count_macs(ensemble, shape) == expected


def test_adapters_in_the_last_quarter_cost_less_than_half_and_are_counted_without_weights():
    with torch.device("meta"):
        base = build("torchvision:vit_b_32", num_classes=10, channels=3, image_size=224)
        full = LoRAEnsemble(base, seeds=range(16))
        quarter = LoRAEnsemble(base, seeds=range(16), options=LoRA(blocks=3))
    shape = (3, 224, 224)
    assert count_macs(quarter, shape) < 0.45 * count_macs(full, shape)


class _TokensOf(nn.Module):
    """A block on one image's tokens."""

    def __init__(self, block, tokens, width):
        super().__init__()
        self.block = block
        self.shape = (1, tokens, width)

    def forward(self, images):
        return self.block(images.new_zeros(self.shape))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimiser_keeps_nothing_of_what_is_frozen(name):
    ensemble = _make().train()
    before = {name: value.clone() for name, value in ensemble.base.state_dict().items()}
    optimizer = build_optimizer(ensemble, Optimizer(name=name, lr=0.1, decay_all=False))
    CrossEntropy()(ensemble, _images(4), _targets(4)).loss.backward()
    optimizer.step()
    own_parameters = {id(p) for i in range(3) for p, _ in ensemble.member_parameters(i)}
    assert {id(parameter) for parameter in optimizer.state} == own_parameters
    for name, value in ensemble.base.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in ensemble.base.parameters())


def test_only_adapters_and_heads_are_named_outside_the_base():
    ensemble = _make()
    names = {name for name in ensemble.state_dict() if not name.startswith("base.")}
    assert names == set(ensemble.member_state(0))
    assert {name.split(".")[0] for name in names} == {"adapters", "heads"}
    assert DeepEnsemble(nn.Flatten, seeds=[1]).base is None


def test_base_runs_in_evaluation_mode_in_training_too():
    ensemble = _make(torchvision_model).train()
    images = _images(4, base=torchvision_model)
    assert torch.equal(ensemble(images), ensemble(images))
    assert ensemble.training
    assert not ensemble.base.training


@pytest.mark.parametrize("base", STRUCTURES)
def test_bfloat16_base_changes_little_and_nothing_of_the_members(base):
    seeds = [1, 2]
    exact = LoRAEnsemble(drawn(base), seeds=seeds, options=LoRA(rank=2)).eval()
    options = LoRA(rank=2, base_precision="bf16")
    half = LoRAEnsemble(drawn(base), seeds=seeds, options=options).eval()
    assert {p.dtype for p in half.base.body.parameters()} == {torch.bfloat16}
    for name, value in half.member_state(1).items():
        assert torch.equal(value, exact.member_state(1)[name])
    images = _images(4, base=base).float()
    logits = half(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact(images), rtol=0.1, atol=0.1)
    assert half.base_hash() == exact.base_hash()
    assert all(g.dtype == torch.float32 for g in _gradients(half, images).values())
    member = half.member(0).eval()
    torch.testing.assert_close(member(images), logits[0], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("base", STRUCTURES)
def test_mixed_precision_trains_with_logits_in_float32(base):
    ensemble = LoRAEnsemble(drawn(base), seeds=[1, 2], options=OPTIONS).train()
    images = _images(4, base=base).float()
    with torch.autocast("cpu", torch.bfloat16):
        logits = ensemble(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, ensemble(images), rtol=0.1, atol=0.1)
    logits.square().sum().backward()
    assert all(bool(p.grad[i].isfinite().all()) for p, i in ensemble.member_parameters(0))


def test_another_base_has_another_hash_and_a_copy_keeps_it():
    first, other = _make(), LoRAEnsemble(drawn(own, seed=4), seeds=SEEDS, options=OPTIONS)
    assert first.base_hash() != other.base_hash()
    assert copy.deepcopy(first).base_hash() == first.base_hash()
    other.load_state_dict(first.state_dict())  # a file that holds the base as well
    assert other.base_hash() == first.base_hash()
    with pytest.raises(ValueError, match="a DeepEnsemble has no base"):
        DeepEnsemble(nn.Flatten, seeds=[1]).base_hash()


def _without_base(ensemble, *kept):
    """A state of adapters and heads, and some of the base's tensors."""
    state = ensemble.state_dict()
    return {name: v for name, v in state.items() if not name.startswith("base.") or name in kept}


def test_members_of_another_base_are_refused_unless_they_bring_it():
    first = _make()
    other = LoRAEnsemble(drawn(own, seed=4), seeds=SEEDS, options=OPTIONS).double()
    before = copy.deepcopy(other.state_dict())
    part = [name for name in before if name.startswith("base.body.blocks.0.")]
    for kept in ([], part):
        state = _without_base(first, "base.fingerprint", *kept)
        for target in (other, copy.deepcopy(other)):
            line = f"hash is {other.base_hash()}, got {first.base_hash()} without all of that"
            with pytest.raises(ValueError, match=line) as caught:
                target.load_state_dict(state, strict=False)
            assert "\n" not in str(caught.value)
            with pytest.raises(ValueError, match=line):
                nn.ModuleDict({"ensemble": target}).load_state_dict(
                    {f"ensemble.{name}": value for name, value in state.items()}, strict=False
                )
            for name, value in target.state_dict().items():
                assert torch.equal(value, before[name])
    other.load_state_dict(first.state_dict())
    assert other.base_hash() == first.base_hash()
    assert torch.equal(other(_images(2)), first(_images(2)))


@pytest.mark.parametrize("kept", [[], ["base.fingerprint"]])
def test_members_on_the_same_base_are_loaded_without_it(kept):
    first, other = _make(), _make(spread=False)
    other.load_state_dict(_without_base(first, *kept), strict=False)
    assert torch.equal(other(_images(2)), first(_images(2)))


@pytest.mark.parametrize("head_norm", [True, False])
def test_member_depends_on_its_own_seed_alone(head_norm):
    options = LoRA(rank=2, head_norm=head_norm)
    joint = LoRAEnsemble(drawn(own), seeds=SEEDS, options=options)
    alone = LoRAEnsemble(drawn(own), seeds=SEEDS[2:], options=options)
    for name, value in alone.member_state(0).items():
        assert torch.equal(value, joint.member_state(2)[name])


def test_building_and_taking_members_out_leaves_generator_and_base_alone():
    base = drawn(torchvision_model)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    LoRAEnsemble(base, seeds=SEEDS, options=OPTIONS).member(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad for parameter in base.parameters())
    for name, value in base.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize("base", STRUCTURES)
@pytest.mark.parametrize("execution", ["vectorised", "loop"])
def test_input_gradients_and_their_gradients_are_those_of_the_members(base, execution):
    ensemble = _make(base, LoRA(rank=2, execution=execution)).train()
    members = [ensemble.member(index).eval() for index in range(3)]
    images = _images(2, base=base).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        scores = ensemble(images).logsumexp(-1).sum()
        (gradient,) = torch.autograd.grad(scores, images, create_graph=True)
        expected = sum(
            torch.autograd.grad(member(images).logsumexp(-1).sum(), images)[0] for member in members
        )
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)
        gradient.square().sum().backward()
        plain = members[0](images).logsumexp(-1).sum()
        own_gradient = torch.autograd.grad(plain, images, create_graph=True)[0]
        head = torch.autograd.grad((own_gradient * gradient.detach() * 2).sum(),
                                   members[0].head.weight)[0]  # fmt: skip
    torch.testing.assert_close(ensemble.heads.weight.grad[0], head, rtol=0, atol=1e-8)
    assert ensemble.adapters["0"]["query"].up.grad.flatten(1).any(dim=1).all()


def test_members_in_any_order_of_one_batch_each():
    ensemble = _make().eval()
    images = _images(2, 4)
    logits = ensemble(images, members=[2, 0])
    torch.testing.assert_close(logits[0], ensemble(images[0])[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(logits[1], ensemble(images[1])[0], rtol=0, atol=1e-12)


def test_gradients_asked_of_frozen_weights_are_refused():
    ensemble = _make()
    with pytest.raises(ValueError, match="base must stay frozen.*DeepEnsemble"):
        ensemble.requires_grad_(True)
    ensemble.base.requires_grad_(True)
    for mode in (True, False):
        with pytest.raises(ValueError, match="base must stay frozen"):
            ensemble.train(mode)(_images(2))
    with torch.no_grad():
        ensemble.eval()(_images(2))
    assert not any(p.requires_grad for p in ensemble.requires_grad_(False).parameters())


class _Weighted(nn.Module):
    """Uses its projections' weights without calling them."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, images):
        tokens = images.flatten(1)
        return self.proj(nn.functional.linear(tokens, self.qkv.weight)[:, :64])


def test_projections_that_are_never_called_are_refused():
    ensemble = LoRAEnsemble(Network(_Weighted(), nn.Linear(64, 2)), seeds=[1], options=OPTIONS)
    with pytest.raises(ValueError, match="base must call its projections, but qkv is used"):
        ensemble(torch.zeros(2, 1, 8, 8))


class _HeadByHead(nn.Module):
    """A joint projection whose rows are queries, keys and values of a head, then the next's."""

    def __init__(self, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, tokens, **masks):
        parts = self.qkv(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, -1)
        return self.proj(
            nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        )


def _head_by_head():
    body = timm_model()
    body.blocks[1].attn = _HeadByHead()
    head, body.head = body.head, nn.Identity()
    return Network(body, head)


@pytest.mark.parametrize("projections", [("query",), ("output", "value", "query")])
def test_a_part_of_a_joint_projection_in_an_unknown_order_is_refused(projections):
    line = "query, key and value or none, since blocks.1.attn.qkv makes them.*choose all three"
    with pytest.raises(ValueError, match=line) as caught:
        LoRAEnsemble(_head_by_head(), seeds=SEEDS, options=LoRA(rank=2, projections=projections))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("projections", [("query", "key", "value"), ("output",)])
def test_a_joint_projection_in_any_order_takes_all_parts_or_none(projections):
    ensemble = _make(_head_by_head, LoRA(rank=2, projections=projections)).eval()
    images = _images(4)
    for index, logits in enumerate(ensemble(images)):
        expected = ensemble.member(index).eval()(images)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def _peak(ensemble, work):
    held = [*ensemble.parameters(), *ensemble.buffers()]
    with LiveStorages(known=[tensor.untyped_storage().data_ptr() for tensor in held]) as watch:
        work(ensemble)
    return watch.peak


def test_loop_saves_memory_in_prediction_and_in_training_by_one_member_at_a_time_alone():
    images, targets = _images(16), _targets(16)
    together, loop = (
        _make(options=LoRA(rank=2, execution=execution), seeds=[*SEEDS, 10, 11, 12])
        for execution in ("vectorised", "loop")
    )

    def predict(ensemble):
        with torch.no_grad():
            ensemble.eval()(images)

    def learn(**options):
        def step(ensemble):
            CrossEntropy(**options)(ensemble.train(), images, targets).loss.backward()
            ensemble.zero_grad()

        return step

    assert _peak(loop, predict) < 0.5 * _peak(together, predict)
    assert _peak(loop, learn()) > 0.8 * _peak(together, learn())
    assert _peak(loop, learn(members_at_once=1)) < 0.5 * _peak(loop, learn())


@pytest.mark.parametrize(
    ("base", "options", "line"),
    [
        (own, LoRA(rank=97), r"lora.rank must be <= 24, the size of the query projection"),
        (own, LoRA(blocks=5), r"lora.blocks must be <= 4, the base's blocks, got 5"),
        (unknown, LoRA(rank=2, blocks=3), r"lora.blocks must be <= 2"),
        (
            lambda: build("resnet8", num_classes=5, channels=1, image_size=8),
            OPTIONS,
            "base must have self-attention to put adapters on, got .*choose a vision transformer",
        ),
        (lambda: nn.Linear(3, 2), OPTIONS, "base must have self-attention.*got Linear"),
        (
            lambda: timm.create_model("test_coatnet"),
            OPTIONS,
            r"from linear layers, .* but 'stages.2.blocks.0.attn' \(Attention2d\) of MaxxVit",
        ),
        (lambda: Network(own(), nn.Identity()), OPTIONS, "base must end in a linear head.*Id"),
        (lambda: nn.TransformerEncoderLayer(8, 2), OPTIONS, "base must be Network"),
    ],
)
def test_bases_and_options_that_do_not_fit_are_refused(base, options, line):
    with pytest.raises(ValueError, match=line) as caught:
        LoRAEnsemble(base(), seeds=SEEDS, options=options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rank": 0}, "lora.rank must be >= 1, got 0"),
        ({"rank": 2.5}, "lora.rank must be an integer >= 1, got 2.5"),
        ({"rank": True}, "lora.rank must be an integer >= 1, got True"),
        ({"rank": "8"}, "lora.rank must be an integer >= 1, got '8'"),
        ({"rank": None}, "lora.rank must be an integer >= 1, got None"),
        ({"blocks": 1.0}, "lora.blocks must be an integer >= 1, got 1.0"),
        ({"blocks": True}, "lora.blocks must be an integer >= 1, got True"),
        ({"scaling": "1"}, "lora.scaling must be > 0 and finite, got '1'"),
        ({"gain": True}, "lora.gain must be > 0 and finite, got True"),
        ({"head_norm": 1}, "lora.head_norm must be True or False, got 1"),
        ({"checkpointing": "yes"}, "lora.checkpointing must be True or False, got 'yes'"),
        ({"projections": None}, "lora.projections must name some of .*, got None"),
        ({"projections": "query"}, "lora.projections must name some of .*, got 'query'"),
        ({"projections": ()}, "lora.projections must name some of query, key"),
        ({"projections": ("query", "query")}, "each once"),
        ({"projections": ("qkv",)}, r"got \['qkv'\]"),
        ({"blocks": 0}, "lora.blocks must be >= 1, got 0"),
        ({"scaling": 0.0}, "lora.scaling must be > 0 and finite, got 0.0"),
        ({"gain": float("nan")}, "lora.gain must be > 0 and finite, got nan"),
        ({"head": "old"}, "lora.head must be 'fresh' or 'base', got 'old'"),
        ({"execution": "vmap"}, "lora.execution must be 'vectorised' or 'loop', got 'vmap'"),
        ({"base_precision": "16"}, "lora.base_precision must be '32' or 'bf16', got '16'"),
    ],
)
def test_options_out_of_bounds_are_refused(unchecked, changes, line):
    with pytest.raises(ValueError, match=line) as caught:
        LoRA(**changes)
    assert "\n" not in str(caught.value)
