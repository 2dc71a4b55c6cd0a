"""From a system to the marks of an exam: videos of a model, of the world itself, or of anyone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from streamgen import Pipeline, Receipt, load_pipeline
from streamgen.checkpoints.digest import file_sha256
from streamgen.errors import InputError
from streamgen.video.read import read_clip
from streamgen.video.write import VideoFileSink

from ..command import say
from ..evaluation.measures import Instruments
from ..evaluation.pool import each, once, one_thread
from ..evaluation.streams import Policy
from ..evaluation.suites import FPS, EvaluationConfig, SuiteBuilder
from ..scenes import SceneConfig
from .config import ExamConfig
from .folder import write_exam
from .marking import Marker, marks_of
from .plans import Plan
from .rows import About, FactRow, MarkFile, fact_row
from .transcript import Transcript
from .truth import Truth

#: Frames of a clip that are written at once.
_AT_ONCE = 256


class Maker(Protocol):
    """Makes videos; it can be sent to other processes."""

    def frames(self, transcript: Transcript, plan: Plan | None) -> Iterator[Tensor]:
        """The frames of a stream, uint8 (T, H, W, 3), in parts."""
        ...


@dataclass(frozen=True)
class ModelMaker:
    """A model of streamgen: `settings` over its own, and what becomes of the cache where words change."""

    model: str
    settings: Mapping[str, Any]
    policy: Policy

    def frames(self, transcript: Transcript, plan: Plan | None = None) -> Iterator[Tensor]:
        """The stream of a transcript: every event is submitted ahead, for the frame that it names.

        Raises:
            InputError: an event that the model refuses.
        """
        pipeline = once("pipeline", lambda: load_pipeline(self.model))
        (_, opening), *later = transcript.stream_events()
        settings = dict(self.settings) | dict(opening.settings or {})
        session = pipeline.open(
            opening.prompt, transcript.seed, opening.motion, settings=settings, gestures=opening.gestures
        )
        receipts: list[Receipt] = []
        for frame, event in later:
            if event.changes_text and event.cache is None:
                event = replace(event, cache=self.policy)
            receipts.append(session.submit(event, at_frame=frame))
        seen = 0
        while seen < transcript.frames:
            for (frame, _), receipt in zip(later, receipts, strict=True):
                if receipt.status == "refused":
                    raise InputError(f"{transcript.id}: event at frame {frame}: {receipt.reason}")
            part = next(session).frames[: transcript.frames - seen].cpu()
            seen += len(part)
            yield part


@dataclass(frozen=True)
class TruthMaker:
    """The world itself, in frames of `size` x `size` pixels."""

    size: int

    def frames(self, transcript: Transcript, plan: Plan | None) -> Iterator[Tensor]:
        """The world's own clip of a plan."""
        assert plan is not None
        truth = once("truth", lambda: Truth(self.size))
        yield from truth.video(plan).split(_AT_ONCE)


@dataclass(frozen=True)
class Work:
    """What all processes work with. Without a `maker` all videos are there."""

    videos: Path
    instruments: Instruments
    maker: Maker | None


@dataclass(frozen=True)
class Task:
    """One stream: its transcript, and as a control another one that its video is held against; `plan` is what
    the world is told.
    """

    transcript: Transcript
    control: Transcript | None
    plan: Plan | None

    @property
    def told(self) -> list[Transcript]:
        """The transcripts that the video is held against."""
        return [self.transcript] if self.control is None else [self.transcript, self.control]


def tasks_of(transcripts: Sequence[Transcript], plans: Mapping[str, Plan]) -> list[Task]:
    """A task for each transcript. The control is the stream before it in the category, of the first one the
    second, so that more streams do not change it.
    """
    by_category: dict[str, list[Transcript]] = {}
    for one in transcripts:
        by_category.setdefault(one.category, []).append(one)
    return [
        Task(one, some[place - 1] if place else next(iter(some[1:]), None), plans.get(one.id))
        for some in by_category.values()
        for place, one in enumerate(some)
    ]


def video_digest(file: Path) -> str:
    """sha256 of a file, 64 hex digits; "" where there is none."""
    return file_sha256(file) if file.is_file() else ""


def make_video(maker: Maker, transcript: Transcript, plan: Plan | None, file: Path) -> None:
    """Write a stream without loss; the file has its name when it is whole."""
    with VideoFileSink(file, transcript.height, transcript.width, transcript.fps, lossless=True) as sink:
        for part in maker.frames(transcript, plan):
            sink.write(part.numpy())


