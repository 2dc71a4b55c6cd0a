"""The files that a motion object names: where they are, relative to what holds the object.

Plain Python, so that a job file can be checked without loading torch. A motion object names other files in
`arrays.file`, `arrays.visible`, `clip.file`, `clip.weights` and `masks[].file`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def with_folder(motion: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A motion object with its file names put behind `folder`; names that are no text stay as they are."""
    return _mapped(motion, lambda name: str(folder / name))


def files_of(motion: str | Mapping[str, Any]) -> list[Path]:
    """All files that a motion file or object is made of, the motion file itself first.

    A motion file that cannot be read names no others: reading it will say so.
    """
    if isinstance(motion, Mapping):
        return list(_named(motion))
    file = Path(motion)
    found = [file]
    if file.suffix.lower() == ".json":
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError):
            return found
        if isinstance(content, Mapping):
            found += _named(with_folder(content, file.parent))
    return found


def _named(motion: Mapping[str, Any]) -> Iterator[Path]:
    names: list[str] = []

    def collect(name: str) -> str:
        names.append(name)
        return name

    _mapped(motion, collect)
    return map(Path, names)


def _mapped(motion: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    out = dict(motion)
    for part, keys in (("arrays", ("file", "visible")), ("clip", ("file", "weights"))):
        if isinstance(out.get(part), Mapping):
            out[part] = _changed(out[part], keys, change)
    if isinstance(out.get("masks"), list):
        out["masks"] = [
            _changed(row, ("file",), change) if isinstance(row, Mapping) else row for row in out["masks"]
        ]
    return out


def _changed(row: Mapping[str, Any], keys: tuple[str, ...], change: Callable[[str], str]) -> dict[str, Any]:
    return {
        key: change(value) if key in keys and isinstance(value, str) and "\0" not in value else value
        for key, value in row.items()
    }
