"""From labelled images to splits: decoded, cut, checked, and with their OOD sets beside them."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from ..corruptions.shift import shifted_splits
from ..image_files import ImageFiles
from ..image_format import channel_moments
from ..options import GIB, DataOptions
from ..partition import VALIDATION_PARTS, cut_validation, stratified_parts
from ..splits import Split, Splits
from .decoding import Decoding, Encoder, Watcher, common_format, content_hashes, decode, unreadable
from .image_set import ImageSet, LabelledImages

_TEST_SHARE = 0.2
_MOMENTS_SAMPLE = 2000
_CUT_SEED = 0


class Assembly:
    """Makes splits from sets; notes on the way what a reader of results must know.

    Args:
        options: What is wanted.
        watcher: Where progress is shown.
    """

    def __init__(self, options: DataOptions, watcher: Watcher) -> None:
        self.options, self.watcher = options, watcher
        self.notes: list[str] = []
        self.cautions: list[str] = []
        self._memory_left = options.memory_bytes
        self._num_classes = 0

    def splits(self, source: ImageSet) -> Splits:
        """Decode, leave classes out, cut validation and perhaps a part of the training images."""
        decoding = self.decoding(source)
        parts = self._decoded(source, decoding)
        classes, parts, held = self._hold_out(source, parts)
        self._num_classes = len(classes)
        if "all" in parts:
            parts = self._cut_test(parts["all"])
        cut = self._cut_validation(parts)
        made: dict[str, object] = {**cut, "test": parts["test"]}
        self._note_copies({"training": parts["train"]}, {"test": parts["test"]})
        if "val" in parts:
            self._note_copies({"training": parts["train"]}, {"validation": parts["val"]})
            self._note_copies({"test": parts["test"]}, {"validation": parts["val"]})
        if self.options.corruptions != ("none",):
            if parts["test"].resident:
                made |= shifted_splits(parts["test"], self.options.corruptions)
            else:
                self.notes.append("No shifted test images are made of a set read from disk.")
        if held is not None:
            made["near_ood/held-out"] = held
        mean, std = self._moments(cut["train"])
        return Splits(source.name, classes, made, mean, std, notes=tuple(self.notes))  # type: ignore[arg-type]

    def decoding(self, source: ImageSet) -> Decoding:
        """The image format of a run: that of the training images."""
        images = source.training_images
        side = self.options.image_size
        if isinstance(images, Tensor):
            channels, height, width = images.shape[1:]
            size = (height, width) if side is None else (side, side)
        else:
            channels, size = common_format(images, side)
        return self.decoding_for(channels, size)

    def decoding_for(self, channels: int, size: tuple[int, int]) -> Decoding:
        """An image format, with the options' cache and their way with bad images."""
        return Decoding(channels, size, self.options.cache_folder, self.options.skip_bad_images)

    def ood(self, images: LabelledImages, splits: Splits, *, name: str) -> Split:
        """Bring OOD images to the size and colour of the training images."""
        decoding = self.decoding_for(splits.channels, splits.image_size)
        fits = self._fits(len(images.images), decoding)
        return replace(self._decode_part(images, decoding, name, fits), targets=None)

    def encoded_ood(
        self, images: LabelledImages, splits: Splits, encoder: Encoder, *, name: str
    ) -> Split:
        """OOD images as if they were files of the training set.

        They are brought to the size that the training images have on disk, go through their
        encoder there, and only then take the size of the run.
        """
        decoding = self.decoding_for(splits.channels, encoder.size)
        if not self._fits(len(images.images), decoding):
            raise ValueError(f"encode_ood must be left out where {name} does not fit in memory")
        whole = self._decode_part(images, decoding, f"{name} to encode", True).tensor
        with self.watcher.task(f"encode {name}", 1) as task:
            encoded = encoder.through(whole, splits.image_size)
            task.advance()
        return Split(encoded, None)

    def _decoded(self, source: ImageSet, decoding: Decoding) -> dict[str, Split]:
        total = sum(len(part.images) for part in source.parts.values())
        fits = self._fits(total, decoding)
        in_memory = all(isinstance(part.images, Tensor) for part in source.parts.values())
        gib = total * decoding.channels * decoding.size[0] * decoding.size[1] / GIB
        if fits or in_memory:
            self.watcher.say(
                f"{source.name}: {total:,} images of {decoding.size[0]} x {decoding.size[1]} "
                f"pixels, {gib * 1024:,.0f} MiB, are kept decoded in memory"
            )
        else:
            self.notes.append(
                f"{source.name}: its {total:,} images would take {gib:,.1f} GiB, more than "
                f"--memory-limit ({self.options.memory_limit:g} GiB), and are read from disk again "
                "in every epoch, by each member for itself unless --batches shared is given."
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
        if isinstance(part.images, Tensor):
            return Split(bring(part.images, decoding.channels, decoding.size), part.targets)
        paths = part.images
        if fits:
            tensor, bad = decode(paths, decoding, name=name, watcher=self.watcher)
        else:
            # Now, and not in the middle of the training.
            bad = unreadable(paths, decoding, name=name, watcher=self.watcher)
        kept = torch.tensor([i for i in range(len(paths)) if i not in bad], dtype=torch.int64)
        if bad:
            listed = "; ".join(list(bad.values())[:20])
            more = f"; and {len(bad) - 20} more" if len(bad) > 20 else ""
            self.cautions.append(
                f"{name}: {len(bad)} of {len(paths)} images were left out because they cannot be "
                f"read: {listed}{more}."
            )
        if not fits:
            left = tuple(paths[index] for index in kept.tolist())
            cache = self.options.cache_folder
            hashes = content_hashes(left, cache, name=name, watcher=self.watcher)
            files = ImageFiles(left, decoding.channels, decoding.size, tuple(hashes))
            return Split(files, part.targets[kept])
        return Split(tensor, part.targets[kept])

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
        number = torch.tensor(
            [classes.index(name) if name in classes else -1 for name in source.classes]
        )
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
        targets = whole.labels
        size = max(1, round(_TEST_SHARE * len(whole)))
        test, rest = stratified_parts(targets, [size], seed=_CUT_SEED)
        self.notes.append(
            f"The folder has no train/ and test/: a stratified {_TEST_SHARE:.0%} of its images, "
            f"{size:,}, is the test split."
        )
        return {"train": whole.select(rest), "test": whole.select(test)}

    def _cut_validation(self, parts: Mapping[str, Split]) -> dict[str, Split]:
        train = parts["train"]
        if "val" in parts:
            held = parts["val"]
            size = self.options.validation_size or len(held) // len(VALIDATION_PARTS)
            if left := len(held) - size * len(VALIDATION_PARTS):
                self.notes.append(f"{left:,} images of val/ are left over by its three parts.")
            if not 1 <= size * len(VALIDATION_PARTS) <= len(held):
                raise ValueError(
                    f"validation_size must be in [1, {len(held) // len(VALIDATION_PARTS)}] for the "
                    f"{len(held)} images in val/, which gives three parts, got {size}"
                )
            cut = stratified_parts(held.labels, [size] * len(VALIDATION_PARTS), seed=_CUT_SEED)
            names = zip(VALIDATION_PARTS, cut[:-1], strict=True)
            made = {"train": train} | {name: held.select(part) for name, part in names}
        else:
            size = self.options.validation_size or validation_size(len(train))
            indices = cut_validation(train.labels, part_size=size, seed=_CUT_SEED)
            made = {name: train.select(part) for name, part in indices.items()}
            self.notes.append(
                f"Validation is cut from the training images, stratified: three parts of {size:,} "
                f"(select, calibrate, conform), which leaves {len(made['train']):,} to train on."
            )
        wanted = self.options.train_size
        if wanted is not None:
            there = len(made["train"])
            if wanted > there:
                raise ValueError(
                    f"train_size must be <= {there}, the training images left beside validation, "
                    f"got {wanted}"
                )
            chosen, *_ = stratified_parts(made["train"].labels, [wanted], seed=_CUT_SEED)
            made["train"] = made["train"].select(chosen)
            self.notes.append(f"Trained on a stratified {wanted:,} of {there:,} training images.")
        self._check_classes(made)
        return made

    def _check_classes(self, made: Mapping[str, Split]) -> None:
        """Refuse a class without training images, and note one without validation images."""
        for name, split in made.items():
            missing = self._num_classes - len(split.labels.unique())
            if missing and name == "train":
                raise ValueError(
                    f"train_size must leave each of the {self._num_classes} classes an image, got "
                    f"{len(split)} images without {missing} of them"
                )
            if missing:
                self.notes.append(f"{name} has no image of {missing} classes.")

    def _moments(self, train: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
        images = train.images
        if isinstance(images, ImageFiles):
            step = max(1, -(-len(images) // _MOMENTS_SAMPLE))
            chosen = images[::step]
            decoding = self.decoding_for(images.channels, images.size)
            images, _ = decode(
                chosen.paths, decoding, name="a sample for mean and deviation", watcher=self.watcher
            )
            self.notes.append(
                f"Mean and standard deviation come from {len(chosen):,} training images."
            )
        mean, std = channel_moments(images)
        if min(std) == 0:
            raise ValueError("training images must differ in every channel, got a constant one")
        return mean, std

    def _note_copies(self, seen: Mapping[str, Split], judged: Mapping[str, Split]) -> None:
        """Warn of images that occur on both sides: results on them are flattered, or void."""
        for first, ours in seen.items():
            known = set(self._hashes(ours))
            for second, theirs in judged.items():
                copies = sum(found in known for found in self._hashes(theirs))
                if copies:
                    what = "pixels" if theirs.resident else "bytes of their files"
                    line = (
                        f"{copies:,} of {len(theirs):,} {second} images are copies of {first} "
                        f"images, by the {what}: results on them say nothing about new images."
                    )
                    self.cautions.append(line)
                    self.watcher.say(f"caution: {line}")

    def note_copies(self, splits: Splits, name: str, split: Split) -> None:
        """Warn of OOD images that the ensemble is trained or tested on."""
        self._note_copies({"training": splits["train"], "test": splits["test"]}, {name: split})

    @staticmethod
    def _hashes(split: Split) -> list[str]:
        """Of each image: of its pixels in memory, of the file's bytes on disk."""
        if isinstance(split.images, ImageFiles):
            return list(split.images.contents())
        rows = split.images.movedim(1, -1).flatten(1).numpy()
        return [hashlib.sha256(row.data).hexdigest() for row in rows]

    def encoder(self, source: ImageSet) -> Encoder:
        """The lossy encoder of the training images; a ``ValueError`` if they are not JPEG files."""
        images = source.training_images
        return Encoder.of(() if isinstance(images, Tensor) else images)


def bring(
    images: UInt8[Tensor, "samples _ _ _"], channels: int, size: tuple[int, int]
) -> UInt8[Tensor, "samples channels height width"]:
    """Bring decoded images to another colour and size, as ``read_image`` does with files.

    Grey becomes RGB of three equal channels; RGB becomes grey by ITU-R 601. Images are shrunk or
    enlarged with antialiasing until they cover the size, and their middle is cut out. The result is
    stored with channels last.
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
            scale = max(height / part.shape[-2], width / part.shape[-1])
            covering = [
                max(height, round(part.shape[-2] * scale)),
                max(width, round(part.shape[-1] * scale)),
            ]
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
