"""One item from claim to manifest line: the same on one machine, under a launcher and on a cluster."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..engine.runner import Runner
from ..errors import InputError, Interrupted, OutputError, StreamgenError
from ..pipeline import Pipeline
from ..video.outputs import Outputs
from .clip import Hooks, record_notes, word_notes, write_clip
from .folder import OutputFolder
from .items import RenderItem
from .manifest import Entry
from .records import Asked, job_key
from .sources import open_job

Status = Literal["made", "there", "failed", "failed before", "busy"]


@dataclass(frozen=True)
class Policy:
    """What to do with items that were done or tried before.

    Attributes:
        overwrite: render again what is there.
        retry_failed: try again what failed before with the very same job, settings, weights and files.
        outputs: what to make besides videos.
        origin: name of the job file, for the records.
        asked: on how many threads, and how many at once, clips are to be computed.
    """

    overwrite: bool = False
    retry_failed: bool = False
    outputs: Outputs = field(default_factory=Outputs)
    origin: str = ""
    asked: Asked = field(default_factory=Asked)


@dataclass(frozen=True)
class Outcome:
    """What became of an item; `entry` is its manifest line (none while another process is at it), `notes`
    what the user should know.
    """

    status: Status
    entry: Entry | None = None
    notes: tuple[str, ...] = ()


class ItemRunner:
    """Renders items into a folder.

    Args:
        pipeline: the model.
        folder: shared with other processes.
        policy: about earlier runs.
        stopped: asked between chunks.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        folder: OutputFolder,
        policy: Policy,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.pipeline, self.folder, self.policy, self.stopped = pipeline, folder, policy, stopped
        batch = policy.asked.batch
        self._gathering = None if batch is None else pipeline.gathering(batch)
        self._outputs = folder.outputs(policy.outputs)
        folder.manifest.refresh()
        # What failed after this line has been tried in this run.
        self._first_line = len(folder.manifest)

    @property
    def at_once(self) -> int:
        """How many threads may attempt items at the same time: the places of the batch."""
        return 1 if self._gathering is None else self._gathering.size

    def close(self) -> None:
        """Let other threads that are at work give up."""
        if self._gathering is not None:
            self._gathering.close()

    def attempt(
        self,
        item: RenderItem,
        started: Callable[[RenderItem, int], None] = lambda item, frames: None,
        progress: Callable[[int], None] = lambda frames: None,
    ) -> Outcome:
        """Render an item, unless that is done, has failed before, or another process is at it.

        Args:
            started: told the item and its frames when rendering begins.
            progress: told the frames that are written.

        Raises:
            OutputError: the folder cannot be written, which no other item would survive either. Interrupted:
                `stopped` said so.
        """
        key, problem = self._key(item)
        settled = self._settled(item, key)
        if settled is not None:
            return settled
        with self.folder.claim(item, key) as mine:
            if not mine:
                return Outcome("busy")
            # another process may have done it between the look and the claim
            self.folder.manifest.refresh()
            settled = self._settled(item, key)
            if settled is None and not self.policy.overwrite:
                entry = self.folder.adopt(item, key, self._outputs)
                settled = None if entry is None else Outcome("there", entry)
            if settled is not None:
                return settled
            try:
                if problem is not None:
                    raise problem
                return self._make(item, key, started, progress)
            except (OutputError, Interrupted):
                raise
            except StreamgenError as error:
                return self._failed(item, key, str(error))
            except Exception as error:  # a fault in one job must not cost the others
                return self._failed(item, key, f"{type(error).__name__}: {' '.join(str(error).split())}")

    def status(self, item: RenderItem) -> Outcome | None:
        """What is known of an item without doing anything: there, failed before, or None."""
        return self._settled(item, self._key(item)[0])

    def _make(
        self, item: RenderItem, key: str, started: Callable[[RenderItem, int], None], progress: Any
    ) -> Outcome:
        with contextlib.nullcontext() if self._gathering is None else self._gathering.member() as runner:
            return self._rendered(item, key, started, progress, runner)

    def _rendered(
        self,
        item: RenderItem,
        key: str,
        started: Callable[[RenderItem, int], None],
        progress: Any,
        runner: Runner | None,
    ) -> Outcome:
        video = self.folder.place(item, key, self.policy.overwrite)
        clip = open_job(self.pipeline, item.job, video, item.copy, asked=self.policy.asked, runner=runner)
        origin = {"jobs": self.policy.origin, "line": item.job.line, "index": item.job.index}
        clip = replace(clip, origin=origin)
        started(item, clip.frames)
        record = write_clip(clip, Hooks(progress, self.stopped), outputs=self._outputs)
        entry = self.folder.entry_of(item, key, video, record)
        if entry is None:
            raise InputError(f"{video}: its record is incomplete")
        self.folder.manifest.append(entry)
        own = (f"{item.name}: {note}" for note in clip.notes)
        notes = (*own, *word_notes(self.pipeline, clip.prompts), *record_notes(record))
        return Outcome("made", entry, notes)

    def _key(self, item: RenderItem) -> tuple[str, StreamgenError | None]:
        """The item's key; where a file or setting cannot be, one that stands for just that."""
        try:
            return job_key(self.pipeline, item.job, item.copy, self.policy.asked), None
        except StreamgenError as error:
            return f"unusable {item.name} {self.pipeline.digest[:16]}: {error}", error

    def _settled(self, item: RenderItem, key: str) -> Outcome | None:
        entry = self.folder.manifest.get(key)
        if entry is not None and entry.status == "failed":
            tried_now = self.folder.manifest.position(key) > self._first_line
            retry = self.policy.retry_failed or self.policy.overwrite
            return None if retry and not tried_now else Outcome("failed before", entry)
        if self.policy.overwrite:
            return None
        done = self.folder.done(key, self._outputs)
        return None if done is None else Outcome("there", done)

    def _failed(self, item: RenderItem, key: str, error: str) -> Outcome:
        if self.stopped():
            # a signal that ended a helper process is no fault of the job
            raise Interrupted(f"interrupted in {item.name}")
        entry = self.folder.failed_entry(item, key, error)
        self.folder.manifest.append(entry)
        return Outcome("failed", entry)
