"""Files of reports: values as JSON, and dataclasses in rows, a line of JSON each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from streamgen.errors import InputError
from streamgen.structured import to_plain

T = TypeVar("T")


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, for people to read, too."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path, kind: type[T], what: str) -> T:
    """The dataclass in a file of JSON; raises InputError where `what` should have it does not."""
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path.parent}: expected {what} with {path.name} ({error})") from None


def read_rows(path: Path, kind: type[T], what: str) -> list[T]:
    """The dataclasses in a file of rows; a last one that was cut off while it was written is taken away.

    Raises:
        InputError: no such file, or a line that is not `what` it should be.
    """
    rows: list[T] = []
    try:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
            path.write_text(text, encoding="utf-8")
        for line in text.splitlines():
            rows.append(kind(**json.loads(line)))
    except (OSError, ValueError, TypeError) as error:
        where = "" if isinstance(error, OSError) else f" line {len(rows) + 1}"
        raise InputError(f"{path}{where}: expected {what} ({error})") from None
    return rows


class Rows(Generic[T]):
    """Rows with their file, in the order in which they came to be; raises as `read_rows`, unless there is no
    file yet.
    """

    def __init__(self, path: Path, kind: type[T], what: str) -> None:
        self.path = path
        self.rows = read_rows(path, kind, what) if path.exists() else []

    def add(self, rows: Sequence[T]) -> None:
        """Append rows."""
        self._write(rows, "a")
        self.rows += rows

    def put(self, rows: Sequence[T]) -> None:
        """Keep these rows alone."""
        self._write(rows, "w")
        self.rows = list(rows)

    def _write(self, rows: Sequence[T], mode: str) -> None:
        with open(self.path, mode, encoding="utf-8") as file:
            file.writelines(json.dumps(to_plain(row), allow_nan=False) + "\n" for row in rows)
