"""A row per stream: what it was told, what was expected, what was read. Reports are made of rows alone."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from streamgen.errors import InputError

from ..files import Rows, read_json, read_rows, write_json
from .measures import REVISION, Read
from .streams import StreamSpec
from .suites import in_words

ROWS, ABOUT = "rows.jsonl", "evaluation.json"
#: The weights and settings of rows that were read from clips of the world itself.
TRUTH = "truth"
#: Enough of a digest to tell two apart.
_SHORT = 16


@dataclass(frozen=True)
class Row:
    """One stream, or one clip of the world.

    Attributes:
        source: `model`, or `truth` for a clip of the world that does what streams of the suite are told.
        suite, variant, kind: see `StreamSpec`.
        prompt, seed: of the stream; `then` is the prompt it is switched to.
        expected: the subjects in words, and under `after` the first one behind a switch.
        read: what was read from the decoded frames, see `measures.read_video`.
        weights, settings: digests of the weights and of all settings that the row is a function of.
        stream: name of the file that keeps its frames; most are not kept.
    """

    source: Literal["model", "truth"]
    suite: str
    variant: str
    kind: str
    prompt: str
    seed: int
    then: str | None
    expected: dict[str, Any]
    read: Read
    weights: str
    settings: str
    stream: str | None = None

    @property
    def pair(self) -> tuple[str, str, int, str | None]:
        """What it has in common with the same stream under another variant, or of another model."""
        return self.suite, self.prompt, self.seed, self.then

    @property
    def key(self) -> tuple[Any, ...]:
        """Tells it from all other rows of a report."""
        return self.source, self.variant, *self.pair


_KIND = (Row, "a row of a report")


def row_of(spec: StreamSpec, read: Read, weights: str, settings: str, stream: str | None = None) -> Row:
    """The row of a stream, or with `weights` `TRUTH` of a clip of the world."""
    expected: dict[str, Any] = {"subjects": [in_words(subject) for subject in spec.subjects]}
    if spec.switch is not None:
        expected["after"] = in_words(spec.switch.after)
    then = None if spec.switch is None else spec.switch.prompt
    source: Literal["model", "truth"] = "truth" if weights == TRUTH else "model"
    where = (source, spec.suite, spec.variant, spec.kind, spec.prompt, spec.seed, then)
    return Row(*where, expected, read, weights, settings, stream)


def settings_digest(settings: Mapping[str, Any], what: Mapping[str, Any], size: int) -> str:
    """Digest of all that a stream's row is a function of, besides the weights and the stream's own spec: its
    settings by name, `EvaluationConfig.what`, and the side of the frames in pixels.
    """
    key = json.dumps([REVISION, settings, what, size], sort_keys=True, default=str)
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class About:
    """What the rows of a folder are rows of."""

    model: str
    weights: str
    settings: str
    sampling: dict[str, Any]
    config: dict[str, Any]


class RowFile(Rows[Row]):
    """The rows of a report's folder.

    Raises:
        InputError: the folder has rows of other weights or settings, or a line that is no row.
    """

    def __init__(self, folder: Path, about: About) -> None:
        super().__init__(folder / ROWS, *_KIND)
        self.about = about
        for row in self.rows:
            _check(self.path, row, about)
        self._known = {row.key for row in self.rows}
        write_json(folder / ABOUT, asdict(about))

    def has(self, row: Row) -> bool:
        """Whether a row of this stream is there; what it was read as does not matter."""
        return row.key in self._known

    def add(self, rows: Sequence[Row]) -> None:
        """Append the rows that are not there."""
        new = [row for row in rows if not self.has(row)]
        super().add(new)
        self._known.update(row.key for row in new)


def checked_rows(folder: Path) -> tuple[About, list[Row]]:
    """What a finished report's folder holds; rows in an order that does not depend on when each was done.

    Raises:
        InputError: no report, or rows of other weights or settings than the folder says.
    """
    about = read_json(folder / ABOUT, About, "a report's folder")
    rows = read_rows(folder / ROWS, *_KIND)
    for row in rows:
        _check(folder / ROWS, row, about)
    return about, sorted(rows, key=lambda row: (row.source, row.suite, row.variant, row.seed))


def _check(path: Path, row: Row, about: About) -> None:
    """Raise InputError unless a row is one of these weights and settings."""
    for name, found, expected in (
        ("weights", row.weights, TRUTH if row.source == "truth" else about.weights),
        ("settings", row.settings, about.settings),
    ):
        if found != expected:
            raise InputError(
                f"{path}: has rows of other {name}, {found[:_SHORT]}, expected {expected[:_SHORT]}; "
                "take another folder with -o"
            )
