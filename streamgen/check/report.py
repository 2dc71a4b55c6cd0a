"""The file that a check of a machine writes as it goes, and its table.

Every row is written when it is known, so a part that is cut short leaves what it had come to; a part that is
done is not done again.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError

FORMAT = "streamgen-machine-check"
VERSION = 1


class Report:
    """Results by part.

    Args:
        path: one JSON file; made when the first part begins.
        machine: what the results are of, see `check.plan.machine`.

    Raises:
        InputError: a file of something else, or of another machine or version.
    """

    def __init__(self, path: Path, machine: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "machine": dict(machine or {}),
            "parts": {},
        }
        if path.exists():
            found = _read(path)
            if machine is not None and found["machine"] != machine:
                raise InputError(f"{path}: is of another machine, size or version; give another file")
            self.content = found
        elif machine is None:
            raise InputError(f"{path}: no such file")

    def done(self, part: str) -> bool:
        """Whether a part has been gone through to its end, whatever it found."""
        return self.content["parts"].get(part, {}).get("status") in ("done", "failed")

    def begin(self, part: str) -> None:
        """A part begins; what it left behind when it was cut short before is given up."""
        self.content["parts"][part] = {"status": "cut short", "rows": {}}
        self._write()

    def row(self, part: str, name: str, values: Mapping[str, Any]) -> None:
        """One result; `ok` false in it says that something is not as it has to be."""
        self.content["parts"][part]["rows"][name] = dict(values)
        self._write()

    def end(self, part: str, seconds: float, reason: str | None = None) -> bool:
        """A part is over; returns whether all is well.

        Args:
            reason: why it could not go on, in one line.
        """
        entry = self.content["parts"][part]
        bad = [name for name, values in entry["rows"].items() if values.get("ok") is False]
        reason = reason or (f"not as it has to be: {', '.join(bad)}" if bad else None)
        entry |= {"status": "done" if reason is None else "failed", "seconds": round(seconds, 1)}
        if reason is not None:
            entry["reason"] = reason
        self._write()
        return reason is None

    def table(self) -> str:
        """All results as lines of text."""
        machine = self.content["machine"]
        lines = [", ".join(f"{name} {value}" for name, value in machine.items())]
        for part, entry in self.content["parts"].items():
            seconds = f", {entry['seconds']} s" if "seconds" in entry else ""
            reason = f": {entry['reason']}" if "reason" in entry else ""
            lines += ["", f"{part} ({entry['status']}{seconds}){reason}"]
            for name, values in entry["rows"].items():
                lines.append(f"  {name:<28} {_text(values)}")
        return "\n".join(lines)

    def _write(self) -> None:
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
            part.replace(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error})") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path}: expected results of `python -m streamgen.check`")
    return found


def _text(values: Mapping[str, Any]) -> str:
    """A row's own values; what lies deeper is in the file alone."""
    shown = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    return ", ".join(f"{name} {value}" for name, value in shown.items())
