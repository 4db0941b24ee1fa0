import hashlib
import importlib
import pkgutil
import subprocess
import sys
import types

import pytest
import torch
from deepens import datasets
from deepens.datasets import Split, Splits, cut_validation, stratified_parts


def _split(samples: int, *, value: int = 0, labelled: bool = True, size: int = 4) -> Split:
    images = torch.full((samples, 1, size, size), value, dtype=torch.uint8)
    return Split(images, torch.arange(samples) % 3 if labelled else None)


def _splits(**changes) -> Splits:
    arguments = {
        "name": "toy",
        "classes": ("a", "b", "c"),
        "splits": {
            "train": _split(9),
            "val/select": _split(3),
            "test": _split(6),
            "shift/contrast/1": lambda: _split(6, value=1),
            "shift/contrast/2": lambda: _split(6, value=2),
            "far_ood/noise": _split(5, value=9, labelled=False),
        },
        "mean": (0.5,),
        "std": (0.25,),
    }
    return Splits(**{**arguments, **changes})


def test_fingerprint_is_sha256_of_shapes_and_bytes():
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)
    by_hand = b"[3, 1, 2, 2]" + bytes(range(12))
    by_hand += b"[3]" + b"".join(label.to_bytes(8, "little") for label in (2, 0, 1))
    split = Split(images, torch.tensor([2, 0, 1]))
    assert split.fingerprint() == hashlib.sha256(by_hand).hexdigest()


