"""Generated job files and motion files, good and bad: an error is one line, and never a half-made file.

200 of each kind in CI, 2,000 (SOAK_EXAMPLES) under -m soak.
"""

import io
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from streamgen.cli.progress import Reporter
from streamgen.errors import InputError
from streamgen.motion.file import load_motion, motion_to_json
from streamgen.motion.tracks import TrackSet
from streamgen.pipeline import Pipeline, load_pipeline
from streamgen.render.folder import OutputFolder
from streamgen.render.items import items_of
from streamgen.render.job import JOB_KEYS
from streamgen.render.job_file import parse_jobs
from streamgen.render.runner import ItemRunner, Policy
from streamgen.render.schedule import run_items
from tests.tiny_checkpoints import write_checkpoint

Check = Callable[..., None]
SOAK = int(os.environ.get("SOAK_EXAMPLES", "2000"))

JUNK = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(10**20), 10**20)
    | some.floats()
    | some.text(max_size=12)
    | some.sampled_from(["", "-", "../../x", "\0", "nan", "\u202e", "a" * 3000, 2**63, -1, 0.5]),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
NUMBERS = (
    some.integers(-3, 40) | some.floats(-1, 40) | some.sampled_from([0, 1, 0.5, math.nan, math.inf, 1e300])
)
POINT = some.lists(some.floats(-0.2, 1.2) | some.just(0.5), min_size=0, max_size=3)
UNIT = some.tuples(some.floats(0, 1), some.floats(0, 1)).map(list)


def sometimes(good: some.SearchStrategy[Any]) -> some.SearchStrategy[Any]:
    """Mostly what fits, now and then what does not."""
    return some.integers(0, 9).flatmap(lambda die: JUNK if die == 0 else good)


def mapping(**fields: some.SearchStrategy[Any]) -> some.SearchStrategy[dict[str, Any]]:
    """Any of the fields, and rarely one that nobody knows."""
    known = some.fixed_dictionaries({}, optional={name: sometimes(value) for name, value in fields.items()})
    surplus = some.dictionaries(some.text(max_size=8), JUNK, max_size=1)
    return some.integers(0, 9).flatmap(
        lambda die: known if die else some.tuples(known, surplus).map(lambda pair: pair[0] | pair[1])
    )


EDGES = some.lists(some.floats(-0.2, 1.2) | NUMBERS, min_size=3, max_size=5)
MOTIONS = mapping(
    frames=some.integers(-1, 40),
    tracks=some.lists(
        mapping(
            points=some.lists(some.none() | POINT, max_size=6),
            visible=some.lists(some.booleans(), max_size=6),
            pinned=some.booleans(),
            start=NUMBERS,
            id=some.integers(-1, 5),
        ),
        max_size=3,
    ),
    drags=some.lists(
        mapping(
            **{"from": POINT, "to": POINT},
            start=NUMBERS,
            seconds=NUMBERS,
            hold=NUMBERS,
            ease=some.sampled_from(["linear", "smooth", "x"]),
        ),
        max_size=3,
    ),
    paths=some.lists(mapping(points=some.lists(some.lists(NUMBERS, max_size=4), max_size=4)), max_size=2),
    pins=some.lists(POINT, max_size=3),
    boxes=some.lists(mapping(
        **{"from": EDGES, "to": EDGES}, path=some.lists(some.lists(NUMBERS, max_size=6), max_size=3),
        name=some.text(max_size=90), start=NUMBERS, seconds=NUMBERS, hold=NUMBERS, spacing=NUMBERS,
    ), max_size=3),
    grids=some.lists(mapping(
        at=POINT, points=some.lists(some.lists(NUMBERS, max_size=4), max_size=3), size=POINT, spacing=NUMBERS,
        pinned=some.booleans(),
    ), max_size=2),
    camera=mapping(
        pan=POINT, zoom=NUMBERS, rotate=NUMBERS, grid=some.integers(-1, 9), aspect=NUMBERS, start=NUMBERS,
        seconds=NUMBERS,
    ),
    arrays=mapping(
        file=some.sampled_from(["none.npy", "x", ""]), layout=some.sampled_from(["ati", "x"]), size=POINT,
        fps=NUMBERS, start=NUMBERS,
    ),
    clip=mapping(file=some.just("none.mp4"), points=some.integers(-1, 9), seconds=NUMBERS, start=NUMBERS),
    masks=some.lists(
        mapping(box=some.lists(some.floats(-0.2, 1.2), max_size=5), start=NUMBERS, seconds=NUMBERS),
        max_size=2,
    ),
)  # fmt: skip
GOOD_MOTIONS = some.fixed_dictionaries(
    {"drags": some.lists(some.fixed_dictionaries(
        {"from": UNIT, "to": UNIT, "start": some.floats(0, 0.2), "seconds": some.floats(0, 0.5)}
    ), min_size=1, max_size=3)},
    optional={"pins": some.lists(UNIT, max_size=3), "frames": some.integers(9, 20)},
)  # fmt: skip
JOBS = mapping(
    id=some.text(max_size=20) | some.integers(),
    seconds=some.floats(0.01, 0.2) | NUMBERS,
    frames=some.integers(0, 3),
    seed=some.integers(-1, 2**63),
    samples=some.integers(0, 2),
    size=some.sampled_from(["32x32", [32, 32], "64x64", "x"]),
    image=some.sampled_from(["none.png", "", "/"]),
    video=some.just("none.mp4"),
    prompt=some.text(max_size=30) | some.just("a red circle"),
    motion=MOTIONS | GOOD_MOTIONS | some.just("none.json"),
    policy=some.sampled_from(["keep", "x"]),
    cache=some.sampled_from(["clear", "keep", "rebuild"]),
    gestures=some.dictionaries(some.text(max_size=3), MOTIONS | GOOD_MOTIONS | some.none(), max_size=2),
    set=mapping(
        steps=some.integers(-1, 3), text_guidance=NUMBERS, shift=NUMBERS, rope=some.sampled_from(["absolute"])
    ),
    shots=some.lists(
        mapping(
            at=some.floats(0, 0.2) | NUMBERS,
            prompt=some.text(max_size=9),
            motion=GOOD_MOTIONS,
            cache=some.sampled_from(["clear", "keep"]),
            gestures=some.dictionaries(some.sampled_from(["a", "b"]), GOOD_MOTIONS | some.none(), max_size=2),
        ),
        max_size=3,
    ),
)
GOOD_JOBS = some.fixed_dictionaries(
    {"prompt": some.sampled_from(["a red circle", "sand", "مرحبا", "😀"]), "frames": some.integers(1, 4)},
    optional={
        "id": some.text("ab/.", min_size=1, max_size=6).filter(str.strip),
        "seed": some.integers(0, 2**63 - 2),
        "samples": some.integers(1, 2),
        "motion": GOOD_MOTIONS,
        "cache": some.sampled_from(["clear", "keep", "recache"]),
        "gestures": some.dictionaries(some.sampled_from(["a", "b"]), GOOD_MOTIONS, min_size=1, max_size=2),
        "set": some.fixed_dictionaries({"steps": some.integers(1, 2)}),
        "shots": some.just([{"at": 0.05, "prompt": "sea"}]),
    },
)


