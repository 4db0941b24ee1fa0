import errno
import io
import json
import os
import time

import numpy as np
import pytest
import torch
from deepens.datasets import read_image, tensor_files
from deepens.datasets.sources import decoding as module
from deepens.datasets.sources.decoding import (
    Decoding,
    Encoder,
    Silent,
    common_format,
    decode,
    examine,
)
from image_folders import write_images
from PIL import Image


class Said(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def _decode(paths, cache, *, skip=False, watcher=None, size=(8, 8)):
    how = Decoding(3, size, cache, skip_bad_images=skip)
    return decode(paths, how, name="photos", watcher=watcher or Silent())


def test_decoded_images_equal_reading_each_and_are_stored_channels_last(tmp_path):
    paths = write_images(tmp_path / "images", 5, size=(9, 12))
    for _ in range(2):  # decoded, then from the cache
        images, bad = _decode(paths, tmp_path / "cache")
        expected = torch.stack([read_image(p, channels=3, size=(8, 8)) for p in paths])
        assert torch.equal(images, expected)
        assert images.movedim(1, -1).is_contiguous()
        assert bad == {}


def test_a_second_start_reads_no_image(tmp_path, monkeypatch):
    paths = write_images(tmp_path / "images", 3)
    first, _ = _decode(paths, tmp_path / "cache")
    monkeypatch.setattr(module, "look_at", None)
    monkeypatch.setattr(module, "content_hash", None)
    second, _ = _decode(paths, tmp_path / "cache")
    assert torch.equal(first, second)


def test_a_copy_of_the_folder_shares_the_cache_and_a_changed_file_does_not(tmp_path, monkeypatch):
    paths = write_images(tmp_path / "images", 3)
    first, _ = _decode(paths, tmp_path / "cache")
    (tmp_path / "copy").mkdir()
    copies = [tmp_path / "copy" / path.name for path in paths]
    for path, copy in zip(paths, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    with monkeypatch.context() as patched:
        patched.setattr(module, "read_image", None)
        assert torch.equal(_decode(copies, tmp_path / "cache")[0], first)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(copies[1])
    changed, _ = _decode(copies, tmp_path / "cache")
    assert changed[1].flatten(1)[:, 0].tolist() == [1, 2, 3]
    assert torch.equal(changed[[0, 2]], first[[0, 2]])


def test_another_size_is_another_entry(tmp_path):
    paths = write_images(tmp_path / "images", 2)
    assert _decode(paths, tmp_path / "cache")[0].shape[-1] == 8
    assert _decode(paths, tmp_path / "cache", size=(4, 4))[0].shape[-1] == 4


def test_a_damaged_cache_is_made_again(tmp_path):
    paths = write_images(tmp_path / "images", 3)
    first, _ = _decode(paths, tmp_path / "cache")
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(_decode(paths, tmp_path / "cache")[0], first)


def _corrupt(file):
    data = bytearray(file.read_bytes())
    data[20:40] = bytes(20)
    file.write_bytes(data)


BAD = {
    "corrupt": _corrupt,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-60]),
    "zero-byte": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("no image"),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named_with_its_path_and_the_remedy(tmp_path, kind):
    paths = write_images(tmp_path / "ünï cödé", 4)
    BAD[kind](paths[2])
    for _ in range(2):  # the cache remembers
        with pytest.raises(ValueError, match="1 of 4 images cannot be read") as refused:
            _decode(paths, tmp_path / "cache")
        assert str(paths[2]) in str(refused.value)
        assert "--skip-bad-images" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_bad_images_are_left_out_where_that_is_asked_for(tmp_path):
    paths = write_images(tmp_path / "images", 5)
    good = torch.stack([read_image(p, channels=3, size=(8, 8)) for p in paths])
    BAD["truncated"](paths[1])
    BAD["zero-byte"](paths[3])
    for _ in range(2):
        images, bad = _decode(paths, tmp_path / "cache", skip=True)
        assert torch.equal(images, good[[0, 2, 4]])
        assert list(bad) == [1, 3]
        assert all(str(paths[index]) in reason for index, reason in bad.items())
    how = Decoding(3, (8, 8), tmp_path / "cache", skip_bad_images=True)
    assert list(examine(paths, how, name="photos", watcher=Silent()).bad) == [1, 3]


def test_a_set_of_which_nothing_can_be_read_is_refused(tmp_path):
    paths = write_images(tmp_path / "images", 2)
    for path in paths:
        BAD["zero-byte"](path)
    with pytest.raises(ValueError, match="none of its 2 images can be read"):
        _decode(paths, tmp_path / "cache", skip=True)


def test_cmyk_sixteen_bit_palette_and_animated_images_are_read(tmp_path):
    grey = np.full((8, 8), 40000, np.uint16)
    files = [tmp_path / name for name in ("cmyk.jpg", "deep.png", "palette.gif", "moving.gif")]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(files[0], quality=95)
    Image.fromarray(grey).save(files[1])
    Image.new("RGB", (8, 8), (0, 0, 255)).convert("P").save(files[2])
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("lime", "red")]
    frames[0].save(files[3], save_all=True, append_images=frames[1:])
    images, bad = _decode(files, tmp_path / "cache")
    assert bad == {}
    expected = torch.tensor([[255, 0, 0], [156, 156, 156], [0, 0, 255], [0, 255, 0]])
    assert (images[:, :, 4, 4].int() - expected).abs().max() <= 3


