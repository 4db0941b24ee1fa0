"""Names, seeds, and the single models of equal cost."""

import dataclasses

import pytest
from deepens.datasets import load
from deepens.datasets.image_format import ImageFormat
from deepens.experiments.comparison.methods import METHODS, find_method, numbered, training_config
from deepens.experiments.config import CompareConfig
from deepens.experiments.cost.macs import count_macs
from deepens.experiments.cost.scaling import match_width
from deepens.experiments.evaluation.predictions import load_logits, load_metrics
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate as train
from deepens.experiments.store.progress import Display
from deepens.experiments.training.building import build_ensemble, build_network
from deepens.experiments.training.registry import member_seeds


@pytest.fixture(scope="module")
def form():
    return ImageFormat.of(load("digits"))


@pytest.fixture(scope="module")
def colour():
    return ImageFormat(tuple("abcdefghij"), 3, (32, 32), (0.5,) * 3, (0.25,) * 3)


def made(name, config, form):
    """The network that a single model's run trains, its cost, and the note."""
    options, note = find_method(name).changes(config, form)
    run = training_config(config, name, 0, options)
    assert run.members == 1
    side = run.image_size or form.size[0]
    at = dataclasses.replace(form, size=(side, side))
    return run, count_macs(build_network(run, at), at.shape), note


def test_no_two_runs_of_a_comparison_share_a_member(form):
    config = CompareConfig(replicates=5)
    seeds = [
        seed
        for name in ("single", "wide", "deep", "deep-2", "wide-2")
        for replicate in range(5)
        for seed in member_seeds(
            training_config(config, name, replicate, METHODS["deep"].changes(config, form)[0])
        )
    ]
    assert len(set(seeds)) == len(seeds) == 100


@pytest.mark.parametrize("members", [2, 4, 7])
def test_wide_costs_what_the_ensemble_costs(form, members):
    config = CompareConfig(members=members)
    deep, _ = METHODS["deep"].changes(config, form)
    wide, note = METHODS["wide"].changes(config, form)
    costs = []
    for changes in (deep, wide):
        one = training_config(config, "x", 0, changes)
        costs.append(count_macs(build_ensemble(one, form), form.shape))
    assert costs[1] == pytest.approx(costs[0], rel=0.02)
    assert costs[0] == members * count_macs(build_network(config, form), form.shape)
    assert "wide is small-cnn at width" in note


def test_width_that_does_not_match_the_cost_is_refused(form):
    config = CompareConfig(members=3, width=0.25)
    with pytest.raises(ValueError, match=r"no width of small-cnn comes within 2 % .* \+2.1%"):
        METHODS["wide"].changes(config, form)


@pytest.mark.parametrize(("name", "what"), [("wide", "widened"), ("deeper-2", "deepened")])
def test_a_published_network_is_neither_widened_nor_deepened(form, name, what):
    config = CompareConfig(backbone="torchvision:resnet18")
    with pytest.raises(ValueError, match=f"{name} needs a backbone of ours, which can be {what}"):
        find_method(name).changes(config, form)
    with pytest.raises(ValueError, match="wide-lora needs a backbone of ours"):
        find_method("wide-lora").changes(
            CompareConfig(backbone="torchvision:vit_b_16"),
            dataclasses.replace(form, size=(32, 32)),
        )


