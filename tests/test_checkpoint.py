"""Checkpoints come back as they were, appear whole or not at all, and cannot run anything."""

import pickle

import pytest
import torch
from deepens.experiments.store.checkpoint import load_tensors, save_tensors
from deepens.experiments.store.training_checkpoint import SafetensorsCheckpointIO
from safetensors.torch import save_file

TREE = {
    "epoch": 3,
    "nothing": None,
    "flag": True,
    "rate": 0.1,
    "infinite": float("inf"),
    "name": "ä",
    "state": {0: {"momentum_buffer": torch.randn(2, 3)}, 1: {}},
    "betas": (0.9, 0.999),
    "list": [1, [2, (3, torch.tensor(4))]],
    "half": torch.randn(3).bfloat16(),
    "empty": torch.zeros(0, 2),
    "random_state": torch.get_rng_state(),
}


def _same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            _same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _same(x, y)
    else:
        assert a == b


def test_every_kind_of_content_comes_back_as_it_was(tmp_path):
    io = SafetensorsCheckpointIO()
    io.save_checkpoint(TREE, tmp_path / "state.safetensors")
    _same(io.load_checkpoint(tmp_path / "state.safetensors"), TREE)


def test_tensors_that_share_memory_come_back_apart(tmp_path):
    base = torch.arange(6.0)
    save_tensors(tmp_path / "x.safetensors", {"a": base, "b": base[2:4], "c": base}, None)
    tensors, _ = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a"], base)
    assert torch.equal(tensors["b"], base[2:4])
    assert torch.equal(tensors["c"], base)


def test_objects_are_refused_at_saving_and_named(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint.callbacks.x: a object cannot go"):
        SafetensorsCheckpointIO().save_checkpoint(
            {"callbacks": {"x": object()}}, tmp_path / "state.safetensors"
        )
    assert list(tmp_path.iterdir()) == []


def test_nothing_appears_when_writing_fails(tmp_path, monkeypatch):
    target = tmp_path / "state.safetensors"
    save_tensors(target, {"a": torch.ones(2)}, {"version": 1})

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepens.datasets.tensor_files.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_tensors(target, {"a": torch.zeros(2)}, {"version": 2})
    assert load_tensors(target)[1] == {"version": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_equal_content_makes_equal_files(tmp_path):
    for index in range(12):
        save_tensors(tmp_path / str(index), {"a": torch.ones(2), "b": torch.zeros(3)}, {"x": 1})
    assert len({(tmp_path / str(index)).read_bytes() for index in range(12)}) == 1


def test_checkpoint_of_another_run_is_refused(tmp_path):
    target = tmp_path / "resume.safetensors"
    SafetensorsCheckpointIO("one").save_checkpoint({"epoch": 1}, target)
    assert SafetensorsCheckpointIO("one").load_checkpoint(target) == {"epoch": 1}
    with pytest.raises(ValueError, match=r"resume\.safetensors belongs to another run; delete it"):
        SafetensorsCheckpointIO("two").load_checkpoint(target)


def test_truncated_file_is_refused_by_name(tmp_path):
    target = tmp_path / "state.safetensors"
    save_tensors(target, {"a": torch.ones(1000)}, None)
    for length in (0, 5, 200, target.stat().st_size - 1):
        cut = tmp_path / f"cut{length}.safetensors"
        cut.write_bytes(target.read_bytes()[:length])
        with pytest.raises(ValueError, match=rf"cut{length}.safetensors is truncated or damaged"):
            load_tensors(cut)


def test_file_of_another_program_is_refused(tmp_path):
    target = tmp_path / "foreign.safetensors"
    save_file({"a": torch.ones(2)}, target)
    with pytest.raises(ValueError, match="foreign.safetensors was not written by deepens"):
        load_tensors(target)


def test_pickle_is_not_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    target = tmp_path / "state.safetensors"
    target.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="truncated or damaged"):
        SafetensorsCheckpointIO().load_checkpoint(target)
    assert not (tmp_path / "exploded").exists()


def test_weights_are_no_training_checkpoint(tmp_path):
    target = tmp_path / "weights.safetensors"
    save_tensors(target, {"a": torch.ones(2)}, {"config": {"x": 1}, "other": 2})
    with pytest.raises(ValueError, match="not a training checkpoint"):
        SafetensorsCheckpointIO().load_checkpoint(target)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="missing.safetensors does not exist"):
        load_tensors(tmp_path / "missing.safetensors")
