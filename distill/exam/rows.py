"""A row for each mark: what was expected, what was read. Reports are made of rows alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from streamgen.errors import InputError
from streamgen.suggest import shorten

from ..evaluation.measures import REVISION
from ..files import Rows, read_json, read_rows, write_json
from .facts import Fact
from .marking import Mark
from .transcript import VERSION, Transcript

ROWS, ABOUT = "rows.jsonl", "about.json"


@dataclass(frozen=True)
class FactRow:
    """The mark of one fact.

    Attributes:
        stream: whose video was looked at.
        told: whose fact it is: the same, or for the control another stream of the category.
        category, kind: of the stream.
        place: of the fact in its transcript.
        fact, asks, frames, object, expect, tolerance: the fact.
        found: what was read, a number or word; None where it cannot be seen.
        mark: 1.0 where that is as expected, else 0.0.
        transcript, video: digests of the told transcript and of the video's file.
    """

    stream: str
    told: str
    category: str
    kind: str
    place: int
    fact: str
    asks: str
    frames: list[int]
    object: str | None
    expect: Any
    tolerance: float
    found: Any
    mark: float
    transcript: str
    video: str

    @property
    def own(self) -> bool:
        """Whether the video is the one that was told the fact."""
        return self.stream == self.told


_KIND = (FactRow, "the mark of a fact")


def fact_row(stream: Transcript, told: Transcript, place: int, mark: Mark, video: str) -> FactRow:
    """The row of a fact of `told` on the video of `stream`, whose file has the digest `video`."""
    fact: Fact = told.facts[place]
    what = (stream.id, told.id, stream.category, stream.kind, place, fact.kind, fact.asks)
    about = (list(fact.frames), fact.object, fact.expect, fact.given)
    return FactRow(*what, *about, mark.found, float(mark.right), told.digest, video)


@dataclass(frozen=True)
class About:
    """What the marks of a folder are marks of.

    Attributes:
        name: what the system is called.
        source: `model`, `truth`, or `videos` that someone brought.
        weights, policy, settings: of a model; empty for others.
        version: of the exam.
        reader: revision of the readers, `measures.REVISION`.
    """

    name: str
    source: str
    weights: str = ""
    policy: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION
    reader: int = REVISION


class MarkFile(Rows[FactRow]):
    """The marks in a folder, a row for each fact.

    Raises:
        InputError: the folder has marks of something else, or lines that are none.
    """

    def __init__(self, folder: Path, about: About) -> None:
        if (folder / ABOUT).exists():
            _check_about(folder, read_about(folder), about)
        super().__init__(folder / ROWS, *_KIND)
        write_json(folder / ABOUT, asdict(about))

    def keep(self, wanted: Mapping[str, tuple[str, Sequence[str]]]) -> set[str]:
        """Leave out all rows but those of wanted streams: by name the digest of the video and those of the
        transcripts it is held against. Returns the streams of which all rows are there.
        """
        by_stream: dict[str, list[FactRow]] = {}
        for row in self.rows:
            if row.stream in wanted and row.video == wanted[row.stream][0]:
                by_stream.setdefault(row.stream, []).append(row)
        done = {
            name
            for name, rows in by_stream.items()
            if {row.transcript for row in rows} == set(wanted[name][1])
        }
        self.put([row for name in done for row in by_stream[name]])
        return done


def read_marks(folder: Path) -> list[FactRow]:
    """The marks in a folder; raises InputError where there are none, or something else."""
    return read_rows(folder / ROWS, *_KIND)


def read_about(folder: Path) -> About:
    """What a folder's marks are marks of; raises InputError where it does not say."""
    return read_json(folder / ABOUT, About, "a marked exam's folder")


def _check_about(folder: Path, found: About, expected: About) -> None:
    """Raise InputError where marks are of something else; what they are called does not matter."""
    ours, theirs = asdict(expected), asdict(found)
    for name in ("source", "weights", "policy", "version", "reader"):
        _check_equal(folder, name, theirs[name], ours[name])
    for key in {**ours["settings"], **theirs["settings"]}:
        _check_equal(folder, f"settings.{key}", theirs["settings"].get(key), ours["settings"].get(key))


def _check_equal(folder: Path, name: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise InputError(
            f"{folder}: has marks of other {name}, {shorten(found, 24)}, expected {shorten(expected, 24)}; "
            "take another folder with -o"
        )
