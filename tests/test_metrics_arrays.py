"""Anybody's arrays and files give the logits that were meant, or one clear line."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deepens.metrics import evaluate, evaluate_ood_values, evaluate_values, sample_values
from deepens.metrics.io.array_files import FORMATS
from deepens.metrics.io.arrays import (
    OF_LOGITS,
    check_ood,
    open_logits,
    read_labels,
)
from deepens.metrics.samples import score_arrays, score_split
from safetensors.torch import save_file
from sklearn.metrics import log_loss


def draw(members=3, n=40, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(members, n, classes)).astype(np.float32)
    targets = generator.integers(classes, size=n)
    logits[:, np.arange(n), targets] += 2
    return logits, targets


def save(path, array):
    """Write an array in the format of the path's suffix."""
    array = np.asarray(array)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, only=array)
    elif path.suffix == ".safetensors":
        save_file({"only": torch.from_numpy(array.copy())}, path)
    elif path.suffix == ".csv":
        path.write_text("".join(",".join(map(repr, row.tolist())) + "\n" for row in array))
    else:
        names = [f"class {place}" for place in range(array.shape[1])]
        table = pa.table(dict(zip(names, array.T.copy(), strict=True)))
        pq.write_table(table, path, row_group_size=7)
    return path


def whole(source, **options):
    with open_logits(source, **options) as opened:
        return opened.read(0, opened.shape[1])


class OnlyArray:
    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._array, dtype)


class OnlyDlpack:
    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self, **options):
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_logits_bit_for_bit(tmp_path, suffix):
    logits, _ = draw()
    file = save(tmp_path / f"one{suffix}", logits[0])
    assert torch.equal(whole(file, layout="NC")[0].float(), torch.from_numpy(logits[0]))
    files = [save(tmp_path / f"{member}{suffix}", each) for member, each in enumerate(logits)]
    assert torch.equal(whole(files).float(), torch.from_numpy(logits))
    assert torch.equal(whole([str(each) for each in files]).float(), torch.from_numpy(logits))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize(("layout", "axes"), [("MNC", (0, 1, 2)), ("NMC", (1, 0, 2))])
def test_some_samples_of_a_file_are_those_of_the_array(tmp_path, suffix, layout, axes):
    logits, _ = draw()
    file = save(tmp_path / f"all{suffix}", logits.transpose(axes))
    with open_logits(file, layout=layout) as opened:
        assert opened.shape == logits.shape
        for start, stop in [(0, 1), (3, 17), (39, 40), (0, 40)]:
            expected = torch.from_numpy(logits[:, start:stop])
            assert torch.equal(opened.read(start, stop), expected)
        with pytest.raises(ValueError, match=r"samples must lie in \[0, 40\], got 3 to 41"):
            opened.read(3, 41)


@pytest.mark.parametrize(
    "change",
    [
        np.asfortranarray,
        lambda array: array.astype(">f4"),
        lambda array: array[:, ::-1][:, ::-1],
        lambda array: np.repeat(array, 2, axis=1)[:, ::2],
        lambda array: array.astype(np.float64),
    ],
    ids=["fortran", "big-endian", "negative strides", "strided", "float64"],
)
def test_arrays_of_any_memory_layout_are_read(tmp_path, change):
    logits, _ = draw()
    array = change(logits)
    array.flags.writeable = False
    assert torch.equal(whole(array).float(), torch.from_numpy(logits))
    np.save(tmp_path / "a.npy", array)
    assert torch.equal(whole(tmp_path / "a.npy").float(), torch.from_numpy(logits))