@some.composite
def nearly_good(draw: some.DrawFn) -> dict[str, Any]:
    """A good job with one field off."""
    job = dict(draw(GOOD_JOBS))
    name = draw(some.sampled_from([*JOB_KEYS, "sead"]))
    return job | {name: draw(JUNK | NUMBERS | MOTIONS)}


SHORT_JOBS = GOOD_JOBS | nearly_good() | JOBS


def one_line(error: InputError, start: str = "") -> None:
    """What a user sees: one line that begins with the name of the file, not empty, not endless."""
    text = str(error)
    assert text.startswith(start)
    assert text.strip()
    assert "\n" not in text
    assert len(text) < 2500


def as_csv(row: Any) -> str:
    cells = row if isinstance(row, dict) else {"prompt": row}
    names = list(cells) or ["prompt"]
    table = io.StringIO()
    for line in (names, [cells.get(name, "") for name in names]):
        table.write(",".join('"' + str(cell).replace('"', '""') + '"' for cell in line) + "\n")
    return table.getvalue()


WRITERS: dict[str, Callable[[Any], str]] = {
    "jsonl": json.dumps,
    "yaml": lambda row: yaml.safe_dump([row]),
    "csv": as_csv,
    "txt": str,
}


def check_job_file(row: Any, suffix: str, cut: int) -> None:
    """Jobs or one line; what was read is read back from its own JSON."""
    text = WRITERS[suffix](row)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, f"jobs.{suffix}")
        file.write_bytes(text[: len(text) - cut].encode(errors="surrogatepass"))
        try:
            jobs = parse_jobs(file)
        except InputError as error:
            one_line(error, str(file))
            return
        for job in jobs:
            copy = Path(place, "copy.jsonl")
            copy.write_text(json.dumps(job.to_json()))
            # nan is unlike itself
            assert parse_jobs(copy) == [job] or "nan" in repr(job)


def check_bytes(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, f"a.{suffix}")
        file.write_bytes(content)
        for read in (parse_jobs, lambda path: load_motion(path, 16.0, 8)):
            try:
                read(file)
            except InputError as error:
                one_line(error)


