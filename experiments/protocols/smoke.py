"""Train, evaluate and predict with every ensemble family on the digits: ``smoke FOLDER [DEVICE]``.

One line a family; the exit status is the number of families that failed.
"""

import sys
import traceback
from pathlib import Path

from PIL import Image

from ...datasets import load
from ..cli.entry import main

FAMILIES = {
    "deep": ("--backbone", "small-cnn"),
    "packed": ("--backbone", "small-cnn", "--packed.execution", "grouped"),
    "multi-exit": ("--backbone", "airbench94", "--width", "0.1"),
    "lora": ("--backbone", "vit-micro/4"),
    "explicit": ("--backbone", "vit-micro/4"),
}


def smoke(folder: Path, device: str) -> int:
    """The number of families that failed, each of which is named on standard output."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(load("digits")["test"].tensor[:8, 0].numpy()):
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
    failed = 0
    for family, options in FAMILIES.items():
        run, on = str(folder / family), ("--device", device, "--quiet")
        kind = ("--ensemble", family, "--members", "2", *options)
        commands = (
            ("train", "--data", "digits", *kind, "--epochs", "2", "--out", run, *on),
            ("evaluate", run, "--predict", *on),
            ("predict", run, "--images", str(folder / "images"), "--overwrite", *on),
        )
        for command in commands:
            try:
                status = main(command)
            except Exception:
                traceback.print_exc()
                status = 1
            if status:
                failed += 1
                print(f"{family}: {command[0]} failed", flush=True)
                break
        else:
            print(f"{family}: train, evaluate and predict work on {device}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(smoke(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "cuda"))
