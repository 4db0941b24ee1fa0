"""Example pictures: the hardest are the hardest, the overconfident are wrong, and they travel."""

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from deepens.experiments.comparison.examples import (
    HARDEST,
    OVERCONFIDENT,
    SIDE,
    Examples,
    choose_examples,
    load_examples,
    save_examples,
)
from deepens.experiments.comparison.verdicts import Comparison, MethodSummary, Replicate
from deepens.experiments.cost.measurement import Cost
from deepens.experiments.report.pictures import contact_sheet, picture_blocks
from PIL import Image

CLASSES = ("cat", "dog", "<b>owl</b>")
IMAGES = 90


def make_logits(seed: int, members: int = 2, images: int = IMAGES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(members, images, len(CLASSES), generator=generator)


TARGETS = torch.arange(IMAGES) % len(CLASSES)
LOGITS = {
    "single": [make_logits(0, 1), make_logits(1, 1)],
    "deep": [make_logits(2), make_logits(3)],
}
RUNS = ("single-0", "single-1", "deep-0", "deep-1")


def make_images(side: int = 8, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    shape = (IMAGES, channels, side, side)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def choose(images: torch.Tensor | None = None, logits=LOGITS, targets=TARGETS) -> Examples:
    return choose_examples(
        make_images() if images is None else images,
        targets,
        classes=CLASSES,
        runs=RUNS,
        predictions=logits.items(),
    )


def comparison_with(examples: Examples | None) -> Comparison:
    cost = Cost(1, 1, 1.0, 1.0, 1)
    methods = tuple(
        MethodSummary(name, name, cost, tuple(Replicate(f"{name}-{r}", {}, {}) for r in range(2)))
        for name in LOGITS
    )
    return Comparison("toy", "", methods, (), 9, (), "", {}, "", examples)


def mean_probs(name: str) -> torch.Tensor:
    """Probabilities of a method by the plain formula: mean over members, then over replicates."""
    return torch.stack([x.double().softmax(-1).mean(0) for x in LOGITS[name]]).mean(0)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return choose()


def test_hardest_images_have_the_highest_mean_nll_of_all_runs(examples):
    every = [x.double().softmax(-1).mean(0) for held in LOGITS.values() for x in held]
    nll = torch.stack([-p[torch.arange(IMAGES), TARGETS].log() for p in every]).mean(0)
    expected = sorted(range(IMAGES), key=lambda i: -nll[i])[:HARDEST]
    assert examples.index[list(examples.hardest)].tolist() == expected
    assert examples.nll.tolist() == pytest.approx(nll[examples.index].tolist(), rel=1e-9)


@pytest.mark.parametrize("method", list(LOGITS))
def test_overconfident_images_are_the_surest_errors_of_the_method(examples, method):
    confidence, predicted = mean_probs(method).max(-1)
    errors = [i for i in range(IMAGES) if predicted[i] != TARGETS[i]]
    assert len(errors) > OVERCONFIDENT
    expected = sorted(errors, key=lambda i: -confidence[i])[:OVERCONFIDENT]
    chosen = examples.index[list(examples.overconfident[method])].tolist()
    assert chosen == expected
    row = examples.methods.index(method)
    assert torch.equal(examples.predicted[row], predicted[examples.index])
    assert examples.confidence[row].tolist() == pytest.approx(
        confidence[examples.index].tolist(), rel=1e-9
    )


def test_pictures_are_those_of_the_chosen_images(examples):
    assert torch.equal(examples.images, make_images()[examples.index])
    assert torch.equal(examples.targets, TARGETS[examples.index])
    assert len(set(examples.index.tolist())) == len(examples.index)


def test_method_without_errors_has_no_overconfident_pictures():
    right = 9 * torch.nn.functional.one_hot(TARGETS, len(CLASSES)).float()
    chosen = choose(logits={"single": [right[None]], "deep": LOGITS["deep"]})
    assert chosen.overconfident["single"] == ()
    assert len(pictures_of(chosen)[1]) == 0


def test_of_equally_hard_images_the_first_are_taken():
    flat = torch.zeros(1, IMAGES, len(CLASSES))
    chosen = choose(logits={"single": [flat]})
    assert chosen.index[list(chosen.hardest)].tolist() == list(range(HARDEST))


def test_choice_does_not_depend_on_how_many_images_are_worked_on_at_a_time(examples, monkeypatch):
    monkeypatch.setattr("deepens.experiments.comparison.examples.CHUNK", 42)
    again = choose()
    assert torch.equal(again.index, examples.index)
    assert again.overconfident == examples.overconfident


class Unloaded:
    """Images that are files until they are asked for."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __getitem__(self, index: torch.Tensor) -> "Unloaded":
        return Unloaded(self.images[index])

    def load(self) -> torch.Tensor:
        assert len(self.images) < IMAGES, "all images were read where a few were wanted"
        return self.images


def test_images_that_are_not_in_memory_are_loaded_alone(examples):
    assert torch.equal(choose(Unloaded(make_images())).images, examples.images)


def test_large_images_shrink_and_keep_their_shape():
    images = torch.full((IMAGES, 3, 100, 400), 7, dtype=torch.uint8)
    images[..., 200:] = 200
    shown = choose(images).images
    assert shown.shape[1:] == (3, SIDE // 4, SIDE)
    assert shown[0, :, :, :40].unique().tolist() == [7]
    assert shown[0, :, :, -40:].unique().tolist() == [200]


def test_predictions_of_other_images_are_refused():
    with pytest.raises(ValueError, match="logits of 'single' must be of 90 images, got 89"):
        choose(logits={"single": [make_logits(0, 1, images=89)]})
    with pytest.raises(ValueError, match="predictions must hold >= 1 run, got 0"):
        choose(logits={})


def test_saved_examples_come_back_as_they_were(tmp_path, examples):
    save_examples(tmp_path / "x.safetensors", examples)
    again = load_examples(tmp_path / "x.safetensors")
    for field in dataclasses.fields(Examples):
        ours, theirs = getattr(examples, field.name), getattr(again, field.name)
        assert torch.equal(ours, theirs) if torch.is_tensor(ours) else ours == theirs, field.name


@pytest.mark.parametrize(
    "change",
    [
        {"hardest": (1000,)},
        {"overconfident": {"single": (-1,)}},
        {"methods": ("single",)},
        {"classes": ("cat",)},
    ],
)
def test_file_that_does_not_fit_itself_is_refused(tmp_path, examples, change):
    save_examples(tmp_path / "x.safetensors", dataclasses.replace(examples, **change))
    with pytest.raises(ValueError, match="holds no examples"):
        load_examples(tmp_path / "x.safetensors")


def pictures_of(examples: Examples | None) -> list:
    """Return the pictures of each part of the section: the hardest, then those of each method."""
    blocks = picture_blocks(comparison_with(examples))
    return [block.pictures for block in blocks if block.block == "pictures"]


def test_report_shows_the_pixels_themselves_in_the_order_of_the_choice(examples):
    parts = pictures_of(examples)
    assert [len(part) for part in parts] == [HARDEST, *[OVERCONFIDENT] * len(LOGITS)]
    order = [*examples.hardest, *examples.overconfident["single"], *examples.overconfident["deep"]]
    for picture, position in zip([each for part in parts for each in part], order, strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(picture.data)))
        assert np.array_equal(np.asarray(shown), examples.images[position, 0].numpy())
        assert picture.number == position + 1


def test_every_picture_says_its_class_its_place_and_what_the_methods_say(examples):
    hardest, *errors = pictures_of(examples)
    for picture, position in zip(hardest, examples.hardest, strict=True):
        assert picture.truth == CLASSES[examples.targets[position]]
        place = f"no. {int(examples.index[position])} · NLL {float(examples.nll[position]):.2f}"
        assert picture.place == place
        for row, method in enumerate(examples.methods):
            predicted = int(examples.predicted[row, position])
            sure = f"{CLASSES[predicted]} ({examples.confidence[row, position]:.2f})"
            right = predicted == int(examples.targets[position])
            assert picture.said[method] == sure + " ✓" * right
    for method, part in zip(LOGITS, errors, strict=True):
        for picture in part:  # of the errors, only the method that errs is shown
            assert list(picture.said) == [method]
            assert "✓" not in picture.said[method]


def test_pictures_are_named_by_folder_and_file_where_these_are_known(tmp_path, examples):
    files = [Path(f"/data/test/{i % 3}/{i:03d}.png") for i in range(IMAGES)]
    long = "x" * 60 + ".png"
    files[int(examples.index[1])] = Path("/data/test/cat") / long
    named = choose_examples(
        make_images(),
        TARGETS,
        classes=CLASSES,
        runs=RUNS,
        predictions=LOGITS.items(),
        files=files,
    )
    assert [Path(file) for file in named.files] == [files[i] for i in named.index.tolist()]
    save_examples(tmp_path / "examples", named)
    assert load_examples(tmp_path / "examples").files == named.files
    hardest, *_ = pictures_of(named)
    first, second = (hardest[place].place for place in (0, 1))
    index = int(named.index[0])
    assert first.endswith(f" · {index % 3}/{index:03d}.png")
    assert second.endswith(f" · …{long[-47:]}")
    assert all(each.place.count("·") == 1 for each in pictures_of(examples)[0])


def test_nothing_is_shown_where_there_are_no_pictures():
    assert list(picture_blocks(comparison_with(None))) == []


def test_contact_sheet_shows_every_picture(examples):
    sheet = contact_sheet(examples)
    rows = -(-len(examples.images) // 8)
    assert sheet.size == (8 * (SIDE + 12), rows * (SIDE + 26))
    for number, pixels in enumerate(examples.images):
        left, top = number % 8 * (SIDE + 12) + 6, number // 8 * (SIDE + 26) + 4
        step = SIDE // 8
        seen = [
            [sheet.getpixel((left + step * x + 6, top + step * y + 6))[0] for x in range(8)]
            for y in range(8)
        ]
        assert seen == pixels[0].tolist()


def test_large_coloured_pictures_are_small_files():
    generator = torch.Generator().manual_seed(1)
    rough = torch.rand(IMAGES, 3, 12, 12, generator=generator) * 255
    images = torch.nn.functional.interpolate(rough, (128, 128), mode="bilinear").byte()
    sizes = [len(each.data) for part in pictures_of(choose(images)) for each in part]
    assert max(sizes) < 15_000