def check_motion(content: Any) -> None:
    """Tracks that a model can take and that come back from their own JSON, or one line."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "motion.json")
        file.write_text(json.dumps(content))
        try:
            tracks = load_motion(file, 16.0, 8)
        except InputError as error:
            one_line(error, str(file))
            return
    assert isinstance(tracks, TrackSet)
    assert not tracks.is_empty
    if tracks.num_tracks * tracks.num_frames < 2000:
        back = load_motion(motion_to_json(tracks), 16.0)
        assert torch.equal(back.points, tracks.points)
        assert torch.equal(back.state, tracks.state)


def check_arrays(shape: tuple[int, ...], scale: float, kind: str, layout: str, cut: int) -> None:
    points = np.random.default_rng(0).random(shape) * scale
    with np.errstate(invalid="ignore"):
        points = points.astype(kind)
    content = io.BytesIO()
    np.save(content, points)
    with tempfile.TemporaryDirectory() as place:
        Path(place, "a.npy").write_bytes(content.getvalue()[: len(content.getvalue()) - cut])
        row = {"file": "a.npy", "size": [64, 64]} | ({"layout": layout} if layout else {})
        Path(place, "motion.json").write_text(json.dumps({"arrays": row}))
        try:
            assert not load_motion(Path(place, "motion.json"), 16.0).is_empty
        except InputError as error:
            one_line(error)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    torch.set_num_threads(1)
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=1))


def check_run(pipeline: Pipeline, rows: list[Any]) -> None:
    """Every row ends as a whole video with its record or as a failure with its line; nothing else is left."""
    with tempfile.TemporaryDirectory() as place:
        file, out = Path(place, "jobs.jsonl"), Path(place, "deep", "out")
        file.write_text("\n".join(map(json.dumps, rows)))
        try:
            items = [item for item in items_of(parse_jobs(file)) if _short(item.job)]
        except InputError as error:
            one_line(error)
            return
        runner = ItemRunner(pipeline, OutputFolder(out), Policy())
        summary = run_items(items, runner, Reporter(quiet=True), lambda: False)
        assert {path.name for path in Path(place).iterdir()} == {"jobs.jsonl", "deep"}
        videos = sorted(out.glob("*.mp4"))
        assert len(videos) == len(items) - summary.failed
        for video in videos:
            record = json.loads(video.with_suffix(".json").read_text())
            with av.open(str(video)) as container:
                assert sum(1 for _ in container.decode(video=0)) == record["frames"]
        assert len(list(out.glob("*.json"))) == len(videos)
        assert not list(out.rglob("*.part"))
        for outcome in summary.failures:
            assert outcome.entry is not None
            one_line(InputError(outcome.entry.error))


def _short(job: Any) -> bool:
    return (job.frames or 0) <= 8 and (job.seconds or 0) <= 0.5


def many(check: Check, examples: int, *arguments: Any, **strategies: some.SearchStrategy[Any]) -> None:
    """Run a check on so many generated inputs."""
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    limits = settings(max_examples=examples, deadline=None, suppress_health_check=health, database=None)

    @limits
    @given(**strategies)
    def body(**drawn: Any) -> None:
        check(*arguments, **drawn)

    body()


SUFFIX = some.sampled_from(sorted(WRITERS))
CASES: dict[str, tuple[Check, dict[str, some.SearchStrategy[Any]]]] = {
    "job files": (
        check_job_file,
        {"row": sometimes(SHORT_JOBS), "suffix": SUFFIX, "cut": some.sampled_from([0, 0, 0, 1, 5])},
    ),
    "motion files": (check_motion, {"content": sometimes(MOTIONS | GOOD_MOTIONS)}),
    "bytes": (
        check_bytes,
        {
            "content": some.binary(max_size=200),
            "suffix": some.sampled_from(["jsonl", "yaml", "csv", "txt", "json", "npy", "npz", "pth"]),
        },
    ),
    "arrays": (
        check_arrays,
        {
            "shape": some.lists(some.integers(0, 5), min_size=1, max_size=5).map(tuple)
            | some.sampled_from([(1, 4, 3, 2), (3, 4, 1, 3), (3, 4, 2)]),
            "scale": some.sampled_from([1.0, 64.0, 512.0, 1e30]),
            "kind": some.sampled_from(["f4", "f8", "i4", "u1", "?"]),
            "layout": some.sampled_from(["", "ati", "wan-move", "tracks"]),
            "cut": some.sampled_from([0, 0, 0, 3, 200]),
        },
    ),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", CASES)
def test_200_generated_inputs(case: str) -> None:
    check, strategies = CASES[case]
    many(check, 200, **strategies)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", CASES)
def test_2000_generated_inputs(case: str) -> None:
    check, strategies = CASES[case]
    many(check, SOAK, **strategies)


@pytest.mark.slow
def test_200_generated_runs(pipeline: Pipeline) -> None:
    many(check_run, 200, pipeline, rows=some.lists(SHORT_JOBS, min_size=1, max_size=2))


@pytest.mark.soak
def test_2000_generated_runs(pipeline: Pipeline) -> None:
    many(check_run, SOAK, pipeline, rows=some.lists(SHORT_JOBS, min_size=1, max_size=3))


def test_the_generators_make_good_input_too() -> None:
    """A generator of nothing but refusals would prove little."""
    good = 0

    def count(row: Any) -> None:
        nonlocal good
        with tempfile.TemporaryDirectory() as place:
            file = Path(place, "a.jsonl")
            file.write_text(json.dumps(row))
            try:
                parse_jobs(file)
                good += 1
            except InputError:
                pass

    many(count, 200, row=SHORT_JOBS)
    assert 20 < good < 180
