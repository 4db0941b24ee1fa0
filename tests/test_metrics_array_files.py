"""Damaged, dangerous and ambiguous files are refused in one line; large ones stay on disk."""

import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deepens.metrics.io.array_files import FORMATS, open_array
from deepens.metrics.io.arrays import open_logits
from safetensors.torch import save_file


def _file(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, array)
    elif path.suffix == ".safetensors":
        save_file({"only": torch.from_numpy(array)}, path)
    elif path.suffix == ".csv":
        np.savetxt(path, array, delimiter=",")
    else:
        columns = {str(place): column for place, column in enumerate(array.T)}
        pq.write_table(pa.table(columns), path)
    return path


def _array(n=500, classes=3):
    return np.random.default_rng(0).normal(size=(n, classes))


def _refused(path, line, **options):
    with pytest.raises(ValueError, match=line) as caught:
        open_array(path, **options)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".parquet"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    file = _file(tmp_path / f"a{suffix}", _array())
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    _refused(file, "damaged")


def test_an_archive_with_changed_bytes_is_refused(tmp_path):
    file = _file(tmp_path / "a.npz", _array())
    content = bytearray(file.read_bytes())
    content[300:400] = bytes(100)
    file.write_bytes(content)
    _refused(file, "damaged: Bad CRC-32")


class _Trap:
    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return (open, (str(self._path), "w"))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickled_objects_are_refused_and_not_executed(tmp_path, suffix):
    trap, file = tmp_path / "sprung", tmp_path / f"a{suffix}"
    array = np.array([_Trap(trap)], dtype=object)
    (np.save if suffix == ".npy" else np.savez)(file, array)
    _refused(file, "pickled Python objects, which are never loaded")
    assert not trap.exists()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_plain_pickle_under_another_name_is_refused_and_not_executed(tmp_path, suffix):
    trap, file = tmp_path / "sprung", tmp_path / f"a{suffix}"
    file.write_bytes(pickle.dumps(_Trap(trap)))
    _refused(file, f"is not a {suffix} file|is not a (CSV|Parquet) file|damaged")
    assert not trap.exists()


def test_folders_other_formats_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.npy").mkdir()
    _refused(tmp_path / "a.npy", "is a directory")
    _refused(tmp_path / "a.pt", r"must end in one of \.npy, .*, got '\.pt'")
    with pytest.raises(FileNotFoundError):
        open_array(tmp_path / "b.npy")


def test_several_arrays_need_a_key(tmp_path):
    arrays = {"logits": _array(), "targets": np.arange(500)}
    np.savez(tmp_path / "a.npz", **arrays)
    save_file({k: torch.from_numpy(v) for k, v in arrays.items()}, tmp_path / "a.safetensors")
    for file in (tmp_path / "a.npz", tmp_path / "a.safetensors"):
        _refused(file, r"holds 2 arrays \(logits, targets\); name one with --key")
        _refused(file, "no array called 'logit'; it holds: logits, targets", key="logit")
        found = open_array(file, key="targets")
        assert torch.equal(found.read(0, 500), torch.arange(500))
        found.close()
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    _refused(tmp_path / "b.npz", r"holds 0 arrays \(none\)")


@pytest.mark.parametrize(
    ("dtype", "line"),
    [
        ("<V2", r"got void16 \(NumPy saves bfloat16 so"),
        ("<U3", "must hold real numbers"),
        ([("a", "<f4"), ("b", "<f4")], "must hold real numbers|holds no plain array"),
        ("<c8", "must hold real numbers"),
    ],
)
def test_arrays_of_something_else_than_numbers_are_refused(tmp_path, dtype, line):
    np.save(tmp_path / "a.npy", np.zeros(3, dtype=dtype))
    _refused(tmp_path / "a.npy", line)


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3.5\n4,5,6\n",
        "cat,dog,bird\n1,2,3.5\n4,5,6\n",
        "\ufeffcat,dog,bird\r\n1, 2 ,3.5\r\n\r\n4,5,6\r\n\r\n",
        '"cat, black","dog","bird"\n"1","2","3.5"\n4,5,6',
        "0,1,2\n1,2,3.5\n4,5,6\n",
        "1e0,+2.0,35e-1\n4,5,6\n",
    ],
    ids=["bare", "names", "excel", "quoted", "pandas", "exponents"],
)
def test_text_is_read_with_and_without_names_of_columns(tmp_path, text):
    file = tmp_path / "a.csv"
    file.write_bytes(text.encode())
    reader = open_array(file)
    assert reader.read(0, 2).tolist() == [[1.0, 2.0, 3.5], [4.0, 5.0, 6.0]]
    assert reader.shape == (2, 3)
    reader.close()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "must hold >= 1 row, got an empty file"),
        ("1,2\n3\n", "must have 2 columns, got 1 in line 2"),
        ("a,b\n1,2\n\n3,4,5\n", "must have 2 columns, got 3 in line 4"),
        ("1,2\n3,four\n", "must hold numbers, got 'four' in line 2, column 2"),
        ("1,2\n3,\n", "must hold numbers, got '' in line 2, column 2"),
        ("1,,2\n3,4,5\n", "a row of names or of numbers, got '' among numbers in line 1, column 2"),
        (",cat,dog\n0,1,2\n", "a first column without a name, as of row numbers"),
        ("name,0,1\na,1,2\n", "got 'name' among numbers in line 1, column 1"),
        ("0,1\n1,2\n", "begins with 0,1, which may be names of columns or numbers"),
        ("1;2\n3;4\n", "got '3;4' in line 2, column 1"),
    ],
)
def test_text_that_may_be_read_in_two_ways_or_in_none_is_refused(tmp_path, text, line):
    file = tmp_path / "a.csv"
    file.write_text(text)
    _refused(file, line)


