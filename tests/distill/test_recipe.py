"""Recipes: stages in order, finished ones left alone, failures handed on."""

from pathlib import Path

import pytest

from distill.config import ConfigError
from distill.recipe import read_recipe, run_recipe

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
        ("max_minutes=5", "expected stage.key=value"),
        ("tow.max_minutes=5", "did you mean 'two'"),
    ],
)
def test_overrides_name_their_stage(folder: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recipe(folder, [override])


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
    """Every stage takes what an earlier one leaves."""
    from distill.stages import load_run
    from streamgen.structured import to_plain

    left: set[str] = set()
    for stage, _ in read_recipe(RECIPES / recipe).stages:
        config = to_plain(load_run(stage.config))
        taken = [config.get(key) for key in ("tokenizer", "init", "teacher")]
        taken.append(config.get("words", {}).get("start"))
        assert {path for path in taken if path is not None} <= left
        left.add(f"{config['run_dir']}/export")
