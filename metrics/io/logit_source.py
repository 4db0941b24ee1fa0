"""Member logits of which some samples are read at a time, checked for being what was said."""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .array_files import ArrayReader
from .columns import in_order_of

Layout = Literal["MNC", "NMC", "NC"]
"""Order of the axes: members M, samples N, classes C; NC is one model."""

Kind = Literal["logits", "log_probs", "probs"]
"""What the numbers are: raw outputs, or normalised (log-)probabilities."""

_CHUNK = 2**20  # logits read at a time
_FIRST = 256  # samples that are looked at before all are read
_FEW = 10  # samples of which a member's form tells nothing by itself
_HALF = (torch.float16, torch.bfloat16)
_IF_RAW = "; if these are raw outputs, say kind='logits' (--kind logits)"
_AXES = {"M": "members", "N": "samples", "C": "classes"}


class LogitSource:
    """Member logits of which some samples are read at a time; made by `open_logits`.

    It may hold files open: use it in a ``with`` statement, or call ``close``. Its parts are one
    array, or one ``[samples, classes]`` per member; if they differ in shape or type, or the first
    samples are something else than what was said, that is a ``ValueError``.

    Attributes:
        shape: Members, samples and classes.
        raised: How many probabilities of 0 were raised to ``smallest``, in all that was read so
            far.
        precision: Type in which probabilities were given; of logits float64.
    """

    def __init__(
        self, parts: Sequence[ArrayReader], *, layout: Layout, kind: Kind, name: str
    ) -> None:
        for part in parts:
            _check_part(part, layout, like=parts[0], several=len(parts) > 1)
        self.name, self.kind = name, kind
        self._parts, self._layout, self._axis = list(parts), layout, int(layout == "MNC")
        sizes = dict(zip(layout, parts[0].shape, strict=True))
        self.shape = (sizes.get("M", len(parts)), sizes["N"], sizes["C"])
        if min(self.shape) < 1 or sizes["C"] < 2:
            hint = "; of a sigmoid's output p, give two columns, 1 - p beside p"
            raise ValueError(
                f"{name} must hold >= 1 member, >= 1 sample and >= 2 classes, got shape "
                f"{list(self.shape)}{hint if sizes['C'] == 1 else ''}"
            )
        self._dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
        self.precision = torch.float64 if kind == "logits" else self._dtype
        self._tolerance = 1e-2 if self._dtype in _HALF else 1e-3
        # In float16 the smallest normal number is not a small probability: 6e-5, which a thousand
        # classes would add up to 6 %. Its smallest number of all is taken there.
        normal = torch.finfo(self._dtype).smallest_normal
        self.smallest = 2.0**-24 if self._dtype == torch.float16 else normal
        self.raised = 0
        self._check_first()
        self.raised = 0  # all that is read from now on

    def read(self, start: int, stop: int) -> Float[Tensor, "members samples classes"]:
        """Return the logits of the samples from ``start`` up to ``stop``.

        Probabilities come as their logarithms, in float64. What is not finite, or not what was
        announced, is a ``ValueError`` that names the first sample.
        """
        if not 0 <= start < stop <= self.shape[1]:
            raise ValueError(f"samples must lie in [0, {self.shape[1]}], got {start} to {stop}")
        values = self._raw(start, stop)
        if self.kind == "logits":
            low, high = values.aminmax()  # one pass without a temporary; NaN comes through both
            if not (low.isfinite() and high.isfinite()):
                self._refuse(~values.isfinite(), values, start, "be finite")
            return values
        self._check_probs(values, start)
        return self._logarithms(values)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, the columns of a table; empty without."""
        return self._parts[0].columns

    def bounds(self, rows: int | None = None) -> list[tuple[int, int]]:
        """The samples of each chunk, as arguments of `read`; about a million logits by default."""
        members, samples, classes = self.shape
        if rows is not None and rows < 1:
            raise ValueError(f"rows must be >= 1, got {rows}")
        size = rows or max(1, _CHUNK // (members * classes))
        return [(start, min(start + size, samples)) for start in range(0, samples, size)]

    def align(self, other: "LogitSource") -> None:
        """Put the columns of tables in the order of another's, by their names."""
        self._parts = [in_order_of(part, other._parts[0]) for part in self._parts]

    def close(self) -> None:
        """Close files, and delete temporary ones."""
        for part in self._parts:
            part.close()

    def __enter__(self) -> "LogitSource":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def _raw(self, start: int, stop: int) -> Tensor:
        read = [part.read(start, stop, self._axis) for part in self._parts]
        if len(read) > 1:
            return torch.stack([each.to(self._dtype) for each in read])
        if self._layout == "NMC":
            return read[0].transpose(0, 1)
        return read[0] if self._layout == "MNC" else read[0].unsqueeze(0)

    def _logarithms(self, given: Tensor) -> Tensor:
        values = given.double()
        if self.kind == "probs":
            self.raised += int((values < self.smallest).sum())
            return values.clamp(min=self.smallest).log_()
        impossible = values == -torch.inf
        self.raised += int(impossible.sum())
        return values.masked_fill(impossible, math.log(self.smallest))

    def _check_probs(self, given: Tensor, start: int) -> None:
        values = given.double()
        if self.kind == "probs":
            self._refuse(~values.isfinite(), given, start, "be finite")
            self._refuse(values < 0, given, start, "be >= 0", hint=_IF_RAW)
        else:
            wrong = values.isnan() | (values == torch.inf)
            self._refuse(wrong, given, start, "be finite, or -inf")
            values = values.exp()
        sums = values.sum(-1)
        wrong = (sums - 1).abs() > self._tolerance
        if wrong.any():
            member, row = wrong.nonzero()[0].tolist()
            near = values.amax() <= 1 and (sums[member, row] - 1).abs() < 0.1
            hint = "; write them with more digits, or divide each row by its sum"
            raise ValueError(
                f"{self._called(member)} must sum to 1 over classes, got "
                f"{sums[member, row].item():.6g} in row {start + row}{self._of(member)}, counted "
                f"from 0{hint if near else _IF_RAW}"
            )

    def _check_first(self) -> None:
        count = min(_FIRST, self.shape[1])
        values = self.read(0, count)
        for part in self._parts if count > 2 else ():
            if part.table:
                first = part.read(0, count)[:, 0].double()
                if first[0] in (0, 1) and (first.diff() == 1).all():
                    raise ValueError(
                        f"{part.name} counts its rows in column 1; write it without row numbers "
                        "(pandas: index=False)"
                    )
        if self.kind != "logits":
            return
        # Of few samples all members together: one of them may look like probabilities by chance.
        exact, apart = values.double(), count > _FEW
        for member, rows in enumerate(exact if apart else exact.flatten(0, 1)[None]):
            if found := _form_of(rows, self._tolerance):
                got, remedy = found
                whose = self._of(member) if apart and len(self._parts) == 1 else ""
                raise ValueError(
                    f"{self._called(member)} must be raw outputs, got rows {got}{whose}; {remedy}"
                )

    def _refuse(
        self, wrong: Tensor, given: Tensor, start: int, bound: str, *, hint: str = ""
    ) -> None:
        if wrong.any():
            member, row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"{self._called(member)} must {bound}, got {given[member, row, column].item():.6g} "
                f"at {[member, start + row, column]}: row {start + row}, class {column}"
                f"{self._of(member)}, counted from 0{hint}"
            )

    def _called(self, member: int) -> str:
        return self._parts[member].name if len(self._parts) > 1 else self.name

    def _of(self, member: int) -> str:
        return f", member {member}" if self.shape[0] > 1 else ""


