"""Names, seeds, and compute-matched single models."""

import dataclasses
from functools import lru_cache
from pathlib import Path

import pytest
from deepens.datasets.image_format import ImageFormat
from deepens.experiments.comparison.ensemble_methods import training_config
from deepens.experiments.comparison.methods import (
    find_method,
    methods,
    methods_table,
    numbered,
    settle_names,
)
from deepens.experiments.config import CompareConfig
from deepens.experiments.cost.macs import count_macs
from deepens.experiments.cost.scaling import match_width
from deepens.experiments.training.building import build_ensemble, build_network, check_options
from deepens.experiments.training.registry import member_seeds

DIGITS = ImageFormat(tuple("abcdefgh"), 1, (8, 8), (0.3,), (0.4,))
COLOUR = ImageFormat(tuple("abcdefghij"), 3, (32, 32), (0.5,) * 3, (0.25,) * 3)
PLAIN = CompareConfig()


@lru_cache
def macs_of(config, image_format=DIGITS):
    """The cost of a recipe's own network."""
    return count_macs(build_network(config, image_format), image_format.shape)


@lru_cache
def made(name, config=PLAIN, image_format=DIGITS):
    """The run of a single model, the cost of its network, and the note."""
    options, note = find_method(name).changes(config, image_format)
    run = training_config(config, name, 0, options)
    assert run.members == 1
    side = run.image_size or image_format.size[0]
    return run, macs_of(run, dataclasses.replace(image_format, size=(side, side))), note


def test_no_two_runs_of_a_comparison_that_shares_no_members_have_one_in_common():
    config = CompareConfig(replicates=5, share_members=False)
    seeds = [
        seed
        for name in ("single", "wide", "deep", "deep-2", "wide-2")
        for replicate in range(5)
        for seed in member_seeds(training_config(config, name, replicate, {"members": 4}))
    ]
    assert len(set(seeds)) == len(seeds) == 100


@pytest.mark.parametrize("members", [2, 4, 7])
def test_wide_costs_what_the_ensemble_costs(members):
    config = CompareConfig(members=members)
    options, _ = find_method("deep").changes(config, DIGITS)
    deep = build_ensemble(training_config(config, "deep", 0, options), DIGITS)
    assert count_macs(deep, DIGITS.shape) == members * macs_of(config)
    _, macs, note = made("wide", config)
    assert macs == pytest.approx(members * macs_of(config), rel=0.02)
    assert "wide is small-cnn at width" in note


def test_width_that_does_not_match_the_cost_is_refused():
    config = CompareConfig(members=3, width=0.25)
    with pytest.raises(ValueError, match=r"no width of small-cnn comes within 2 % .* \+2.1%"):
        find_method("wide").changes(config, DIGITS)


@pytest.mark.filterwarnings("ignore:.*no rule for small images")
@pytest.mark.parametrize(
    ("name", "what", "backbone"),
    [
        ("wide", "widened", "torchvision:resnet18"),
        ("deeper-2", "deepened", "torchvision:resnet18"),
        ("wide-lora", "widened", "torchvision:vit_b_16"),
    ],
)
def test_a_published_network_is_neither_widened_nor_deepened(name, what, backbone):
    config = CompareConfig(backbone=backbone)
    line = f"{name} needs a built-in backbone, which can be {what}"
    with pytest.raises(ValueError, match=line):
        find_method(name).changes(config, COLOUR)


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
        ("resolution-2", 2, "", "single model"),
        ("family-2", 2, "", "single model"),
        ("epochs-2", 2, "", "single model"),
        ("finer-2", 2, "", "single model"),
        ("deep-1", 1, "", "single model"),
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
    assert method.is_single == (family == "single model")
    assert method.description.format(members=count or 9, backbone="net")
    if matched:
        assert find_method(matched).family == "single model"


def test_every_name_takes_a_number_or_says_why_not():
    for name, method in methods().items():
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
        ("cascade-single", "an ensemble of >= 2 members, which single is not"),
        ("threshold-cascade-deep", "an ensemble of >= 2 members, which cascade-deep is not"),
        ("cascade-deep-1", "an ensemble of >= 2 members, which deep-1 is not"),
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
def test_a_cascade_runs_over_an_ensemble_and_trains_nothing(name, policy, over):
    method = find_method(name)
    assert (method.policy, method.over, method.matched) == (policy, over, "")
    assert method.changes(CompareConfig(), DIGITS) == ({}, "")
    assert find_method(over).policy == find_method(over).over == ""


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("deep", "deep-2"),
        ("wide", "wide-2"),
        ("wide-packed", "wide-packed-2"),
        ("epochs", "epochs-2"),
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


