"""Recipes: stages in order, finished ones left alone, failures handed on."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import distill.recipe
from distill.config import ConfigError, read_mapping
from distill.recipe import read_recipe, run_recipe
from streamgen import load_pipeline

KINDS = ("beginnings", "clips", "changes")
RECIPES = Path(__file__).resolve().parents[2] / "configs" / "distill"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.yaml").write_text(f"stage: tokenizer\nrun_dir: {tmp_path}/runs/{name}\n")
    (tmp_path / "recipe.yaml").write_text("stages: [one, two, three]\n")
    return tmp_path


def finish(folder: Path, name: str) -> None:
    (folder / "runs" / name / "export").mkdir(parents=True)
    (folder / "runs" / name / "export" / "model.safetensors").write_bytes(b"")


def test_stages_run_in_order_and_finished_ones_do_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run(module: str, arguments: list[str]) -> int:
        ran.append([module, *arguments])
        return 0

    finish(folder, "one")
    (folder / "recipe.yaml").write_text("stages: [one, two, three]\nreport: runs/report\n")
    assert run_recipe(folder, ["two.max_minutes=5", "two.optim.lr=1e-3"], ["--processes", "2"], run) == 0
    assert ran == [
        ["distill", str(folder / "two.yaml"), "max_minutes=5", "optim.lr=1e-3", "--processes", "2"],
        ["distill", str(folder / "three.yaml"), "--processes", "2"],
        ["distill.evaluate", "--model", str(folder / "runs" / "three" / "export"), "-o", "runs/report"],
    ]
    assert "one: done" in capsys.readouterr().err


def test_a_failing_stage_ends_the_recipe(folder: Path) -> None:
    ran: list[str] = []

    def run(module: str, arguments: list[str]) -> int:
        ran.append(arguments[0])
        return 143 if "two" in arguments[0] else 0

    assert run_recipe(folder, [], [], run) == 143
    assert len(ran) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_minutes", r"expected \[stage\.\]key=value"),
        ("tow.max_minutes=5", "did you mean 'two'"),
        ("one.max_minuts=5", "stage one has no key max_minuts"),
        ("max_minuts=5", "no stage has such a key"),
    ],
)
def test_overrides_are_of_some_stage(folder: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recipe(folder, [override])


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("seed=3", ["tokenizer", "words", "causal", "init", "self_forcing"]),
        ("clips.path=folder", ["tokenizer", "causal", "init", "self_forcing"]),
        ("optim.lr=1e-4", ["tokenizer", "words", "causal", "init", "self_forcing"]),
        ("windows.copies=2", ["causal", "init", "self_forcing"]),
        ("scenes.motion_weights.circles=2", ["tokenizer", "words", "causal", "init", "self_forcing"]),
        ("scoring=windows", ["init", "self_forcing"]),
        # a stage and a section of other stages have that name
        ("words.gate=0.9", ["words"]),
        ("words.weight=0.2", ["causal", "init", "self_forcing"]),
        ("causal.seed=3", ["causal"]),
    ],
)
def test_an_override_without_a_stage_goes_to_all_that_know_its_key(override: str, stages: list[str]) -> None:
    recipe = read_recipe(RECIPES / "tiny", [override])
    given = {stage.name: own for stage, own in recipe.stages if own}
    assert list(given) == stages
    whole = override.removeprefix("causal.").replace("words.gate", "gate")
    assert all(own == [whole] for own in given.values())


def test_a_config_says_what_differs_from_its_bases(tmp_path: Path) -> None:
    """Key by key, later bases over earlier ones, the file over all; overrides come last."""
    (tmp_path / "one.yaml").write_text("a: 1\nsection: {x: 1, y: 1}\nlist: [1, 2]\n")
    (tmp_path / "two.yaml").write_text("base: one.yaml\nb: 2\nsection: {y: 2}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "three.yaml").write_text("section: {x: 3}\nc: null\n")
    own = tmp_path / "own.yaml"
    own.write_text("base: [two.yaml, sub/three.yaml]\nlist: [4]\nd: 4\n")
    expected = {"a": 1, "b": 2, "c": None, "d": 5, "section": {"x": 3, "y": 2}, "list": [4]}
    assert read_mapping(own, ["d=5"]) == expected


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("own.yaml", "one that is its own"),
        ("missing.yaml", "no such file"),
        ("3", "expected a file or a list of files, found 3"),
        ("[1]", "expected a file or a list of files"),
        ("back.yaml", "one that is its own"),
    ],
)
def test_bases_that_are_none_are_refused(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "back.yaml").write_text("base: own.yaml\n")
    (tmp_path / "own.yaml").write_text(f"base: {base}\n")
    with pytest.raises(ConfigError, match=message):
        read_mapping(tmp_path / "own.yaml")


def test_a_folder_without_a_recipe_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        read_recipe(folder / "runs")
    (folder / "recipe.yaml").write_text("stages: one\n")
    with pytest.raises(ConfigError, match="a list of names"):
        read_recipe(folder)
    (folder / "recipe.yaml").write_text("stages: [one]\nreport: [a]\n")
    with pytest.raises(ConfigError, match="a folder"):
        read_recipe(folder)
    (folder / "recipe.yaml").write_text("stages: [four]\n")
    with pytest.raises(ConfigError, match=r"four\.yaml"):
        read_recipe(folder)


@pytest.mark.parametrize("recipe", ["tiny", "clips"])
def test_a_recipe_hands_its_results_on(recipe: str) -> None:
    """Every stage takes what an earlier one leaves, or what ships."""
    from distill.stages import load_run
    from streamgen.structured import to_plain

    left = {"streamgen/weights/natural-tokenizer"} if recipe == "clips" else set()
    for stage, _ in read_recipe(RECIPES / recipe).stages:
        config = to_plain(load_run(stage.config))
        taken = [config.get(key) for key in ("tokenizer", "init", "teacher")]
        taken.append(config.get("words", {}).get("start"))
        assert {path for path in taken if path is not None} <= left
        left.add(f"{config['run_dir']}/export")


_SAVING = """
import pathlib, signal, sys, time
place = pathlib.Path(sys.argv[1])
def save(*_):
    time.sleep(0.5)
    (place / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(place / "ready").touch()
time.sleep(60)
"""


def test_a_stage_has_saved_when_a_stopped_recipe_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM to the recipe alone, as from a supervisor, reaches the stage and is waited for."""
    (tmp_path / "saving.py").write_text(_SAVING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def stop() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert distill.recipe._run("saving", [str(tmp_path)]) == 143
    assert (tmp_path / "saved").exists()


@pytest.mark.slow
def test_slices_on_a_gpu_machine_go_on_where_they_ended(tmp_path: Path) -> None:
    """The script at small size: a slice that is too short for anything, one that does the rest from what the
    first left elsewhere, and one that finds all done.
    """
    small = [
        *(
            "network.dim=48",
            "network.layers=1",
            "network.heads=2",
            "network.ffn_dim=32",
            "optim.warmup_steps=1",
        ),
        *("network.text_dim=32", "network.text_layers=1", "text.dim=16", "text.layers=1", "scenes.size=32"),
        *("cache.clips=16", "cache.images=32", "cache.frames=57", "max_steps=2", "preview.at_end=false"),
        *("model.dim=48", "model.heads=2", "model.encoder_spatial=1", "model.encoder_temporal=1"),
        *(
            "model.decoder_spatial=1",
            "model.decoder_temporal=1",
            "data.pca_clips=8",
            "data.statistics_clips=8",
        ),
        *("data.held_out_clips=4", "data.sizes=[32]", "data.image_batch=4", "data.video_batch=2"),
        *("words.test=64", "words.gate=0", "words.batch=32", "turning.clips=4", "turning.most=null"),
        *("causal.words.gate=0", "init.words.gate=0", "self_forcing.words.gate=0", "critic.warmup=1"),
        *(f"{stage}.mixture.images.batch=8" for stage in ("causal", "init")),
        *(f"{stage}.mixture.{kind}.batch=2" for stage in ("causal", "init") for kind in KINDS),
        *("self_forcing.rollout.batch=2", "self_forcing.rollout.first_batch=4", "prefetch=false"),
    ]
    script = str(RECIPES.parents[1] / "scripts" / "gpu_train.sh")

    def run_slice(folder: str, minutes: str) -> subprocess.CompletedProcess[str]:
        known = {"PYTHON": sys.executable, "SLICE_MINUTES": minutes, "PACK": str(tmp_path / "pack")}
        return subprocess.run(
            ["bash", script, str(tmp_path / folder), *small],
            env=os.environ | known,
            capture_output=True,
            text=True,
            check=False,
        )

    short = run_slice("first", "1")
    assert short.returncode == 75, short.stderr
    assert "the same command goes on" in short.stderr
    whole = run_slice("first", "8")
    assert whole.returncode == 0, whole.stderr
    assert all(f"stage {number} of 5" in whole.stderr for number in range(1, 6))
    pipeline = load_pipeline(tmp_path / "first" / "runs" / "tiny" / "self_forcing" / "export")
    assert pipeline.plan.window_frames == 8
    again = run_slice("second", "8")
    assert again.returncode == 0, again.stderr
    assert "went on from what lies in" in again.stderr
    assert again.stderr.count(": done (") == 5
