import gzip
import hashlib
import http.server
import io
import os
import pickle
import shutil
import socket
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from deepens.datasets.sources.torchvision_sets import NAMES, OOD_DEFAULTS, load_parts
from PIL import Image
from torchvision import datasets
from torchvision.datasets import imagenet

SYNSETS = {"n01": ("crane",), "n02": ("tench", "Tinca tinca"), "n03": ("crane", "hoist")}
GREY = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}


def _values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def _tar(path: Path, folder: Path, mode: str = "w:gz") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for entry in sorted(folder.iterdir()):
            archive.add(entry, entry.name)
    return hashlib.md5(path.read_bytes()).hexdigest()


def _make_cifar(root: Path, patch, kind=datasets.CIFAR10):
    """Batches of five images as CIFAR's authors pickle them: rows of 3072 bytes, planes first."""
    home, key = root / kind.base_folder, "labels" if kind is datasets.CIFAR10 else "fine_labels"
    classes = ["cat", "ant", "dog", "bee"]
    written = {"train": [], "test": []}
    for part in written:
        listed = []
        for seed, (file, _) in enumerate(getattr(kind, f"{part}_list")):
            rows, labels = _values(5, 3072, seed=seed + len(part)), [3, 0, 1, 2, seed % 4]
            content = pickle.dumps({"data": rows, key: labels}, protocol=2)
            listed.append([file, _write(home / file, content)])
            written[part].append((rows.reshape(5, 3, 32, 32), labels))
        patch.setattr(kind, f"{part}_list", listed)
    meta = _write(home / kind.meta["filename"], pickle.dumps({kind.meta["key"]: classes}))
    patch.setattr(kind, "meta", {**kind.meta, "md5": meta})
    return tuple(classes), {
        part: (
            np.concatenate([v for v, _ in batches]),
            [label for _, labels in batches for label in labels],
        )
        for part, batches in written.items()
    }


def _make_svhn(root: Path, patch):
    written, listed = {}, {}
    for part, (url, file, _) in datasets.SVHN.split_list.items():
        images, labels = _values(6, 3, 32, 32, seed=len(part)), [1, 10, 9, 2, 10, 5]
        buffer = io.BytesIO()
        matrix = {"X": images.transpose(2, 3, 1, 0), "y": np.array(labels, np.uint8)[:, None]}
        scipy.io.savemat(buffer, matrix)
        listed[part] = [url, file, _write(root / file, buffer.getvalue())]
        written[part] = images, [label % 10 for label in labels]
    patch.setattr(datasets.SVHN, "split_list", listed)
    return tuple("0123456789"), {part: written[part] for part in ("train", "test")}


def _idx(values: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


def _make_grey(root: Path, patch, kind, packed: bool = False):
    written, listed = {}, []
    for part, first in (("train", "train"), ("test", "t10k")):
        images, labels = (
            _values(7, 28, 28, seed=len(part)),
            np.array([9, 0, 1, 4, 9, 3, 2], np.uint8),
        )
        for values, last in ((images, "images-idx3-ubyte"), (labels, "labels-idx1-ubyte")):
            file, content = f"{first}-{last}", _idx(values)
            if packed:
                file, content = f"{file}.gz", gzip.compress(content)
            listed.append((file, _write(root / kind.__name__ / "raw" / file, content)))
        written[part] = images[:, None], labels.tolist()
    if packed:
        patch.setattr(kind, "resources", listed)
    classes = tuple("0123456789") if kind is datasets.MNIST else tuple(kind.classes)
    return classes, written


def _make_dtd(root: Path):
    written = {}
    for part in ("train", "val", "test"):
        lines = [
            f"{kind}/{kind}_{part}{i}.jpg" for i in range(2) for kind in ("zigzagged", "banded")
        ]
        for line in lines:
            image = root / "dtd/dtd/images" / line
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_values(6, 5, 3)).save(image)
        _write(root / f"dtd/dtd/labels/{part}1.txt", "\n".join(lines).encode())
        written[part] = [root / "dtd/dtd/images" / line for line in lines], [1, 0, 1, 0]
    return ("banded", "zigzagged"), written