def test_one_member_is_a_single_model_whoever_says_so():
    for name in ("deep", "packed", "lora", "multi-exit", "forde"):
        assert find_method(f"{name}-1").is_single
        assert find_method(name, 1).is_single
        assert not find_method(name, 2).is_single
        assert not find_method(f"{name}-2", 1).is_single
    with pytest.raises(ValueError, match="which deep is not"):
        find_method("cascade-deep", 1)


def test_the_readme_has_the_table_of_methods():
    rows = [f"| `{pattern}` | {words} |" for pattern, words in methods_table()]
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    _, _, rest = readme.partition("<!-- methods: made by methods_table() -->\n")
    table, end, _ = rest.partition("<!-- end of methods -->\n")
    assert end
    assert table.splitlines() == ["| method | what it is |", "|---|---|", *rows]
    assert all(
        f"``{pattern}``: {words}" in find_method.__doc__ for pattern, words in methods_table()
    )


def test_earlier_names_become_current_ones_but_in_comparisons_that_were_begun_with_them(tmp_path):
    config = CompareConfig(methods=("finer-2", "family", "long-3"), out=str(tmp_path))
    assert settle_names(config).methods == ("resolution-2", "family", "epochs-3")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    grown = dataclasses.replace(config, methods=("single", "resolution-2", "next", "long-3"))
    assert settle_names(grown).methods == ("single", "finer-2", "family", "long-3")
    # Under either name it is the same network, trained from other seeds.
    apart = dataclasses.replace(PLAIN, share_members=False)
    first, second = made("finer-2", apart), made("resolution-2", apart)
    assert first[1] == second[1]
    assert first[0].seed != second[0].seed
    assert first[0].directory().name == "finer-2-0"


def test_a_number_stands_for_the_members_of_the_comparison():
    config = CompareConfig(members=4)
    for name in ("deep", "packed", "lora", "forde", "mixup", "greedy"):
        options, _ = find_method(f"{name}-2").changes(config, DIGITS)
        assert options["members"] == 2
        two = dataclasses.replace(config, members=2)
        assert options == find_method(name).changes(two, DIGITS)[0]


def test_options_of_plain_names_are_exactly_these():
    config = CompareConfig(members=4, epochs=5)
    expected = {
        "single": {"members": 1},
        "deep-4": {"ensemble": "deep", "members": 4},
        "packed-4": {"ensemble": "packed", "members": 4},
        "epochs-2": {"members": 1, "epochs": 10},
    }
    for name, options in expected.items():
        assert find_method(name).changes(config, DIGITS)[0] == options
    match = match_width(
        lambda width: build_network(config, DIGITS, config.width * width),
        2 * macs_of(config),
        DIGITS.shape,
        tolerance=0.02,
    )
    assert find_method("wide-2").changes(config, DIGITS)[0] == {
        "members": 1,
        "width": config.width * match.width,
        "backbone": "small-cnn",
        "optimizer": config.optimizer,
    }


def test_a_number_changes_the_seed_and_nothing_else():
    config = CompareConfig(members=2, share_members=False)
    plain, full = made("wide", config)[0], made("wide-2", config)[0]
    assert plain.seed != full.seed
    assert dataclasses.replace(plain, seed=full.seed, out=full.out) == full


@pytest.mark.parametrize("name", ["wide-0.5", "wide-1.2", "deeper-4", "deeper-0.5", "resolution-4"])
def test_scaled_single_models_cost_so_many_times_the_digits_network(name):
    _, macs, note = made(name)
    assert macs == pytest.approx(float(name.partition("-")[2]) * macs_of(CompareConfig()), rel=0.02)
    assert note.startswith(f"{name} is small-cnn ")
    assert "not a comparison at equal cost" not in note


def test_scaled_single_models_of_a_network_of_width_and_depth_other_than_one():
    config = CompareConfig(backbone="resnet8", width=0.5, depth=2.0)
    for name in ("wide-2", "deeper-2"):
        run, macs, _ = made(name, config, COLOUR)
        assert macs == pytest.approx(2 * macs_of(config, COLOUR), rel=0.02)
    assert run.depth > 2
    assert run.width < 0.6


def test_deeper_says_depth_and_width():
    config = CompareConfig(backbone="resnet20", members=2)
    run, macs, note = made("deeper", config, COLOUR)
    assert run.depth == 2.0
    assert 0.98 < run.width < 1
    assert f"deeper is resnet20 at depth 2 and width {run.width:.4g}: " in note
    assert macs == pytest.approx(2 * macs_of(config, COLOUR), 0.02)


