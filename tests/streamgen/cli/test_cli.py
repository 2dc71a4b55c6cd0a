"""The command line itself: start-up, commands other than render, and their output."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import streamgen.bench
from models.context import ChunkPlan
from streamgen import Pipeline
from streamgen.bench import BenchOptions, Effort
from streamgen.cli.app import run
from streamgen.cli.progress import Stop
from streamgen.roofline.peaks import Probe
from tests.command_line import ROOT, call, call_process, environment
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_wan import SMALL


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small")


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from streamgen.cli.app import run; code = run(['--help']); "
        "heavy = {'torch', 'av', 'numpy', 'gradio'} & set(sys.modules); "
        "sys.exit(repr(heavy) if heavy else code)"
    )
    command = [sys.executable, "-c", code]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("render", "bench", "models", "inspect", "compare", "motion"))
    # of the processor, as the machine may be busy; torch alone would take longer
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_jobs_are_checked_without_torch(tmp_path: Path) -> None:
    """A job file with a mistake is refused at once, on a machine with a GPU as well."""
    code = (
        "import sys; from streamgen.cli.app import run; code = run(['render', '--schema']); "
        "import streamgen.render.job_file, streamgen.render.items; "
        "heavy = {'torch', 'av', 'numpy', 'ray', 'cv2'} & set(sys.modules); "
        "sys.exit(repr(heavy) if heavy else code)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["title"] == "streamgen render job"


def test_public_names_are_found_when_asked_for() -> None:
    import streamgen

    assert set(streamgen.__all__) <= set(dir(streamgen))
    for name in streamgen.__all__:
        assert getattr(streamgen, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        streamgen.nothing  # noqa: B018


def test_version_and_bare_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("streamgen")
    bare = call(capsys)
    assert bare.code == 2
    assert "Usage" in bare.stdout + bare.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rendr"], "No such command 'rendr'"),
        (["render", "sand", "-o", "a.mp4", "--secnds", "3"], "No such option: --secnds"),
        (["render", "sand", "-o", "a.mp4", "--seconds", "three"], "Invalid value for '--seconds'"),
        (["render", "sand", "-o"], "Option '-o' requires an argument"),
        (["render", "sand"], "missing option -o"),
        (["render", "-o", "a.mp4"], "missing PROMPT"),
        (["inspect"], "(see streamgen inspect --help)"),
        (["bench", "--chunks", "0"], "Invalid value for '--chunks'"),
        (["bench", "--model", "tinny"], "unknown model 'tinny'"),
    ],
)
def test_usage_errors_are_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = call(capsys, *arguments)
    assert message in refused.error()
    assert len(refused.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_bench_prints_one_object(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "bench", "--model", checkpoint, "--json", "--chunks", 20, "--threads", 1,
                "--cold", 0, "-q")  # fmt: skip
    assert done.code == 0, done
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    result = json.loads(done.stdout)
    assert (result["width"], result["height"], result["fps_target"], result["threads"]) == (32, 32, 16, 1)
    assert (result["device"], result["dtype"]) == ("cpu", "float32")
    assert result["attention"] == "torch, fused on the CPU"
    assert result["realtime_factor"] == pytest.approx(result["pixel_fps"] / 16, rel=1e-3)
    assert set(result["chunk_ms"]) == {"denoise", "commit", "decode", "copy", "total"}
    assert all(part["p99"] >= part["p50"] > 0 for part in result["chunk_ms"].values())
    assert result["switch_latency_ms"]["p99"] >= result["switch_latency_ms"]["p50"] > 0
    assert (
        min(result[key] for key in ("time_to_first_frame_ms", "recache_ms", "peak_memory_mb", "params_m")) > 0
    )
    assert "long_stream" not in result
    # nothing where memory that loading gave back is enough
    assert 0 <= result["stream_memory_mb"] < result["peak_memory_mb"]


@pytest.mark.slow
def test_bench_takes_what_a_large_model_is_loaded_with(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, changes of the config and precision as `render` has them; the new process of --cold, too."""

    def measured(pipeline: Pipeline, options: BenchOptions, say: Callable[[str], None]) -> dict[str, Any]:
        sizes = (pipeline.geometry.width, options.chunks, options.effort.switches)
        cold = streamgen.bench._cold_seconds(pipeline, options.loaded)
        return {"dtype": str(pipeline.dtype), "sizes": sizes, "cold": cold}

    monkeypatch.setattr(streamgen.bench, "run_bench", measured)
    small = [x for pair in SMALL for x in ("--model-set", pair)]
    model = ["--model", "wan-1.3b-longlive", "--random-weights", *small, "--size", "64x32"]
    done = call(capsys, "bench", *model, "--dtype", "bfloat16", "--quick", "--runner", "plain", "--json")
    result = json.loads(done.stdout)
    assert (result["dtype"], result["sizes"]) == ("torch.bfloat16", [64, 8, 6])
    assert result["cold"] > 0
    # the other process is given the same options: without weights it would make no frame
    monkeypatch.setattr(streamgen.bench, "replace", lambda wan, **changes: None)
    assert "--cold: a new process made no frame" in call(capsys, "bench", *model, "--runner", "plain").error()


