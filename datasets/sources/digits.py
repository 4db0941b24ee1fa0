"""Scikit-learn's handwritten digits: real images that come with the library, no download."""

import numpy as np
import torch
from torch import Tensor

from ..corruptions.shift import shifted_splits
from ..image_format import channel_moments
from ..options import FIVE_CORRUPTIONS
from ..partition import cut_validation, stratified_parts
from ..splits import Split, Splits

_NUM_CLASSES = 8
_TEST_FRACTION = 0.4
_VALIDATION_PART = 74
_PATCH = 32


def digits() -> Splits:
    """Make the digits image set: 0 to 7 in distribution, 8 and 9 held out as near OOD.

    ================  ======  ========================================================
    split             images  content
    ================  ======  ========================================================
    train             644     digits 0 to 7
    val/*             3 x 74  select, calibrate, conform
    test              577     40 % of the digits 0 to 7
    shift/*/1 to 5    577     the test images under five corruptions
    near_ood          354     digits 8 and 9
    far_ood           439     distinct patches of two photographs (a temple, a flower)
    ================  ======  ========================================================

    Images are [1, 8, 8]; ink is bright on black. The cut is stratified and depends on no seed of a
    run. The patches are grey, shrunk by area from 32 to 8 pixels and brought to the 17 grey levels
    that the digits have, so that no detector can tell them by the number of levels; those that then
    equal an earlier one (flat sky) are left out.

    Example:
        >>> from deepens.datasets import load
        >>> splits = load("digits")
        >>> len(splits["train"]), len(splits["test"]), splits.num_classes, splits.image_size
        (644, 577, 8, (8, 8))
    """
    from sklearn.datasets import load_digits  # takes a second that other sets need not spend

    source = load_digits()
    images = _bytes(source.images).unsqueeze(1)
    labels = torch.from_numpy(source.target.astype(np.int64))
    known = labels < _NUM_CLASSES
    near = Split(images[~known], None)
    whole = Split(images[known], labels[known])

    test_indices, rest = stratified_parts(whole.labels, [round(_TEST_FRACTION * len(whole))])
    test = whole.select(test_indices)
    cut = cut_validation(whole.labels[rest], part_size=_VALIDATION_PART)
    seen = {name: whole.select(rest[part]) for name, part in cut.items()}
    mean, std = channel_moments(seen["train"].tensor)
    return Splits(
        name="digits",
        classes=tuple(str(digit) for digit in range(_NUM_CLASSES)),
        splits={
            **seen,
            "test": test,
            **shifted_splits(test, FIVE_CORRUPTIONS),
            "near_ood/digits-8-9": near,
            "far_ood/photographs": Split(_photographs(), None),
        },
        mean=mean,
        std=std,
        caveat=(
            f"This data cannot tell strong methods apart: the images are 8 x 8 pixels and easy, "
            f"one error among the {len(test)} test images is {100 / len(test):.2f} % of accuracy, "
            f"and each validation part has {_VALIDATION_PART} images. The same people wrote "
            f"training and test digits. It shows that everything runs, not which method is better."
        ),
        conclusive=False,
    )


def _bytes(levels: np.ndarray) -> Tensor:
    """Spread the levels 0 to 16 over 0 to 255."""
    return torch.from_numpy(np.rint(levels * (255 / 16)).astype(np.uint8))


def _photographs() -> Tensor:
    from sklearn.datasets import load_sample_images

    shrink = _PATCH // 8
    patches = []
    for photograph in load_sample_images().images:
        rows, columns = photograph.shape[0] // _PATCH, photograph.shape[1] // _PATCH
        whole = photograph[: rows * _PATCH, : columns * _PATCH].astype(np.int64)
        # Whole numbers up to the rounding, so that every machine gets the same patches: ITU-R 601
        # luma in thousandths, summed over the pixels that become one.
        luma = whole @ np.array([299, 587, 114])
        sums = luma.reshape(rows, 8, shrink, columns, 8, shrink).sum(axis=(2, 5))
        level = shrink * shrink * 1000 * 255 // 16
        patches.append(((sums + level // 2) // level).transpose(0, 2, 1, 3).reshape(-1, 1, 8, 8))
    levels = np.concatenate(patches)
    _, first = np.unique(levels.reshape(len(levels), -1), axis=0, return_index=True)
    return _bytes(levels[np.sort(first)])
