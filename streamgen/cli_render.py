"""`streamgen render`: which of its three uses is meant, and the loop over jobs."""

from dataclasses import dataclass, replace
from pathlib import Path

from .cli_progress import Reporter, Stop, say
from .errors import InputError, Interrupted, StreamgenError
from .jobs import SUFFIXES, RenderJob, job_from_command_line, parse_jobs, parse_settings
from .pipeline import Pipeline, load_pipeline
from .render import (
    Clip,
    Hooks,
    check_output,
    is_done,
    job_key,
    open_continuation,
    open_job,
    open_timeline,
    read_timeline,
    receipt_notes,
    word_notes,
    write_clip,
)
from .snapshot import read_snapshot

_SECONDS = 8.0


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """Arguments of `streamgen render`; None and () where they were not given."""

    source: str | None
    output: Path
    seconds: float | None
    seed: int | None
    model: str
    at: tuple[str, ...]
    motion: str | None
    image: str | None
    video: str | None
    settings: tuple[str, ...]
    device: str
    save_state: Path | None
    continue_from: Path | None
    overwrite: bool
    dry_run: bool
    limit: int | None


def render_source(options: RenderOptions, reporter: Reporter, stop: Stop) -> int:
    """Render what the options say; returns the exit code.

    Raises:
        StreamgenError: nothing could be rendered. Interrupted: Ctrl-C.
    """
    suffix = _file_suffix(options.source)
    if suffix in SUFFIXES:
        return _render_jobs(options, reporter, stop)
    _refuse(options, ("overwrite", "dry_run", "limit"), "only a jobs file takes it")
    if suffix == ".json":
        return _render_timeline(options, reporter, stop)
    if options.source is None and options.continue_from is None:
        raise InputError("missing PROMPT: expected a prompt, a jobs file or a timeline")
    return _render_prompt(options, reporter, stop)


def _render_prompt(options: RenderOptions, reporter: Reporter, stop: Stop) -> int:
    saved = options.continue_from
    if saved is not None:
        _refuse(options, ("seed", "image", "video"), "a saved stream has its own")
        if not saved.is_file():
            raise InputError(f"--continue-from {saved}: no such file")
    prompt = "the saved stream's own" if options.source is None else options.source
    job = job_from_command_line(
        prompt,
        _SECONDS if options.seconds is None else options.seconds,
        options.seed or 0,
        options.at,
        options.motion,
        options.image,
        options.video,
        options.settings,
    )
    path = options.output / f"{job.id}.mp4" if options.output.is_dir() else options.output
    check_output(path)
    _check_state(options.save_state)
    pipeline = load_pipeline(options.model, options.device)
    if saved is None:
        clip = open_job(pipeline, job, path)
    else:
        if options.source is None:
            job = _with_own_prompt(pipeline, saved, job)
        clip = open_continuation(pipeline, saved, job, path, new_prompt=options.source is not None)
    _make(clip, reporter, stop, options.save_state)
    return 0


def _render_timeline(options: RenderOptions, reporter: Reporter, stop: Stop) -> int:
    _refuse(options, ("seed", "at", "motion", "settings", "continue_from"), "a timeline has its own")
    file = Path(str(options.source))
    read_timeline(file)
    check_output(options.output)
    _check_state(options.save_state)
    pipeline = load_pipeline(options.model, options.device)
    clip = open_timeline(pipeline, file, options.output, options.seconds, options.image, options.video)
    _make(clip, reporter, stop, options.save_state)
    return 0


def _render_jobs(options: RenderOptions, reporter: Reporter, stop: Stop) -> int:
    _refuse(
        options, ("at", "motion", "image", "video", "save_state", "continue_from"), "a jobs file has its own"
    )
    seconds = _SECONDS if options.seconds is None else options.seconds
    jobs = parse_jobs(str(options.source), seconds, options.seed or 0)[: options.limit]
    changes = parse_settings(options.settings)
    jobs = [replace(job, set=job.set | changes) for job in jobs]
    if not options.dry_run:
        _make_folder(options.output)
    pipeline = load_pipeline(options.model, options.device)
    failed = 0
    for job in jobs:
        if stop():
            raise Interrupted(f"interrupted before {job.id}")
        path = options.output / f"{job.id}.mp4"
        try:
            done = not options.overwrite and is_done(path, job_key(pipeline, job))
            if options.dry_run:
                _list(job, path, done)
            elif done:
                say(f"{path.name}: is there") if not reporter.quiet else None
            else:
                _make(open_job(pipeline, job, path), reporter, stop)
        except Interrupted:
            raise
        except StreamgenError as error:
            failed += 1
            say(f"error: {job.id}: {error}")
        except Exception as error:  # a fault in one job must not cost the others
            failed += 1
            say(f"error: {job.id}: {type(error).__name__}: {error}")
    if failed:
        say(f"{failed} of {len(jobs)} jobs failed")
    return 1 if failed else 0


def _make(clip: Clip, reporter: Reporter, stop: Stop, save_state: Path | None = None) -> None:
    for note in word_notes(clip.session.pipeline, clip.prompts):
        reporter.note(note)
    with stop.listening(), reporter.clip(clip.path.name, clip.frames):
        record = write_clip(clip, Hooks(reporter.progress, stop), save_state)
    for note in receipt_notes(record):
        reporter.note(note)
    reporter.finished(record)
    print(clip.path)


def _list(job: RenderJob, path: Path, done: bool) -> None:
    state = "done" if done else "render"
    print(f"{state}\t{path}\t{job.seconds:g}\t{job.seed}\t{job.shots[0].prompt}")


def _with_own_prompt(pipeline: Pipeline, saved: Path, job: RenderJob) -> RenderJob:
    """The job with the prompt that a saved stream has now."""
    snapshot, _ = read_snapshot(saved, pipeline.device)
    first = replace(job.shots[0], prompt=str(snapshot.meta["prompt"]))
    return replace(job, seed=int(snapshot.meta["seed"]), shots=(first, *job.shots[1:]))


def _file_suffix(source: str | None) -> str:
    """The suffix of a source that names a file, existing or mistyped; "" for a prompt."""
    if source is None or len(source) > 1000 or "\n" in source or "\0" in source:
        return ""
    suffix = Path(source).suffix.lower()
    if suffix not in (*SUFFIXES, ".json"):
        return ""
    # "a sign that says read.txt" is a prompt unless there is such a file
    return suffix if " " not in source or Path(source).exists() else ""


def _refuse(options: RenderOptions, names: tuple[str, ...], why: str) -> None:
    given = vars(options)
    for name in names:
        value = given[name]
        if value is not None and value is not False and value != ():
            option = "--set" if name == "settings" else "--" + name.replace("_", "-")
            raise InputError(f"{option}: not here, {why}")


def _check_state(path: Path | None) -> None:
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"--save-state {path}: expected a file name in a folder that exists")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"-o {folder}: cannot be made ({(error.strerror or str(error)).lower()})") from None