def _make_imagenet(root: Path):
    written = {}
    for part, folder in (("train", "train"), ("test", "val")):
        files = [
            root / "imagenet" / folder / name / f"{name}_{i}.JPEG"
            for name in SYNSETS
            for i in (1, 2)
        ]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_values(6, 5, 3)).save(file)
        written[part] = files, [0, 0, 1, 1, 2, 2]
    torch.save((SYNSETS, ["n02", "n01"]), root / "imagenet/meta.bin")
    return ("crane (n01)", "tench", "crane (n03)"), written


def _make(name: str, root: Path, patch):
    if name in GREY:
        return _make_grey(root, patch, GREY[name])
    makers = {
        "cifar10": lambda: _make_cifar(root, patch),
        "cifar100": lambda: _make_cifar(root, patch, datasets.CIFAR100),
        "svhn": lambda: _make_svhn(root, patch),
        "dtd": lambda: _make_dtd(root),
        "imagenet": lambda: _make_imagenet(root),
    }
    return makers[name]()


def _load(name: str, root: Path, *, download: bool = False, parts=("train", "val", "test")):
    return load_parts(name, root, download=download, parts=parts)


def _refusal(name: str, root: Path, **options) -> str:
    with pytest.raises(ValueError, match=name) as caught:
        _load(name, root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def _same(read, written) -> bool:
    images, targets = written
    if isinstance(read.images, tuple):
        return list(read.images) == images and read.targets.tolist() == targets
    assert read.images.permute(0, 2, 3, 1).is_contiguous()
    assert read.images.dtype == torch.uint8
    return np.array_equal(read.images.numpy(), images) and read.targets.tolist() == targets


@pytest.fixture
def serve(tmp_path):
    """Serve a folder on this machine; gives its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def _closed() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


def _serve_set(name: str, folder: Path, patch):
    """Make a set's archives in a folder, with nothing else there; gives what is written in them."""
    made = folder.parent / "made"
    if name == "mnist":
        written = _make_grey(made, patch, datasets.MNIST, packed=True)
        for file in (made / "MNIST/raw").iterdir():
            file.rename(folder / file.name)
        return written
    written = _make(name, made, patch)
    if name == "cifar10":
        patch.setattr(datasets.CIFAR10, "tgz_md5", _tar(folder / "cifar-10-python.tar.gz", made))
    elif name == "dtd":
        patch.setattr(datasets.DTD, "_MD5", _tar(folder / "dtd-r1.0.1.tar.gz", made / "dtd"))
    else:
        for file in made.iterdir():
            file.rename(folder / file.name)
    return written


def _point(name: str, address: str, patch) -> None:
    patch.setattr(datasets.MNIST, "mirrors", [address])
    patch.setattr(datasets.CIFAR10, "url", address + "cifar-10-python.tar.gz")
    patch.setattr(datasets.DTD, "_URL", address + "dtd-r1.0.1.tar.gz")
    listed = datasets.SVHN.split_list.items()
    moved = {part: [address + file, file, md5] for part, (_, file, md5) in listed}
    patch.setattr(datasets.SVHN, "split_list", moved)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_labels_and_classes_are_those_of_the_files(name, tmp_path, monkeypatch, capsys):
    classes, written = _make(name, tmp_path, monkeypatch)
    named, read = _load(name, tmp_path)
    assert named == classes
    assert list(read) == list(written)
    assert all(_same(read[part], written[part]) for part in written)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", NAMES)
def test_only_the_parts_asked_for_are_read(name, tmp_path, monkeypatch):
    classes, written = _make(name, tmp_path, monkeypatch)
    if name == "imagenet":
        shutil.rmtree(tmp_path / "imagenet/train")
    named, read = _load(name, tmp_path, parts=["test"])
    assert named == classes
    assert list(read) == ["test"]
    assert _same(read["test"], written["test"])


class _Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_pickle_of_another_hash_is_refused_before_it_runs(file, tmp_path, monkeypatch):
    _make("cifar10", tmp_path, monkeypatch)
    attack = pickle.dumps(_Attack(tmp_path / "attacked"))
    (tmp_path / "cifar-10-batches-py" / file).write_bytes(attack)
    assert f"{file}', which has another MD5" in _refusal("cifar10", tmp_path, parts=["train"])
    assert not (tmp_path / "attacked").exists()
    pickle.loads(attack)
    assert (tmp_path / "attacked").exists()


def test_a_pickle_of_another_hash_is_refused_by_torchvision_itself(tmp_path, monkeypatch):
    _make("cifar10", tmp_path, monkeypatch)
    attack = pickle.dumps(_Attack(tmp_path / "attacked"))
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(attack)
    with pytest.raises(RuntimeError, match="corrupted"):
        datasets.CIFAR10(tmp_path)
    assert not (tmp_path / "attacked").exists()


def test_meta_of_imagenet_cannot_execute_code(tmp_path, monkeypatch):
    _make("imagenet", tmp_path, monkeypatch)
    torch.save(_Attack(tmp_path / "attacked"), tmp_path / "imagenet/meta.bin")
    assert "is damaged" in _refusal("imagenet", tmp_path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_set_that_is_not_there_names_the_remedy(name, tmp_path):
    message = _refusal(name, tmp_path / "empty")
    assert message.startswith(f"{name} is not at '{tmp_path / 'empty'}")
    if name == "imagenet":
        assert "torchvision cannot download it; put ILSVRC2012_devkit_t12.tar.gz, ILSVR" in message
        assert message == _refusal(name, tmp_path / "empty", download=True)
    else:
        assert ": add --download, or put " in message
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_4"),
        ("svhn", "test_32x32.mat"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte"),
        ("dtd", "dtd/dtd/images/banded/banded_val0.jpg"),
        ("dtd", "dtd/dtd/labels/val1.txt"),
        ("imagenet", "imagenet/meta.bin"),
    ],
)
def test_a_set_that_lacks_a_file_is_incomplete(name, file, tmp_path, monkeypatch):
    _make(name, tmp_path, monkeypatch)
    (tmp_path / file).unlink()
    message = _refusal(name, tmp_path)
    assert f"{name} is incomplete" in message
    assert f"1 files lack, first '{file}'" in message


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte", _idx(_values(7, 28, 28))[:-1]),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte", _idx(_values(6, 28, 28))),
        ("kmnist", "KMNIST/raw/t10k-labels-idx1-ubyte", _idx(np.full(7, 10, np.uint8))),
        ("kmnist", "KMNIST/raw/t10k-labels-idx1-ubyte", b""),
        ("dtd", "dtd/dtd/labels/test1.txt", b""),
        ("imagenet", "imagenet/meta.bin", b"not a file of torch"),
    ],
)
def test_damaged_files_are_refused(name, file, content, tmp_path, monkeypatch):
    _make(name, tmp_path, monkeypatch)
    (tmp_path / file).write_bytes(content)
    assert "is damaged: " in _refusal(name, tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "svhn", "mnist", "dtd"])
