"""The interactive exam: `python -m distill.exam --model tiny -o DIR [key=value]...`, or `--truth`, or
`--write DIR` and, once a system has made its videos, `--mark VIDEOS`, or finished `--report`s in one table.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamgen.errors import InputError

from ..command import add_streaming, check_processes, ended, out_folder, say, the_one


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m distill.exam",
        description="Mark steered streams against ground truth: answers to new prompts, what is kept, what "
        "comes back, drags, long runs. Writes a row per fact (rows.jsonl), marks.json, marks.md and "
        "index.html, and goes on where an earlier run with the same output folder stopped. docs/exam.md has "
        "the format for videos of any system.",
    )
    parser.add_argument("--model", help="a name or a checkpoint directory (default: tiny)")
    parser.add_argument(
        "--truth",
        action="store_true",
        help="the world's own clips that do what is told: what marks are worth",
    )
    parser.add_argument("--write", metavar="DIR", help="write the transcripts alone, for other systems")
    parser.add_argument("--mark", metavar="VIDEOS", help="mark the videos <id>.mp4 of any system")
    parser.add_argument(
        "--exam",
        metavar="DIR",
        help="with --mark or --model: transcripts of one's own instead of the fixed set",
    )
    parser.add_argument(
        "--report",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a marked exam's folder, with a name for it: several of them in one table",
    )
    parser.add_argument("--name", help="with --mark: what the system is called (default: the folder's name)")
    parser.add_argument(
        "--policy",
        choices=("recache", "keep", "clear"),
        help="with --model: what becomes of the cache where words change (default: recache)",
    )
    parser.add_argument("-o", "--out", help="folder of the marks")
    add_streaming(
        parser, "which streams: size=small, medium (default) or full, update=16 long=0, seed=1 for others"
    )
    return parser.parse_intermixed_args(list(arguments))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 a full disk, 2 bad input, 130 interrupted."""
    options = parse(sys.argv[1:] if arguments is None else arguments)

    def run() -> int:
        _check(options)
        found = _run(options)
        if options.json:
            sys.stdout.write(json.dumps(found) + "\n")
        return 0

    return ended(run, "interrupted: the same command goes on from the streams that are done")


def _check(options: argparse.Namespace) -> None:
    given = {f"--{name}": vars(options)[name] for name in ("model", "truth", "write", "mark", "report")}
    mode = the_one(given, "--model")
    # what would count for nothing is a mistake
    for name, value, fits in (
        ("--exam", options.exam, ("--model", "--mark")),
        ("--policy", options.policy, ("--model",)),
        ("--set", options.settings, ("--model",)),
        ("--name", options.name, ("--mark",)),
    ):
        if value and mode not in fits:
            raise InputError(f"{name}: expected with {' or '.join(fits)}, found with {mode}")
    if options.exam and options.overrides:
        raise InputError(f"--exam: has its own streams, found {options.overrides[0]}, too")
    if options.write is None and options.out is None:
        raise InputError("-o: missing, expected a folder for the marks")
    check_processes(options.processes)


def _run(options: argparse.Namespace) -> Any:
    # Imported late, so that usage errors answer at once.
    from ..config import read_overrides
    from .config import exam_config
    from .folder import exam_digest, read_exam, write_exam
    from .runner import Exam

    if options.report:
        return _reports(options)
    if options.exam:
        return _examine(options, Exam(read_exam(Path(options.exam))))
    exam = Exam.of(exam_config(read_overrides(options.overrides)))
    if options.write is None:
        return _examine(options, exam)
    write_exam(Path(options.write), exam.transcripts)
    say(f"{len(exam.transcripts)} transcripts: {options.write}")
    return {"streams": len(exam.transcripts), "digest": exam_digest(exam.transcripts)}


def _reports(options: argparse.Namespace) -> Any:
    from .report import compare_exams

    out_dir = out_folder(options.out)
    rows = compare_exams(options.report, out_dir)
    say(f"report: {out_dir / 'index.html'}")
    return {"exams": rows}


def _examine(options: argparse.Namespace, exam: Any) -> Any:
    from streamgen.render.job import parse_settings

    from .folder import check_version, check_videos
    from .report import make_report
    from .rows import About
    from .runner import Job, ModelMaker, TruthMaker, model_about, run_exam

    out_dir = Path(options.out)
    if options.mark:
        videos = Path(options.mark)
        check_version(videos, needed=False)
        check_videos(videos, exam.transcripts)
        name = options.name or videos.resolve().name
        job = Job(About(name, "videos"), videos)
    elif options.truth:
        job = Job(About("truth", "truth"), out_dir / "videos", TruthMaker(exam.size))
    else:
        maker = ModelMaker(
            options.model or "tiny", parse_settings(options.settings), options.policy or "recache"
        )
        job = Job(model_about(maker, exam), out_dir / "videos", maker)
    out_folder(options.out)
    rows = run_exam(exam, job, out_dir, options.processes)
    report = make_report(job.about, rows, exam.transcripts, job.videos, out_dir)
    say(f"report: {out_dir / 'index.html'}")
    return report


if __name__ == "__main__":
    raise SystemExit(main())