def fewer_turns(monkeypatch: pytest.MonkeyPatch, turns: int) -> None:
    """Bench with few turns, and ceilings of small pieces."""
    asked = streamgen.bench.run_bench

    def measured(pipeline: Pipeline, options: BenchOptions, say: Callable[[str], None]) -> dict[str, Any]:
        return asked(pipeline, replace(options, effort=Effort(turns=turns)), say)

    monkeypatch.setattr(streamgen.bench, "run_bench", measured)
    monkeypatch.setattr(Probe, "of", lambda device: Probe(64, 2**16, (2, 16, 32, 64), 0.001))


@pytest.mark.slow
def test_bench_in_turns(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runners on one stream, a setting, a deadline; of a runner against itself the ratio is about 1."""
    fewer_turns(monkeypatch, 3)
    done = call(capsys, "bench", "--model", checkpoint, "--json", "--chunks", 20, "--cold", 0, "--vs", "onnx",
                "--set", "steps=1", "--set", "change_steps=2", "--deadline", 1000, "--roofline",
                "-q")  # fmt: skip
    assert done.code == 0, done
    result = json.loads(done.stdout)
    assert (result["runner"], result["vs"]["runners"]) == ("plain", ["plain", "onnx"])
    for what in ("clock", "processor", "switch", "first_frame"):
        ratio = result["vs"][what]["times_faster"]
        assert 0 < ratio["p10"] <= ratio["p50"] <= ratio["p90"]
        assert result["vs"][what]["onnx_ms"]["p50"] > 0
    assert result["deadline"] == {"ms": 1000, "late": 0.0}
    assert set(result["roofline"]) == {"peaks", "denoise", "commit", "decode"}
    for part in ("denoise", "commit", "decode"):
        assert result["roofline"][part]["share"] > 0
    assert sum(result["steps_taken"].values()) == 20 + result["warm_chunks"]
    for arguments, message in (
        (["--vs", "plane"], "unknown runner 'plane' (did you mean 'plain'?)"),
        (["--set", "stepps=1"], "did you mean 'steps'"),
        (["--deadline", "0"], "deadline: expected a positive number of milliseconds, found 0.0"),
    ):
        assert message in call(capsys, "bench", "--model", checkpoint, *arguments).error()


@pytest.mark.slow
def test_bench_cold_and_beside(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer_turns(monkeypatch, 2)
    done = call(capsys, "bench", "--model", checkpoint, "--json", "--chunks", 20, "--beside", 1, "-q")
    assert done.code == 0, done
    result = json.loads(done.stdout)
    assert result["first_frame_cold_ms"]["p50"] > result["time_to_first_frame_ms"]
    assert result["beside"]["loops"] == 1
    assert result["beside"]["share_of_rate"]["p50"] > 0


@pytest.mark.slow
def test_bench_counts_frames_not_chunks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8 frames a chunk: the rate is 8 over the mean chunk time, however fast the machine is."""
    model = write_checkpoint(tmp_path / "m", plan=ChunkPlan(2, 1, 1, 2))
    done = call(capsys, "bench", "--model", model, "--json", "--chunks", 300, "--cold", 0, "-q")
    result = json.loads(done.stdout)
    long = result["long_stream"]
    assert long["chunks"] == 300 + result["warm_chunks"]
    assert long["ratio"] == pytest.approx(long["late_ms"] / long["early_ms"], rel=1e-2)
    assert result["pixel_fps"] * result["chunk_ms"]["total"]["mean"] / 1000 == pytest.approx(8, rel=1e-2)


def test_inspect_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "inspect", checkpoint, "--json")
    assert done.code == 0
    report = json.loads(done.stdout)
    assert set(report["parts"]) == {"tokenizer", "dit", "text_encoder", "motion_encoder"}
    tensors = load_file(checkpoint / "tokenizer.safetensors")
    assert report["parts"]["tokenizer"]["parameters"] == sum(x.numel() for x in tensors.values())
    assert report["tokenizer"]["match"] is True
    assert report["chunk_plan"]["window_frames"] == 3
    assert report["settings"]["steps"] == 2
    assert report["attention_kernel"].startswith(("cpu: torch, fused", "cuda"))
    assert report["problems"] == []
    table = call(capsys, "inspect", checkpoint)
    assert table.code == 0
    assert "parts.tokenizer" in table.stdout


