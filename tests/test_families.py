"""Names and seeds; packed and LoRA-ensembles through training, saving, loading, comparing."""

import dataclasses
import shutil

import pytest
import torch
from deepens.datasets.image_format import ImageFormat
from deepens.ensembles import LoRA, Packed
from deepens.ensembles.backbones import architecture_only, build
from deepens.ensembles.backbones.published import loads_weights
from deepens.experiments.comparison.compare import compare
from deepens.experiments.comparison.ensemble_methods import training_config
from deepens.experiments.comparison.methods import find_method
from deepens.experiments.config import CompareConfig, TrainConfig
from deepens.experiments.cost.macs import count_macs
from deepens.experiments.evaluation.assemble import assemble
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate
from deepens.experiments.report import render_page
from deepens.experiments.store.checkpoint import load_tensors, save_tensors
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import Run, read_json, training_seconds
from deepens.experiments.store.seeds import derive_seed
from deepens.experiments.training import building as families
from deepens.experiments.training.building import build_base, build_ensemble, build_network
from deepens.experiments.training.fitting import Recorder
from deepens.experiments.training.registry import base_run, member_seeds
from deepens.experiments.training.train import train
from deepens.experiments.training.weights import load_ensemble
from safetensors.torch import save_file
from stored_logits import load_logits

QUIET = Display(quiet=True)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.usefixtures("unchecked"),  # whole trainings; their parts are checked
]


def test_unknown_name_is_refused_with_the_nearest_known():
    with pytest.raises(ValueError, match=r"unknown method 'deap'; did you mean 'deep'\? Known: "):
        find_method("deap")
    with pytest.raises(ValueError, match=r"unknown method 'xyz'; Known: .*\bdeep\b"):
        find_method("xyz")


def test_seeds_are_the_same_everywhere():
    assert derive_seed(0, "member", 0) == 3506755128930326898
    assert derive_seed(2**63 - 1, "ä") == derive_seed(2**63 - 1, "ä")


def test_seeds_depend_on_every_part():
    parts = [(0,), (1,), (2**32,), (0, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "ab"), (0, 0)]
    assert len({derive_seed(*each) for each in parts}) == len(parts)


def test_single_member_has_the_seed_that_it_has_in_the_whole():
    whole = member_seeds(TrainConfig(members=3, seed=5))
    assert [member_seeds(TrainConfig(members=3, seed=5, member=i)) for i in range(3)] == [
        [seed] for seed in whole
    ]


@pytest.fixture(scope="module")
def splits(few_splits):
    return few_splits


@pytest.fixture(scope="module")
def form(splits):
    return ImageFormat.of(splits)


def _config(out, ensemble, **changes):
    options = {"epochs": 2, "members": 2, "seed": 4, "quiet": True, "device": "cpu"}
    options |= {"corruptions": ("none",), "ensemble": ensemble, "out": str(out)}
    if ensemble == "lora":
        options |= {"backbone": "vit-micro/4", "width": 0.25, "depth": 0.5, "base_epochs": 1}
        options |= {"lora": LoRA(rank=2)}
    return TrainConfig(**(options | changes))


def _assert_equal_weights(first, second):
    ours, theirs = load_tensors(first.weights)[0], load_tensors(second.weights)[0]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.fixture
def lora(lora_run):
    return lora_run


def test_packed_run_predicts_what_its_loaded_ensemble_says(tmp_path, splits, form):
    config = _config(tmp_path / "run", "packed", packed=Packed(alpha=1.5, gamma=2))
    run = train_and_evaluate(config, splits=splits, display=QUIET)
    ensemble, _ = load_ensemble(run)
    assert ensemble.networks[0].body[3].groups == 2
    logits, _ = load_logits(run)["test"]
    assert logits.shape == (2, len(splits["test"]), 8)
    assert not torch.equal(logits[0], logits[1])