def test_fingerprint_ignores_memory_order_and_sees_every_change():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    targets = torch.tensor([0, 1])
    split = Split(images, targets)
    rearranged = Split(images.contiguous(memory_format=torch.channels_last), targets)
    assert rearranged.fingerprint() == split.fingerprint()
    changed = images.clone()
    changed[1, 2, 3, 3] += 1
    others = [
        Split(changed, targets),
        Split(images, torch.tensor([1, 0])),
        Split(images, None),
        Split(images.reshape(2, 3, 2, 8), targets),
    ]
    assert len({split.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_split_without_an_image_is_refused():
    with pytest.raises(ValueError, match=r"images must hold >= 1 sample, got \[0, 1, 4, 4\]"):
        _split(0)


def test_split_with_too_few_targets_is_refused():
    # Under shape checking jaxtyping speaks first, with a TypeError.
    with pytest.raises((ValueError, TypeError), match="targets"):
        Split(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))


def test_callables_are_made_each_time_they_are_asked_for_and_only_then():
    made = []

    def make() -> Split:
        made.append(1)
        return _split(2)

    splits = _splits(splits={"test": _split(6), "shift/contrast/1": make})
    splits.names(), splits.fingerprint(), splits.channels, "shift/contrast/1" in splits
    assert made == []
    assert len(splits["shift/contrast/1"]) == len(splits["shift/contrast/1"]) == 2
    assert made == [1, 1]


def test_names_come_in_the_given_order_and_by_prefix():
    splits = _splits()
    assert splits.names("shift") == ("shift/contrast/1", "shift/contrast/2")
    assert splits.names() == tuple(splits) == tuple(splits.splits)
    assert splits.names("near_ood") == ()
    assert (splits.num_classes, splits.channels, splits.image_size) == (3, 1, (4, 4))


def test_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="got 'val/selection'; the nearest is 'val/select'"):
        _splits()["val/selection"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5, 0.5)}, r"mean must have one value per channel \(1\), got 2"),
        ({"std": (0.25, 0.25, 0.25)}, r"std must have one value per channel \(1\), got 3"),
        ({"std": (0.0,)}, "std must be > 0"),
        ({"classes": ("a", "b")}, r"targets of 'train' must be in \[0, 2\), got 0 to 2"),
        ({"splits": {"test": _split(6), "valid": _split(6)}}, "got 'valid'"),
        ({"splits": {"test": _split(6), "shift/contrast/6": _split(6)}}, "got 'shift/contrast/6'"),
        ({"splits": {"test": _split(6), "near_ood/x": _split(6)}}, "must be None, got 6 labels"),
        ({"splits": {"test": _split(6, labelled=False)}}, "'test' must be class indices, got None"),
        ({"splits": {"test": _split(6), "train": _split(6, size=5)}}, r"\[1, 4, 4\], got \[1, 5"),
        ({"splits": {"test": lambda: _split(6)}}, ">= 1 Split that is not a callable, got 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _splits(**changes)


def test_a_made_split_is_checked_like_the_others():
    made = {"test": _split(6), "shift/contrast/1": lambda: _split(6, size=5)}
    with pytest.raises(ValueError, match=r"images of 'shift/contrast/1' must be \[K, H, W\]"):
        _splits(splits=made)["shift/contrast/1"]


def test_fingerprint_of_splits_depends_on_data_and_normalisation_but_not_on_what_is_derived():
    splits = _splits()
    derived = {**splits.splits, "shift/contrast/1": lambda: _split(6, value=77)}
    assert _splits(splits=derived).fingerprint() == splits.fingerprint()
    others = [
        _splits(splits={**splits.splits, "test": _split(6, value=1)}),
        _splits(splits={**splits.splits, "near_ood/other": _split(5, labelled=False)}),
        _splits(mean=(0.4,)),
        _splits(classes=("b", "a", "c")),
    ]
    assert len({splits.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_stratified_parts_are_disjoint_whole_and_proportional_to_one_sample_a_class():
    targets = torch.cat([torch.full((count,), label) for label, count in enumerate((7, 90, 203))])
    targets = targets[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    sizes = [101, 50, 50]
    parts = stratified_parts(targets, sizes)
    assert [len(part) for part in parts] == [*sizes, 99]
    assert torch.cat(parts).sort().values.tolist() == list(range(300))
    for part in parts:
        exact = torch.tensor([7, 90, 203]) * len(part) / 300
        assert (targets[part].bincount(minlength=3) - exact).abs().max() < 2


def test_stratified_parts_are_the_ones_that_sha256_orders():
    targets = torch.tensor([0, 1] * 6)
    part, _ = stratified_parts(targets, [4], seed=3)
    chosen = []
    for label in (0, 1):
        members = [index for index in range(12) if index % 2 == label]
        members.sort(key=lambda index: hashlib.sha256(f"3:{index}".encode()).hexdigest())
        chosen += members[:2]
    assert part.tolist() == sorted(chosen)
    assert part.tolist() != stratified_parts(targets, [4], seed=4)[0].tolist()


def test_cut_validation_names_disjoint_parts_of_the_training_samples():
    targets = torch.arange(40) % 4
    cut = cut_validation(targets, part_size=8)
    assert list(cut) == ["train", "val/select", "val/calibrate", "val/conform"]
    assert torch.cat(list(cut.values())).sort().values.tolist() == list(range(40))
    assert all(targets[part].bincount().tolist() == [2] * 4 for part in list(cut.values())[1:])


@pytest.mark.parametrize("part_size", [0, 4])
def test_cut_that_leaves_nothing_to_train_on_is_refused(part_size):
    with pytest.raises(ValueError, match=rf"part_size must be in \[1, 3\].*got {part_size}"):
        cut_validation(torch.zeros(12, dtype=torch.int64), part_size=part_size)


def test_sizes_beyond_the_samples_are_refused():
    with pytest.raises(ValueError, match="sizes must sum to <= 12 samples, got 13"):
        stratified_parts(torch.zeros(12, dtype=torch.int64), [6, 7])


def test_every_public_name_is_the_object_and_not_its_module():
    # Once a submodule is imported, the package's attribute of its name is the module.
    for module in pkgutil.iter_modules(datasets.__path__):
        importlib.import_module(f"{datasets.__name__}.{module.name}")
    for name in datasets.__all__:
        assert not isinstance(getattr(datasets, name), types.ModuleType), name
    assert sorted(datasets.__all__) == dir(datasets)
    misspelt = "Splitz"
    with pytest.raises(AttributeError, match="has no attribute 'Splitz'"):
        getattr(datasets, misspelt)


def test_importing_the_package_imports_nothing_heavy():
    script = (
        "import sys, deepens.datasets\n"
        "print({'lightning', 'sklearn', 'torch', 'PIL'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
