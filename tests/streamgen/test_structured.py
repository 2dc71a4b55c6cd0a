"""Dataclasses from plain values and back: what is converted, and the message of what does not fit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from streamgen.errors import CheckpointError
from streamgen.structured import StructureError, build, read_yaml, to_plain
from streamgen.tiny.config import read_tiny_config
from tests.tiny_checkpoints import write_checkpoint


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    kind: Literal["fast", "slow"] = "fast"
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError("rate: expected\n  >= 0")


@dataclass(frozen=True)
class Outer:
    name: str
    steps: int | None = 3
    size: int | tuple[int, ...] = 1
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    free: dict[str, Any] = field(default_factory=dict)


def test_values_take_their_declared_form_and_come_back() -> None:
    plain = {
        "name": "a",
        "steps": None,
        "size": [1, 2, 3],
        "flag": True,
        "inner": {"rate": "1e-4", "kind": "slow", "betas": [0, 1]},
        "free": {"x": [1]},
    }
    built = build(Outer, plain)
    assert built == Outer("a", None, (1, 2, 3), True, Inner(1e-4, "slow", (0.0, 1.0)), {"x": [1]})
    assert type(built.inner.betas[0]) is float
    assert to_plain(built) == plain | {"inner": {"rate": 1e-4, "kind": "slow", "betas": [0.0, 1.0]}}
    assert build(Outer, to_plain(built)) == build(Outer, {**plain, "inner": built.inner}) == built


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nmae": "b"}, "unknown key 'nmae' (did you mean 'name'?)"),
        ({"inner": {"rat": 1}}, "unknown key 'inner.rat' (did you mean 'inner.rate'?)"),
        ({"inner": {"x": 1}}, "unknown key 'inner.x' (known: rate, kind, betas)"),
        ({"inner": {3: 1}}, "unknown key 'inner.3' (known: rate, kind, betas)"),
        ({"name": 3}, "key name: expected str, found 3"),
        ({"steps": True}, "key steps: expected int, found True"),
        ({"steps": 2.0}, "key steps: expected int, found 2.0"),
        ({"flag": 1}, "key flag: expected bool, found 1"),
        ({"size": [1, "x"]}, "key size[1]: expected int, found 'x'"),
        ({"size": "x"}, "key size: expected a list, found 'x'"),
        ({"inner": 3}, "key inner: expected a section of keys, found 3"),
        ({"inner": {"rate": "fast"}}, "key inner.rate: expected float, found 'fast'"),
        ({"inner": {"kind": "quick"}}, "key inner.kind: expected one of fast, slow, found 'quick'"),
        ({"inner": {"betas": [0.9]}}, "key inner.betas: expected a list of 2, found [0.9]"),
        ({"inner": {"rate": -1}}, "section inner: rate: expected >= 0"),
        ({"free": []}, "key free: expected a dict, found []"),
    ],
)
def test_what_does_not_fit_is_one_line(changes: dict[str, Any], message: str) -> None:
    for label in ("", "config "):
        with pytest.raises(StructureError) as caught:
            build(Outer, {"name": "a", **changes}, label=label)
        expected = message.replace("key ", f"{label}key ", 1).replace(
            "section inner", f"{label}section inner"
        )
        assert str(caught.value) == expected
    with pytest.raises(StructureError, match=r"^key part\.name is missing$"):
        build(Outer, {}, "part.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1", "expected keys and values, found a list"),
        ("a: [", "not readable as YAML"),
        ("a: ${b}", "not readable as YAML"),
        (b"\xff\0", "not readable as YAML"),
        (None, "no such file"),
    ],
)
def test_files_that_are_no_config(content: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(StructureError, match=message) as caught:
        read_yaml(path, label="config ")
    assert str(caught.value).startswith(f"config {path}: ")
    assert "\n" not in str(caught.value)


def test_overrides_are_dotted_and_the_last_one_wins(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\nb: {c: 2}\n")
    assert read_yaml(tmp_path / "a.yaml", ["b.c=3", "b.c=[4]"]) == {"a": 1, "b": {"c": [4]}}
    with pytest.raises(StructureError, match=r"^override 'b': expected key=value$"):
        read_yaml(tmp_path / "a.yaml", ["b"])


def test_a_checkpoint_streams_with_the_sink_and_window_of_its_plan(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path) / "config.yaml"
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    content["sampling"] = {"steps": 7}
    OmegaConf.save(OmegaConf.create(content), path)
    settings, plan = read_tiny_config(tmp_path).sampling, content["plan"]
    assert (settings.steps, settings.shift) == (7, 3.0)
    assert (settings.sink_frames, settings.window_frames) == (plan["sink_frames"], plan["window_frames"])
    for change, message in (
        ({"sampling": {"stepz": 7}}, f"^{path}: sampling: setting unknown key 'stepz'"),
        ({"plan": {"chunk_frames": 0}}, f"^{path}: section plan: first_chunk_frames must be in"),
        ({"height": 33}, f"^{path}: picture size must be a multiple of"),
        ({"format": 2, "later": 1}, f"^{path}: expected format 1, found 2$"),
    ):
        OmegaConf.save(OmegaConf.create(content | change), path)
        with pytest.raises(CheckpointError, match=message):
            read_tiny_config(tmp_path)


def test_a_text_is_parsed_once_and_a_changed_file_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its text, not by its time: two writes within a tick of the disk's clock are two files."""
    parsed: list[object] = []
    load = OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda file: (parsed.append(file), load(file))[1])
    file = tmp_path / "a.yaml"
    file.write_text(f"a: {{b: [1, 2]}}\nwhere: {tmp_path}\n")
    first = read_yaml(file)
    first["a"]["b"].append(3)
    assert read_yaml(file)["a"] == {"b": [1, 2]}
    assert len(parsed) == 1
    for _ in range(2):
        assert read_yaml(file, ["a.b=4"])["a"] == {"b": 4}
    assert read_yaml(file)["a"] == {"b": [1, 2]}
    assert len(parsed) == 2
    file.write_text(f"a: {{b: [1, 5]}}\nwhere: {tmp_path}\n")
    assert read_yaml(file)["a"] == {"b": [1, 5]}
    monkeypatch.setenv("STREAMGEN_WHERE", "here")
    file.write_text("a: ${oc.env:STREAMGEN_WHERE}\n")
    assert read_yaml(file)["a"] == "here"
    monkeypatch.setenv("STREAMGEN_WHERE", "there")
    assert read_yaml(file)["a"] == "there"
