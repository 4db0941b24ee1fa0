"""Files of plain data: read within bounds, and checked against the types that they should have.

What is read may have been made or changed by anyone: it is a regular file, small, not deeply
nested, written out in full, and of the types that a dataclass declares, or a ``ValueError``.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from .files import check_regular

Built = TypeVar("Built")

MOST_BYTES = 2**20
"""Bytes of a file that people write: configurations, grids, lists."""

DEEPEST, MOST_VALUES = 32, 100_000
"""Levels and values of a YAML file, its aliases written out."""

LARGEST = 2**63 - 1


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a regular file in UTF-8 of at most so many bytes."""
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} must have at most {most} bytes, got {path.stat().st_size}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: plain values only, within the bounds of depth and expansion."""
    try:
        return parse_yaml(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def parse_yaml(text: str) -> Any:
    """What a text in YAML holds, as `read_yaml`; what is none is a ``yaml.YAMLError``."""
    try:
        _check_expansion(text)
        return _Loader(text).get_single_data()
    except (ValueError, TypeError, OverflowError) as error:
        raise yaml.YAMLError(str(error)) from None


class _Loader(yaml.SafeLoader):
    """Plain values only; a name that stands twice is refused instead of taking the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, whose names differ."""
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    lines = f"lines {seen[key.value]} and {line}"
                    raise ValueError(f"{key.value} stands twice, in {lines}; keep one of them")
                seen[key.value] = line
        return super().construct_mapping(node, deep)


def parse_json(text: str) -> Any:
    """What JSON holds; a ``ValueError`` also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _check_expansion(text: str) -> None:
    """Refuse YAML that is nested too deeply or too large with its aliases written out."""
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and values so far
    sizes: dict[str, int] = {}

    def close(anchor: str | None, size: int) -> None:
        if anchor is not None:
            sizes[anchor] = size
        if open_nodes:
            outer, so_far = open_nodes[-1]
            open_nodes[-1] = (outer, so_far + size)
        if size > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES} values with its aliases")

    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            if event.anchor is not None:
                sizes.pop(event.anchor, None)
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            close(*open_nodes.pop())
        elif isinstance(event, yaml.ScalarEvent):
            close(event.anchor, 1)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(
                    f"the alias *{event.anchor} stands inside what it names, or before"
                )
            close(None, sizes[event.anchor])


def construct(kind: type[Built], values: Any, where: str, *, more: bool = False) -> Built:
    """A dataclass from plain data, whose types are those of its fields.

    Lists become tuples. ``where`` is the file or the group of options that an error names. With
    ``more``, values that the dataclass does not know are passed over.

    Example:
        >>> from deepens.datasets.plain_data import construct
        >>> from deepens.ensembles.options import Packed
        >>> construct(Packed, {"alpha": 3, "gamma": "2"}, "packed")
        Traceback (most recent call last):
        ValueError: packed.gamma must be a whole number, got '2'
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must hold values by name, got {shown(values)}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    if more:
        values = {name: value for name, value in values.items() if name in fields}
    if unknown := sorted(map(str, values.keys() - fields.keys())):
        raise ValueError(f"{where} holds an unknown value {unknown[0]!r}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ValueError(f"{where} lacks {name}")
    prefix = f"{where}." if where else ""
    return kind(**{name: conform(v, hints[name], f"{prefix}{name}") for name, v in values.items()})


def conform(value: Any, hint: Any, name: str) -> Any:
    """The value in the type that a field declares; a ``ValueError`` where it is of another.

    Whole numbers stand for numbers, and lists for tuples. Numbers have at most 64 bits.

    Example:
        >>> from deepens.datasets.plain_data import conform
        >>> conform([1, 2], tuple[int, ...], "order")
        (1, 2)
        >>> conform(None, int, "epochs")
        Traceback (most recent call last):
        ValueError: epochs must have a value, got none
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        refusals = []
        for each in (kind for kind in inner if kind is not type(None)):
            try:
                return conform(value, each, name)
            except ValueError as error:
                refusals.append(error)
        raise refusals[-1]
    if hint is Any:
        return value
    if value is None and hint is not type(None):
        raise ValueError(f"{name} must have a value, got none")
    if dataclasses.is_dataclass(hint):
        same = isinstance(value, typing.cast(type, hint))
        return value if same else construct(typing.cast(type, hint), value, name)
    if origin is Literal:
        # True == 1: the type counts too.
        if not any(value == each and type(value) is type(each) for each in inner):
            raise ValueError(
                f"{name} must be one of {', '.join(map(str, inner))}, got {shown(value)}"
                f"{meant(value)}"
            )
        return value
    if origin in (tuple, list, Sequence):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{name} must be a list, got {shown(value)}{meant(value)}")
        fixed = origin is tuple and inner[-1] is not Ellipsis
        if fixed and len(inner) != len(value):
            raise ValueError(f"{name} must be a list of {len(inner)}, got {shown(value)}")
        kinds = inner if fixed else inner[:1] * len(value)
        pairs = zip(value, kinds, strict=True)
        return tuple(conform(v, k, f"{name}[{i}]") for i, (v, k) in enumerate(pairs))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"{name} must hold values by name, got {shown(value)}")
        return {key: conform(each, inner[1], f"{name}.{key}") for key, each in value.items()}
    return _scalar(value, hint, name)


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "empty",
}


def meant(value: Any) -> str:
    """What may have been meant by a truth value where a word is expected; else nothing."""
    if isinstance(value, bool):
        return "; YAML reads no, off, yes and on as such: to mean a word, quote it"
    return ""


def _scalar(value: Any, hint: Any, name: str) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if hint in (int, float) and whole and abs(value) > LARGEST:
        raise ValueError(f"{name} must be {_WORDS[hint]} of at most 64 bits, got {shown(value)}")
    if hint not in _WORDS:  # a type of a plugin's own, which it checks itself
        return value
    fits = {int: whole, float: whole or isinstance(value, float)}
    if not (fits[hint] if hint in fits else isinstance(value, hint)):
        more = meant(value) if hint is str else ""
        raise ValueError(f"{name} must be {_WORDS[hint]}, got {shown(value)}{more}")
    return value


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, Mapping | list | tuple | set):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