def test_arrays_of_other_frameworks_are_read():
    logits, _ = draw()
    tensor = torch.from_numpy(logits)
    assert torch.equal(whole(OnlyArray(logits)), tensor)
    assert torch.equal(whole(OnlyDlpack(tensor)), tensor)
    assert torch.equal(whole(tensor.clone().requires_grad_()), tensor)
    assert torch.equal(whole([tensor[0], logits[1], OnlyArray(logits[2])]), tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_scored_as_if_raised_before(tmp_path, dtype):
    logits, targets = draw()
    half = torch.from_numpy(logits).to(dtype)
    save_file({"logits": half, "targets": torch.from_numpy(targets)}, tmp_path / "a.safetensors")
    read = whole(tmp_path / "a.safetensors", key="logits")
    assert read.dtype == dtype
    assert torch.equal(read, half)
    expected = evaluate_values(score_arrays(half.double(), targets))
    assert evaluate_values(score_arrays(half, targets)) == expected


def test_bfloat16_of_numpy_is_read():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    logits, _ = draw()
    expected = torch.from_numpy(logits).to(torch.bfloat16)
    assert torch.equal(whole(logits.astype(bfloat16)), expected)


@pytest.mark.parametrize("rows", [None, 1, 7, 40])
def test_values_do_not_depend_on_how_many_samples_are_read_at_a_time(rows):
    logits, targets = draw()
    expected = sample_values(torch.from_numpy(logits), torch.from_numpy(targets))
    called = []
    with open_logits(logits) as source:
        values = score_split(
            source, torch.from_numpy(targets), rows=rows, advance=lambda: called.append(1)
        )
        assert len(called) == len(source.bounds(rows))
    for name in ("confidence", "entropy", "mutual_information", "disagreement", "nll", "brier"):
        torch.testing.assert_close(
            getattr(values, name), getattr(expected, name), atol=1e-14, rtol=0
        )
    assert evaluate_values(values) == pytest.approx(evaluate_values(expected), abs=1e-13)
    other = sample_values(torch.from_numpy(draw(seed=1)[0]))
    expected = evaluate_ood_values(expected, other)
    assert evaluate_ood_values(values, other) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("kind", ["probs", "log_probs"])
def test_probabilities_give_the_metrics_of_their_logits_but_for_scores_of_logits(kind):
    logits, targets = draw()
    probs = torch.from_numpy(logits).double().softmax(-1)
    given = probs if kind == "probs" else probs.log()
    values, expected = score_arrays(given, targets, kind=kind), score_arrays(logits, targets)
    assert evaluate_values(values) == pytest.approx(evaluate_values(expected), abs=1e-12)
    reference = log_loss(targets, probs.mean(0), labels=range(4))
    assert evaluate_values(values)["nll"] == pytest.approx(reference, abs=1e-12)
    missing = set(expected.detectors) - set(values.detectors)
    assert missing == set(OF_LOGITS)
    assert not any(key.endswith(OF_LOGITS) for key in evaluate_ood_values(values, values))


@pytest.mark.parametrize(
    ("dtype", "smallest"),
    [(torch.float32, 2.0**-126), (torch.float64, 2.0**-1022), (torch.float16, 2.0**-24)],
)
@pytest.mark.parametrize("kind", ["probs", "log_probs"])
def test_probability_zero_is_raised_and_said(kind, dtype, smallest):
    probs = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]], dtype=dtype)
    given = probs if kind == "probs" else probs.log()
    kept = given.clone()
    with pytest.warns(RuntimeWarning, match="targets|logits: 3 probabilities are 0") as caught:
        values = score_arrays(given, np.array([1, 0]), kind=kind)
    assert f"as {-math.log(smallest):.1f} nats, not as infinite" in str(caught[0].message)
    assert len(caught) == 1
    assert values.nll.tolist() == pytest.approx([-math.log(smallest), math.log(2)], rel=1e-3)
    assert torch.equal(given, kept)


def test_many_zeros_in_float16_take_no_mass_from_the_rest():
    probs = np.zeros((1, 2, 1000), dtype=np.float16)
    probs[..., 0] = 1
    with pytest.warns(RuntimeWarning, match="1998 probabilities are 0"):
        values = score_arrays(probs, np.zeros(2, dtype=int), kind="probs")
    assert values.confidence.min() > 0.9999


@pytest.mark.parametrize("suffix", FORMATS)
def test_labels_are_read_from_every_format(tmp_path, suffix):
    labels = np.array([0, 3, 2], dtype=np.uint8)
    column = labels[:, None] if suffix in (".csv", ".parquet") else labels
    file = save(tmp_path / f"y{suffix}", column)
    found = read_labels(file, num_samples=3, num_classes=4)
    assert found.tolist() == [0, 3, 2]
    assert found.dtype == torch.int64


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1],
        np.array([[0], [1]], dtype=np.uint8),
        np.array([0, 1], dtype=np.uint64),
        torch.tensor([0, 1], dtype=torch.int32),
        OnlyArray(np.array([0, 1], dtype=">i2")),
    ],
)
def test_labels_of_any_whole_type_are_read(labels):
    assert read_labels(labels, num_samples=2, num_classes=2).tolist() == [0, 1]