def _form_of(values: Tensor, tolerance: float) -> tuple[str, str] | None:
    """What a member's first rows are instead of raw outputs, and what to do with them."""
    least, most = values.amin(), values.amax()
    sums = values.sum(-1)
    # As of probabilities written with two digits, and also where a row in ten is wrong.
    rounded = min(0.05, max(tolerance, 0.005 * values.shape[-1]))

    def all_sum_to(total: int) -> bool:
        return bool(((sums / total - 1).abs() <= rounded).double().mean() >= 0.9)

    if least >= 0 and most <= 1 and all_sum_to(1):
        remedy = "if these are probabilities, say kind='probs' (--kind probs)"
        return "that lie in [0, 1] and sum to 1", remedy
    if least >= 0 and most <= 100 and most > 1 and all_sum_to(100):
        remedy = "if these are percentages, divide them by 100 and say kind='probs' (--kind probs)"
        return "that lie in [0, 100] and sum to 100", remedy
    if most > 0:
        return None
    # Of all rows: logits less their largest are as near to 0 where a network is sure.
    for base, name in ((math.e, ""), (2.0, "2"), (10.0, "10")):
        if ((values * math.log(base)).logsumexp(-1).abs() <= tolerance).all():
            if not name:
                remedy = "if these are log-probabilities, say kind='log_probs' (--kind log_probs)"
                return "whose exponentials sum to 1", remedy
            remedy = (
                f"if these are logarithms of probabilities to base {name}, multiply them by "
                f"ln {name} = {math.log(base):.7f} and say kind='log_probs' (--kind log_probs)"
            )
            return f"for which the sum of {name}^x is 1", remedy
    return None


def _check_part(part: ArrayReader, layout: Layout, *, like: ArrayReader, several: bool) -> None:
    shape, wanted = list(part.shape), ", ".join(_AXES[letter] for letter in layout)
    if len(shape) != len(layout):
        hint = ""
        if several:
            hint = "; each of several holds one member"
        elif len(shape) == 2:
            hint = "; of one model, say layout='NC' (--layout NC)"
        elif len(shape) == 3:
            hint = "; say layout='MNC' or 'NMC' (--layout MNC, --layout NMC)"
        raise ValueError(
            f"{part.name} must have {len(layout)} dimensions [{wanted}], got shape {shape}{hint}"
        )
    if part.shape != like.shape:
        raise ValueError(
            f"{part.name} must have the shape {list(like.shape)} of {like.name}, got {shape}"
        )
    if not part.dtype.is_floating_point:
        kind = str(part.dtype).removeprefix("torch.")
        raise ValueError(
            f"{part.name} must be floating point, got {kind}: convert raw outputs, in NumPy by "
            ".astype('float32'); predicted classes alone have no metrics of probabilities"
        )
