"""The evaluation: its instruments are right on the truth, and each measure fails where it must."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distill import evaluate
from distill.config import ConfigError
from distill.evaluation import comparison
from distill.evaluation.figures import ATTRIBUTES, METRICS, compared, figures_of, hops, quantiles
from distill.evaluation.measures import (
    Instruments,
    View,
    background_psnr,
    count_objects,
    drag_error,
    drift_points,
    read_video,
)
from distill.evaluation.rows import Row, row_of
from distill.evaluation.streams import Video
from distill.evaluation.suites import PAIR_KINDS, EvaluationConfig, SuiteBuilder, evaluation_config
from distill.evaluation.truth import Truth, TruthSuite
from distill.families.tiny import load_tokenizer
from distill.scenes import COLOURS, HELD_OUT, MOTIONS, SHAPES, caption_vocabulary
from models.text_encoder import Vocabulary
from streamgen.errors import InputError
from tests.world_instruments import instruments_of

COUNT = 24
WEIGHTS = Path(__file__).resolve().parents[2] / "streamgen" / "weights" / "tiny"


@pytest.fixture(scope="module")
def instruments() -> Instruments:
    return instruments_of(64)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth(64, seed=5)


def views(instruments: Instruments, truth: Truth, suite: str, variant: str = "plain") -> list[View]:
    return [instruments.view(video) for video in truth.videos(TruthSuite(suite, variant, COUNT, 65))]


@pytest.fixture(scope="module")
def plain(instruments: Instruments, truth: Truth) -> list[View]:
    return views(instruments, truth, "prompts")


@pytest.fixture(scope="module")
def switched(truth: Truth) -> list[Video]:
    return truth.videos(TruthSuite("switches", "recache", COUNT, 65))


@pytest.fixture(scope="module")
def dragged(instruments: Instruments, truth: Truth) -> list[View]:
    return views(instruments, truth, "drags", "told")


def rows_of(instruments: Instruments, videos: Sequence[Video]) -> list[Row]:
    return [row_of(video.spec, read_video(instruments, video), "w", "s") for video in videos]


def values(rows: Sequence[Row]) -> dict[str, float]:
    """The figures of rows that have a value."""
    return {name: found.value for name, found in figures_of(rows).items() if found.value is not None}


def test_clips_of_the_world_show_what_they_say(instruments: Instruments, plain: list[View]) -> None:
    """And not what others of them say: at random an attribute agrees in one of six to eight clips."""
    found = values(rows_of(instruments, [view.video for view in plain]))
    names = [f"{name}_accuracy" for name in (*ATTRIBUTES, "color_and_shape")]
    assert min(found[name] for name in names) >= 0.95, found
    assert max(found[f"control.shuffled.{name}_accuracy"] for name in ATTRIBUTES) < 0.5, found
    # no chunks, no seams: of 255 levels
    assert abs(found["seam"]) < 0.3


def test_pairs_of_the_world_are_read_right(instruments: Instruments, truth: Truth) -> None:
    """Both objects and their own motions, beside a drag of the first as without; all three kinds."""
    for variant, name in (("alone", "pairs.both"), ("dragged", "pairs.beside_drag.second.motion")):
        found = values(rows_of(instruments, truth.videos(TruthSuite("pairs", variant, 12, 65))))
        assert found[name] >= 0.9, found
        if variant == "alone":
            assert found["pairs.swapped_motion"] <= 0.1
            assert {f"pair_kinds.{kind}.both" for kind in PAIR_KINDS} <= set(found)


def test_there_is_one_object_where_there_is_one(plain: list[View]) -> None:
    counts = torch.cat([count_objects(view.reading) for view in plain])
    assert float((counts == 1).float().mean()) > 0.97


def test_two_objects_are_counted_as_two(instruments: Instruments, plain: list[View]) -> None:
    """A clip beside itself: objects that cross the border are one on the torus, and here twice one."""
    video = plain[0].video
    double = torch.cat([video.frames, video.frames], 2)
    reading = instruments.frames(double)
    assert set(count_objects(reading).tolist()) <= {1, 2, 3}
    assert float(count_objects(reading).float().mean()) >= 1.5


def test_true_drags_are_followed_and_others_are_not(instruments: Instruments, dragged: list[View]) -> None:
    found = values(rows_of(instruments, [view.video for view in dragged]))
    assert found["track_error"] < 0.03
    assert found["release_accuracy"] >= 0.9
    others = [
        dataclasses.replace(view, video=dataclasses.replace(view.video, path=other.video.path))
        for view, other in zip(dragged, dragged[1:] + dragged[:1], strict=True)
    ]
    assert sum(map(drag_error, others)) / COUNT > 0.15


def test_true_switches_succeed_and_keep_the_rest(instruments: Instruments, switched: list[Video]) -> None:
    rows = rows_of(instruments, switched)
    assert {row.kind for row in rows} == {"colour", "shape", "background", "motion"}
    found = values(rows)
    assert found["switch_success"] >= 0.95
    assert found["switch_kept"] >= 0.9
    assert found["switch_seconds"] < 0.5
    # pixels of 64 above its own step
    assert quantiles(hops(rows)["recache"])["0.75"] < 1.5


def test_a_stream_that_begins_anew_keeps_nothing(instruments: Instruments, switched: list[Video]) -> None:
    """What `clear` does: from the switch on the frames are those of another time of the clip, elsewhere."""
    videos = []
    for video in switched:
        turned = video.frames.clone()
        turned[video.event :] = turned[video.event :].roll((23, 31), (1, 2))
        videos.append(dataclasses.replace(video, frames=turned))
    rows = rows_of(instruments, videos)
    found = values(rows)
    assert found["switch_success"] >= 0.8
    assert found["switch_kept"] <= 0.1
    assert quantiles(hops(rows)["recache"])["0.5"] > 10
    # the same switches, paired: true ones keep what these do not
    kept = next(metric for metric in METRICS if metric.names.get("recache") == "switch_kept")
    against = compared(kept, rows_of(instruments, switched), rows)
    assert against is not None
    assert against.only_first is not None
    assert against.only_first >= 18
    assert against.p is not None
    assert against.p < 1e-4


def test_a_stream_that_does_not_switch_fails(instruments: Instruments, switched: list[Video]) -> None:
    still = [
        dataclasses.replace(video, frames=video.frames[: video.event].repeat(2, 1, 1, 1))
        for video in switched
        if video.spec.kind != "motion"
    ]
    assert values(rows_of(instruments, still))["switch_success"] == 0


def test_a_background_that_changes_loses_likeness(instruments: Instruments, plain: list[View]) -> None:
    view = plain[0]
    assert background_psnr(view, 20, 21) > 25
    other = next(
        v for v in plain if v.video.spec.subjects[0].background != view.video.spec.subjects[0].background
    )
    mixed = torch.stack([view.video.frames[20], other.video.frames[20]])
    video = dataclasses.replace(view.video, frames=mixed)
    assert background_psnr(View(video, instruments.frames(mixed)), 0, 1) < 20


def test_drift_is_seen(instruments: Instruments, plain: list[View]) -> None:
    """A clip that grows dark, blurred and empty, stretch by stretch."""
    frames = torch.cat([view.video.frames[:64] for view in plain[:1]] * 3)
    frames[64:128] = frames[64:128] // 2
    frames[128:] = frames[128:].float().mean((1, 2), keepdim=True).to(torch.uint8)
    video = dataclasses.replace(plain[0].video, frames=frames)
    first, dark, empty = drift_points(instruments, instruments.view(video))
    accuracy = {point: sum(vars(point)[name] for name in ATTRIBUTES) / 4 for point in (first, dark, empty)}
    assert accuracy[first] > 0.9
    assert sum(dark.mean_color) < 0.6 * sum(first.mean_color)
    assert empty.sharpness < 0.1 * first.sharpness
    assert accuracy[empty] < accuracy[first]
    assert first.objects > 0.9
    assert empty.objects < 0.5


def world_vocabulary() -> Vocabulary:
    return Vocabulary(caption_vocabulary())


def test_suites_are_balanced_and_their_own() -> None:
    config = EvaluationConfig(prompts=64, unseen=64)
    builder = SuiteBuilder(config, world_vocabulary())
    prompts, unseen = builder.prompts(), builder.unseen()
    pairs = {(COLOURS[s.subjects[0].colour], SHAPES[s.subjects[0].shape]) for s in prompts}
    assert not pairs & HELD_OUT
    assert {(COLOURS[s.subjects[0].colour], SHAPES[s.subjects[0].shape]) for s in unseen} == HELD_OUT
    motions = torch.bincount(torch.tensor([s.subjects[0].motion for s in prompts]), minlength=len(MOTIONS))
    assert int(motions.max() - motions.min()) <= 1
    assert len({s.seed for s in prompts + unseen}) == 128
    assert prompts == SuiteBuilder(config, world_vocabulary()).prompts()
    assert prompts != SuiteBuilder(dataclasses.replace(config, seed=1), world_vocabulary()).prompts()


def test_a_full_evaluation_has_enough_of_every_kind_and_extends_smaller_ones() -> None:
    specs = {
        size: SuiteBuilder(evaluation_config({"size": size}), world_vocabulary()).every()
        for size in ("small", "medium", "full")
    }
    counts = Counter((s.suite, s.variant, s.kind) for s in specs["full"])
    assert {kind for suite, _, kind in counts if suite == "prompts"} == set(MOTIONS)
    for suite, variants in (
        ("prompts", ["plain"]),
        ("unseen", ["plain"]),
        ("pairs", ["alone", "dragged"]),
        ("switches", ["recache", "keep", "clear"]),
    ):
        found = {key: count for key, count in counts.items() if key[0] == suite}
        assert {variant for _, variant, _ in found} == set(variants)
        assert min(found.values()) >= 32, found
    assert set(specs["small"]) < set(specs["medium"]) < set(specs["full"])
    assert evaluation_config({"size": "small", "drift": 3}).drift == 3


def test_switches_change_one_thing_under_every_policy() -> None:
    builder = SuiteBuilder(EvaluationConfig(switches=40), world_vocabulary())
    for spec in builder.switches("recache"):
        assert spec.switch is not None
        before, after = dataclasses.asdict(spec.subjects[0]), dataclasses.asdict(spec.switch.after)
        assert {name for name in before if before[name] != after[name]} == {spec.switch.kind}
        assert (COLOURS[after["colour"]], SHAPES[after["shape"]]) not in HELD_OUT
    every = [builder.switches(policy) for policy in ("recache", "keep", "clear")]
    keys = [[row_of(spec, {}, "w", "s").pair for spec in some] for some in every]
    assert keys[0] == keys[1] == keys[2]


def test_objects_of_a_pair_differ_as_their_kind_says() -> None:
    for spec in SuiteBuilder(EvaluationConfig(pairs=30), world_vocabulary()).pairs(told=False):
        one, two = spec.subjects
        assert one.colour != two.colour
        assert (one.shape == two.shape) == (spec.kind == "same shape")
        assert (one.motion == two.motion) == (spec.kind == "same motion")


def test_motions_without_words_are_left_out() -> None:
    words = [word for word in caption_vocabulary() if not word.startswith("zigzag")]
    builder = SuiteBuilder(EvaluationConfig(), Vocabulary(words))
    assert MOTIONS.index("zigzag") not in builder.motions
    assert len(builder.motions) >= 7
    assert all(word in words for spec in builder.prompts() for word in spec.prompt.replace(",", "").split())


def test_motions_can_be_chosen() -> None:
    builder = SuiteBuilder(EvaluationConfig(motions=("left", "stays")), world_vocabulary())
    assert {MOTIONS[spec.subjects[0].motion] for spec in builder.prompts()} == {"left", "stays"}
    with pytest.raises(ConfigError, match="motions: expected some of right"):
        EvaluationConfig(motions=("sideways",))


def test_a_model_of_another_world_is_refused() -> None:
    with pytest.raises(InputError, match="procedural world, found no 'red'"):
        SuiteBuilder(EvaluationConfig(), Vocabulary(["a", "cat", "sits"]))


def test_tokenizers_beside_each_other(
    instruments: Instruments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shipped one against itself without its network, which is a linear PCA."""
    monkeypatch.setattr(comparison, "Instruments", lambda world: instruments)
    linear = tmp_path / "linear"
    shutil.copytree(WEIGHTS, linear)
    tokenizer, _ = load_tokenizer(WEIGHTS, torch.device("cpu"))
    tokenizer.decoder.reset_output()
    save_file(tokenizer.state_dict(), linear / "tokenizer.safetensors")
    out = tmp_path / "out"
    arguments = ["--tokenizer", str(linear), "--tokenizer", str(WEIGHTS), "-o", str(out), "--json", "clips=8"]
    assert evaluate.main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads((out / "tokenizers.json").read_text())
    assert [row["path"] for row in rows] == [str(WEIGHTS), str(linear)]
    best, worst = rows
    assert best["digest"] != worst["digest"]
    assert best["psnr_tokenizer"] > worst["psnr_tokenizer"] + 2
    # one baseline for both, the same clips
    assert best["tokenizer"]["baselines"] == worst["tokenizer"]["baselines"]
    gain = best["psnr_tokenizer"] - best["tokenizer"]["baselines"]["pca"]["psnr"]
    assert best["over_pca"]["psnr"] == pytest.approx(gain)
    assert list(best["psnr_by_size"]) == ["32", "64", "96"]
    assert all(size["images"] > 25 for size in best["psnr_by_size"].values())
    page = (out / "index.html").read_text()
    assert page.index(str(WEIGHTS)) < page.index(str(linear))
    assert (out / "tokenizers.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing"], "nothing"),
        (["--tokenizer", "nothing"], "nothing"),
        (["--tokenizer", "nothing", "--model", "tiny"], "found --model and --tokenizer"),
        (["--run", "nothing"], "metrics.jsonl"),
        (["--report", "a=nothing"], "--report a=nothing: expected a finished report's folder"),
        (["--report", "nothing", "--model", "tiny"], "found --model and --report"),
        (["--run", "nothing", "--model", "tiny"], "found --model and --run"),
        (["--rows", "nothing"], "expected a report's folder"),
        (["size=huge"], "size: expected one of small, medium, full"),
        (["promts=3"], "did you mean 'prompts'"),
        (["prompts=-1"], "prompts: expected 0 to"),
        (["prompts"], "expected key=value"),
        (["seconds=1"], "seconds: expected"),
        (["--set", "steps=0"], "steps"),
        (["--set", "stepz=4"], "did you mean"),
        (["--processes", "0"], "--processes"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["-o", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
