"""From labelled images to splits: decoded, cut, checked, and with their OOD sets beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from ..copies import copies_between, copies_within, kept_together
from ..corruptions.shift import FROST_NOTE, shifted_splits
from ..image_files import ImageFiles
from ..image_format import channel_moments
from ..image_reading import READING, Remark, image_hashes
from ..options import GIB, NONE, DataOptions, folder_path
from ..partition import VALIDATION_PARTS, cut_validation, stratified_parts
from ..splits import Split, Splits
from .decoding import (
    Decoding,
    Encoder,
    Watcher,
    common_format,
    content_hashes,
    decode,
    decode_with_hashes,
    examine,
)
from .drawing import draw_by_content, ood_count
from .image_set import ImageSet, LabelledImages

_TEST_SHARE = 0.2
_MOMENTS_SAMPLE = 2000
_REMARKS = {
    Remark.TRANSPARENT: "have transparent parts, laid on white, or on black if white hides all",
    Remark.EXIF: "have damaged EXIF data, and are read as they are stored",
    Remark.FRAMES: "have several frames, of which the first counts",
}


class Assembly:
    """Makes splits from sets; notes on the way what a reader of results must know."""

    def __init__(self, options: DataOptions, watcher: Watcher) -> None:
        self.options, self.watcher = options, watcher
        READING.limit = options.memory_bytes
        self.notes: list[str] = []
        self.cautions: list[str] = []
        self._memory_left = options.memory_bytes
        self._num_classes = 0
        self._seen: dict[str, Split] = {}

    def rehearse(self, source: ImageSet) -> None:
        """Refuse, before anything is decoded, options that the numbers of images do not allow."""
        blank = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
        parts = {
            # Which images are copies is not yet known: as if none were.
            name: Split(
                blank.expand(len(part.targets), 1, 1, 1),
                part.targets,
                groups=part.groups,
                hashes=torch.arange(len(part.targets)),
            )
            for name, part in source.parts.items()
        }
        aside = Assembly(self.options, self.watcher)
        classes, parts, _ = aside._hold_out(source, parts)
        aside._num_classes = len(classes)
        if "all" in parts:
            parts = aside._cut_test(parts["all"])
        aside._cut_validation(parts)
        corruptions = self.options.corrupted_by
        if any(folder_path(name) for name in corruptions):
            decoding = self._format(source)
            shape = (len(parts["test"]), decoding.channels, *decoding.size)
            parts["test"] = replace(parts["test"], images=blank.expand(shape))
        if corruptions != NONE:
            shifted_splits(parts["test"], corruptions)

    def rehearse_encoding(
        self, source: ImageSet, encoder: Encoder, sizes: Mapping[str, int]
    ) -> None:
        """Refuse OOD sets, given by their sizes, that cannot be encoded in memory."""
        aside, decoding = Assembly(self.options, self.watcher), self._format(source)
        aside._fits(sum(len(part.images) for part in source.parts.values()), decoding)
        for name, size in sizes.items():
            aside._fits(size, decoding)
            aside._check_encoded(size, encoder, decoding, name)

    def splits(self, source: ImageSet) -> Splits:
        """Decode, leave classes out, cut validation and perhaps a part of the training images."""
        parts = self._decoded(source, self._format(source))
        classes, parts, held = self._hold_out(source, parts)
        self._num_classes = len(classes)
        if "all" in parts:
            parts = self._cut_test(parts["all"])
        cut = self._cut_validation(parts)
        train, test, val = parts["train"], parts["test"], parts.get("val")
        made: dict[str, Split | Callable[[], Split]] = {**cut, "test": test}
        self.note_copies("training", train)
        self.note_copies("test", test)
        if val is not None:
            self.note_copies("validation", val)
        corruptions = self.options.corrupted_by
        if corruptions != NONE:
            if test.resident:
                shifted = shifted_splits(test, corruptions, self.options.severities)
                published = any(folder_path(name) for name in corruptions)
                frosted = any(name.startswith("shift/frost/") for name in shifted)
                if frosted and not published:
                    self.notes.append(FROST_NOTE)
                made |= shifted
            else:
                self.notes.append("No shifted test images are made of a set read from disk.")
        if held is not None:
            held = self.drawn_of(held, len(test), name="held-out")
            made["near_ood/held-out"] = held
            self.note_copies("held-out", held)
        mean, std = self._moments(cut["train"])
        return Splits(source.name, classes, made, mean, std, notes=tuple(self.notes))

    def _format(self, source: ImageSet) -> Decoding:
        """The image format of a run: that of the training images."""
        images = source.training_images
        side = self.options.image_size
        if isinstance(images, Tensor):
            channels, height, width = images.shape[1:]
            size = (height, width) if side is None else (side, side)
        else:
            channels, size = common_format(images, side)
        return self._decoding(channels, size)

    def _decoding(self, channels: int, size: tuple[int, int]) -> Decoding:
        return Decoding(channels, size, self.options.cache_folder, self.options.skip_bad_images)

    def drawn(self, images: LabelledImages, test_images: int, *, name: str) -> LabelledImages:
        """As many images of an OOD set as ``ood_limit`` says, before they are decoded."""
        there = images.images
        most = ood_count(self.options.ood_limit, test_images)
        if most is None or len(there) <= most:
            return images
        hashes: list[str] | list[int]
        if isinstance(there, Tensor):
            hashes = image_hashes(there).tolist()
        else:
            cache = self.options.cache_folder
            hashes = content_hashes(there, cache, name=name, watcher=self.watcher)
        return images.select(self._note_drawn(hashes, most, name))

    def drawn_of(self, split: Split, test_images: int, *, name: str) -> Split:
        """As many images of an OOD split as ``ood_limit`` says."""
        most = ood_count(self.options.ood_limit, test_images)
        if most is None or len(split) <= most:
            return split
        chosen = self._note_drawn(split.contents().tolist(), most, name)
        return split.select(torch.tensor(chosen))

    def _note_drawn(self, hashes: Sequence[str] | Sequence[int], most: int, name: str) -> list[int]:
        self.notes.append(
            f"{name}: {most:,} of {len(hashes):,} images are used, drawn by content (--ood-limit)."
        )
        return draw_by_content(hashes, most)

    def ood(self, images: LabelledImages, splits: Splits, *, name: str) -> Split:
        """Bring OOD images to the size and colour of the training images."""
        decoding = self._decoding(splits.channels, splits.image_size)
        fits = self._fits(len(images.images), decoding)
        split = replace(self._decode_part(images, decoding, name, fits), targets=None)
        self.note_copies(name, split)
        return split

    def encoded_ood(
        self, images: LabelledImages, splits: Splits, encoder: Encoder, *, name: str
    ) -> Split:
        """OOD images as if they were files of the training set.

        They go through its encoder at the size of its files, and then take the size of the run.
        """
        decoding = self._decoding(splits.channels, encoder.size)
        self._check_encoded(len(images.images), encoder, decoding, name)
        whole = self._decode_part(images, decoding, f"{name} to encode", True).tensor
        with self.watcher.task(f"encode {name}", 1) as task:
            encoded = encoder.through(whole, splits.image_size)
            task.advance()
        return Split(encoded, None)

    def _check_encoded(self, size: int, encoder: Encoder, decoding: Decoding, name: str) -> None:
        if not self._fits(size, replace(decoding, size=encoder.size)):
            raise ValueError(
                f"encode_ood must be left out where {name} does not fit in memory: raise "
                f"--memory-limit ({self.options.memory_limit:g} GiB), or leave it out"
            )

    def _decoded(self, source: ImageSet, decoding: Decoding) -> dict[str, Split]:
        total = sum(len(part.images) for part in source.parts.values())
        fits = self._fits(total, decoding)
        in_memory = all(isinstance(part.images, Tensor) for part in source.parts.values())
        height, width = decoding.size
        gib = total * decoding.channels * height * width / GIB
        if in_memory and not fits and self.options.image_size is not None:
            check_enlarged(self.options, total, decoding.channels)
        if fits or in_memory:
            self.watcher.say(
                f"{source.name}: {total:,} images of {height} x {width} pixels, "
                f"{gib * 1024:,.0f} MiB, are kept decoded in memory"
            )
        else:
            self.notes.append(
                f"{source.name}: its {total:,} images would take {gib:,.1f} GiB, more than "
                f"--memory-limit ({self.options.memory_limit:g} GiB), and are read from disk again "
                "in every epoch, by each member for itself unless --batches shared is given. Of "
                "copies, exact ones alone are found among them."
            )
        return {
            name: self._decode_part(part, decoding, f"{source.name} {name}", fits)
            for name, part in source.parts.items()
        }

    def _fits(self, samples: int, decoding: Decoding) -> bool:
        """Whether memory holds so many more images; what it holds is then counted."""
        values = samples * decoding.channels * decoding.size[0] * decoding.size[1]
        fits = values <= self._memory_left
        self._memory_left -= values if fits else 0
        return fits

    def _decode_part(
        self, part: LabelledImages, decoding: Decoding, name: str, fits: bool
    ) -> Split:
        """A part as a split, without what cannot be read."""
        images = part.images
        if isinstance(images, Tensor):
            brought = bring(images, decoding.channels, decoding.size)
            # Of the images before they are resized, as of files.
            size = (images.shape[-2], images.shape[-1])
            own = brought if size == decoding.size else bring(images, decoding.channels, size)
            return Split(brought, part.targets, groups=part.groups, hashes=image_hashes(own))
        paths, tensor = images, None
        how: dict[str, Any] = {"name": name, "watcher": self.watcher}
        if fits:
            tensor, seen = decode_with_hashes(paths, decoding, **how)
        else:
            # Now, and not in the middle of the training.
            seen = examine(paths, decoding, **how)
        bad = seen.bad
        kept = [index for index in range(len(paths)) if index not in bad]
        self._note_remarks(name, seen.remarks, len(kept))
        if bad:
            listed = "; ".join(list(bad.values())[:20])
            more = f"; and {len(bad) - 20} more" if len(bad) > 20 else ""
            self.cautions.append(
                f"{name}: {len(bad)} of {len(paths)} images were left out because they cannot be "
                f"read: {listed}{more}."
            )
        left = tuple(paths[index] for index in kept)
        targets, groups = part.targets[kept], None if part.groups is None else part.groups[kept]
        if tensor is not None:
            return Split(tensor, targets, left, groups, seen.hashes)
        on_disk = ImageFiles(left, decoding.channels, decoding.size, seen.files)
        return Split(on_disk, targets, groups=groups, hashes=seen.hashes)

    def _hold_out(
        self, source: ImageSet, parts: dict[str, Split]
    ) -> tuple[tuple[str, ...], dict[str, Split], Split | None]:
        """Take classes out of every part; their test images become an OOD split."""
        wanted = self.options.holdout_classes
        if not wanted:
            return source.classes, parts, None
        unknown = [name for name in wanted if name not in source.classes]
        if unknown:
            raise ValueError(
                f"holdout_classes must be classes of {source.name}, got {', '.join(unknown)}; it "
                f"has {', '.join(source.classes[:20])}{' ...' * (len(source.classes) > 20)}"
            )
        classes = tuple(name for name in source.classes if name not in wanted)
        if len(classes) < 2:
            raise ValueError(f"holdout_classes must leave >= 2 classes, got {len(classes)} left")
        number = torch.tensor([classes.index(n) if n in classes else -1 for n in source.classes])
        left = {}
        held = None
        for name, split in parts.items():
            targets = number[split.labels]
            seen = split.select((targets >= 0).nonzero().flatten())
            left[name] = replace(seen, targets=targets[targets >= 0])
            if name in ("test", "all"):
                held = replace(split.select((targets < 0).nonzero().flatten()), targets=None)
        which = "their test images" if "test" in parts else "all their images"
        self.notes.append(f"Held out as near OOD ({which}): {', '.join(wanted)}.")
        return classes, left, held

    def _cut_test(self, whole: Split) -> dict[str, Split]:
        """Cut a test part out of a folder that has none."""
        size = max(1, round(_TEST_SHARE * len(whole)))
        together = kept_together(whole)
        test, rest = stratified_parts(whole.labels, [size], groups=together)
        self.notes.append(
            f"The folder has no train/ and test/: a stratified {_TEST_SHARE:.0%} of its images, "
            f"{len(test):,}, is the test split{_apart(together)}."
        )
        return {"train": whole.select(rest), "test": whole.select(test)}

    def _cut_validation(self, parts: Mapping[str, Split]) -> dict[str, Split]:
        train = parts["train"]
        if "val" in parts:
            held = parts["val"]
            largest = len(held) // len(VALIDATION_PARTS)
            size = self.options.validation_size or largest
            if not 1 <= size <= largest:
                raise ValueError(
                    f"validation_size must be in [1, {largest}] for the {len(held)} images in "
                    f"val/, which gives three parts, got {size}"
                )
            sizes = [size] * len(VALIDATION_PARTS)
            *cut, rest = stratified_parts(held.labels, sizes, groups=kept_together(held))
            if len(rest):
                self.notes.append(f"{len(rest):,} images of val/ are left over by its three parts.")
            names = zip(VALIDATION_PARTS, cut, strict=True)
            made = {"train": train} | {name: held.select(part) for name, part in names}
        else:
            size = self.options.validation_size or validation_size(len(train))
            largest = (len(train) - 1) // len(VALIDATION_PARTS)
            if largest < 1:
                raise ValueError(
                    f"training images must be >= {len(VALIDATION_PARTS) + 1}, from which three "
                    f"validation parts are cut, got {len(train)}: add images"
                )
            if size > largest:
                raise ValueError(
                    f"validation_size must be in [1, {largest}] for {len(train)} training images, "
                    f"of which three parts are cut, got {size}"
                )
            together = kept_together(train)
            indices = cut_validation(train.labels, part_size=size, groups=together)
            made = {name: train.select(part) for name, part in indices.items()}
            cut_sizes = [len(made[name]) for name in VALIDATION_PARTS]
            each = f"{size:,}" if set(cut_sizes) == {size} else ", ".join(map(str, cut_sizes))
            self.notes.append(
                f"Validation is cut from the training images, stratified: three parts of {each} "
                f"(select, calibrate, conform), which leaves {len(made['train']):,} to train on"
                f"{_apart(together)}."
            )
        wanted = self.options.train_size
        if wanted is not None:
            there = len(made["train"])
            if wanted > there:
                raise ValueError(
                    f"train_size must be <= {there}, the training images left beside validation, "
                    f"got {wanted}"
                )
            chosen, _ = stratified_parts(made["train"].labels, [wanted])
            made["train"] = made["train"].select(chosen)
            self.notes.append(f"Trained on a stratified {wanted:,} of {there:,} training images.")
        for name, split in made.items():
            missing = self._num_classes - len(split.labels.unique())
            if missing and name == "train":
                without = f"got {len(split)} images without {missing} of them"
                if wanted is not None:
                    raise ValueError(
                        f"train_size must leave each of the {self._num_classes} classes an image, "
                        f"{without}"
                    )
                raise ValueError(
                    f"each of the {self._num_classes} classes must have an image to train on "
                    f"beside test and validation, {without}: add images, or give test/ and val/"
                )
            if missing:
                self.notes.append(f"{name} has no image of {missing} classes.")
        return made

    def _moments(self, train: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
        images = train.images
        if isinstance(images, ImageFiles):
            paths = images.paths[:: max(1, -(-len(images) // _MOMENTS_SAMPLE))]
            decoding = self._decoding(images.channels, images.size)
            name = "a sample for mean and deviation"
            images, _ = decode(paths, decoding, name=name, watcher=self.watcher)
            self.notes.append(
                f"Mean and standard deviation come from {len(paths):,} training images."
            )
        mean, std = channel_moments(images)
        if min(std) == 0:
            raise ValueError("training images must differ in every channel, got a constant one")
        return mean, std

    def _note_remarks(self, name: str, remarks: Mapping[Remark, int], total: int) -> None:
        """Say how images were read that could be read in more than one way."""
        for remark, sentence in _REMARKS.items():
            if count := remarks.get(remark):
                self.notes.append(f"{name}: {count:,} of {total:,} images {sentence}.")
        if remarks.get(Remark.DARK) == total:
            self.remark(
                f"{name}: no value of its {total:,} images is above 63 of 255: if they have 12 "
                "bits in files of 16, multiply the values by 16.",
                True,
            )

    def remark(self, line: str, doubtful: bool) -> None:
        """Keep what a reader of results must know; say at once what puts them in doubt."""
        (self.cautions if doubtful else self.notes).append(line)
        if doubtful:
            self.watcher.say(f"caution: {line}")

    def note_copies(self, name: str, split: Split) -> None:
        """Warn of images that are in earlier parts too: results on them are flattered, or void."""
        lines = list(copies_within(name, split))
        for first, ours in self._seen.items():
            lines += [(True, line) for line in copies_between(first, ours, name, split)]
        for doubtful, line in lines:
            self.remark(line, doubtful)
        self._seen[name] = split

    def encoder(self, source: ImageSet) -> Encoder:
        """The lossy encoder of the training images; a ``ValueError`` if they are not JPEG files."""
        images = source.training_images
        return Encoder.of(() if isinstance(images, Tensor) else images)


def check_enlarged(options: DataOptions, samples: int, channels: int) -> None:
    """Refuse to bring images in memory to a size at which they take more than the limit."""
    side = options.image_size or 0
    needed = samples * channels * side**2
    if needed > options.memory_bytes:
        raise ValueError(
            f"image_size must be smaller: {samples:,} images of {side} pixels take "
            f"{needed / GIB:,.1f} GiB, more than --memory-limit ({options.memory_limit:g} GiB)"
        )


def _apart(together: Tensor | None) -> str:
    """What a cut did about images that belong together."""
    return "" if together is None else "; what belongs together is on one side"


def bring(
    images: UInt8[Tensor, "samples _ _ _"], channels: int, size: tuple[int, int]
) -> UInt8[Tensor, "samples channels height width"]:
    """Bring decoded images to another colour and size, as ``read_image`` does with files.

    Grey becomes RGB of three equal channels; RGB becomes grey by ITU-R 601. The result is stored
    with channels last.
    """
    height, width = size
    brought = torch.empty(len(images), height, width, channels, dtype=torch.uint8)
    for start in range(0, len(images), 4096):
        part = images[start : start + 4096]
        if part.shape[1] == 3 and channels == 1:
            red, green, blue = part.to(torch.int32).unbind(1)
            # Pillow's luma, in 16-bit fixed point.
            luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
            part = luma.to(torch.uint8).unsqueeze(1)
        elif part.shape[1] == 1 and channels == 3:
            part = part.expand(-1, 3, -1, -1)
        if part.shape[-2:] != size:
            rows, columns = part.shape[-2:]
            scale = max(height / rows, width / columns)
            covering = [max(height, round(rows * scale)), max(width, round(columns * scale))]
            part = F.interpolate(
                part.contiguous(), covering, mode="bilinear", antialias=True, align_corners=False
            )
            top, left = (part.shape[-2] - height) // 2, (part.shape[-1] - width) // 2
            part = part[..., top : top + height, left : left + width]
        brought[start : start + 4096] = part.movedim(1, -1)
    return brought.movedim(-1, 1)


def validation_size(training: int) -> int:
    """Images in each of the three validation parts, where the user does not say.

    One in thirty, at most 5,000; of small sets up to 100, but at most one in eight.

    Example:
        >>> from deepens.datasets.sources.assembly import validation_size
        >>> [validation_size(n) for n in (80, 2_000, 50_000, 1_281_167)]
        [10, 100, 1666, 5000]
    """
    return max(1, min(5000, max(training // 30, min(training // 8, 100))))