def test_labels_in_text_may_have_a_name_and_a_point(tmp_path):
    file = tmp_path / "y.csv"
    file.write_text("label\r\n0\r\n3.0\r\n\r\n2\r\n")
    assert read_labels(file, num_samples=3, num_classes=4).tolist() == [0, 3, 2]
    file.write_text("0\n2.5\n")
    with pytest.raises(ValueError, match=r"y\.csv must be integers, got 2\.5 at position 1"):
        read_labels(file, num_samples=2, num_classes=4)


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (np.array([0.0, 1.0, 2.0]), "targets must be integers, got torch.float64"),
        (np.array([True, False, True]), "targets must be integers, got torch.bool"),
        (
            np.array(["cat", "dog", "cat"]),
            "class indices, since .* no names .* got 'cat' at",
        ),
        (np.eye(3, 4), r"targets .*got shape \[3, 4\], which looks one-hot"),
        (np.zeros((3, 2), int), r"targets must be one class index per sample, got shape \[3, 2\]"),
        (np.array(1), r"targets must be one class index per sample, got shape \[\]"),
        (np.array([0, 1]), r"targets must have shape \[3\], one label per sample .* got \[2\]"),
        (np.array([0, 4, 1]), r"targets must lie in \[0, 4\), got 4 at position 1$"),
        (np.array([0, -100, 1]), r"targets must lie in \[0, 4\), got -100 at position 1"),
        (np.array([1, 4, 2]), "seem to be counted from 1"),
    ],
)
def test_wrong_labels_are_refused(labels, line):
    with pytest.raises(ValueError, match=line):
        read_labels(labels, num_samples=3, num_classes=4)


def _changed(place, value):
    logits, _ = draw()
    logits[place] = value
    return logits