def test_packed_members_trained_one_by_one_are_those_trained_together(tmp_path, splits):
    whole = train(_config(tmp_path / "whole", "packed"), splits=splits, display=QUIET)
    parts = [
        train(_config(tmp_path / f"m{i}", "packed", member=i), splits=splits, display=QUIET)
        for i in range(2)
    ]
    assembled = assemble([part.path for part in parts], str(tmp_path / "assembled"), display=QUIET)
    _assert_equal_weights(assembled, whole)


def test_lora_file_holds_adapters_and_heads_with_the_hash_of_their_base(lora):
    tensors, content = load_tensors(lora.weights)
    assert not [name for name in tensors if name.startswith("base")]
    assert {name.partition(".")[0] for name in tensors} == {"adapters", "heads"}
    assert content["base"]["name"] == "vit-micro/4"
    assert len(content["base"]["hash"]) == 64


def test_base_of_a_lora_run_is_a_run_of_its_own_and_frozen(lora, form):
    base, _ = load_ensemble(Run.open(lora.path / "base"))
    ensemble, _ = load_ensemble(lora)
    assert base.num_members == 1
    for index in range(2):
        member = ensemble.member(index)
        for name, value in base.member_state(0).items():
            shared = not any(
                part in name for part in ("attn.qkv.weight", "attn.proj.weight", "head")
            )
            assert torch.equal(member.state_dict()[name], value) == shared, name


def test_training_time_of_a_lora_run_includes_its_base(lora):
    base = training_seconds(Run.open(lora.path / "base"))
    assert base > 0
    assert training_seconds(lora) > base


def test_checkpoint_to_resume_from_leaves_the_base_out(tmp_path, splits, monkeypatch):
    config = _config(tmp_path / "run", "lora", checkpoint_seconds=0.0)
    stopped = []

    def stop(self, trainer, module):
        original(self, trainer, module)
        # The base has one epoch, the ensemble two.
        if trainer.max_epochs == 2 and self.stage.resume.exists():
            stopped.append(load_tensors(self.stage.resume)[0])
            raise KeyboardInterrupt

    original = Recorder.on_train_epoch_end
    monkeypatch.setattr(Recorder, "on_train_epoch_end", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, splits=splits, display=QUIET)
    monkeypatch.setattr(Recorder, "on_train_epoch_end", original)
    base_bytes = sum(
        t.nbytes
        for t in load_tensors(tmp_path / "run" / "base" / "weights.safetensors")[0].values()
    )
    assert sum(tensor.nbytes for tensor in stopped[0].values()) < base_bytes
    resumed = train(config, splits=splits, display=QUIET)
    whole = train(dataclasses.replace(config, out=str(tmp_path / "whole")), splits=splits)
    _assert_equal_weights(resumed, whole)


def test_lora_members_trained_one_by_one_are_those_trained_together(tmp_path, splits, lora):
    parts = [
        train(_config(tmp_path / f"m{i}", "lora", member=i), splits=splits, display=QUIET)
        for i in range(2)
    ]
    assembled = assemble([part.path for part in parts], str(tmp_path / "all"), display=QUIET)
    ours, theirs = load_tensors(assembled.weights)[0], load_tensors(lora.weights)[0]
    for name, value in theirs.items():
        # Members together are one batched product: equal to rounding.
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    load_ensemble(Run.open(assembled.path))


