import os
import struct
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from deepens.datasets import image_files, list_images, read_image
from deepens.datasets.image_files import count_images, iterate_images
from PIL import Image


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _names(folder: Path) -> list[str]:
    return [image.relative_to(folder).as_posix() for image in list_images(folder)]


def _noise(height: int, width: int, *trailing: int, dtype=np.uint8) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, np.iinfo(dtype).max, (height, width, *trailing), dtype, True)


def test_images_are_found_in_any_depth_by_suffix_in_any_case_and_sorted(tmp_path):
    _touch(tmp_path, "b/2.png", "b/10.JPG", "a.tiff", "B/x.WebP", "b.jpeg", "b/deep/er/1.pgm")
    _touch(tmp_path, "notes.txt", "png", "archive.png.zip", ".hidden.png", ".git/x.png")
    expected = ["B/x.WebP", "a.tiff", "b/10.JPG", "b/2.png", "b/deep/er/1.pgm", "b.jpeg"]
    assert _names(tmp_path) == expected


def test_links_are_followed_and_loops_of_them_end(tmp_path):
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    _touch(images, "own/1.png")
    _touch(elsewhere, "2.png")
    (images / "own" / "up").symlink_to(images)
    (images / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(images)
    (images / "another-name").symlink_to(images / "own")
    (images / "itself").symlink_to(images / "itself")
    assert _names(images) == ["linked/2.png", "own/1.png"]


def test_each_real_folder_is_listed_once_under_its_plain_name_or_the_first_of_its_links(tmp_path):
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    _touch(images, "z/1.png", ".hidden/2.png", ".hidden/deep/3.png")
    _touch(elsewhere, "4.png", "inner/5.png", ".no/6.png")
    (images / "a").symlink_to(images / "z")  # plain: comes as z
    (images / "b").symlink_to(images / ".hidden")  # only links lead there
    (images / "c").symlink_to(elsewhere / "inner")
    (images / "d").symlink_to(elsewhere)  # without inner, which came as c
    (images / "e").symlink_to(elsewhere)
    (images / "up").symlink_to(tmp_path)  # all of it is known by now
    expected = ["b/2.png", "b/deep/3.png", "c/5.png", "d/4.png", "z/1.png"]
    assert _names(images) == expected
    assert count_images(images) == len(expected)


def test_the_root_may_itself_be_a_link(tmp_path):
    _touch(tmp_path / "real", "a/1.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "link")
    assert list_images(tmp_path / "link") == [tmp_path / "link" / "a" / "1.png"]


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_the_order_is_that_of_the_parts_however_many_names_are_held_at_once(
    tmp_path, monkeypatch, at_once
):
    monkeypatch.setattr(image_files, "NAMES_AT_ONCE", at_once)
    names = ["a/z.png", "a.png", "a b.png", "a-/1.png", "a/b/c.png", "a/b.png", "A.png", "é/1.png"]
    _touch(tmp_path, *names, "a/notes.txt", "empty/notes.txt")
    found = list_images(tmp_path)
    assert [image.relative_to(tmp_path) for image in found] == sorted(
        (Path(name) for name in names), key=lambda name: name.parts
    )


def test_images_are_found_as_they_are_asked_for(tmp_path, monkeypatch):
    _touch(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    opened = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or scandir(path))
    images = iterate_images(tmp_path)
    assert opened == []
    assert next(images).name == "1.png"
    assert [Path(path).name for path in opened] == [tmp_path.name, "a"]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "NAMES_AT_ONCE", 250)

    def peak(folder: Path) -> int:
        tracemalloc.start()
        count = count_images(folder)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == len(list(folder.iterdir()))
        return most

    _touch(tmp_path / "few", *(f"{index}-{'x' * 100}.png" for index in range(500)))
    _touch(tmp_path / "many", *(f"{index}-{'x' * 100}.png" for index in range(2000)))
    peak(tmp_path / "few")
    # Kept together, the names of the second alone would take 200 kB more.
    assert peak(tmp_path / "many") < peak(tmp_path / "few") + 50_000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_what_would_wait_for_ever_when_read_is_not_listed(tmp_path):
    _touch(tmp_path, "1.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    assert _names(tmp_path) == ["1.png"]


def test_a_link_to_nowhere_is_listed_and_fails_when_read(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert _names(tmp_path) == ["gone.png", "loop.png"]
    for image in list_images(tmp_path):
        with pytest.raises(ValueError, match=f"cannot read image .*{image.name}"):
            read_image(image, channels=3, size=(4, 4))


def test_a_folder_that_is_missing_empty_or_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path must hold >= 1 image \(.*\), got 0 in"):
        list_images(tmp_path)
    with pytest.raises(ValueError, match="absent': not found"):
        list_images(tmp_path / "absent")
    _touch(tmp_path, "one.png")
    with pytest.raises(ValueError, match=r"one.png': not a folder"):
        list_images(tmp_path / "one.png")
    (tmp_path / "empty").mkdir()
    for ask in (count_images, lambda folder: next(iterate_images(folder))):
        with pytest.raises(ValueError, match="absent': not found"):
            ask(tmp_path / "absent")
        with pytest.raises(ValueError, match=r"got 0 in"):
            ask(tmp_path / "empty")


def test_pixels_of_the_right_size_are_returned_as_they_are(tmp_path):
    colours, greys = _noise(6, 5, 3), _noise(6, 5)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    Image.fromarray(greys).save(tmp_path / "greys.png")
    found = read_image(tmp_path / "colours.png", channels=3, size=(6, 5))
    assert np.array_equal(found.numpy(), colours.transpose(2, 0, 1))
    assert found.is_contiguous()
    assert np.array_equal(read_image(tmp_path / "greys.png", channels=1, size=(6, 5))[0], greys)
    tripled = read_image(tmp_path / "greys.png", channels=3, size=(6, 5))
    assert np.array_equal(tripled.numpy(), np.stack([greys] * 3))
    luma = read_image(tmp_path / "colours.png", channels=1, size=(6, 5))[0].numpy()
    assert np.abs(luma - colours @ np.array([0.299, 0.587, 0.114])).max() <= 0.51


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = _noise(4, 6, 3)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    found = read_image(tmp_path / "turned.png", channels=3, size=(4, 6))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), upright)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_greys_keep_their_range(tmp_path, suffix):
    values = _noise(6, 5, dtype=np.uint16)
    values[0, :3] = (0, 65535, 256)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    found = read_image(tmp_path / f"deep.{suffix}", channels=1, size=(6, 5))[0]
    assert np.array_equal(found.numpy(), np.rint(values / 257).astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_grey_or_colour(tmp_path, mode):
    # A flat colour survives every mode but the black-and-white one.
    colour = (255, 255, 255) if mode == "1" else (200, 200, 200)
    image = Image.new("RGB", (5, 6), colour).convert(mode, palette=Image.Palette.ADAPTIVE)
    file = tmp_path / ("image.tiff" if mode in ("CMYK", "YCbCr", "HSV") else "image.png")
    (image if mode != "HSV" else image.convert("RGB")).save(file)
    for channels in (1, 3):
        found = read_image(file, channels=channels, size=(6, 5))
        assert (found.int() - colour[0]).abs().max() <= 3


@pytest.mark.filterwarnings("error")
def test_transparent_palette_is_laid_on_white_without_a_warning(tmp_path):
    image = Image.fromarray(_noise(6, 5) % 4).convert("P")
    image.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0, 0, 0, 250])
    image.save(tmp_path / "image.png", transparency=bytes([0, 255, 128, 255]))
    colours = np.array([[255, 255, 255], [250, 0, 0], [127, 252, 127], [0, 0, 250]])
    expected = colours[_noise(6, 5) % 4]
    found = read_image(tmp_path / "image.png", channels=3, size=(6, 5))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 70), (70, 40), (5, 9)])
