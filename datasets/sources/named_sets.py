"""Image sets by name or folder, with what counts as out of distribution to them."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..image_format import channel_moments
from ..options import FIVE_CORRUPTIONS, NONE, SEVERITIES, DataOptions, data_name, folder_path
from ..plain_data import read_text
from ..split_names import SplitKind, SplitName
from ..splits import Split, Splits
from .assembly import Assembly, bring, check_enlarged
from .decoding import Encoder, Silent, Watcher
from .digits import digits
from .groups import grouped
from .image_folder import PARTS, folder_images, folder_parts
from .image_set import ImageSet, LabelledImages
from .registry import DIGITS, check_known, registered


@dataclass(frozen=True, eq=False)
class _OODSet:
    """One OOD set as its source gives it, and the classes left out of it."""

    name: str
    images: LabelledImages
    excluded: set[str]


_OODSets = dict[SplitKind, list[_OODSet]]


def load(data: str | DataOptions, *, watcher: Watcher | None = None) -> Splits:
    """Load an image set and its OOD sets.

    Args:
        data: A registered name or ``folder:PATH``, or that and more in options.
        watcher: Where progress is shown and choices are said.

    Raises:
        ValueError: If a name is unknown, a folder or an image is not as it must be, or options do
            not fit; one line that names what, the bound and the remedy.

    Example:
        >>> from deepens.datasets import load
        >>> load("digits").names("val")
        ('val/select', 'val/calibrate', 'val/conform')
    """
    options = data if isinstance(data, DataOptions) else DataOptions(data)
    assembly = Assembly(options, watcher or Silent())
    if folder_path(options.data) is None:
        check_known("data", options.data)
    encoder = None
    # What can be refused is refused before anything is decoded.
    if options.data == DIGITS:
        splits = _digits(options, assembly)
        sets = _ood_sets(options, assembly)
        _check_names(sets, splits)
        for name in (name for name in splits.names() if not SplitName.parse(name).is_shift):
            assembly.note_copies({"train": "training"}.get(name, name), splits[name])
    else:
        source = _labelled_set(options, assembly)
        sets = _ood_sets(options, assembly)
        _check_names(sets, {"near_ood/held-out"} if options.holdout_classes else set())
        assembly.rehearse(source)
        encoder = assembly.encoder(source) if options.encode_ood else None
        if encoder is not None:
            sizes = {one.name: len(one.images.images) for each in sets.values() for one in each}
            assembly.rehearse_encoding(source, encoder, sizes)
        splits = assembly.splits(source)
    made = _ood_splits(splits, sets, encoder, assembly)
    notes, cautions = tuple(assembly.notes), tuple(assembly.cautions)
    return replace(splits, splits={**splits.splits, **made}, notes=notes, cautions=cautions)


def _digits(options: DataOptions, assembly: Assembly) -> Splits:
    """The digits as they are; OOD sets named by the user replace their own."""
    if options.encode_ood:
        raise ValueError("encode_ood must be left out with the digits, which have no encoder")
    for name in ("train_size", "validation_size", "holdout_classes", "group_by"):
        if getattr(options, name) not in (None, ()):
            raise ValueError(f"{name} must be left out with the digits, whose cut is fixed")
    if options.corrupted_by not in (FIVE_CORRUPTIONS, NONE):
        raise ValueError("corruptions must be left out with the digits, or be none")
    splits = digits()
    if options.image_size is not None:
        there = sum(len(split) for split in splits.splits.values() if isinstance(split, Split))
        check_enlarged(options, there, splits.channels)
        splits = _resized(splits, options.image_size)
    given = {"near_ood": options.near_ood, "far_ood": options.far_ood}
    replaced = {kind for kind, sets in given.items() if sets}
    replaced |= {"shift"} if options.corruptions == NONE else set()
    severities = (None, *(options.severities or SEVERITIES))
    left: dict[str, Split | Callable[[], Split]] = {}
    for name, split in splits.splits.items():
        parsed = SplitName.parse(name)
        if parsed.kind in replaced or parsed.severity not in severities:
            continue
        if isinstance(split, Split) and parsed.is_ood:
            split = assembly.drawn_of(split, len(splits["test"]), name=parsed.name)
        left[name] = split
    return replace(splits, splits=left)


def _resized(splits: Splits, side: int) -> Splits:
    """The same images at another size; the shifted ones are shifted before, and so the same too."""

    def resized(split: Split) -> Split:
        images = bring(split.tensor, splits.channels, (side, side))
        return Split(images, split.targets, hashes=split.contents())

    def later(make: Callable[[], Split]) -> Callable[[], Split]:
        return lambda: resized(make())

    made = {
        name: resized(split) if isinstance(split, Split) else later(split)
        for name, split in splits.splits.items()
    }
    mean, std = channel_moments(resized(splits["train"]).tensor)
    return replace(splits, splits=made, mean=mean, std=std)


def _labelled_set(options: DataOptions, assembly: Assembly) -> ImageSet:
    path = folder_path(options.data)
    if path is None:
        read = registered(options.data).read(
            options.data_folder, download=options.download, parts=PARTS
        )
        return grouped(read, options.group_by, options.data_folder)
    layout = folder_parts(path, say=assembly.remark)
    classes = next(iter(layout.values())).classes
    parts = {
        name: LabelledImages.from_files(part.paths, part.labels, classes)
        for name, part in layout.items()
    }
    return grouped(ImageSet(data_name(f"folder:{path}"), classes, parts), options.group_by, path)


def _ood_sets(options: DataOptions, assembly: Assembly) -> _OODSets:
    """The OOD sets asked for; of a named set those that belong to it and are there."""
    exclude = _excluded(options)
    asked: dict[SplitKind, tuple[str, ...]]
    asked = {"near_ood": options.near_ood, "far_ood": options.far_ood}
    sets: _OODSets = {
        kind: [_ood_set(data, exclude, options, assembly) for data in wanted if wanted != NONE]
        for kind, wanted in asked.items()
    }
    named = options.data != DIGITS and folder_path(options.data) is None
    if named and not all(asked.values()):
        defaults = registered(options.data).ood
        for kind, own in zip(asked, (defaults.near, defaults.far), strict=True):
            for default in () if asked[kind] else own:
                try:
                    sets[kind].append(_ood_set(default, exclude, options, assembly))
                except ValueError as error:
                    line = f"{default}, an OOD set by default, is left out: {error}."
                    assembly.notes.append(line)
        also = ", ".join(defaults.by_folder)
        more = f" Add the others by folder:PATH: {also}." if also else ""
        if defaults.source or more:
            by = defaults.source or "the data set's author"
            assembly.notes.append(f"OOD sets by {by}.{more}")
    found = {name for each in sets.values() for one in each for name in one.excluded}
    if unknown := sorted(exclude - found):
        raise ValueError(
            f"{options.ood_exclude} names {len(unknown)} classes that no OOD set has: "
            f"{', '.join(unknown[:10])}"
        )
    return sets


def _check_names(sets: _OODSets, taken: Collection[str]) -> None:
    """Refuse OOD sets whose names no split may have, or two have."""
    names = set(taken)
    for kind, one in [(kind, one) for kind, each in sets.items() for one in each]:
        split = str(SplitName(kind, one.name))
        if split in names:
            raise ValueError(f"{kind} must name different sets, got {one.name} twice")
        names.add(split)


def _ood_splits(
    splits: Splits, sets: _OODSets, encoder: Encoder | None, assembly: Assembly
) -> dict[str, Split]:
    made: dict[str, Split] = {}
    for kind, each in sets.items():
        for one in each:
            split = str(SplitName(kind, one.name))
            if one.excluded:
                assembly.notes.append(
                    f"{one.name}: {len(one.excluded)} excluded classes are left out, "
                    f"{len(one.images.images):,} images stay."
                )
            images = assembly.drawn(one.images, len(splits["test"]), name=one.name)
            made[split] = assembly.ood(images, splits, name=one.name)
            if encoder is not None:
                encoded = str(SplitName(kind, one.name, encoded=True))
                made[encoded] = assembly.encoded_ood(images, splits, encoder, name=one.name)
    return made


def _ood_set(data: str, exclude: set[str], options: DataOptions, assembly: Assembly) -> _OODSet:
    path = folder_path(data)
    if path is None:
        check_known("an OOD set", data)
        classes, part = _named_ood(data, options)
        excluded = exclude & set(classes)
        return _OODSet(data, _without(part, {classes.index(name) for name in excluded}), excluded)
    whole = folder_images(path, say=assembly.remark)
    left = folder_images(path, exclude=exclude) if exclude else whole
    name = data_name(f"folder:{path}")
    images = LabelledImages.from_files(left.paths, left.labels, ())
    return _OODSet(name, images, set(whole.classes) - set(left.classes))


def _named_ood(name: str, options: DataOptions) -> tuple[tuple[str, ...], LabelledImages]:
    """The images of a named set that serve as OOD: its test images, or all textures."""
    if name == DIGITS:
        splits = digits()
        test = splits["test"]
        return splits.classes, LabelledImages(test.tensor, test.labels)
    entry = registered(name)
    source = entry.read(options.data_folder, download=options.download, parts=entry.ood_parts)
    if len(source.parts) == 1:
        return source.classes, next(iter(source.parts.values()))
    parts = source.parts.values()
    paths = tuple(path for part in parts for path in part.images)
    return source.classes, LabelledImages(paths, torch.cat([part.targets for part in parts]))


def _without(part: LabelledImages, classes: set[int]) -> LabelledImages:
    if not classes:
        return part
    kept = [index for index, label in enumerate(part.targets.tolist()) if label not in classes]
    return part.select(kept)


def _excluded(options: DataOptions) -> set[str]:
    """Class folders to leave out, from the user's file."""
    if options.ood_exclude is None:
        return set()
    try:
        lines = read_text(Path(options.ood_exclude)).splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"ood_exclude must name a text file, got {options.ood_exclude!r}: {reason}"
        ) from None
    names = {line.partition("#")[0].strip() for line in lines} - {""}
    if not names:
        raise ValueError(f"ood_exclude must name >= 1 class, got none in {options.ood_exclude!r}")
    return names
