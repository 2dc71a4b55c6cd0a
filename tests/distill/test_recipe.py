"""Recipes: stages in order, finished ones left alone, failures handed on."""

from pathlib import Path

import pytest

from distill.config import ConfigError, read_mapping
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
        ("scoring=windows", ["self_forcing"]),
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