def test_resolution_says_pixels_and_where_it_is_not_at_equal_cost():
    config = CompareConfig(crop_padding=2, cutout=3)
    run, macs, note = made("resolution-2", config)
    sizes = [dataclasses.replace(DIGITS, size=(side, side)) for side in range(8, 17)]
    target = 2 * macs_of(config)
    costs = [macs_of(config, size) for size in sizes]
    assert macs == min(costs, key=lambda each: abs(each / target - 1))
    assert f"on images of {run.image_size} x {run.image_size} pixels" in note
    error = macs / target - 1
    assert abs(error) > 0.02
    assert f"({error:+.2%}); not within 2%, so this is not a comparison at equal cost" in note
    assert run.crop_padding == round(2 * run.image_size / 8)
    assert run.cutout == round(3 * run.image_size / 8)


def test_resolution_takes_whole_patches_of_a_transformer():
    run, macs, _ = made("resolution-2", CompareConfig(backbone="vit-micro/4"))
    assert run.image_size == 12
    assert macs > 0
    config = CompareConfig(backbone="torchvision:resnet18@IMAGENET1K_V1")
    with pytest.raises(ValueError, match="resolution-2 needs a network without pre-trained"):
        find_method("resolution-2").changes(config, DIGITS)


def test_resolution_keeps_the_stem_of_a_published_network():
    # Above 64 pixels this network would get the stem of large images, a sixteenth of the cost.
    config = CompareConfig(backbone="torchvision:resnet18")
    options, note = find_method("resolution-6").changes(config, COLOUR)
    assert options["image_size"] == 64
    assert "not a comparison at equal cost" in note


def test_family_is_the_nearest_size_of_the_architecture():
    config = CompareConfig(backbone="resnet8")
    costs = {
        name: macs_of(dataclasses.replace(config, backbone=name), COLOUR)
        for name in ("resnet8", "resnet14", "resnet20", "resnet32")
    }
    for factor in (1, 2, 4):
        run, macs, note = made(f"family-{factor}", config, COLOUR)
        target = factor * costs["resnet8"]
        assert run.backbone == min(costs, key=lambda name: abs(costs[name] / target - 1))
        assert f"family-{factor} is {run.backbone}: " in note
        assert f"({macs / target - 1:+.2%})" in note
    with pytest.raises(ValueError, match="family needs a backbone whose family .* small-cnn"):
        find_method("family").changes(CompareConfig(), COLOUR)


@pytest.mark.parametrize(("factor", "epochs"), [("2", 6), ("0.5", None), ("1.1", None)])
def test_epochs_are_so_many_times_the_epochs_or_refused(factor, epochs):
    config = CompareConfig(epochs=3)
    method = find_method(f"epochs-{factor}")
    if epochs is None:
        with pytest.raises(ValueError, match=f"epochs-{factor} needs whole epochs, got {factor}"):
            method.changes(config, DIGITS)
    else:
        assert method.changes(config, DIGITS)[0] == {"members": 1, "epochs": epochs}
    # 1.1 x 30 is no whole number in binary.
    thirty = CompareConfig(epochs=30)
    assert find_method("epochs-1.1").changes(thirty, DIGITS)[0]["epochs"] == 33


def test_exits_of_one_network_are_a_method_and_stages_of_a_cascade():
    config = CompareConfig(backbone="resnet8")
    changes, _ = find_method("multi-exit-3").changes(config, COLOUR)
    ensemble = build_ensemble(training_config(config, "multi-exit-3", 0, changes), COLOUR)
    assert ensemble.num_members == 3
    assert ensemble.shares_parameters
    assert find_method("cascade-multi-exit-3").over == "multi-exit-3"
    # Exits and all, it costs hardly more than the network without them, not three times as much.
    plain = macs_of(config, COLOUR)
    assert plain < count_macs(ensemble, COLOUR.shape) < 1.1 * plain


def test_a_comparison_keeps_its_replicates():
    golden = str(Path(__file__).parent / "golden" / "comparison")
    asked = CompareConfig(out=golden, methods=("single",), replicates=1)
    assert settle_names(asked).replicates == 2
    assert settle_names(dataclasses.replace(asked, replicates=5)).replicates == 5


def test_a_base_may_be_another_one_in_each_replicate(tmp_path):
    for replicate in (0, 1):
        (tmp_path / f"base-{replicate}.safetensors").touch()
    base = str(tmp_path / "base-{replicate}.safetensors")
    config = CompareConfig(base=base, backbone="vit-micro/4", replicates=2, methods=("lora",))
    check_options(config)
    held = [training_config(config, "lora", r, {"ensemble": "lora"}).base for r in (0, 1)]
    assert held == [str(tmp_path / f"base-{r}.safetensors") for r in (0, 1)]
    with pytest.raises(ValueError, match=r"base-2\.safetensors does not exist"):
        check_options(CompareConfig(base=base, backbone="vit-micro/4", replicates=3))
