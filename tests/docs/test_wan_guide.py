"""The guide of the Wan family names everything there is: models, their files and numbers, options."""

from pathlib import Path

import pytest
import typer

from streamgen.cli.app import app
from streamgen.wan.config import CONFIGS, read_wan_config, wan_model_names
from streamgen.wan.releases import RELEASES

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "wan.md").read_text(encoding="utf-8")


def rows() -> dict[str, list[str]]:
    """Cells of the table of releases by model: release, model, source, file, numbers, steps."""
    found = {}
    for line in GUIDE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[1].startswith("`wan-1.3b-"):
            found[cells[1].strip("`")] = cells
    return found


ROWS = rows()


@pytest.mark.parametrize("name", wan_model_names())
def test_every_model_has_a_row_with_its_numbers(name: str) -> None:
    config = read_wan_config(CONFIGS / f"{name}.yaml")
    row = ROWS[name]
    plan = config.plan
    numbers = f"{plan.chunk_frames}, {plan.sink_frames}, {plan.window_frames}"
    assert row[4].removesuffix(", assumed") == numbers
    assert str(config.sampling.steps) in row[5]
    told = row[3]
    assert "the same" in told or "as LongLive" in told or config.sources.dit[0] in told


@pytest.mark.parametrize("release", [each for each in RELEASES if each.config], ids=lambda each: each.name)
def test_every_known_release_is_one_of_them(release: object) -> None:
    config, source = vars(release)["config"], vars(release)["source"]
    assert config in ROWS
    assert source in GUIDE


def test_every_option_of_the_family_is_there() -> None:
    render = typer.main.get_command(app).commands["render"]  # type: ignore[attr-defined]
    options = {
        option
        for parameter in render.params
        if vars(parameter).get("rich_help_panel") == "Models of the Wan family"
        for option in parameter.opts
    }
    assert len(options) > 10
    assert {option for option in options if option not in GUIDE} == set()
