"""The example pictures in the report: what is seen, what it is, and what the methods say."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..comparison.examples import SIDE, Examples
from ..comparison.verdicts import Comparison

HARDEST_TITLE = "The hardest test images"
HARDEST_CAPTION = (
    "The {count} test images with the highest negative log-likelihood, averaged over all methods "
    "and replicates, the hardest first. What a method says is the class to which its mixture, "
    "averaged over its replicates, gives the highest probability, with that probability; ✓ where "
    "it is right. An image's number starts at 0 and follows the order of the test split's files."
)
OVERCONFIDENT_TITLE = "The most overconfident errors of {method}"
OVERCONFIDENT_CAPTION = (
    "The {count} test images that {method} gets wrong with the highest confidence: the probability "
    "of its class, averaged over replicates."
)
NO_ERRORS = "{method} makes no error on the test images, by the mean over its replicates."


def examples_html(comparison: Comparison) -> str:
    """Write the example pictures with what they are and what the methods say.

    Args:
        comparison: What was measured.

    Returns:
        HTML, or nothing where there are no pictures.
    """
    examples = comparison.examples
    if examples is None:
        return ""
    caption = HARDEST_CAPTION.format(count=len(examples.hardest))
    hardest, methods = examples.hardest, examples.methods
    parts = [_section(examples, HARDEST_TITLE, caption, hardest, methods, with_nll=True)]
    for method, chosen in examples.overconfident.items():
        title = OVERCONFIDENT_TITLE.format(method=method)
        caption = (OVERCONFIDENT_CAPTION if chosen else NO_ERRORS).format(
            count=len(chosen), method=method
        )
        parts.append(_section(examples, title, caption, chosen, [method]))
    return "\n".join(parts)


def _section(
    examples: Examples,
    title: str,
    caption: str,
    chosen: Sequence[int],
    methods: Sequence[str],
    *,
    with_nll: bool = False,
) -> str:
    items = "\n".join(_item(examples, position, methods, with_nll) for position in chosen)
    pictures = f'\n<ul class="examples">\n{items}\n</ul>' if chosen else ""
    return f"<h3>{escape(title)}</h3>\n<p>{escape(caption)}</p>{pictures}"


def _item(examples: Examples, position: int, methods: Sequence[str], with_nll: bool) -> str:
    image = picture(examples.images[position])
    zoom = SIDE / max(image.size)
    width, height = (round(zoom * side) for side in image.size)
    data = base64.b64encode(png(image)).decode()
    place = f"no. {int(examples.index[position])}"
    if with_nll:
        place += f" · NLL {float(examples.nll[position]):.2f}"
    said = "<br>".join(escape(sentence(examples, position, method)) for method in methods)
    return (
        f'<li><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(alternative(examples, position, methods))}">'
        f'<span class="truth">true: {escape(truth(examples, position))}</span>'
        f'<span class="said">{place}<br>{said}</span></li>'
    )


def truth(examples: Examples, position: int) -> str:
    """Return the class of a shown image.

    Args:
        examples: What is shown.
        position: Which of them.

    Returns:
        Its name.
    """
    return examples.classes[int(examples.targets[position])]


def opinion(examples: Examples, position: int, method: str) -> tuple[str, float, bool]:
    """Return what a method says about a shown image.

    Args:
        examples: What is shown.
        position: Which of them.
        method: Which method.

    Returns:
        The class, its probability, and whether it is right.
    """
    row = examples.methods.index(method)
    predicted = int(examples.predicted[row, position])
    right = predicted == int(examples.targets[position])
    return examples.classes[predicted], float(examples.confidence[row, position]), right


def sentence(examples: Examples, position: int, method: str) -> str:
    """Write what a method says about a shown image, such as ``deep: dog (0.98)``.

    Args:
        examples: What is shown.
        position: Which of them.
        method: Which method.

    Returns:
        Text, with a tick where the method is right.
    """
    said, confidence, right = opinion(examples, position, method)
    return f"{method}: {said} ({confidence:.2f}){' ✓' if right else ''}"


def alternative(examples: Examples, position: int, methods: Sequence[str]) -> str:
    """Describe a shown image: ``true cat, single says dog (0.98)``.

    Args:
        examples: What is shown.
        position: Which of them.
        methods: Whose opinions to tell.

    Returns:
        Text.
    """
    told = [f"true {truth(examples, position)}"]
    for method in methods:
        said, confidence, _ = opinion(examples, position, method)
        told.append(f"{method} says {said} ({confidence:.2f})")
    return ", ".join(told)


def picture(pixels: UInt8[Tensor, "channels height width"]) -> Image.Image:
    """Make a picture of one image.

    Args:
        pixels: One channel, or three.

    Returns:
        The picture; a large coloured one has 256 colours, which makes it three times smaller.
    """
    if len(pixels) == 1:
        return Image.fromarray(pixels[0].numpy())
    image = Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())
    return image if max(image.size) <= SIDE // 2 else image.quantize(256)


def png(image: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file.

    Args:
        image: The picture.

    Returns:
        The file's content.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def contact_sheet(examples: Examples) -> Image.Image:
    """Put all pictures on one sheet, each with its number below, beginning with 1.

    Args:
        examples: What is shown.

    Returns:
        The sheet, eight pictures a row.
    """
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 13)
    columns, width, height = 8, SIDE + 12, SIDE + 26
    rows = -(-len(examples.images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, pixels in enumerate(examples.images):
        image = picture(pixels).convert("RGB")
        zoom = SIDE / max(image.size)
        size = (round(zoom * image.size[0]), round(zoom * image.size[1]))
        left, top = number % columns * width + 6, number // columns * height + 4
        sheet.paste(image.resize(size, Image.Resampling.NEAREST), (left, top))
        draw.text((left + SIDE / 2, top + SIDE + 2), str(number + 1), "black", font, anchor="ma")
    return sheet
