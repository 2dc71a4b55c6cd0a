"""The evaluation: its suites, tokenizers beside each other, bad input."""

import dataclasses
import functools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from distill import evaluate
from distill.config import ConfigError
from distill.evaluation import classifiers, comparison, measures, pool, runner, streams
from distill.evaluation.rows import row_of
from distill.evaluation.suites import SWITCH_KINDS, EvaluationConfig, SuiteBuilder, evaluation_config
from distill.families.tiny import load_tokenizer
from distill.scenes import COLOURS, HELD_OUT, MOTIONS, SHAPES, SceneConfig, caption_vocabulary
from models.text_encoder import Vocabulary
from streamgen import load_pipeline
from streamgen.errors import InputError
from tests.quick_instruments import quick_instruments
from tests.tiny_checkpoints import write_checkpoint

WEIGHTS = Path(__file__).resolve().parents[2] / "streamgen" / "weights" / "tiny"

TOKENIZER = Path(__file__).resolve().parents[2] / "streamgen" / "weights" / "tiny"


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


def test_a_policy_of_its_own_leaves_the_other_switches_to_the_controls() -> None:
    """Switches under `keep` are a report's own, which other reports' rows are not mixed with."""
    plain, kept = EvaluationConfig(switches=2), EvaluationConfig(switches=2, policy="keep")
    assert plain.what != kept.what
    found = SuiteBuilder(kept, world_vocabulary()).every()
    assert Counter(s.variant for s in found if s.suite == "switches") == {"keep": 2, "recache": 2, "clear": 2}
    alone = SuiteBuilder(dataclasses.replace(kept, controls=False), world_vocabulary()).every()
    assert {s.variant for s in alone if s.suite == "switches"} == {"keep"}


def test_what_readers_learn_is_kept_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once learned, it is read; that of another world is refused."""
    learn = classifiers._train
    monkeypatch.setattr(measures, "ShapeReader", functools.partial(classifiers.ShapeReader, samples=64))
    monkeypatch.setattr(measures, "MotionReader", functools.partial(classifiers.MotionReader, samples=4))
    quick = lambda *given, steps, **named: learn(*given, steps=2, **named)  # noqa: E731
    monkeypatch.setattr(classifiers, "_train", quick)
    file, world = tmp_path / "readers.safetensors", SceneConfig(size=32)
    learned = measures.Instruments(world, file)
    monkeypatch.delattr(classifiers, "_train")
    again = measures.Instruments(world, file)
    for first, second in ((learned.shapes, again.shapes), (learned.motions, again.motions)):
        assert_close(second.network.state_dict(), first.network.state_dict(), rtol=0, atol=0)
        assert not second.network.training
    with pytest.raises(InputError, match="of this world"):
        measures.Instruments(SceneConfig(size=64), file)
    file.write_bytes(b"no readers")
    with pytest.raises(
        InputError, match=r"readers\.safetensors: expected a file that an evaluation has kept"
    ):
        measures.Instruments(world, file)


def test_objects_of_a_pair_differ_as_their_kind_says() -> None:
    for spec in SuiteBuilder(EvaluationConfig(pairs=30), world_vocabulary()).pairs(told=False):
        one, two = spec.subjects
        assert one.colour != two.colour
        assert (one.shape == two.shape) == (spec.kind == "same shape")
        assert (one.motion == two.motion) == (spec.kind == "same motion")


def test_a_rolling_sink_goes_there_and_back_over_the_first_pictures() -> None:
    rolls = {chunk: at for chunk in range(22, 400) if (at := streams.rolled_to(chunk)) is not None}
    assert set(rolls) == set(range(22, 400, 4))
    assert list(rolls.values())[:22] == [*range(1, 21), 19, 18]
    assert list(rolls.values())[36:44] == [3, 2, 1, 0, 1, 2, 3, 4]
    assert [streams.rolled_to(chunk) for chunk in range(22)] == [None] * 22


@pytest.mark.slow
def test_a_rolling_sink_is_seen_from_its_first_roll_on(tmp_path: Path) -> None:
    """Before, the stream is that of a sink that stays; rows of both are not mixed."""
    plain, rolling = EvaluationConfig(drift=1), EvaluationConfig(drift=1, sink="rolls")
    assert plain.what != rolling.what
    pipeline = load_pipeline(write_checkpoint(tmp_path / "model", words=caption_vocabulary()))
    video = {}
    for config in (plain, rolling):
        (spec,) = SuiteBuilder(config, world_vocabulary()).drift(long=False)
        spec = dataclasses.replace(spec, frames=1 + 4 * 23)
        video[config.sink] = streams.render(pipeline, None, spec, {}).frames  # type: ignore[arg-type]
    same = (video["stays"] == video["rolls"]).flatten(1).all(1)
    assert same[: 1 + 4 * 21].all()
    assert not same[1 + 4 * 21 :].all()


def test_one_process_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own loads all anew: seconds for every cell of a grid. It computes on one thread as
    well, and what is made once is made anew for other work.
    """
    monkeypatch.setattr(pool, "ProcessPoolExecutor", None)
    made: list[str] = []

    def do(work: str, task: int) -> tuple[str, int, int]:
        return pool.once("model", lambda: made.append(work) or work), task, torch.get_num_threads()  # type: ignore[func-returns-value]

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for work in ("a", "b"):
            assert list(pool.each(work, do, [7, 8], 1)) == [(work, 7, 1), (work, 8, 1)]
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert made == ["a", "b"]