@pytest.mark.parametrize(
    ("name", "count", "matched", "family"),
    [
        ("single", None, "", "single model"),
        ("deep", None, "wide", "deep ensemble"),
        ("deep-2", 2, "wide-2", "deep ensemble"),
        ("packed-4", 4, "wide-packed-4", "packed ensemble"),
        ("lora-4", 4, "wide-lora-4", "LoRA-ensemble"),
        ("explicit-10", 10, "wide-explicit-10", "explicit ensemble"),
        ("forde-3", 3, "wide-3", "repulsive ensemble"),
        ("forde-pca-3", 3, "wide-3", "repulsive ensemble"),
        ("mixup-2", 2, "wide-2", "mixup ensemble"),
        ("mixupmp-0.5", None, "wide", "MixupMP ensemble"),
        ("greedy-2", 2, "wide-2", "greedy ensemble"),
        ("wide-1.2", 1.2, "", "single model"),
        ("wide-4", 4, "", "single model"),
        ("deeper-0.5", 0.5, "", "single model"),
        ("finer-2", 2, "", "single model"),
        ("next-2", 2, "", "single model"),
        ("long-2", 2, "", "single model"),
        ("wide-packed-4", 4, "", "single model"),
        ("cascade-deep-2", 2, "", "cascade"),
        ("threshold-lora-4", 4, "", "single-threshold cascade"),
    ],
)
def test_a_name_says_kind_number_and_match(name, count, matched, family):
    method = find_method(name)
    assert (method.name, method.count, method.matched, method.family) == (
        name, count, matched, family,
    )  # fmt: skip
    assert type(method.count) is type(count)
    assert method.ensemble == (family != "single model")
    assert method.description.format(members=count or 9, backbone="net")
    if matched:
        assert find_method(matched).family == "single model"


def test_every_name_takes_a_number_or_says_why_not():
    for name, method in METHODS.items():
        if method.takes:
            assert find_method(f"{name}-3").count == 3
        else:
            with pytest.raises(ValueError, match="takes no number|ratio of pseudo-data"):
                find_method(f"{name}-3")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("deep-02", "write deep-2$"),
        ("deep-2.0", "write deep-2$"),
        ("wide-2.0", "write wide-2$"),
        ("wide-.5", "write wide-0.5$"),
        ("wide-1.20000000000000000001", "write wide-1.2$"),
        ("cascade-deep-02", "write deep-2$"),
        ("deep-2.5", "members of deep must be whole and >= 1, got 'deep-2.5'"),
        ("deep-0", "members of deep must be whole and >= 1, got 'deep-0'"),
        ("wide-packed-1.5", "members of wide-packed must be whole"),
        ("wide-0", "factor of wide must be > 0, got 'wide-0'"),
        ("mixupmp-4", r"\(mixupmp-0.5, mixupmp-1, mixupmp-2\), not of members, got 'mixupmp-4'"),
        ("mixupmp-1-4", "ratio of pseudo-data .* set the number of members with --members"),
        ("single-2", "method single takes no number, got 'single-2'"),
        ("deap", "unknown method 'deap'; did you mean 'deep'?"),
        ("deap-4", "unknown method 'deap-4'; did you mean 'deep"),
        ("wide-1.2.3", "unknown method 'wide-1.2.3'"),
        ("deep-", "unknown method 'deep-'"),
        ("cascade", "did you mean 'cascade-deep'"),
        ("cascade-single", "over the members of an ensemble, and single is none"),
        ("threshold-cascade-deep", "over the members of an ensemble, and cascade-deep is none"),
        ("cascade-deap-2", "unknown method 'deap-2'"),
    ],
)
def test_a_name_that_is_none_is_refused_in_one_line(name, why):
    with pytest.raises(ValueError, match=why) as refused:
        find_method(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "policy", "over"),
    [
        ("cascade-deep-2", "window", "deep-2"),
        ("cascade-deep", "window", "deep"),
        ("threshold-lora-4", "single", "lora-4"),
        ("cascade-mixupmp-0.5", "window", "mixupmp-0.5"),
    ],
)
def test_a_cascade_runs_over_an_ensemble_and_trains_nothing(form, name, policy, over):
    method = find_method(name)
    assert (method.policy, method.over, method.matched) == (policy, over, "")
    assert method.changes(CompareConfig(), form) == ({}, "")
    assert find_method(over).policy == find_method(over).over == ""


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("deep", "deep-2"),
        ("wide", "wide-2"),
        ("wide-packed", "wide-packed-2"),
        ("long", "long-2"),
        ("cascade-deep", "cascade-deep-2"),
        ("threshold-lora", "threshold-lora-2"),
        ("mixup", "mixup-2"),
        *((n, n) for n in ("single", "wide-1.2", "deep-3", "mixupmp", "mixupmp-1")),
        *((n, n) for n in ("cascade-deep-4", "cascade-mixupmp-1", "threshold-mixupmp")),
    ],
)
def test_a_name_is_numbered_where_it_depends_on_the_members(name, full):
    assert numbered(name, 2) == full
    assert numbered(full, 7) == full