def test_a_bad_number_far_down_is_named_by_its_line(tmp_path):
    rows = ["1.5,2.5"] * 200_000
    rows[199_990] = "1.5,x"
    (tmp_path / "a.csv").write_text("\n".join(rows))
    _refused(tmp_path / "a.csv", "got 'x' in line 199991, column 2")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("start", [0, 1])
def test_row_numbers_are_not_taken_for_logits_of_a_class(tmp_path, suffix, start):
    numbers = np.column_stack([np.arange(start, start + 500), _array()])
    file = _file(tmp_path / f"a{suffix}", numbers)
    with pytest.raises(ValueError, match="counts its rows in column 1; .*pandas: index=False"):
        open_logits(file, layout="NC")


def test_parquet_takes_the_widest_type_and_refuses_what_is_no_number(tmp_path):
    file = tmp_path / "a.parquet"

    def write(**columns):
        pq.write_table(pa.table(columns), file)

    write(a=pa.array([1.5], pa.float32()), b=pa.array([2.5], pa.float32()))
    assert open_array(file).dtype == torch.float32
    write(a=pa.array([1.5], pa.float16()), b=pa.array([2.5], pa.float64()))
    assert open_array(file).read(0, 1).tolist() == [[1.5, 2.5]]
    write(a=[0.5, 1.0, None], b=[1.0, 2.0, 3.0])
    _refused(file, "must have a value everywhere, got none in row 2, column 'a'")
    write(a=[[0.5, 1.0]])
    _refused(file, "must hold one number per row and column, got list.* in column 'a'")
    write(a=["cat"])
    _refused(file, "got string in column 'a'")
    write(__index_level_0__=[4], a=[0.5])
    _refused(file, "has a column of row numbers")


def test_a_table_without_rows_keeps_its_columns(tmp_path):
    for suffix in (".csv", ".parquet"):
        file = _file(tmp_path / f"a{suffix}", _array()[:0])
        if suffix == ".csv":
            file.write_text("a,b,c\n")
        assert open_array(file).shape == (0, 3)
        with pytest.raises(ValueError, match=r"must hold .* >= 1 sample .* got shape \[1, 0, 3\]"):
            open_logits(file, layout="NC")


def test_parquet_without_pyarrow_is_refused_with_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    _refused(tmp_path / "a.parquet", r"needs pyarrow: pip install 'deepens\[parquet\]'")


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_unpacked_files_are_told_of_and_gone_afterwards(tmp_path, monkeypatch, suffix):
    file = _file(tmp_path / f"a{suffix}", _array(n=300_000 if suffix == ".csv" else 500))
    (tmp_path / "unpacked").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "unpacked"))
    shares = []
    reader = open_array(file, watch=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1, abs=0.01)
    reader.close()
    assert list((tmp_path / "unpacked").iterdir()) == []


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_what_states_far_more_than_it_holds_is_refused_before_it_is_unpacked(
    tmp_path, monkeypatch, suffix
):
    file = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez_compressed(file, a=np.zeros((1_000_000, 10)))
    else:
        column = pa.array(np.zeros(1_000_000))
        pq.write_table(pa.table({f"c{place}": column for place in range(10)}), file)
    assert file.stat().st_size < 2**19
    (tmp_path / "unpacked").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "unpacked"))
    shares = []
    with pytest.raises(
        ValueError, match=rf"a\{suffix} states 80,000,\d+ bytes and holds .* \.npy$"
    ):
        open_array(file, watch=shares.append)
    assert shares == []


MEMORY = """
import sys, threading, time
import numpy as np, torch
from pathlib import Path
from deepens.metrics import open_logits, score_split

def held():  # without what is mapped from files, which the system may drop
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

def watch():
    global peak
    while not done:
        peak = max(peak, held())
        time.sleep(0.002)

torch.set_num_threads(1)
score_split(open_logits(np.zeros((1, 300, 1000), dtype=np.float32)))
before = peak = held()
done = False
thread = threading.Thread(target=watch)
thread.start()
with open_logits(sys.argv[1], layout="NC") as source:
    if sys.argv[2] == "score":
        score_split(source, torch.zeros(source.shape[1], dtype=torch.int64))
    else:
        for start, stop in source.bounds():
            source.read(start, stop)
done = True
thread.join()
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
@pytest.mark.parametrize(
    ("suffix", "what", "share"),
    [
        (".npy", "score", 0.25),  # a chunk of 4 MB in float64, and about ten of its size
        (".npy", "read", 0.25),
        (".npz", "read", 0.25),
        (".safetensors", "read", 0.25),
        (".parquet", "read", 0.25),
    ],
)
def test_large_files_stay_on_disk(tmp_path, suffix, what, share):
    array = np.random.default_rng(0).normal(size=(50_000, 1000)).astype(np.float32)
    file = _file(tmp_path / f"a{suffix}", array)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(file), what],
        capture_output=True,
        text=True,
        check=True,
        # What is held, and not what the allocator keeps for later: large blocks go back at once.
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert int(done.stdout) < share * array.nbytes


@pytest.mark.parametrize(
    "header", ["{'descr': [", "{'descr': '<f4', 'shape': (-1, 3)", "((((", "x"]
)
def test_a_header_that_does_not_parse_is_damage(tmp_path, header):
    text = header + (", 'fortran_order': False}" if "shape" in header else "")
    text = text.ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    (tmp_path / "a.npy").write_bytes(content + bytes(48))
    with pytest.raises(ValueError, match="is not a .npy file, or damaged"):
        open_logits(tmp_path / "a.npy", layout="NC")
