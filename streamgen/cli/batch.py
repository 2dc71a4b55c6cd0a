"""`streamgen render JOBS -o FOLDER`: dry run, and the run itself on the engine that was asked for."""

import json
from pathlib import Path
from typing import Any

from ..engine.choice import check_runner
from ..engine.quantize import check_quantization
from ..errors import InputError, OutputError, StreamgenError
from ..families import find_model
from ..render.folder import PAGE, OutputFolder
from ..render.items import RenderItem, Shard, items_of
from ..render.job import parse_settings
from ..render.job_file import STDIN, parse_jobs, with_settings
from ..render.page import PageWriter
from ..render.records import Asked
from ..render.runner import ItemRunner, Policy
from ..render.schedule import Rank, Summary, run_items
from ..render.sources import check_job
from ..tiny.config import read_tiny_config
from .estimate import estimate_seconds
from .options import SECONDS, WAN_OPTIONS, RenderOptions, note_runner, open_model, refuse
from .progress import Reporter, Stop, duration, reporter_for, say

ENGINES = ("local", "ray")


def render_jobs(options: RenderOptions, stop: Stop) -> int:
    """Render all items of a jobs file that are not done; returns the exit code.

    Raises:
        StreamgenError: nothing could be rendered. Interrupted: a signal came.
    """
    single = ("at", "motion", "gestures", "cache", "image", "video", "save_state", "continue_from", "extend")
    live = ("input", "input_size", "input_rate", "strength", "mask", "pictures", "references")
    refuse(options, (*single, *live), "a jobs file has its own")
    refuse(options, ("deadline",), "jobs are not watched while they are made")
    if options.engine not in ENGINES:
        raise InputError(f"--engine: expected one of {', '.join(ENGINES)}, found {options.engine!r}")
    items = items_of_options(options)
    rank = Rank.of_process()
    if options.dry_run:
        return _dry_run(options, items)
    prefix = f"[{rank.index}/{rank.count}] " if rank.count > 1 else ""
    reporter = reporter_for(options.quiet, options.as_json, prefix, options.output)
    folder = OutputFolder(options.output)
    if options.engine == "ray":
        refuse(options, ("batch",), "Ray spreads items over its workers")
        refuse(options, ("decode_beside", "decoder_device"), "Ray's workers decode as they go")
        refuse(options, WAN_OPTIONS, "with Ray, convert the weights and name their folder as --model")
        from ..render.ray_engine import RayEngine, RayOrder

        if options.runner is not None:
            check_runner(options.runner)
        if options.quantize is not None:
            check_quantization(options.quantize)
        machine = (options.device, options.threads, options.runner, options.quantize)
        order = RayOrder(options.model, *machine, options.output.resolve())
        fps = read_tiny_config(find_model(options.model)).fps
        with stop.listening(), reporter.running():
            engine = RayEngine(order, policy_of(options))
            reporter.begin({item.name: _frames(fps, item) for item in items})
            return _finish(folder, options, reporter, lambda page: engine.run(items, reporter, stop, page))
    pipeline = open_model(options, _device(options.device, rank))
    for note in pipeline.parts.notes:
        reporter.note(note)
    if options.batch is None:
        note_runner(pipeline, reporter.note)
    runner = ItemRunner(pipeline, folder, policy_of(options), stop)
    order_ = rank.order(items, share_only=options.overwrite)
    with stop.listening(), reporter.running():
        reporter.begin({item.name: _frames(pipeline.geometry.fps, item) for item in order_})
        return _finish(
            folder, options, reporter, lambda page: run_items(order_, runner, reporter, stop, page)
        )


def items_of_options(options: RenderOptions) -> list[RenderItem]:
    """The items that the options ask for, in the order of the file.

    Raises:
        InputError: a bad job file or option.
    """
    seconds = SECONDS if options.seconds is None else options.seconds
    jobs = parse_jobs(str(options.source), seconds, options.seed or 0, options.job_format)
    jobs = with_settings(jobs[: options.limit], parse_settings(options.settings))
    items = items_of(jobs)
    return items if options.shard is None else Shard.parse(options.shard).of(items)