def test_long_streams_that_change_are_read_behind_the_change() -> None:
    """For what they are told then, and as many seconds as plain ones."""
    config = EvaluationConfig(drift=8, drift_seconds=8, drift_changes=True)
    assert config.what != EvaluationConfig(drift=8, drift_seconds=8).what
    specs = SuiteBuilder(config, world_vocabulary()).drift(long=False)
    assert Counter(spec.kind for spec in specs) == dict.fromkeys(SWITCH_KINDS, 2)
    for spec in specs:
        assert spec.switch is not None
        assert spec.subjects == (spec.switch.after,)
        assert spec.prompt != spec.switch.prompt
    frames = torch.zeros(specs[0].frames, 64, 64, 3, dtype=torch.uint8)
    video = streams.Video(specs[0], frames, 41, torch.zeros(0, 2))
    instruments = quick_instruments(64)
    points = measures.drift_points(instruments, instruments.view(video))
    assert [point.seconds for point in points] == [(41 + 24) / 16, (41 + 24) / 16 + 4]
    with pytest.raises(ConfigError, match="anchors: expected drift_changes=true"):
        EvaluationConfig(sink="anchors")


@pytest.mark.slow
def test_an_anchor_is_a_picture_from_behind_the_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the sink's place once, when it has left the window; before, the sink stays."""
    pipeline = load_pipeline(write_checkpoint(tmp_path / "model", words=caption_vocabulary()))
    taken: list[torch.Tensor] = []
    plain = streams.Picture

    def seen(pixels: torch.Tensor, use: Any) -> streams.Picture:
        taken.append(pixels)
        return plain(pixels, use)

    monkeypatch.setattr(streams, "Picture", seen)
    video = {}
    for sink in ("stays", "anchors"):
        config = EvaluationConfig(drift=1, drift_seconds=4, drift_changes=True, sink=sink)  # type: ignore[arg-type]
        (spec,) = SuiteBuilder(config, world_vocabulary()).drift(long=False)
        video[sink] = streams.render(pipeline, None, spec, {})  # type: ignore[arg-type]
    event, frames = video["anchors"].event, video["anchors"].frames
    assert len(taken) == 1
    assert_close(taken[0], frames[event + 15], rtol=0, atol=0)
    same = (frames == video["stays"].frames).flatten(1).all(1)
    assert same[: event + 48].all()
    assert not same[event + 48 :].all()


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


@pytest.mark.slow
def test_tokenizers_beside_each_other(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shipped one against itself without its network, which is a linear PCA."""
    monkeypatch.setattr(comparison, "Instruments", lambda world, kept=None: quick_instruments(world.size))
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
        (["--runner", "onix"], "did you mean 'onnx'"),
        (["--quantize", "int9"], "int9"),
        (["--tokenizer", str(TOKENIZER), "clips=0"], "clips: expected >= 8 with --tokenizer, found 0"),
        (["--readers", "a", "--rows", "r"], "--readers: is for --model, --run and --tokenizer, found --rows"),
        (["--clip", "a.mp4"], "--clip: is for --tokenizer, found none"),
        (["--quick", "--model", "tiny"], "--quick: is for --tokenizer, found none"),
        (["--clip", "none.mp4", "--tokenizer", str(TOKENIZER)], "none.mp4"),
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


def test_a_report_in_eight_bits_is_of_its_own_and_tells_the_velocitys_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluationConfig(prompts=1)
    (tmp_path / "full").mkdir()
    full = runner.Evaluator("tiny", config, tmp_path / "full", {}, 1)
    assert full._velocity_error() == {}
    monkeypatch.setenv("STREAMGEN_QUANTIZE", "int8+cache")
    monkeypatch.setattr(runner, "_ERROR_CHUNKS", 2)
    (tmp_path / "int8").mkdir()
    bits = runner.Evaluator("tiny", config, tmp_path / "int8", {}, 1)
    assert bits.file.about.settings != full.file.about.settings
    assert bits.file.about.sampling["quantize"] == "int8+cache"
    error = bits._velocity_error()["velocity_error"]
    assert json.loads((tmp_path / "int8" / "velocity_error.json").read_text()) == error
    assert error["kind"] == "int8"
    assert 0.001 < error["error_mean"] < error["error_largest"] < 0.2
