"""Job files for tests of batches, runs over them in this process, and what they leave in the folder."""

import hashlib
import json
from pathlib import Path
from typing import Any

from streamgen.cli.progress import Reporter
from streamgen.pipeline import Pipeline
from streamgen.render.folder import OutputFolder
from streamgen.render.items import RenderItem, items_of
from streamgen.render.job_file import parse_jobs
from streamgen.render.runner import ItemRunner, Outcome, Policy
from streamgen.render.schedule import run_items


def items(
    tmp_path: Path, rows: list[Any], name: str = "jobs.jsonl", seconds: float = 0.125
) -> list[RenderItem]:
    file = tmp_path / name
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return items_of(parse_jobs(file, seconds))


def run(pipeline: Pipeline, work: list[RenderItem], out: Path, **policy: Any) -> list[str]:
    """Statuses of the items after a run."""
    seen: dict[str, str] = {}

    class Watch(Reporter):
        def settled(self, item: RenderItem, outcome: Outcome) -> None:
            seen[item.name] = outcome.status

    runner = ItemRunner(pipeline, OutputFolder(out), Policy(**policy))
    run_items(work, runner, Watch(quiet=True), lambda: False)
    return [seen[item.name] for item in work]


def files(out: Path) -> dict[str, str]:
    """sha256 of everything that is not bookkeeping."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".streamgen" not in path.parts and path.name != "manifest.jsonl"
    }


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def raw(out: Path) -> dict[str, str]:
    """Digests of raw frames by name of the video."""
    return {
        path.stem: json.loads(path.read_text())["sha256"]
        for path in out.glob("*.json")
        if path.with_suffix(".mp4").is_file()
    }