def test_a_download_that_fails_leaves_nothing_and_the_next_one_works(
    name, serve, tmp_path, monkeypatch, capsys
):
    folder, address = serve
    classes, written = _serve_set(name, folder, monkeypatch)
    root = tmp_path / "root"
    closed = _closed()
    _point(name, closed, monkeypatch)
    message = _refusal(name, root, download=True)
    assert f"{name} cannot be downloaded from {closed[:-1]} (" in message
    assert "Connection refused" in message
    assert "fetch it elsewhere: put " in message
    assert list(root.iterdir()) == []

    _point(name, address, monkeypatch)
    right = {file: file.read_bytes() for file in folder.iterdir()}
    last = max(right)
    last.write_bytes(right[last][:-9])
    assert "cannot be downloaded" in _refusal(name, root, download=True)
    assert list(root.iterdir()) == []

    last.write_bytes(right[last])
    named, read = _load(name, root, download=True)
    assert named == classes
    assert list(read) == list(written)
    assert all(read[part].targets.tolist() == written[part][1] for part in written)
    assert capsys.readouterr().out == ""
    for file in right:
        file.unlink()
    again, _ = _load(name, root, download=True)
    assert again == classes
    assert not list(root.glob(".*"))


def test_a_download_replaces_what_is_damaged_and_keeps_the_rest(serve, tmp_path, monkeypatch):
    folder, address = serve
    _, written = _serve_set("cifar10", folder, monkeypatch)
    _point("cifar10", address, monkeypatch)
    root = tmp_path / "root"
    _load("cifar10", root, download=True)
    home = root / "cifar-10-batches-py"
    (home / "notes.txt").write_text("mine")
    (home / "data_batch_1").write_bytes(b"broken")
    _, read = _load("cifar10", root, download=True)
    assert _same(read["train"], written["train"])
    assert (home / "notes.txt").read_text() == "mine"