def test_other_sizes_are_resized_with_antialiasing_and_cut_in_the_middle(tmp_path, height, width):
    smooth = np.add.outer(np.arange(height) * 2, np.arange(width)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "image.png")
    found = read_image(tmp_path / "image.png", channels=1, size=(10, 10))
    resized = reference.resize(torch.from_numpy(smooth)[None], [10], antialias=True)
    expected = reference.center_crop(resized, [10, 10])
    # The reference rounds the long side and the crop to whole pixels, about a source pixel.
    assert (found.int() - expected.int()).abs().max() <= 2 * max(1, max(height, width) / 20)


def test_shrinking_averages_where_picking_pixels_would_alias(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    found = read_image(tmp_path / "stripes.png", channels=1, size=(8, 8)).int()
    assert (found - 127).abs().max() <= 12


def _damaged(folder: Path) -> dict[str, Path]:
    whole = folder / "whole.png"
    Image.fromarray(_noise(64, 64, 3)).save(whole)
    jpeg = folder / "whole.jpg"
    Image.fromarray(_noise(64, 64, 3)).save(jpeg)
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header
    chunk += struct.pack(">I", zlib.crc32(b"IHDR" + header))
    contents = {
        "empty.png": b"",
        "text.jpg": b"this is no image\nat all",
        "truncated.png": whole.read_bytes()[:2000],
        "truncated.jpg": jpeg.read_bytes()[:2000],
        "damaged.png": whole.read_bytes()[:60] + bytes(200) + whole.read_bytes()[260:],
        "bomb.png": b"\x89PNG\r\n\x1a\n" + chunk,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tiff")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(folder / "wide.tiff")
    names = [*contents, "folder.png", "float.tiff", "wide.tiff", "missing.png"]
    return {name: folder / name for name in names}


@pytest.mark.parametrize(
    "name",
    [
        *("empty.png", "text.jpg", "truncated.png", "truncated.jpg", "damaged.png", "bomb.png"),
        *("folder.png", "float.tiff", "wide.tiff", "missing.png"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line_that_names_the_file(tmp_path, name):
    with pytest.raises(ValueError, match="cannot read image") as raised:
        read_image(_damaged(tmp_path)[name], channels=3, size=(8, 8))
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_large_image_that_pillow_would_only_warn_of_is_refused(tmp_path, monkeypatch):
    Image.fromarray(_noise(12, 12)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="decompression bomb"):
        read_image(tmp_path / "large.png", channels=1, size=(8, 8))


def test_bombs_are_refused_in_every_thread_and_the_warning_filters_restored(tmp_path, monkeypatch):
    Image.fromarray(_noise(12, 12)).save(tmp_path / "large.png")
    Image.fromarray(_noise(8, 8)).save(tmp_path / "small.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    before = list(warnings.filters)

    def refused(index: int) -> bool:
        try:
            name = "large.png" if index % 2 else "small.png"
            read_image(tmp_path / name, channels=1, size=(8, 8))
        except ValueError as error:
            return "decompression bomb" in str(error)
        return False

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads meet between any two steps
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(refused, range(1000)))
    finally:
        sys.setswitchinterval(interval)
    assert answers == [bool(index % 2) for index in range(1000)]
    assert warnings.filters == before


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for name in ("moving.gif", "moving.webp", "moving.png", "moving.tiff"):
        lossless = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **lossless)
        found = read_image(tmp_path / name, channels=3, size=(8, 8))
        assert found[:, 4, 4].tolist() == [255, 0, 0]


def test_channels_and_size_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
        read_image(tmp_path / "any.png", channels=4, size=(8, 8))
    with pytest.raises(ValueError, match=r"size must be >= 1 pixel a side, got \(8, 0\)"):
        read_image(tmp_path / "any.png", channels=3, size=(8, 0))


@pytest.mark.skipif("DEEPENS_DATA" not in os.environ, reason="DEEPENS_DATA names no image folders")
def test_real_folders_are_read():
    for image_set, channels, size in (("cifar10", 3, (32, 32)), ("mnist", 1, (28, 28))):
        images = list_images(Path(os.environ["DEEPENS_DATA"]) / image_set / "test")
        for file in images[:: max(1, len(images) // 50)]:
            with Image.open(file) as image:
                expected = np.asarray(image.convert("L" if channels == 1 else "RGB"))
            found = read_image(file, channels=channels, size=size)
            assert np.array_equal(found.permute(1, 2, 0).numpy().squeeze(), expected)


def test_a_format_that_other_programs_would_decode_is_refused(tmp_path):
    file = tmp_path / "postscript.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="cannot identify image file"):
        read_image(file, channels=3, size=(8, 8))


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="the file is empty"):
        read_image(tmp_path / "a.png", channels=3, size=(8, 8))
