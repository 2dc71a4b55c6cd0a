"""Frozen dataclasses from YAML and back: nested sections, `Literal`, tuples and optional values, checked.

Raises `StructureError` alone, whose text is one line; callers make it an error of their own kind.
"""

import dataclasses
import functools
import io
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .suggest import shorten, unknown_key

T = TypeVar("T")


class StructureError(ValueError):
    """A file or mapping that does not fit: names the key, what was expected and what was found."""


def read_yaml(path: Path, overrides: Sequence[str] = (), label: str = "") -> dict[str, Any]:
    """The keys and values of a YAML file.

    Args:
        overrides: dotted `key=value`, values parsed as YAML, applied in order.
        label: word before the path in messages, with its space (`config `).

    Raises:
        StructureError: no such file, not YAML, or not keys and values.
    """
    if not path.is_file():
        raise StructureError(f"{label}{path}: no such file")
    for override in overrides:
        if "=" not in override:
            raise StructureError(f"override {override!r}: expected key=value")
    try:
        loaded = _loaded(path.read_text(encoding="utf-8"), tuple(overrides))
        if not isinstance(loaded, DictConfig):
            raise StructureError(f"{label}{path}: expected keys and values, found {_kind(loaded)}")
        content = OmegaConf.to_container(loaded, resolve=True)
    except StructureError:
        raise
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        raise StructureError(f"{label}{path}: not readable as YAML ({text[:200]})") from error
    return {str(key): value for key, value in typing.cast(dict[Any, Any], content).items()}


@functools.lru_cache(maxsize=64)
def _loaded(text: str, overrides: tuple[str, ...]) -> object:
    """A text as YAML with its overrides, never to be changed; what refers to others is not looked up yet.

    A command reads the same config several times, and each time took 5 to 12 ms.
    """
    loaded = OmegaConf.load(io.StringIO(text))
    if not overrides or not isinstance(loaded, DictConfig):
        return loaded
    return OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))


def build(cls: type[T], mapping: Mapping[str, Any], where: str = "", label: str = "") -> T:
    """Build the dataclass `cls` from plain values; a value that is built already stays as it is.

    A list becomes a tuple where a tuple is declared, a whole number a float, and text like `1e-4`, which YAML
    1.1 does not read as a number, too.

    Args:
        where: the place of `mapping`, put before its keys in messages (`optim.`).
        label: word before "key" and "section" in messages, with its space (`config `).

    Raises:
        StructureError: an unknown key (with the nearest known one), a missing key, a value of another type,
            or one that the dataclass refuses with a ValueError.
    """
    return _Builder(label).build(cls, mapping, where)


def has_key(cls: type[Any], key: str) -> bool:
    """Whether `build` could take a dotted key for the dataclass `cls`, whatever its value."""
    name, _, rest = key.partition(".")
    fields = {item.name for item in dataclasses.fields(cls) if item.init}
    if name not in fields:
        return False
    return not rest or _has_key_in(typing.get_type_hints(cls)[name], rest)


def _has_key_in(hint: Any, key: str) -> bool:
    if dataclasses.is_dataclass(hint):
        return has_key(typing.cast(type[Any], hint), key)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_has_key_in(choice, key) for choice in typing.get_args(hint))
    # a mapping takes any key, a value none
    return hint is Any or hint is dict or typing.get_origin(hint) in (dict, Mapping)


def to_plain(value: Any) -> Any:
    """Dataclasses and mappings as dicts with text keys, tuples as lists, all else as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(vars(value)[item.name]) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


class _Builder:
    """`build` and the conversion of each kind of value; holds how messages begin."""

    def __init__(self, label: str) -> None:
        self.label = label

    def build(self, cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
        # resolved, since a module with postponed annotations declares its fields as text
        hints = typing.get_type_hints(cls)
        fields = {item.name: item for item in dataclasses.fields(cls) if item.init}  # type: ignore[arg-type]
        for key in mapping:
            if key not in fields:
                raise StructureError(unknown_key(key, fields, f"{self.label}key", where))
        values: dict[str, Any] = {}
        for name, item in fields.items():
            if name in mapping:
                values[name] = self._convert(hints[name], mapping[name], where + name)
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise StructureError(f"{self.label}key {where + name} is missing")
        try:
            return cls(**values)
        except ValueError as error:
            section = f"{self.label}section {where.rstrip('.')}: " if where else ""
            raise StructureError(section + " ".join(str(error).split())) from error

    def _convert(self, hint: Any, value: Any, where: str) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments, value, where)
        if origin is Literal:
            if not any(value == known and type(value) is type(known) for known in arguments):
                raise self._unfit(where, f"one of {', '.join(map(str, arguments))}", value)
            return value
        if origin is tuple:
            return self._tuple(arguments, value, where)
        if origin in (dict, list):
            if not isinstance(value, origin):
                raise self._unfit(where, f"a {origin.__name__}", value)
            return value
        if dataclasses.is_dataclass(hint):
            kind = typing.cast(type[Any], hint)
            if isinstance(value, kind):
                return value
            if not isinstance(value, Mapping):
                raise self._unfit(where, "a section of keys", value)
            return self.build(kind, value, f"{where}.")
        return self._scalar(hint, value, where)

    def _union(self, choices: Sequence[Any], value: Any, where: str) -> Any:
        if value is None and type(None) in choices:
            return None
        tagged = _tags(choices)
        if tagged and isinstance(value, Mapping):
            kind = value.get("kind", next(iter(tagged)))
            if kind not in tagged:
                raise self._unfit(f"{where}.kind", f"one of {', '.join(tagged)}", kind)
            return self._convert(tagged[kind], value, where)
        *others, last = (choice for choice in choices if choice is not type(None))
        for choice in others:
            try:
                return self._convert(choice, value, where)
            except StructureError:
                continue
        return self._convert(last, value, where)

    def _tuple(self, kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise self._unfit(where, "a list", value)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(value) != len(kinds):
            raise self._unfit(where, f"a list of {len(kinds)}", value)
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(self._convert(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)

    def _scalar(self, kind: type, value: Any, where: str) -> Any:
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if kind is float and isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                pass
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
        raise self._unfit(where, kind.__name__, value)

    def _unfit(self, where: str, expected: str, found: object) -> StructureError:
        return StructureError(f"{self.label}key {where}: expected {expected}, found {shorten(found)}")


def _tags(choices: Sequence[Any]) -> dict[str, Any]:
    """Dataclasses that are told apart by the default of a field `kind`, by that; empty if they are not."""
    classes = [choice for choice in choices if choice is not type(None)]
    if len(classes) < 2 or not all(dataclasses.is_dataclass(choice) for choice in classes):
        return {}
    kinds = [
        {item.name: item.default for item in dataclasses.fields(choice)}.get("kind") for choice in classes
    ]
    return {kind: choice for kind, choice in zip(kinds, classes, strict=True) if isinstance(kind, str)}


def _kind(loaded: object) -> str:
    return "a list" if OmegaConf.is_list(loaded) else type(loaded).__name__