def test_another_base_is_refused(tmp_path, lora):
    shutil.copytree(lora.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    file = run.path / "base" / "weights.safetensors"
    tensors, content = load_tensors(file)
    tensors["networks.0.body.norm.weight"] += 1e-3
    save_tensors(file, tensors, content)
    with pytest.raises(ValueError, match="belongs to another base: it was trained on vit-micro/4"):
        load_ensemble(run)


def test_missing_base_is_named(tmp_path, lora):
    shutil.copytree(lora.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "base")
    with pytest.raises(ValueError, match="copy the folder base along"):
        load_ensemble(Run.open(tmp_path / "run"))


def test_deleted_base_is_trained_again_by_the_same_command(tmp_path, splits, lora):
    shutil.copytree(lora.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "base")
    config = dataclasses.replace(lora.config, out=str(tmp_path / "run"))
    train(config, splits=splits, display=QUIET)
    _assert_equal_weights(Run.open(tmp_path / "run" / "base"), Run.open(lora.path / "base"))
    load_ensemble(Run.open(tmp_path / "run"))


@pytest.mark.parametrize("ensemble", ["lora", "explicit"])
def test_training_does_not_go_on_from_another_base(tmp_path, splits, form, ensemble, monkeypatch):
    file = tmp_path / "base.safetensors"
    config = _config(tmp_path / "run", "lora", base=str(file), checkpoint_seconds=0.0)
    config = dataclasses.replace(config, ensemble=ensemble)
    network = build_network(config, form)
    save_file(network.state_dict(), file)

    def stop(self, trainer, module):
        original(self, trainer, module)
        raise KeyboardInterrupt

    original = Recorder.on_train_epoch_end
    monkeypatch.setattr(Recorder, "on_train_epoch_end", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, splits=splits, display=QUIET)
    monkeypatch.setattr(Recorder, "on_train_epoch_end", original)
    network.body.norm.bias.data += 1
    save_file(network.state_dict(), file)
    with pytest.raises(ValueError, match=r"resume.safetensors belongs to another run"):
        train(config, splits=splits, display=QUIET)


def _pre_trained(monkeypatch):
    """A backbone whose weights are loaded, or not, as those of the libraries are."""

    def fake(name, **options):
        network = build("vit-micro/4", **options)
        if loads_weights():
            torch.nn.init.constant_(network.body.norm.weight, 0.7)
        return network

    monkeypatch.setattr(families, "build", fake)
    monkeypatch.setattr(families, "check_name", lambda name, **factors: None)
    return {"backbone": "timm:vit-fake@WEIGHTS"}


@pytest.mark.parametrize("save_base", [False, True])
def test_members_on_pre_trained_weights_are_assembled_with_these(
    tmp_path, splits, monkeypatch, save_base
):
    options = _pre_trained(monkeypatch) | {"save_base": save_base, "epochs": 1}
    parts = [
        train(_config(tmp_path / f"m{i}", "lora", member=i, **options), splits=splits)
        for i in range(2)
    ]
    assembled = assemble([part.path for part in parts], str(tmp_path / "all"), display=QUIET)
    ensemble, _ = load_ensemble(Run.open(assembled.path))
    images = torch.randn(3, 1, 8, 8)
    for index, part in enumerate(parts):
        alone, _ = load_ensemble(part)
        torch.testing.assert_close(ensemble(images)[index], alone(images)[0])
    assert (ensemble.member(0).body.norm.weight == 0.7).all()


def test_explicit_members_of_different_bases_are_not_assembled(tmp_path, splits, form):
    file = tmp_path / "base.safetensors"
    parts = []
    for index in range(2):
        config = _config(tmp_path / f"m{index}", "lora", base=str(file), member=index, epochs=1)
        network = build_network(config, form)
        save_file(network.state_dict(), file)
        config = dataclasses.replace(config, ensemble="explicit")
        parts.append(train(config, splits=splits, display=QUIET))
    with pytest.raises(ValueError, match="the members start from different bases"):
        assemble([part.path for part in parts], str(tmp_path / "all"), display=QUIET)


@pytest.mark.parametrize(
    ("ensemble", "option"), [("deep", "base"), ("packed", "base"), ("explicit", "adapters")]
)
def test_options_of_other_families_are_refused(form, ensemble, option):
    config = TrainConfig(ensemble=ensemble, **{option: "somewhere"})
    with pytest.raises(ValueError, match=f"{option} must be left out with --ensemble {ensemble}"):
        build_ensemble(config, form)


def test_comparison_gives_each_method_its_own_options_only(form):
    config = CompareConfig(base="base.safetensors", adapters="folder", backbone="vit-micro/4")
    held = {
        name: training_config(config, name, 0, changes)
        for name, changes in [
            ("single", {"members": 1}),
            ("lora", {"ensemble": "lora"}),
            ("explicit", {"ensemble": "explicit"}),
        ]
    }
    assert (held["single"].base, held["single"].adapters) == (None, None)
    assert (held["lora"].base, held["lora"].adapters) == ("base.safetensors", "folder")
    assert (held["explicit"].base, held["explicit"].adapters) == ("base.safetensors", None)


def test_whole_file_needs_no_base(tmp_path, splits, lora):
    file = tmp_path / "base.safetensors"
    shutil.copy(lora.path / "base" / "weights.safetensors", file)
    config = _config(tmp_path / "run", "lora", save_base=True, base=str(file))
    run = train_and_evaluate(config, splits=splits, display=QUIET)
    before, _ = load_logits(run)["test"]
    file.unlink()
    ensemble, _ = load_ensemble(Run.open(run.path))
    images = torch.randn(3, 1, 8, 8)
    expected, _ = load_ensemble(lora)
    assert torch.equal(ensemble(images), expected(images))
    assert torch.equal(before, load_logits(lora)["test"][0])


def test_base_comes_from_a_file(tmp_path, splits, form):
    config = _config(tmp_path / "run", "lora", base=str(tmp_path / "base.safetensors"))
    network = build_network(config, form)
    save_file(network.state_dict(), config.base)
    assert base_run(config) is None
    loaded = build_base(config, form)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in network.state_dict().items())
    run = train(config, splits=splits, display=QUIET)
    assert not (run.path / "base").exists()
    load_ensemble(run)
    network.body.norm.bias.data += 1
    save_file(network.state_dict(), config.base)
    with pytest.raises(ValueError, match="belongs to another base"):
        load_ensemble(run)