def test_a_decompression_bomb_is_refused_by_name(tmp_path, monkeypatch):
    paths = write_images(tmp_path / "images", 2)
    Image.new("1", (400, 400)).save(paths[1])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="decompression bomb") as refused:
        _decode(paths, tmp_path / "cache")
    assert str(paths[1]) in str(refused.value)


def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path, monkeypatch):
    paths = write_images(tmp_path / "images", 3)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensor_files, "save_file", full)
    said = Said()
    images, _ = _decode(paths, tmp_path / "cache", watcher=said)
    assert torch.equal(images[0], read_image(paths[0], channels=3, size=(8, 8)))
    assert len(said.lines) == 1
    assert "no space left on device" in said.lines[0].lower()
    assert "--cache" in said.lines[0]
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path):
    paths = write_images(tmp_path / "images", 2)
    (tmp_path / "file").write_text("in the way")
    said = Said()
    images, _ = _decode(paths, tmp_path / "file" / "cache", watcher=said)
    assert len(images) == 2
    assert len(said.lines) == 1


def test_the_form_is_the_files_own_where_all_are_square_and_alike(tmp_path):
    assert common_format(write_images(tmp_path / "a", 3, size=(32, 32)), None) == (3, (32, 32))
    grey = write_images(tmp_path / "b", 3, size=(28, 28), mode="L")
    assert common_format(grey, None) == (1, (28, 28))
    assert common_format(grey, 16) == (1, (16, 16))


def test_the_form_of_photographs_is_their_median_short_side_up_to_224(tmp_path):
    sizes = [(30, 40), (60, 50), (70, 90)]
    files = [write_images(tmp_path / str(size), 1, size=size)[0] for size in sizes]
    assert common_format(files, None) == (3, (50, 50))
    large = write_images(tmp_path / "large", 1, size=(500, 400))
    assert common_format(large, None) == (3, (224, 224))


def test_one_colour_image_makes_a_set_rgb(tmp_path):
    files = write_images(tmp_path / "a", 2, mode="L") + write_images(tmp_path / "b", 1)
    assert common_format(files, None)[0] == 3


def _jpeg(pixels, **settings):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **settings)
    return np.array(Image.open(buffer))


@pytest.mark.parametrize("settings", [{"quality": 40}, {"quality": 85, "subsampling": 0}])
def test_the_encoder_is_that_of_the_training_images_bit_for_bit(tmp_path, settings):
    generator = np.random.default_rng(0)
    files = []
    for index in range(3):
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        files.append(tmp_path / f"{index}.jpg")
        Image.fromarray(pixels).save(files[-1], **settings)
    new = generator.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    through = Encoder.of(files).through(torch.from_numpy(new).permute(0, 3, 1, 2))
    expected = np.stack([_jpeg(image, **settings) for image in new])
    assert np.array_equal(through.permute(0, 2, 3, 1).numpy(), expected)


def test_grey_images_go_through_a_grey_encoder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=30)
    through = Encoder.of([tmp_path / "a.jpg"]).through(torch.from_numpy(pixels)[None, None])
    assert np.array_equal(through[0, 0].numpy(), _jpeg(pixels, quality=30))


def test_images_without_a_lossy_encoder_have_none_to_offer(tmp_path):
    with pytest.raises(ValueError, match="encode_ood must be given with JPEG"):
        Encoder.of(write_images(tmp_path, 2))


def test_a_file_changed_within_its_size_is_noticed_by_its_time(tmp_path):
    paths = write_images(tmp_path / "images", 1)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(paths[0])
    _decode(paths, tmp_path / "cache")
    size = paths[0].stat().st_size
    Image.new("RGB", (8, 8), (7, 7, 7)).save(paths[0])
    os.utime(paths[0], ns=(time.time_ns(), time.time_ns() + 10**9))
    assert paths[0].stat().st_size == size
    assert _decode(paths, tmp_path / "cache")[0].unique().tolist() == [7]


def test_the_index_of_contents_holds_hashes_only(tmp_path):
    paths = write_images(tmp_path / "images", 2)
    _decode(paths, tmp_path / "cache")
    (index,) = (tmp_path / "cache").glob("contents-*.json")
    assert all(len(each) == 64 for each in json.loads(index.read_text()))


def test_images_are_encoded_at_the_size_of_the_files_and_shrunk_as_these_are(tmp_path):
    """The same picture as a training file and as an OOD image ends in the same pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(pixels).resize((8, 8)).resize((64, 64)))
    Image.fromarray(pixels).save(tmp_path / "seen.jpg", quality=20)
    encoder = Encoder.of([tmp_path / "seen.jpg"])
    assert encoder.size == (64, 64)
    raw = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    expected = read_image(tmp_path / "seen.jpg", channels=3, size=(16, 16))
    assert torch.equal(encoder.through(raw, (16, 16))[0], expected)


def test_training_images_of_several_sizes_have_no_one_encoder(tmp_path):
    files = write_images(tmp_path / "a", 1, suffix="jpg")
    files += write_images(tmp_path / "b", 1, suffix="jpg", size=(16, 16))
    with pytest.raises(ValueError, match="training images of one size, got files of 2 sizes"):
        Encoder.of(files)


def test_a_header_that_promises_too_much_warns_of_nothing(tmp_path, monkeypatch, recwarn):
    paths = write_images(tmp_path / "images", 2)
    Image.new("1", (40, 35)).save(paths[1])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert common_format(paths, None) == (3, (8, 8))
    assert not recwarn.list
