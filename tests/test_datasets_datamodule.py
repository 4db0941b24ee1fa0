import pytest
import torch
from deepens.datasets import (
    Augmentation,
    Batch,
    DataModule,
    ImageFiles,
    Pipeline,
    Split,
    Splits,
    StreamLoader,
)
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

EPOCHS = 4


def _split(samples: int, value: int) -> Split:
    images = torch.full((samples, 1, 4, 4), value, dtype=torch.uint8)
    return Split(images, torch.arange(samples) % 40)


def _data(*, splits=None, **changes) -> DataModule:
    splits = splits or Splits(
        "toy",
        tuple(str(label) for label in range(40)),
        {"train": _split(40, 0), "val/select": _split(7, 51), "test": _split(9, 255)},
        (0.0,),
        (1.0,),
    )
    arguments = {
        "batch_size": 8,
        "seeds": [3, 4],
        "shared": False,
        "pipeline": Pipeline((0.0,), (1.0,), Augmentation(crop_padding=1)),
        "eval_batch_size": 3,
    }
    return DataModule(splits, **{**arguments, **changes})


class _Recorder(LightningModule):
    """Train one weight, and note the images of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[tuple[int, int, list[int]]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, Batch)  # Lightning's transfer keeps the names
        assert torch.equal(batch.targets, batch.indices)  # this split's targets are its positions
        self.trained.append((self.current_epoch, batch_idx, batch.indices.flatten().tolist()))
        return (self.weight - batch.images.mean()) ** 2

    def validation_step(self, batch, batch_idx):
        images, targets = batch
        assert torch.allclose(images, torch.tensor(0.2))
        self.validated.append(targets.tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(folder, module: _Recorder, *, every=None, resume=None, **trainer) -> _Recorder:
    saver = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}-{step}", **(every or {}))
    fit = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    )
    fit.fit(module, datamodule=_data(), ckpt_path=resume)
    return module


def _expected() -> list[tuple[int, int, list[int]]]:
    loader = _data().train_dataloader()
    steps = []
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        for number, batch in enumerate(loader):
            steps.append((epoch, number, batch.indices.flatten().tolist()))
    return steps


@pytest.mark.filterwarnings("ignore")
def test_lightning_sets_the_epoch_and_validates_on_select_in_order(tmp_path):
    module = _fit(tmp_path, _Recorder(), num_sanity_val_steps=0)
    assert module.trained == _expected()
    assert module.validated == [[0, 1, 2], [3, 4, 5], [6]] * EPOCHS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("every", "trainer"),
    [
        ({"every_n_epochs": 1}, {}),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, {}),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, {"limit_val_batches": 0}),
        ({"every_n_train_steps": 1}, {}),
        ({"every_n_train_steps": 1}, {"limit_val_batches": 0}),
    ],
    ids=["validation-end", "epoch-end", "epoch-end-no-validation", "step", "step-no-validation"],
)
def test_a_resumed_fit_sees_the_batches_that_were_left(tmp_path, every, trainer):
    expected = _expected()
    _fit(tmp_path, _Recorder(), every=every, **trainer)
    checkpoints = {int(file.stem.split("step=")[1]): file for file in tmp_path.glob("*.ckpt")}
    assert len(checkpoints) >= EPOCHS
    for steps, checkpoint in sorted(checkpoints.items())[:7]:
        again = _fit(tmp_path / "again", _Recorder(), every=every, resume=checkpoint, **trainer)
        assert again.trained == expected[steps:], f"after {steps} steps"


def test_training_images_sit_in_memory_once():
    data = _data()
    assert data.train_dataloader() is data.train_dataloader()


def _files(folder, samples: int, value: int) -> Split:
    folder.mkdir()
    paths = tuple(folder / f"{index:02d}.png" for index in range(samples))
    for path in paths:
        Image.new("L", (4, 4), value).save(path)
    return Split(ImageFiles(paths, channels=1, size=(4, 4)), torch.arange(samples) % 40)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
def test_files_are_fitted_in_the_order_of_images_in_memory(tmp_path, workers):
    splits = Splits(
        "toy",
        tuple(str(label) for label in range(40)),
        {
            "train": _files(tmp_path / "train", 40, 0),
            "val/select": _files(tmp_path / "select", 7, 51),
        },
        (0.0,),
        (1.0,),
    )
    data, module = _data(splits=splits, workers=workers), _Recorder()
    assert isinstance(data.train_dataloader(), StreamLoader)
    fit = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    fit.fit(module, datamodule=data)
    assert module.trained == _expected()
    assert module.validated == [[0, 1, 2], [3, 4, 5], [6]] * EPOCHS


def test_the_processes_of_a_fit_share_each_batch_and_each_validation():
    class _Process:
        world_size = 2

        def __init__(self, rank):
            self.global_rank = rank

    whole, parts = _data(), [_data(), _data()]
    for rank, data in enumerate(parts):
        data.trainer = _Process(rank)
        data.setup("fit")
    loaders = [data.train_dataloader() for data in (whole, *parts)]
    for batch, first, second in zip(*loaders, strict=True):
        for one, *halves in zip(batch, first, second, strict=True):
            assert torch.equal(torch.cat(halves, 1), one)
    seen = [[len(y) for _, y in data.val_dataloader()] for data in parts]
    labels = [int(v) for data in parts for _, y in data.val_dataloader() for v in y]
    assert seen == [[2, 2], [2, 1]]
    assert sorted(labels) == list(range(7))


def test_a_missing_split_is_named():
    splits = Splits(
        "toy",
        ("a", "b"),
        {"test": Split(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))},
        (0.0,),
        (1.0,),
    )
    with pytest.raises(ValueError, match="got 'train'"):
        DataModule(
            splits,
            batch_size=1,
            seeds=[0],
            shared=True,
            pipeline=Pipeline((0.0,), (1.0,)),
            eval_batch_size=1,
        )