def test_base_file_of_a_single_run_fits(tmp_path, lora, form):
    file = lora.path / "base" / "weights.safetensors"
    config = _config(tmp_path / "run", "lora", base=str(file))
    single, _ = load_ensemble(Run.open(lora.path / "base"))
    expected = single.member(0).state_dict()
    loaded = build_base(config, form).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (lambda file: None, "base.safetensors does not exist; put it back"),
        (lambda file: file.write_bytes(b"no tensors"), "is no safetensors file"),
        (
            lambda file: save_file({"body.norm.weight": torch.zeros(24)}, file),
            r"does not hold this backbone's weights: \d+ of \d+ differ, such as body.embedding",
        ),
    ],
)
def test_base_file_that_does_not_fit_is_refused(tmp_path, form, prepare, line):
    config = _config(tmp_path / "run", "lora", base=str(tmp_path / "base.safetensors"))
    prepare(tmp_path / "base.safetensors")
    with pytest.raises(ValueError, match=line):
        build_ensemble(config, form)


def test_backbone_without_attention_is_refused_before_the_directory_is_made(tmp_path, splits):
    config = _config(tmp_path / "run", "lora", backbone="small-cnn", width=1.0, depth=1.0)
    with pytest.raises(ValueError, match=r"must have self-attention .* got Sequential"):
        train(config, splits=splits, display=QUIET)
    assert not (tmp_path / "run").exists()


def test_pre_trained_network_is_no_packed_ensemble(form):
    config = TrainConfig(ensemble="packed", backbone="torchvision:resnet18@IMAGENET1K_V1")
    with pytest.raises(ValueError, match="narrower networks, which the pre-trained weights of"):
        build_ensemble(config, form)


def test_explicit_members_start_from_one_base_with_heads_of_their_own(tmp_path, splits, form):
    config = dataclasses.replace(_config(tmp_path / "run", "lora"), ensemble="explicit")
    base = build_base(config, form)
    ensemble = build_ensemble(config, form)
    first, second = ensemble.member_state(0), ensemble.member_state(1)
    for name, value in base.state_dict().items():
        assert torch.equal(first[name], value) != name.startswith("head.")
        assert torch.equal(first[name], second[name]) != name.startswith("head.")
    run = train(config, splits=splits, display=QUIET)
    trained, _ = load_ensemble(run)
    assert trained.base is None  # the file is whole
    lora = train(_config(tmp_path / "lora", "lora"), splits=splits, display=QUIET)
    _assert_equal_weights(Run.open(run.path / "base"), Run.open(lora.path / "base"))


