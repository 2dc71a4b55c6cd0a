"""Damaged weights files are one line each, whatever is wrong with them; none is a traceback."""

import warnings
from pathlib import Path

import pytest

from models.lora import merge_lora, read_lora
from models.unwrap import GENERATOR_SECTIONS
from streamgen.checkpoints.directory import check_tensors
from streamgen.checkpoints.foreign import read_foreign
from streamgen.errors import StreamgenError
from streamgen.families import inspect_checkpoint
from streamgen.wan.adopt import adopt
from tests.command_line import call
from tests.foreign_layouts import plain
from tests.foreign_mutations import write_mutation


def outcome(path: Path) -> str:
    """Read a file as a model's network or LoRA; the refusal, or what it is."""
    try:
        found = read_foreign(path, GENERATOR_SECTIONS)
        if found.kind == "lora":
            try:
                merge_lora(plain(), read_lora(found.tensors))
            except ValueError as error:
                # as the loader does
                return str(error)
        else:
            check_tensors(plain(), found.tensors, str(path))
        return f"read: {found.kind}"
    except StreamgenError as error:
        return str(error)


def inspected(path: Path) -> str:
    """The refusals of `inspect` and `adopt`, or nothing."""
    out = []
    for look in (inspect_checkpoint, adopt):
        try:
            report = look(str(path) if look is adopt else path)  # type: ignore[arg-type]
            out += report.get("problems", [])
        except StreamgenError as error:
            out.append(str(error))
    return "".join(out)


def run_mutations(seeds: range, folder: Path, inspect_every: int = 1) -> dict[str, int]:
    """How many of the mutated files were read and refused; anything else is raised."""
    counts = {"read": 0, "refused": 0}
    for seed in seeds:
        path = write_mutation(seed, folder)
        text = outcome(path)
        assert "\n" not in text, (seed, text)
        counts["read" if text.startswith("read: ") else "refused"] += 1
        if seed % inspect_every == 0:
            assert "\n" not in inspected(path), seed
        path.unlink()
    return counts


@pytest.fixture(autouse=True)
def _no_warnings_of_torch() -> object:
    with warnings.catch_warnings():
        # torch warns of the pickle protocols that damaged bytes ask for
        warnings.simplefilter("ignore")
        yield


def test_two_hundred_mutations(tmp_path: Path) -> None:
    counts = run_mutations(range(200), tmp_path, inspect_every=8)
    # neither all good nor all refused for the same first reason
    assert counts["read"] > 30, counts
    assert counts["refused"] > 60, counts


@pytest.mark.soak
def test_two_thousand_mutations(tmp_path: Path) -> None:
    run_mutations(range(200, 2200), tmp_path)


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(12):
        done = call(capsys, "inspect", write_mutation(seed, tmp_path))
        if done.code != 0:
            done.error()
