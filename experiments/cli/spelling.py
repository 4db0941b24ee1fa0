"""The spelling of options: what people write on a command line, and what the parser reads."""

import csv
import json
import typing
from collections.abc import Mapping, Sequence
from typing import Any

_NOT_FINITE = {"inf": ".inf", "+inf": ".inf", "-inf": "-.inf", "nan": ".nan"}  # as YAML has it


def spell(
    words: Sequence[str],
    options: Mapping[str, Any],
    *,
    several_words: bool = False,
    paths: str | None = None,
) -> list[str]:
    """Accept dashes for underscores, a bare --flag for --flag true, inf, and a,b for [a,b].

    An option that takes several values may also be given several times or, with ``several_words``,
    as several words. ``options`` are types by name. ``paths`` is the option that takes several
    words, whole, beside a positional one: if none stands before, that is the last of them.

    Example:
        >>> from deepens.experiments.cli.spelling import spell
        >>> kinds = {"keep_logits": bool, "rate": float, "methods": tuple[str, ...]}
        >>> spell(["--keep-logits", "--rate", "inf", "--methods", "a,b", "--methods=c"], kinds)
        ['--keep_logits=true', '--rate=.inf', '--methods=["a", "b", "c"]']
    """
    spelled, several, remaining = list[str](), dict[str, list[str]](), list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--") or word == "--":
            spelled.append(word)
            continue
        name, has_value, value = word[2:].partition("=")
        name = name.replace("-", "_")
        hint = options.get(name)
        following = remaining[0].lower() if remaining else ""
        if (switch := _switch(hint)) and not has_value:
            has_value, value = "=", remaining.pop(0) if following in switch else "true"
        elif hint is float:
            if not has_value and following in _NOT_FINITE:
                value, has_value = remaining.pop(0), "="
            value = _NOT_FINITE.get(value.lower(), value)
        elif name == paths:
            found = [value] if has_value else []
            while remaining and not remaining[0].startswith("--"):
                found.append(remaining.pop(0))
            if len(found) > 1 and not any(not each.startswith("--") for each in spelled):
                spelled.append(found.pop())
            several.setdefault(name, []).extend(found)
            continue
        elif typing.get_origin(hint) is tuple:
            if not has_value and remaining:
                value = remaining.pop(0)
            several.setdefault(name, []).extend(split_values(value))
            while several_words and remaining and not remaining[0].startswith("-"):
                several[name].extend(split_values(remaining.pop(0)))
            continue
        spelled.append(f"--{name}{has_value}{value}")
    for name, values in several.items():
        text = typing.get_args(options[name])[0] is str
        shown = json.dumps(values, ensure_ascii=False) if text else f"[{','.join(values)}]"
        spelled.append(f"--{name}={shown}")
    return spelled


def _switch(hint: Any) -> set[str]:
    """The values of an option that may stand without one; empty for other options."""
    kinds = [bool] if hint is bool else typing.get_args(hint)
    if bool not in kinds:
        return set()
    return {"true", "false"}.union(*map(typing.get_args, kinds))


def split_values(value: str) -> list[str]:
    """The values in ``a,b`` or ``[a,b]``; a comma may stand in quotes."""
    inside = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    rows = list(csv.reader([inside], skipinitialspace=True))
    return [each.strip() for each in rows[0]] if rows and inside.strip() else []
