"""Tokenizers beside each other, on the same clips of the world: figures, a table, a sheet to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.video_tokenizer import VideoTokenizer
from streamgen.errors import CheckpointError

from ..command import say
from ..families.tiny import load_tokenizer
from ..files import write_json
from ..scenes import MOTIONS, SceneConfig
from .figures import nested
from .intervals import Figure
from .measures import Instruments
from .natural import coded_sheet, natural_figures, read_natural, world_figures
from .page import Part, Picture, Section, Table, figure_at, layout, write_page
from .runner import TRUTH_SEED, coded_clips
from .streams import Video
from .suites import EvaluationConfig
from .tokenizer import by_clip, decibels, reconstruct, tokenizer_figures, tokenizer_reads
from .truth import Truth, TruthSuite

#: Frames of the clips of other sizes.
_SHORT = 17
_SHEET_CLIPS = 3


@torch.no_grad()
def compare_tokenizers(
    directories: Sequence[Path],
    config: EvaluationConfig,
    out_dir: Path,
    clips: Sequence[Path] = (),
    readers: Path | None = None,
) -> list[dict[str, Any]]:
    """Figures of each tokenizer, an export of the tokenizer stage or a checkpoint directory, best PSNR first;
    also as `tokenizers.json`, a page and a contact sheet. Measured are `config.clips` clips of
    `config.seconds` of the world, and the video files `clips`; `readers` as for `Instruments`.

    Returns:
        Per tokenizer the figures of `tokenizer_figures`, its gain `over_pca` (dB), `psnr_by_size`: dB of
        clips and of single images, of half the world's size, of its own, and of three halves; and of `clips`
        those of `natural_figures` as `natural`, each a value, its interval and n.

    Raises:
        InputError: see `read_natural`.
        CheckpointError: a directory without a tokenizer of this world's frames, or with a damaged one.
    """
    world = SceneConfig()
    loaded = [(path, *_load(path, _sizes(world.size))) for path in directories]
    motions = range(len(MOTIONS))
    natural = read_natural(clips, world.size)
    videos, others = coded_clips(world.size, config, motions)
    short = TruthSuite("prompts", "plain", config.clips, _SHORT)
    sizes = {size: Truth(size, motions, TRUTH_SEED).videos(short) for size in _sizes(world.size)}
    instruments = Instruments(world, readers)
    rows: list[dict[str, Any]] = []
    for path, tokenizer, digest in loaded:
        say(f"tokenizer {path}")
        reads = tokenizer_reads(tokenizer, videos, others, instruments)
        figures = tokenizer_figures(reads)
        values = {name: figure.value for name, figure in figures.items()}
        found = nested(values)
        pca = found["tokenizer"]["baselines"]["pca"]
        row: dict[str, Any] = {
            "path": str(path),
            "digest": digest,
            "bottleneck": tokenizer.config.bottleneck,
            "clips": len(videos),
            "psnr_by_size": {str(size): _by_size(tokenizer, some) for size, some in sizes.items()},
            "over_pca": {
                "psnr": found["psnr_tokenizer"] - pca["psnr"],
                "psnr_moving": found["psnr_moving"] - pca["psnr_moving"],
            },
            "intervals": {name: [figure.low, figure.high] for name, figure in figures.items()},
            "by_clip": by_clip(reads),
        }
        if natural:
            row["natural"] = {name: vars(one) for name, one in natural_figures(tokenizer, natural).items()}
        rows.append(row | found)
    rows.sort(key=lambda row: -row["psnr_tokenizer"])
    write_json(out_dir / "tokenizers.json", rows)
    named = [(str(path), tokenizer) for path, tokenizer, _ in loaded]
    shown = {video.spec.prompt: video.frames for video in videos[:_SHEET_CLIPS]}
    coded_sheet(named, shown, out_dir / "tokenizers.png")
    if natural:
        coded_sheet(named, natural, out_dir / "natural.png")
    _write_page(rows, out_dir / "index.html")
    return rows


@torch.no_grad()
def compare_pixels(
    directories: Sequence[Path], config: EvaluationConfig, out_dir: Path, clips: Sequence[Path] = ()
) -> list[dict[str, Any]]:
    """PSNR alone, in a minute: of each tokenizer, in the order given, `natural_figures` of `clips`, and
    `world_figures` of `config.clips` short clips beside the first one; also as `pixels.json`, page and sheet.

    Raises:
        InputError, CheckpointError: see `compare_tokenizers`.
    """
    world = SceneConfig()
    loaded = [(str(path), *_load(path, (world.size,))) for path in directories]
    natural = read_natural(clips, world.size)
    motions = range(len(MOTIONS))
    videos = Truth(world.size, motions, TRUTH_SEED).videos(
        TruthSuite("prompts", "plain", config.clips, _SHORT)
    )
    figures, rows = [], []
    for path, tokenizer, digest in loaded:
        say(f"tokenizer {path}")
        found = natural_figures(tokenizer, natural) if natural else {}
        figures.append(found | world_figures(tokenizer, loaded[0][1], videos))
        rows.append(
            {"path": path, "digest": digest, **{name: vars(one) for name, one in figures[-1].items()}}
        )
    write_json(out_dir / "pixels.json", rows)
    cells = [[path, *found.values()] for (path, _, _), found in zip(loaded, figures, strict=True)]
    said = (
        "PSNR in dB with 95 % intervals: of files over pieces of half a second, of the world over its clips."
    )
    parts: list[Part] = [said, Table(["tokenizer", *figures[0]], cells)]
    parts.append("; ".join(f"{path} is {digest}" for path, _, digest in loaded))
    if natural:
        coded_sheet([(path, tokenizer) for path, tokenizer, _ in loaded], natural, out_dir / "natural.png")
        parts.append(Picture("natural.png"))
    write_page(out_dir / "index.html", "tokenizers", [Section("", parts)])
    return rows


def _load(path: Path, sizes: Sequence[int]) -> tuple[VideoTokenizer, str]:
    """A tokenizer that takes frames of all `sizes`, and its digest."""
    tokenizer, digest = load_tokenizer(path, torch.device("cpu"))
    for size in sizes:
        try:
            tokenizer.encode(torch.zeros(1, 1, 3, size, size))
        except ValueError as error:
            raise CheckpointError(f"{path}: no tokenizer for frames of {size}x{size} ({error})") from None
    return tokenizer, digest


def _sizes(size: int) -> tuple[int, ...]:
    return (size // 2, size, size * 3 // 2)


def _by_size(tokenizer: VideoTokenizer, videos: Sequence[Video]) -> dict[str, float]:
    return {"clips": _psnr(tokenizer, videos), "images": _psnr(tokenizer, videos, frames=1)}


def _psnr(tokenizer: VideoTokenizer, videos: Sequence[Video], frames: int = _SHORT) -> float:
    squares = [
        (after - before).square().mean(dtype=torch.float64)
        for before, after in (reconstruct(tokenizer, video.frames[:frames]) for video in videos)
    ]
    return float(decibels(torch.stack(squares).mean()))


def _write_page(rows: Sequence[dict[str, Any]], path: Path) -> None:
    sizes, columns = list(rows[0]["psnr_by_size"]), layout()["tokenizers"]
    found = [[row["path"], *(figure_at(row, name) for _, name in columns)] for row in rows]
    by_size = [
        [row["path"], *(row["psnr_by_size"][size][kind] for size in sizes for kind in ("clips", "images"))]
        for row in rows
    ]
    heads = ["PSNR, dB", *(f"{kind} {size}x{size}" for size in sizes for kind in ("clips", "images"))]
    parts: list[Part] = [
        f"On {rows[0]['clips']} clips of the world that no training has seen.",
        Table(["tokenizer", *(heading for heading, _ in columns)], found),
        Table(heads, by_size),
        Picture("tokenizers.png"),
        "; ".join(f"{row['path']} is {row['digest']}" for row in rows),
    ]
    sections = [Section("", parts)]
    if "natural" in rows[0]:
        sections.append(Section("Other clips", _natural(rows)))
    write_page(path, "tokenizers", sections)


def _natural(rows: Sequence[dict[str, Any]]) -> list[Part]:
    names = list(rows[0]["natural"])
    found = [[row["path"], *(Figure(**row["natural"][name]) for name in names)] for row in rows]
    said = "PSNR in dB of each, with a 95 % interval over pieces of half a second and their number."
    return [said, Table(["tokenizer", *names], found), Picture("natural.png")]