def test_inspect_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_checkpoint(tmp_path / "m")
    tensors = load_file(directory / "model.safetensors")
    name = "dit.head.head.weight"
    shorter = {key: value for key, value in tensors.items() if key != name} | {
        "dit.extra": tensors[name].clone()
    }
    save_file(shorter, directory / "model.safetensors")
    config = OmegaConf.load(directory / "config.yaml")
    config.tokenizer_digest = "0" * 64
    OmegaConf.save(config, directory / "config.yaml")
    (directory / "vocabulary.txt").unlink()
    refused = call(capsys, "inspect", directory, "--json")
    assert "problems, it does not load" in refused.error()
    report = json.loads(refused.stdout)
    assert report["parts"]["dit"]["missing"] == ["head.head.weight"]
    assert report["parts"]["dit"]["surplus"] == ["extra"]
    assert report["tokenizer"]["match"] is False
    assert len(report["problems"]) == 4


def test_inspect_files(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = json.loads(call(capsys, "inspect", checkpoint / "model.safetensors", "--json").stdout)
    assert set(weights["parts"]) == {"dit", "text_encoder", "motion_encoder"}
    state = tmp_path / "state"
    options = ["-o", tmp_path / "a.mp4", "--seconds", 1, "--save-state", state, "--model", checkpoint]
    assert call(capsys, "render", "a red star", *options).code == 0
    report = json.loads(call(capsys, "inspect", state, "--json").stdout)
    assert report["kind"] == "saved stream"
    assert report["stream"]["prompt"] == "a red star"
    (tmp_path / "text.safetensors").write_text("no weights")
    assert "a text, not weights" in call(capsys, "inspect", tmp_path / "text.safetensors").error()
    assert "no such directory" in call(capsys, "inspect", tmp_path / "nothing").error()


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "models")
    assert done.code == 0
    shipped = sorted(path.parent.name for path in (ROOT / "streamgen" / "weights").glob("*/config.yaml"))
    needing = sorted(path.stem for path in (ROOT / "configs" / "model").glob("*.yaml"))
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == shipped + needing


@pytest.mark.slow
def test_quiet_says_nothing_when_all_is_well(checkpoint: Path, tmp_path: Path) -> None:
    options = ["-o", "a.mp4", "--seconds", 0.5, "--model", checkpoint, "-q"]
    done = call_process("render", "a red star", *options, cwd=tmp_path)
    assert (done.code, done.stdout, done.stderr) == (0, "a.mp4\n", "")


def test_ctrl_c_before_the_stream(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the model loads there is nothing to finish."""

    def load(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("streamgen.cli.options.load_pipeline", load)
    stopped = call(capsys, "render", "a red star", "-o", tmp_path / "a.mp4")
    assert (stopped.code, stopped.stdout, stopped.stderr) == (130, "", "interrupted\n")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_twice_stops_at_once() -> None:
    """The first sets the flag, the second does not wait; afterwards Ctrl-C means what it meant before."""
    stop, before = Stop(), signal.getsignal(signal.SIGINT)
    with stop.listening():
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