def policy_of(options: RenderOptions) -> Policy:
    """What the options say about earlier runs."""
    origin = "standard input" if options.source == STDIN else Path(str(options.source)).name
    asked = Asked(options.threads, options.batch)
    return Policy(options.overwrite, options.retry_failed, options.outputs(), origin, asked)


def _finish(folder: OutputFolder, options: RenderOptions, reporter: Reporter, run: Any) -> int:
    """Run, and leave a page and a summary whatever the run comes to."""
    page = PageWriter(folder, str(options.source))
    try:
        summary: Summary = run(page)
    except OutputError as error:
        # what was made is kept; the rest waits for room on the disk
        reporter.failure(str(error))
        return 1
    finally:
        page.write()
    counts = summary.counts
    failed = counts.get("failed", 0) + counts.get("failed before", 0)
    reporter.end(
        {
            "items": summary.total,
            "made": counts.get("made", 0),
            "there": counts.get("there", 0),
            "failed": failed,
            "page": str(folder.path / PAGE),
        }
    )
    return 1 if failed else 0


def _dry_run(options: RenderOptions, items: list[RenderItem]) -> int:
    """List what would be done, checked as far as it can be without rendering; nothing is written."""
    folder = OutputFolder(options.output, make=False)
    pipeline = open_model(options, options.device)
    runner = ItemRunner(pipeline, folder, policy_of(options))
    states: dict[str, int] = {}
    todo: list[RenderItem] = []
    frames = 0
    for item in items:
        state, error, notes = _state(runner, item)
        states[state] = states.get(state, 0) + 1
        length = _frames(pipeline.geometry.fps, item)
        if state == "render":
            todo.append(item)
            frames += length
        _list(options, item, (state, error, notes), length)
    seconds = estimate_seconds(pipeline, todo)
    if options.as_json:
        print(
            json.dumps({"event": "plan", **states, "frames": frames, "estimate_seconds": round(seconds, 1)})
        )
    else:
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        media = duration(frames / pipeline.geometry.fps)
        say(f"{len(items)} items: {counts}; {frames} frames ({media} of video), about {duration(seconds)}")
    return 1 if states.get("invalid") or states.get("failed") else 0


def _state(runner: ItemRunner, item: RenderItem) -> tuple[str, str, tuple[str, ...]]:
    """What would become of an item, why it cannot be rendered, and what is worth saying of it."""
    try:
        known = runner.status(item)
        if known is not None and known.entry is not None:
            return ("done", "", ()) if known.status == "there" else ("failed", known.entry.error or "", ())
        return "render", "", check_job(runner.pipeline, item.job)
    except StreamgenError as error:
        return "invalid", str(error), ()


def _list(
    options: RenderOptions, item: RenderItem, told: tuple[str, str, tuple[str, ...]], frames: int
) -> None:
    job, (state, error, notes) = item.job, told
    if options.as_json:
        row: dict[str, Any] = {"event": "item", "status": state, "name": item.name, "line": job.line}
        row |= {"frames": frames, "seed": job.seed, "job": job.to_json()}
        row |= ({"error": error} if error else {}) | ({"notes": list(notes)} if notes else {})
        print(json.dumps(row, ensure_ascii=False))
        return
    path = options.output / f"{item.name}.mp4"
    print(f"{state}\t{path}\t{frames}\t{job.seed}\t{job.shots[0].prompt}")
    if error:
        say(f"error: line {job.line}: {item.name}: {error}")
    for note in notes:
        say(f"note: line {job.line}: {item.name}: {note}")


def _frames(fps: float, item: RenderItem) -> int:
    """Frames of an item; 0 of one that cannot be."""
    try:
        return item.job.length(fps)
    except InputError:
        return 0


def _device(device: str, rank: Rank) -> str:
    """Under a launcher each process takes the GPU of its number."""
    if device != "auto" or rank.count == 1:
        return device
    import torch

    return f"cuda:{rank.local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