def test_a_number_stands_for_the_members_of_the_comparison(form):
    config = CompareConfig(members=4)
    for name in ("deep", "packed", "lora", "forde", "mixup", "greedy"):
        options, _ = find_method(f"{name}-2").changes(config, form)
        assert options["members"] == 2
        assert options == METHODS[name].changes(CompareConfig(members=2), form)[0]


def test_options_of_plain_names_are_exactly_these(form):
    config = CompareConfig(members=4, epochs=5)
    expected = {
        "single": {"members": 1},
        "deep-4": {"members": 4},
        "packed-4": {"ensemble": "packed", "members": 4},
        "long-2": {"members": 1, "epochs": 10},
    }
    for name, options in expected.items():
        assert find_method(name).changes(config, form)[0] == options
    match = match_width(
        lambda width: build_network(config, form, config.width * width),
        2 * count_macs(build_network(config, form), form.shape),
        form.shape,
        tolerance=0.02,
    )
    assert find_method("wide-2").changes(config, form)[0] == {
        "members": 1,
        "width": config.width * match.width,
        "backbone": "small-cnn",
        "optimizer": config.optimizer,
    }


def test_a_number_changes_the_seed_and_nothing_else(form):
    config = CompareConfig(members=2)
    plain, full = (
        training_config(config, name, 0, find_method(name).changes(config, form)[0])
        for name in ("wide", "wide-2")
    )
    assert plain.seed != full.seed
    assert dataclasses.replace(plain, seed=full.seed, out=full.out) == full


@pytest.mark.parametrize(
    ("name", "factor"),
    [("wide-0.5", 0.5), ("wide-1.2", 1.2), ("deeper-4", 4), ("deeper-0.5", 0.5), ("finer-4", 4)],
)
def test_scaled_single_models_cost_so_many_times_the_digits_network(form, name, factor):
    config = CompareConfig()
    plain = count_macs(build_network(config, form), form.shape)
    _, macs, note = made(name, config, form)
    assert macs == pytest.approx(factor * plain, rel=0.02)
    assert note.startswith(f"{name} is small-cnn ")
    assert "no comparison at equal cost" not in note


def test_scaled_single_models_of_a_network_of_width_and_depth_other_than_one(colour):
    config = CompareConfig(backbone="resnet8", width=0.5, depth=2.0)
    plain = count_macs(build_network(config, colour), colour.shape)
    for name in ("wide-2", "deeper-2"):
        run, macs, _ = made(name, config, colour)
        assert macs == pytest.approx(2 * plain, rel=0.02)
    assert run.depth > 2
    assert run.width < 0.6


def test_deeper_says_depth_and_width(colour):
    config = CompareConfig(backbone="resnet20", members=2)
    run, macs, note = made("deeper", config, colour)
    assert run.depth == 2.0
    assert 0.98 < run.width < 1
    assert f"deeper is resnet20 at depth 2 and width {run.width:.4g}: " in note
    assert macs == pytest.approx(2 * count_macs(build_network(config, colour), colour.shape), 0.02)


def test_finer_says_pixels_and_where_it_is_not_at_equal_cost(form):
    config = CompareConfig(crop_padding=2, cutout=3)
    plain = count_macs(build_network(config, form), form.shape)
    run, macs, note = made("finer-2", config, form)
    costs = {}
    for side in range(8, 17):
        at = dataclasses.replace(form, size=(side, side))
        costs[side] = count_macs(build_network(config, at), at.shape)
    assert macs == min(costs.values(), key=lambda each: abs(each / (2 * plain) - 1))
    assert f"on images of {run.image_size} pixels a side" in note
    error = macs / (2 * plain) - 1
    assert abs(error) > 0.02
    assert f"({error:+.2%}); it is not within 2%: no comparison at equal cost" in note
    assert run.crop_padding == round(2 * run.image_size / 8)
    assert run.cutout == round(3 * run.image_size / 8)