@pytest.mark.parametrize(
    ("source", "options", "line"),
    [
        (draw()[0][0, 0], {}, r"logits must have 3 dimensions .* got shape \[4\]"),
        (draw()[0][0], {"layout": "NMC"}, r"logits must have 3 dimensions .* got shape \[40, 4\]"),
        (draw()[0], {"layout": "NC"}, r"must have 2 dimensions \[samples, classes\].*--layout MNC"),
        ([draw()[0]] * 2, {}, "each of several holds one member"),
        ([draw()[0][0], draw(n=39)[0][0]], {}, r"logits\[1\] must have the shape \[40, 4\] of"),
        ([draw()[0][0]], {"layout": "NMC"}, "layout must be NC"),
        ([], {}, "logits must hold >= 1 member, got an empty list"),
        ([[0.0, 1.0]], {}, "logits must be a path or an array .* got list"),
        (7, {}, "logits must be a path or an array .* got int"),
        (draw()[0], {"layout": "NCM"}, "layout must be one of MNC, NMC, NC, got 'NCM'"),
        (draw()[0], {"kind": "softmax"}, "kind must be one of logits, log_probs, probs"),
        (
            draw()[0].astype(int),
            {},
            "must be floating point, got int64: convert raw",
        ),
        (draw()[0].astype(complex), {}, "logits must hold real numbers of up to 64 bits"),
        (
            draw()[0].astype(object),
            {},
            "must hold real numbers .* got Python objects such as",
        ),
        (np.ma.masked_array(draw()[0]), {}, "must have a value everywhere, got a masked array"),
        (draw(n=0)[0], {}, r"logits must hold >= 1 member, >= 1 sample .* got shape \[3, 0, 4\]"),
        (draw(classes=1)[0], {}, ">= 2 classes, got shape"),
        (
            _changed((1, 30, 2), np.nan),
            {},
            r"finite, got nan at \[1, 30, 2\]: row 30, class 2, member 1",
        ),
        (_changed((1, 30, 2), -np.inf), {}, r"finite, got -inf at \[1, 30, 2\]"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_was_not_said_is_refused(source, options, line):
    with pytest.raises(ValueError, match=line):
        open_logits(source, **options)


def test_a_bad_logit_beyond_the_first_samples_is_named_by_its_row_in_the_file(tmp_path):
    logits, targets = draw(n=1000)
    logits[2, 777, 3] = np.inf
    files = [save(tmp_path / f"{member}.npy", each) for member, each in enumerate(logits)]
    line = r"2\.npy must be finite, got inf at \[2, 777, 3\]: row 777, class 3, member 2"
    for rows in (None, 10):
        with open_logits(files) as source, pytest.raises(ValueError, match=line):
            score_split(source, torch.from_numpy(targets), rows=rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probabilities_and_logits_are_not_taken_for_each_other(dtype):
    logits = torch.from_numpy(draw(classes=100)[0])
    probs = logits.softmax(-1).to(dtype)
    with pytest.raises(ValueError, match=r"must be raw outputs, .* \(--kind probs\)"):
        open_logits(probs)
    with pytest.raises(ValueError, match=r"must be >= 0, got -.* \(--kind logits\)"):
        open_logits(logits.to(dtype), kind="probs")
    probs[1, 7] *= 1.5
    line = r"must sum to 1 over classes, got 1\.\d+ in row 7, member 1, .* \(--kind logits\)"
    with pytest.raises(ValueError, match=line):
        open_logits(probs, kind="probs")
    with pytest.raises(ValueError, match=r"must sum to 1 .* in row 0, member 0"):
        open_logits(logits, kind="log_probs")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_probabilities_that_are_no_numbers_are_refused(bad):
    probs = np.full((1, 5, 2), 0.5)
    probs[0, 3, 1] = bad
    with pytest.raises(ValueError, match=r"must be finite, got .*row 3, class 1"):
        open_logits(probs, kind="probs")
    logs = np.log(np.full((1, 5, 2), 0.5))
    logs[0, 3, 1] = bad
    line = "must sum to 1 over classes, got 0.5" if bad == -math.inf else "finite, or -inf"
    with pytest.raises(ValueError, match=line):
        open_logits(logs, kind="log_probs")


def test_ood_logits_of_others_are_refused():
    source = open_logits(draw()[0])
    with pytest.raises(ValueError, match="far must have the 4 classes of logits, got 5"):
        check_ood(source, open_logits(draw(classes=5)[0], name="far"))
    with pytest.raises(ValueError, match="far must have the 3 members of logits, got 2"):
        check_ood(source, open_logits(draw(members=2)[0], name="far"))
    check_ood(source, open_logits(draw(n=3)[0], name="far"))


def probabilities(members=2):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(members, 200, 4, generator=generator).double()
    return logits, logits.softmax(-1)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda p: p, r"got rows that lie in \[0, 1\] and sum to 1.*; .* kind='probs'"),
        (lambda p: 100 * p, r"got rows that lie in \[0, 100\] and sum to 100.* by 100 and say"),
        (lambda p: p.log(), r"got rows whose exponentials sum to 1.* kind='log_probs'"),
        (lambda p: p.log2(), r"got rows for which the sum of 2\^x is 1.* by ln 2 = 0\.6931472"),
        (lambda p: p.log10(), r"got rows for which the sum of 10\^x is 1.* by ln 10 = 2\.302585"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_one_member_that_holds_no_logits_is_refused_by_its_place(form, message, together):
    logits, probs = probabilities()
    targets = torch.arange(200) % 4
    given = torch.stack([logits[0], form(probs[1])]) if together else [logits[0], form(probs[1])]
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(given, targets)
    assert ("member 1" if together else "logits[1]") in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*what labels in any other order would give:RuntimeWarning")
def test_logits_of_every_sign_are_taken_as_they_are():
    logits, _ = probabilities()
    for shifted in (logits, logits - 20, logits.abs(), 100 * logits.abs(), logits - 5):
        assert evaluate(shifted, torch.arange(200) % 4)["n"] == 200


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, 3).to_sparse(), r"got a sparse or nested one; call \.to_dense\(\)"),
        (torch.ones(2, 3, device="meta"), "got a meta tensor; compute it"),
    ],
)
def test_tensors_without_dense_values_are_refused(tensor, message):
    with pytest.raises(ValueError, match=message):
        evaluate(tensor, torch.tensor([0, 1]), layout="NC")