def read_video(file: Path, transcript: Transcript) -> Tensor:
    """The frames of a transcript's video, uint8 (T, H, W, 3); what goes on behind its end is left out.

    Raises:
        InputError: not a video, or one that is too short.
    """
    wanted = (transcript.fps, transcript.height, transcript.width, transcript.frames)
    frames = torch.from_numpy(read_clip(file, *wanted))
    if len(frames) < transcript.frames:
        raise InputError(f"{file}: expected {transcript.frames} frames, found {len(frames)}")
    return frames


def do_task(work: Work, task: Task) -> list[FactRow]:
    """Make a stream's video, if it is not there, and mark it."""
    file = work.videos / f"{task.transcript.id}.mp4"
    if work.maker is not None and not file.exists():
        make_video(work.maker, task.transcript, task.plan, file)
    marker = Marker(work.instruments, read_video(file, task.transcript), task.transcript.fps)
    digest = video_digest(file)
    return [
        fact_row(task.transcript, told, place, mark, digest)
        for told in task.told
        for place, mark in enumerate(marks_of(marker, told))
        if mark is not None
    ]


@dataclass(frozen=True)
class Exam:
    """Transcripts, and by name the plans of those that have one."""

    transcripts: Sequence[Transcript]
    plans: Mapping[str, Plan] = field(default_factory=dict)

    @classmethod
    def of(cls, config: ExamConfig) -> "Exam":
        """The fixed set."""
        plans = config.plans()
        return cls([one.transcript(config.pixels) for one in plans], {one.id: one for one in plans})

    @property
    def size(self) -> int:
        """Side of the frames in pixels.

        Raises:
            InputError: frames that the readers cannot read: of several sizes, not square, of a size or a rate
                that is none of the world's.
        """
        formats = sorted({(one.width, one.height, one.fps) for one in self.transcripts})
        (width, height, fps), *others = formats
        if others or width != height or width < 32 or width % 16 or fps != FPS:
            found = ", ".join(f"{width}x{height} at {fps:g}" for width, height, fps in formats)
            raise InputError(
                "transcripts: expected square frames of one size, a multiple of 16 from 32 on, at "
                f"{FPS} frames per second, found {found}"
            )
        return width


def model_about(maker: ModelMaker, exam: Exam) -> About:
    """What marks of a model are marks of.

    Raises:
        CheckpointError, InputError: a model that cannot be loaded, or one of other frames or another world.
    """
    pipeline: Pipeline = load_pipeline(maker.model)
    geometry = pipeline.geometry
    for one in exam.transcripts:
        made = (geometry.width, geometry.height, geometry.fps)
        if made != (one.width, one.height, one.fps):
            expected, found = (
                f"{w}x{h} at {fps:g} fps" for w, h, fps in ((one.width, one.height, one.fps), made)
            )
            raise InputError(f"model {maker.model}: the exam is of {expected}, the model makes {found}")
    # it says whether the model knows the world's words
    SuiteBuilder(EvaluationConfig(), pipeline.vocabulary)
    settings = asdict(pipeline.settings.updated(maker.settings))
    return About(pipeline.name, "model", pipeline.digest, maker.policy, settings)


@dataclass(frozen=True)
class Job:
    """Whose videos are marked: what they are of, where they lie, and what makes those that are missing."""

    about: About
    videos: Path
    maker: Maker | None = None


def run_exam(exam: Exam, job: Job, out_dir: Path, processes: int) -> list[FactRow]:
    """Make and mark what is missing in a folder; returns the rows of all streams of the exam.

    Raises:
        InputError: the folder has marks of something else, or a video does not fit its transcript.
    """
    write_exam(out_dir, exam.transcripts)
    file = MarkFile(out_dir, job.about)
    tasks = tasks_of(exam.transcripts, exam.plans)
    wanted = {
        task.transcript.id: (
            video_digest(job.videos / f"{task.transcript.id}.mp4"),
            [told.digest for told in task.told],
        )
        for task in tasks
    }
    done = file.keep(wanted)
    # long ones first, so that none is left alone at the end
    missing = sorted((t for t in tasks if t.transcript.id not in done), key=lambda t: -t.transcript.frames)
    if missing:
        if job.maker is not None:
            job.videos.mkdir(exist_ok=True)
        with one_thread():
            work = Work(job.videos, Instruments(SceneConfig(size=exam.size)), job.maker)
        for number, rows in enumerate(each(work, do_task, missing, processes), len(done) + 1):
            file.add(rows)
            say(f"{rows[0].stream}: {number} of {len(tasks)} streams")
    order = {task.transcript.id: place for place, task in enumerate(tasks)}
    return sorted(file.rows, key=lambda row: (order[row.stream], not row.own, row.place))
