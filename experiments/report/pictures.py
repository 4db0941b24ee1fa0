"""The example images of a report: their class, and what each method says about them."""

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..comparison.examples import SIDE, Examples
from ..comparison.verdicts import Comparison
from .model import Notes, Picture, Pictures, Sheet

_HARDEST = (
    "The {count} test images with the highest negative log-likelihood, averaged over all methods "
    "and replicates, the hardest first. A method's answer is the class of highest probability "
    "under its mixture, averaged over replicates, with that probability; ✓ where it is correct. "
    "Images are numbered from 0 in the order of the test split's files."
)
_NAMED = " They are named by folder and file; images.csv.gz has the whole paths."
_OVERCONFIDENT = (
    "The {count} test images that {method} gets wrong with the highest confidence: the probability "
    "of the predicted class, averaged over replicates."
)
LONGEST_NAME = 48
"""Signs of a file's name that are shown: its end, which tells it from others."""
_NO_ERRORS = "{method} makes no error on the test images, by the mean over its replicates."


def picture_blocks(comparison: Comparison) -> Iterator[Sheet | Pictures | Notes]:
    """Yield the contact sheet, the hardest images, and each method's most overconfident errors."""
    examples = comparison.examples
    if examples is not None:
        description = f"{len(examples.images)} numbered test images, described below."
        yield Sheet(lambda: png(contact_sheet(examples)), description)
        hardest = tuple(_picture(examples, p, examples.methods) for p in examples.hardest)
        caption = _HARDEST.format(count=len(hardest)) + _NAMED * bool(examples.files)
        yield Pictures("The hardest test images", caption, hardest)
        for method, chosen in examples.overconfident.items():
            caption = _OVERCONFIDENT if chosen else _NO_ERRORS
            yield Pictures(
                f"The most overconfident errors of {method}",
                caption.format(count=len(chosen), method=method),
                tuple(_picture(examples, position, [method]) for position in chosen),
            )
    if comparison.picture_notes:
        yield Notes(tuple(comparison.picture_notes))


def _picture(examples: Examples, position: int, methods: Sequence[str]) -> Picture:
    image = _image(examples.images[position])
    zoom = SIDE / max(image.size)
    return Picture(
        number=position + 1,
        data=base64.b64encode(png(image)).decode(),
        width=round(zoom * image.size[0]),
        height=round(zoom * image.size[1]),
        truth=examples.classes[int(examples.targets[position])],
        place=_place(examples, position),
        said={method: _said(examples, position, method) for method in methods},
    )


def _place(examples: Examples, position: int) -> str:
    nll = float(examples.nll[position])
    loss = f"{nll:.2f}" if nll < 1e5 else f"{nll:.3g}"
    place = f"no. {int(examples.index[position])} · NLL {loss}"
    if not examples.files:
        return place
    # Its folder, often the class, and its name.
    name = "/".join(PurePath(examples.files[position]).parts[-2:])
    return f"{place} · {name if len(name) <= LONGEST_NAME else '…' + name[1 - LONGEST_NAME :]}"


def _said(examples: Examples, position: int, method: str) -> str:
    row = examples.methods.index(method)
    predicted = int(examples.predicted[row, position])
    correct = " ✓" if predicted == int(examples.targets[position]) else ""
    return (
        f"{examples.classes[predicted]} ({float(examples.confidence[row, position]):.2f}){correct}"
    )


def _image(pixels: UInt8[Tensor, "channels height width"]) -> Image.Image:
    """Make a picture; a large coloured one has 256 colours, which makes it three times smaller."""
    if len(pixels) == 1:
        return Image.fromarray(pixels[0].numpy())
    image = Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())
    return image if max(image.size) <= SIDE // 2 else image.quantize(256)


def png(image: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def contact_sheet(examples: Examples) -> Image.Image:
    """Put all pictures on one sheet, eight per row, each with its number below, from 1 on."""
    font = ImageFont.load_default(13)
    columns, width, height = 8, SIDE + 12, SIDE + 26
    rows = -(-len(examples.images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, pixels in enumerate(examples.images):
        image = _image(pixels).convert("RGB")
        zoom = SIDE / max(image.size)
        size = (round(zoom * image.size[0]), round(zoom * image.size[1]))
        left, top = place % columns * width + 6, place // columns * height + 4
        sheet.paste(image.resize(size, Image.Resampling.NEAREST), (left, top))
        draw.text((left + SIDE / 2, top + SIDE + 2), str(place + 1), "black", font, anchor="ma")
    return sheet
