"""`streamgen render`: which of its uses is meant, and those that make one clip."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine.budget import StepBudget
from ..engine.overlap.wave import WaveRunner
from ..engine.parallel.mesh import Mesh, joined
from ..errors import InputError
from ..render.clip import Hooks, check_output, follow_clip, record_notes, word_notes, write_clip
from ..render.items import slug
from ..render.job import RenderJob, job_from_command_line
from ..render.job_file import STDIN, SUFFIXES
from ..render.records import read_timeline
from ..render.sources import Clip, Piped, open_continuation, open_job, open_timeline
from ..stream.snapshot import read_meta
from .options import MAX_THREADS, SECONDS, RenderOptions, note_runner, open_model, refuse
from .progress import Reporter, Stop, reporter_for


def render_source(options: RenderOptions, stop: Stop) -> int:
    """Render what the options say; returns the exit code.

    Raises:
        StreamgenError: nothing could be rendered. Interrupted: Ctrl-C.
    """
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    suffix = file_suffix(options.source)
    if suffix in SUFFIXES or options.source == STDIN or options.job_format is not None:
        from .batch import render_jobs

        return render_jobs(options, stop)
    if options.deadline is not None:
        StepBudget.of(options.deadline)
    jobs_alone = ("overwrite", "retry_failed", "dry_run", "limit", "shard", "batch")
    refuse(options, jobs_alone, "only a jobs file takes it")
    if options.engine != "local":
        raise InputError("--engine: not here, only a jobs file takes it")
    mesh = joined(options.device)
    if mesh is not None:
        refuse(options, ("deadline",), "clocks of several processes differ")
        stop.ask = mesh.stopped(stop.was_asked)
    reporter = reporter_for(options.quiet, options.as_json)
    if suffix == ".json":
        return _render_timeline(options, reporter, stop, mesh)
    if options.source is None and options.continue_from is None:
        raise InputError("missing PROMPT: expected a prompt, a jobs file or a timeline")
    return _render_prompt(options, reporter, stop, mesh)


def file_suffix(source: str | None) -> str:
    """The suffix of a source that names a file, existing or mistyped; "" for a prompt."""
    if source is None or len(source) > 1000 or "\n" in source or "\0" in source:
        return ""
    suffix = Path(source).suffix.lower()
    if suffix not in (*SUFFIXES, ".json"):
        return ""
    # "a sign that says read.txt" is a prompt unless there is such a file
    return suffix if " " not in source or Path(source).exists() else ""


def _render_prompt(options: RenderOptions, reporter: Reporter, stop: Stop, mesh: Mesh | None) -> int:
    saved = options.continue_from
    if saved is not None:
        refuse(options, ("seed", "image", "video"), "a saved stream has its own")
        if not saved.is_file():
            raise InputError(f"--continue-from {saved}: no such file")
    else:
        refuse(options, ("extend",), "only --continue-from takes it")
    prompt = "the saved stream's own" if options.source is None else options.source
    listens = options.input is not None
    job = job_from_command_line(
        prompt,
        SECONDS if options.seconds is None and not listens else options.seconds,
        options.seed or 0,
        options.at,
        options.motion,
        options.image,
        options.video,
        options.settings,
        gestures=options.gestures,
        cache=options.cache,
        continues=saved is not None,
        live=options.live(),
    )
    heard = Piped(options.raw_frames(), stop)
    path = options.output / f"{slug(job.label)}.mp4" if options.output.is_dir() else options.output
    check_output(path)
    _check_state(options.save_state)
    settled = saved is not None and _take_threads(options, read_meta(saved))
    pipeline = open_model(options, options.device, settled, mesh)
    if saved is None:
        note_runner(pipeline, reporter.note)
        with stop.listening():
            clip = open_job(pipeline, job, path, deadline_ms=options.deadline, heard=heard)
    else:
        if options.source is None:
            job = _with_own_prompt(saved, job)
        new_prompt = options.source is not None
        more = (options.extend, options.deadline, heard)
        clip = open_continuation(pipeline, saved, job, path, new_prompt, *more)
    _make(clip, options, reporter, stop)
    return 0


def _render_timeline(options: RenderOptions, reporter: Reporter, stop: Stop, mesh: Mesh | None) -> int:
    own = ("seed", "at", "motion", "gestures", "cache", "settings", "continue_from", "extend", "deadline")
    live = ("strength", "mask", "pictures", "references")
    refuse(options, (*own, *live), "a timeline has its own")
    file = Path(str(options.source))
    settled = _take_threads(options, read_timeline(file)[1])
    check_output(options.output)
    _check_state(options.save_state)
    pipeline = open_model(options, options.device, settled, mesh)
    starts = (options.seconds, options.image, options.video, options.input)
    heard = Piped(options.raw_frames(), stop)
    with stop.listening():
        clip = open_timeline(pipeline, file, options.output, *starts, heard)
    _make(clip, options, reporter, stop)
    return 0


def _make(clip: Clip, options: RenderOptions, reporter: Reporter, stop: Stop) -> None:
    mesh, runner = clip.session.model.mesh, clip.session.runner
    if isinstance(runner, WaveRunner):
        refuse(options, ("save_state",), f"chunks of runner {runner.name} overlap and cannot be kept")
    if mesh is not None and not mesh.leads:
        with stop.listening():
            follow_clip(clip, Hooks(stopped=stop), options.save_state is not None)
        return
    for note in (*clip.session.model.parts.notes, *clip.notes, *word_notes(clip.session.model, clip.prompts)):
        reporter.note(note)
    with stop.listening(), reporter.running():
        reporter.begin({clip.path.name: clip.frames})
        reporter.clip_started(clip.path.name, clip.frames)
        hooks = Hooks(reporter.progress, stop, reporter.note)
        record = write_clip(clip, hooks, options.save_state, options.outputs())
    for note in (n for n in record["notes"] if n.startswith("input: ")):
        reporter.note(note)
    for note in record_notes(record):
        reporter.note(note)
    if record.get("replay", {}).get("equal"):
        reporter.say(f"{clip.path.name}: its frames are those that were recorded, bit for bit")
    reporter.finished(record)
    reporter.result(clip.path)


def _take_threads(options: RenderOptions, recorded: Mapping[str, Any]) -> bool:
    """Compute with as many threads as a stream was made with, unless it is said how many: frames are
    bit-exact for one number. Returns whether that was so.
    """
    threads = recorded.get("threads")
    on_cpu = str(recorded.get("device", "cpu")) == "cpu"
    if options.threads is not None or not on_cpu or type(threads) is not int:
        return False
    if not 1 <= threads <= MAX_THREADS:
        return False
    import torch

    torch.set_num_threads(threads)
    return True


def _with_own_prompt(saved: Path, job: RenderJob) -> RenderJob:
    """The job with the prompt that a saved stream has now."""
    meta = read_meta(saved)
    first = replace(job.shots[0], prompt=str(meta["prompt"]))
    return replace(job, seed=int(meta["seed"]), shots=(first, *job.shots[1:]))


def _check_state(path: Path | None) -> None:
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"--save-state {path}: expected a file name in a folder that exists")