def test_finer_takes_whole_patches_of_a_transformer(form):
    run, macs, _ = made("finer-2", CompareConfig(backbone="vit-micro/4"), form)
    assert run.image_size == 12
    assert macs > 0
    config = CompareConfig(backbone="torchvision:resnet18@IMAGENET1K_V1")
    with pytest.raises(ValueError, match="finer-2 needs a network without weights"):
        find_method("finer-2").changes(config, form)


def test_finer_keeps_the_stem_of_a_published_network(colour):
    # Above 64 pixels this network would get the stem of large images, a sixteenth of the cost.
    run, _, note = made("finer-6", CompareConfig(backbone="torchvision:resnet18"), colour)
    assert run.image_size == 64
    assert "no comparison at equal cost" in note


def test_next_is_the_nearest_of_the_family(colour):
    config = CompareConfig(backbone="resnet8")
    costs = {}
    for name in ("resnet8", "resnet14", "resnet20", "resnet32"):
        step = dataclasses.replace(config, backbone=name)
        costs[name] = count_macs(build_network(step, colour), colour.shape)
    for factor in (1, 2, 4):
        run, macs, note = made(f"next-{factor}", config, colour)
        target = factor * costs["resnet8"]
        assert run.backbone == min(costs, key=lambda name: abs(costs[name] / target - 1))
        assert f"next-{factor} is {run.backbone}: " in note
        assert f"({macs / target - 1:+.2%})" in note
    with pytest.raises(ValueError, match="next needs a backbone whose family .* small-cnn"):
        find_method("next").changes(CompareConfig(), colour)


@pytest.mark.parametrize(("factor", "epochs"), [("2", 6), ("0.5", None), ("1.1", None)])
def test_long_has_so_many_times_the_epochs_or_is_refused(form, factor, epochs):
    config = CompareConfig(epochs=3)
    method = find_method(f"long-{factor}")
    if epochs is None:
        with pytest.raises(ValueError, match=f"long-{factor} needs whole epochs, got {factor}"):
            method.changes(config, form)
    else:
        assert method.changes(config, form)[0] == {"members": 1, "epochs": epochs}
    # 1.1 x 30 is no whole number in binary.
    assert find_method("long-1.1").changes(CompareConfig(epochs=30), form)[0]["epochs"] == 33


@pytest.mark.slow
def test_a_finer_model_trains_and_is_evaluated_on_the_same_images(tmp_path):
    splits = load("digits")
    config = CompareConfig(epochs=6, members=4, out=str(tmp_path / "found"), quiet=True)
    options, _ = find_method("finer").changes(config, ImageFormat.of(splits))
    single = training_config(config, "finer", 0, options)
    larger = load(single)
    assert larger.image_size == (16, 16)
    assert list(larger) == list(splits)
    for name in ("val/calibrate", "shift/contrast/5"):
        assert larger[name].labels.equal(splits[name].labels)
    run = train(single, splits=larger, display=Display(quiet=True))
    kept = load_logits(run)
    logits, targets = kept["test"]
    assert logits.shape[0] == 1
    assert targets.equal(splits["test"].labels)
    assert load_metrics(run)["test"]["accuracy"] > 0.3


def test_exits_of_one_network_are_a_method_and_stages_of_a_cascade():
    form = ImageFormat(tuple("abcdefghij"), 3, (32, 32), (0.5,) * 3, (0.25,) * 3)
    config = CompareConfig(backbone="resnet8")
    changes, _ = find_method("multi-exit-3").changes(config, form)
    ensemble = build_ensemble(training_config(config, "multi-exit-3", 0, changes), form)
    assert ensemble.num_members == 3
    assert ensemble.shares_parameters
    assert find_method("cascade-multi-exit-3").over == "multi-exit-3"
    # Exits and all, it costs hardly more than the network without them, not three times as much.
    plain = count_macs(build_network(config, form), form.shape)
    assert plain < count_macs(ensemble, form.shape) < 1.1 * plain
