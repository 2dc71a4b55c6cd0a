"""A folder of clips: reading them, sharing the work between processes, and the list of what is unusable."""

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from streamgen.errors import InputError, OutputError
from streamgen.video.read import read_clip
from streamgen.video.write import reason_of

from ..command import say
from .config import ClipFolderConfig
from .listing import ClipEntry, Problem, list_clips
from .store import FileIndex, Shelf, Tensors, fingerprint, remove_stale_parts, write_whole

QUARANTINE = "quarantine.jsonl"

_SAY_EVERY = 32

T = TypeVar("T")
U = TypeVar("U")


class UsableClip(NamedTuple):
    """An entry of the listing whose clip could be read; `key` is the digest of the clip's content."""

    entry: ClipEntry
    key: str


class ClipFolder:
    """The clips of one folder under one set of settings.

    Attributes:
        listing: what the folder holds, as it was found when this object was made.
        root: where everything made of clips is kept.
        quarantine: the file that lists what cannot be used, one JSON object a line: what, why, where.

    Raises:
        InputError: see `list_clips`; or nothing usable by its listing alone.
    """

    def __init__(self, config: ClipFolderConfig) -> None:
        self.config = config
        self.listing = list_clips(config.path)
        self.root = Path(config.directory) / "clips"
        place = self.listing.folder.resolve()
        self.quarantine = self.root / f"{place.name}-{fingerprint(str(place))[:8]}" / QUARANTINE
        self.index = FileIndex(self.root / "files")
        self._rank = 0
        if not self.listing.entries:
            self._write_quarantine(self.listing.problems)
            raise self._nothing(self.listing.problems)

    def __str__(self) -> str:
        return f"clips {self.listing.folder}"

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions of all entries."""
        return tuple(entry.caption for entry in self.listing.entries)

    @property
    def aspect(self) -> float:
        """Width / height of the pictures."""
        return self.config.width / self.config.height

    def shelf(self, kind: str, *settings: Any) -> Shelf:
        """The place for results of a kind, made from pictures of this size and rate and with `settings`."""
        config = self.config
        pictures = (config.height, config.width, config.fps, config.max_frames)
        return Shelf(self.root / kind / fingerprint(pictures, settings))

    def build(
        self, shelf: Shelf, compute: Callable[[Tensor], Tensors], rank: int = 0, world: int = 1
    ) -> None:
        """Make this process' share of what is missing on a shelf.

        `compute` gets a clip's pictures, uint8 `(T, H, W, 3)`, and may raise InputError for a clip that is
        not fit for use.
        """
        self._rank = rank
        if rank == 0:
            remove_stale_parts(self.root)
        # shared out before looking: others write meanwhile, so what is missing differs between processes
        mine: dict[str, ClipEntry] = {}
        for entry in self.listing.entries[rank::world]:
            key = self.index.digest(entry.video)
            if key is not None and not shelf.settled(key, self.config.retry):
                mine.setdefault(key, entry)
        cut = 0
        read = ahead(lambda item: self._read(item[1].video), mine.items(), self.config.readers)
        for done, ((key, _), read_frames) in enumerate(read, 1):
            try:
                frames = read_frames()
            except OutputError:
                raise
            except InputError as error:
                shelf.fail(key, str(error))
            else:
                cut += len(frames) == self.config.max_frames
                shelf.make(key, lambda frames=frames: compute(frames))  # type: ignore[misc]
            if rank == 0 and (done % _SAY_EVERY == 0 or done == len(mine)):
                say(f"{self}: {shelf.folder.parent.name} of {done} of {len(mine)} clips")
        if cut:
            limit = f"clips.max_seconds ({self.config.max_seconds:g})"
            say(f"{self}: {cut} clips reach {limit}, what lies behind is not used")

    def settle(self, shelf: Shelf, further: Iterable[Problem] = ()) -> list[UsableClip]:
        """The clips that a shelf has, when all processes have built: alike on all of them.

        Writes the quarantine list: every problem of now, `further` ones among them, once.

        Raises:
            InputError: no clip is usable.
        """
        self.index.refresh()
        usable: list[UsableClip] = []
        problems = list(self.listing.problems)
        for entry in self.listing.entries:
            key = self.index.known(entry.video)
            if key is not None and shelf.has(key):
                usable.append(UsableClip(entry, key))
                continue
            why = self.index.why_not(entry.video) if key is None else shelf.failure(key)
            problems.append(Problem(str(entry.video), why or "was not read", entry.where))
        problems += further
        self._write_quarantine(problems)
        if not usable:
            raise self._nothing(problems)
        if self._rank == 0 and problems:
            say(f"{self}: {len(usable)} usable, {len(problems)} problems in {self.quarantine}")
        return usable

    def _read(self, video: Path) -> Tensor:
        """A clip's pictures, uint8 `(T, H, W, 3)`; InputErrors do not name the clip."""
        config = self.config
        try:
            frames = read_clip(
                video, config.fps, config.height, config.width, config.max_frames, config.timeout
            )
        except InputError as error:
            raise InputError(str(error).removeprefix(f"{video}: ")) from None
        except OSError as error:
            # not the clip's fault: the folder for temporary files is full, or there are too many processes
            raise OutputError(f"{video}: reading it needs room ({reason_of(error)})") from None
        return torch.from_numpy(frames)

    def _write_quarantine(self, problems: Sequence[Problem]) -> None:
        if self._rank == 0:
            rows = dict.fromkeys(json.dumps(problem.__dict__, ensure_ascii=False) for problem in problems)
            text = "".join(f"{row}\n" for row in rows)
            write_whole(self.quarantine, lambda part: part.write_text(text, encoding="utf-8"))

    def _nothing(self, problems: Sequence[Problem]) -> InputError:
        why = f" ({problems[0].what}: {problems[0].why})" if problems else ""
        more = f"; all {len(problems)} problems in {self.quarantine}" if len(problems) > 1 else ""
        return InputError(f"{self.listing.folder}: no usable clips{why}{more}")


def require_length(frames: Tensor, config: ClipFolderConfig) -> None:
    """Raise InputError for a clip that is shorter than one piece."""
    if len(frames) < config.frames:
        raise InputError(
            f"too short: {len(frames)} frames at {config.fps} fps, expected at least {config.frames} "
            f"(clips.frames)"
        )


def ahead(
    function: Callable[[T], U], items: Iterable[T], threads: int
) -> Iterator[tuple[T, Callable[[], U]]]:
    """Each item with a call that returns `function(item)` or raises what it raised; `threads` at a time."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="clips")
    waiting: deque[tuple[T, Future[U]]] = deque()
    rest = iter(items)
    try:
        for item in itertools.chain(itertools.islice(rest, threads)):
            waiting.append((item, pool.submit(function, item)))
        while waiting:
            item, future = waiting.popleft()
            for following in itertools.islice(rest, 1):
                waiting.append((following, pool.submit(function, following)))
            yield item, future.result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