@pytest.mark.parametrize("name", ["packed", "lora", "explicit"])
def test_single_model_widened_to_a_family_costs_what_the_family_costs(form, name):
    config = CompareConfig(members=4)
    found = []
    for method in (name, find_method(name).matched):
        changes, note = find_method(method).changes(config, form)
        one = training_config(config, method, 0, changes)
        found.append(count_macs(build_ensemble(one, form), form.shape))
        assert note
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_method_lora_takes_a_small_transformer_where_the_backbone_has_no_attention(form):
    changes, note = find_method("lora").changes(CompareConfig(), form)
    assert changes["backbone"] == "vit-micro/2"
    assert "lora uses vit-micro/2, since small-cnn has no attention" in note
    assert changes["optimizer"].name == "adamw"
    wide, _ = find_method("wide-lora").changes(CompareConfig(epochs=3, base_epochs=5), form)
    assert (wide["optimizer"].name, wide["epochs"]) == ("adamw", 8)
    own, note = find_method("lora").changes(CompareConfig(backbone="vit-micro/4"), form)
    assert own["backbone"] == "vit-micro/4"
    assert "is trained for 20 epochs first" in note


def test_bases_of_replicates_differ(form):
    changes, _ = find_method("lora").changes(CompareConfig(), form)
    seeds = {
        base_run(training_config(CompareConfig(), "lora", replicate, changes)).seed
        for replicate in range(3)
    }
    assert len(seeds) == 3


@pytest.mark.slow
def test_comparison_of_all_families_runs_and_judges_each_at_its_cost(tmp_path, few_splits):
    config = CompareConfig(
        out=str(tmp_path / "all"),
        methods=("single", "wide", "deep", "packed", "wide-packed", "lora", "wide-lora"),
        epochs=2,
        members=2,
        replicates=2,
        draws=100,
        corruptions=("none",),
        packed=Packed(alpha=1.5),  # with alpha = M it would cost what deep does
        quiet=True,
    )
    found = compare(config, splits=few_splits, display=QUIET)
    judged = {(verdict.challenger, verdict.baseline) for verdict in found.judgements}
    assert judged == {("deep", "wide"), ("packed", "wide-packed"), ("lora", "wide-lora")}
    costs = {method.name: method.cost for method in found.methods}
    for ensemble, single in judged:
        assert costs[single].macs == pytest.approx(costs[ensemble].macs, rel=0.02)
    (caution,) = found.cautions
    assert "lora of vit-micro/2, wide-lora of vit-micro/2, the others of small-cnn" in caution
    descriptions = read_json(tmp_path / "all" / "comparison.json")["descriptions"]
    assert descriptions["lora"] == "LoRA-ensemble of 2 on one vit-micro/2"
    assert "wide-lora" in render_page(found)


def test_adapters_of_peft_are_where_every_member_starts(tmp_path, form):
    down, up = torch.randn(2, 24), torch.randn(72, 2)
    name = "base_model.model.blocks.1.attn.qkv"
    save_file(
        {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["qkv"]}'
    )
    config = _config(tmp_path / "run", "lora", adapters=str(tmp_path))
    base = build_base(config, form).state_dict()["body.blocks.1.attn.qkv.weight"]
    ensemble = build_ensemble(config, form)
    for index in range(2):
        merged = ensemble.member(index).state_dict()["body.blocks.1.attn.qkv.weight"]
        torch.testing.assert_close(merged, base + up @ down, rtol=0, atol=1e-5)
    with architecture_only():  # a trained run does not need them
        build_ensemble(dataclasses.replace(config, adapters="nowhere"), form)