def test_a_host_that_falls_silent_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("deepens.datasets.sources.torchvision_sets.SECONDS_OF_SILENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        _point("dtd", f"http://127.0.0.1:{server.getsockname()[1]}/", monkeypatch)
        assert "timed out" in _refusal("dtd", tmp_path / "root", download=True)
    assert socket.getdefaulttimeout() is None


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(self):
        _write(Path(self.raw_folder) / "train-images-idx3-ubyte", b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.MNIST, "download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _load("mnist", tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cifar10", "mnist", "dtd"])
def test_archives_put_there_by_hand_are_unpacked(name, tmp_path, monkeypatch):
    folder, root = tmp_path / "served", tmp_path / "root"
    folder.mkdir()
    classes, written = _serve_set(name, folder, monkeypatch)
    _point(name, _closed(), monkeypatch)
    place = {"cifar10": root, "mnist": root / "MNIST/raw", "dtd": root / "dtd"}[name]
    shutil.copytree(folder, place)
    first = min(place.iterdir())
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    assert f"cannot be unpacked ('{first}' has another MD5" in _refusal(name, root)
    first.write_bytes(whole)
    named, read = _load(name, root)
    assert named == classes
    assert all(read[part].targets.tolist() == written[part][1] for part in written)
    assert all(file.read_bytes() == (place / file.name).read_bytes() for file in folder.iterdir())


def test_archives_of_imagenet_are_unpacked(tmp_path, monkeypatch):
    made, home = tmp_path / "made", tmp_path / "root/imagenet"
    classes, _ = _make_imagenet(made)
    for name in SYNSETS:
        folder = made / "imagenet/train" / name
        _tar(made / "tars" / f"{name}.tar", folder, "w")
    flat = made / "flat"
    flat.mkdir()
    for number in (1, 2):
        shutil.copy(made / "imagenet/val/n02/n02_1.JPEG", flat / f"ILSVRC2012_val_{number}.JPEG")
    data = made / "kit/ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    rows = [(i + 1, name, ", ".join(SYNSETS[name]), "", 0) for i, name in enumerate(SYNSETS)]
    kinds = [("id", int), ("wnid", "O"), ("words", "O"), ("gloss", "O"), ("num_children", int)]
    scipy.io.savemat(data / "meta.mat", {"synsets": np.array(rows, kinds)})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n")
    sources = {"devkit": (made / "kit", "w:gz"), "train": (made / "tars", "w"), "val": (flat, "w")}
    listed = {}
    for kind, (folder, mode) in sources.items():
        file = imagenet.ARCHIVE_META[kind][0]
        listed[kind] = file, _tar(home / file, folder, mode)
    monkeypatch.setattr(imagenet, "ARCHIVE_META", {**listed, "val": (listed["val"][0], "0" * 32)})
    message = _refusal("imagenet", tmp_path / "root")
    assert str(tmp_path / "root/imagenet") in message
    assert ".part-" not in message
    assert sorted(file.name for file in home.iterdir()) == sorted(
        file for file, _ in listed.values()
    )

    monkeypatch.setattr(imagenet, "ARCHIVE_META", listed)
    named, read = _load("imagenet", tmp_path / "root", parts=["train"])
    assert named == classes
    assert [path.relative_to(home).as_posix() for path in read["train"].images[:2]] == [
        "train/n01/n01_1.JPEG",
        "train/n01/n01_2.JPEG",
    ]
    assert read["train"].targets.tolist() == [0, 0, 1, 1, 2, 2]
    # Of the three classes two have images here, which no real validation set lacks.
    assert "its 2 classes are not the 3" in _refusal("imagenet", tmp_path / "root")
    assert (home / "val/n02/ILSVRC2012_val_1.JPEG").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_ood_sets_are_other_sets_that_torchvision_has(name):
    defaults = OOD_DEFAULTS[name]
    sets = defaults.near + defaults.far
    assert set(sets) <= set(NAMES) - {name}
    assert len(set(sets)) == len(sets) > 0
    assert bool(defaults.by_folder) == defaults.source.startswith("OpenOOD")


def test_unknown_names_and_parts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got 'cifar'; the nearest is 'cifar10'"):
        _load("cifar", tmp_path)
    with pytest.raises(ValueError, match=r"train, val, test, got \['extra'\]"):
        _load("svhn", tmp_path, parts=["extra"])
    with pytest.raises(ValueError, match=r"svhn has train, test, got parts \['val'\]"):
        _load("svhn", tmp_path, parts=["val"])
