"""The rules that hold the code base together, checked on the syntax trees of all files.

Import direction, sizes, naming, documentation and printing. A rule is a function `(path, tree) -> offences`;
every rule is also run on small sources that break it, so that a rule which stopped looking would be noticed.
"""

import ast
import functools
import graphlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each top-level package may import of ours. Configs are data and reach the code by name.
ALLOWED_IMPORTS: dict[str, set[str]] = {
    "configs": set(),
    "models": set(),
    "streamgen": {"models"},
    "distill": {"models", "streamgen"},
    "demo": {"streamgen"},
}
MAY_PRINT = (
    "streamgen/cli/*.py",
    "streamgen/check/__main__.py",
    "distill/__main__.py",
    "distill/evaluate.py",
    "demo/*.py",
    "demo/cluster/*.py",
)
MAX_FILE_LINES = 520
MAX_FUNCTION_LINES = 70
CONFIG_NAMES = {"cfg", "config", "conf", "args"}
GRAB_BAGS = {"util", "utils"}

Rule = Callable[[PurePosixPath, ast.Module], Iterator[str]]


@dataclass(frozen=True)
class Source:
    """One Python file: its path relative to the repository, and its text."""

    path: PurePosixPath
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def offences(self, rule: Rule) -> list[str]:
        return [f"{self.path}:{offence}" for offence in rule(self.path, self.tree)]


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every absolute import, at any depth; import_module("...") counts too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and last_name(node.func) in {"import_module", "__import__"}:
            constants = [argument for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, str(constant.value)) for constant in constants)


def last_name(node: ast.expr) -> str:
    """The last part of a dotted expression; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def import_direction(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    """Each package imports of ours only what ALLOWED_IMPORTS grants, and itself only by relative imports."""
    package = path.parts[0]
    if package not in ALLOWED_IMPORTS:
        return
    for line, name in imported_modules(tree):
        target = name.split(".")[0]
        if target == package:
            yield f"{line}: imports {name} absolutely; inside a package imports are relative"
        elif target in ALLOWED_IMPORTS and target not in ALLOWED_IMPORTS[package]:
            yield f"{line}: {package} must not import {name}"


def file_length(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    """No file over MAX_FILE_LINES, counted to the end of its last statement."""
    last = max((node.end_lineno or 0 for node in tree.body), default=0)
    if last > MAX_FILE_LINES:
        yield f"{last}: file of {last} lines, at most {MAX_FILE_LINES}"


def function_length(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    """No function over MAX_FUNCTION_LINES, docstring included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"


def no_grab_bag(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    """No module or package called utils: a name that says nothing collects everything."""
    if GRAB_BAGS & set(path.with_suffix("").parts):
        yield "1: name the module after what it does"


def no_config_getattr(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    """No getattr on a config: a misspelt or missing key must be an error, not a default."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and last_name(node.func) == "getattr" and node.args:
            name = last_name(node.args[0])
            if name in CONFIG_NAMES or name.endswith(("_cfg", "_config", "_args")):
                yield f"{node.lineno}: getattr on {name}"


def public_module_docstring(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    """Every module of the packages has a docstring, unless its name begins with one underscore."""
    private = any(part.startswith("_") and not part.startswith("__") for part in path.parts)
    if path.parts[0] in ALLOWED_IMPORTS and not private and not ast.get_docstring(tree):
        yield "1: no module docstring"


def no_print(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    """print is for entry points; everything else returns values or raises."""
    if path.parts[0] not in ALLOWED_IMPORTS or any(path.match(pattern) for pattern in MAY_PRINT):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{node.lineno}: print outside the entry points"


RULES: list[Rule] = [
    import_direction,
    file_length,
    function_length,
    no_grab_bag,
    no_config_getattr,
    public_module_docstring,
    no_print,
]


# The rooms of streamgen from the ground up: a file imports from its own room and from earlier ones.
ROOMS = (
    ("errors",),
    ("suggest",),
    ("structured", "machine", "interpolate"),
    ("video",),
    ("motion",),
    ("engine",),
    ("live",),
    ("stream",),
    ("checkpoints",),
    ("tiny", "wan"),
    ("families",),
    ("pipeline",),
    ("roofline",),
    ("bench", "rehearsal"),
    ("check",),
    ("render",),
    ("cli",),
)
# The door: it names what is public, and loads it when asked.
DOORS = ("__init__", "__main__")
MAX_ROOM_FILES = 16


def imports_of(source: Source) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every module of ours that a file imports, relative ones resolved."""
    tree = source.tree
    yield from imported_modules(tree)
    package = source.path.parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(
                (*package[: len(package) - node.level + 1], *([node.module] if node.module else []))
            )
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room_of(module: str) -> int | None:
    """The place in ROOMS of a module of streamgen; None for other modules and for the door."""
    parts = module.split(".")
    if parts[0] != "streamgen" or len(parts) == 1 or parts[1] in DOORS:
        return None
    return next((i for i, names in enumerate(ROOMS) if parts[1] in names), len(ROOMS))


def room_offences(sources: Sequence[Source]) -> list[str]:
    """Imports of streamgen that go up."""
    found = []
    for source in sources:
        place = room_of(module_name(source.path))
        for line, name in imports_of(source):
            target = room_of(name)
            if place is not None and target is not None and target > place:
                found.append(f"{source.path}:{line}: imports {name}, which lies above it")
            same = place == target and place is not None and name.split(".")[1] != source.path.parts[1]
            if same and source.path.stem != name.split(".")[1]:
                found.append(f"{source.path}:{line}: imports {name}, a neighbour on its own floor")
    return found


def module_name(path: PurePosixPath) -> str:
    """The dotted name of a file."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(sources: Sequence[Source]) -> list[tuple[str, ...]]:
    """Groups of files that import each other, imports inside functions and for type checkers counted."""
    names = {module_name(source.path) for source in sources}
    graph = {
        module_name(source.path): {name for _, name in imports_of(source) if name in names}
        - {module_name(source.path)}
        for source in sources
    }
    # a package's door is not what its rooms import when they name each other
    doors = {module_name(source.path) for source in sources if source.path.stem == "__init__"}
    for name in graph:
        graph[name] -= {door for door in doors if name.startswith(f"{door}.")}
    sorter = graphlib.TopologicalSorter(graph)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        return [tuple(error.args[1])]
    return []


@functools.cache
def repository_sources() -> list[Source]:
    """All Python files of the packages and the tests."""
    return [
        Source(PurePosixPath(path.relative_to(ROOT).as_posix()), path.read_text(encoding="utf-8"))
        for folder in (*ALLOWED_IMPORTS, "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_repository_keeps_the_rule(rule: Rule) -> None:
    offences = [offence for source in repository_sources() for offence in source.offences(rule)]
    assert not offences, "\n".join([str(rule.__doc__), *offences])


def test_rooms_import_only_rooms_below_them() -> None:
    assert room_offences(repository_sources()) == []


def test_every_file_of_streamgen_has_a_room() -> None:
    places = {source.path: room_of(module_name(source.path)) for source in repository_sources()}
    assert [path for path, place in places.items() if place == len(ROOMS)] == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(repository_sources()) == []


def test_rooms_stay_small() -> None:
    counts = Counter(source.path.parent for source in repository_sources() if source.path.parts[0] != "tests")
    crowded = {str(room): count for room, count in counts.items() if count > MAX_ROOM_FILES}
    assert {room for room in crowded if room.startswith("streamgen")} == set(), crowded


def test_room_and_circle_checks_catch_offenders() -> None:
    low = Source(
        PurePosixPath("streamgen/engine/noise.py"), "def f():\n    from ..stream.session import Session"
    )
    assert room_offences([low])
    assert room_offences([Source(PurePosixPath("streamgen/tiny/a.py"), "from ..wan.config import WanConfig")])
    assert room_offences([Source(PurePosixPath("streamgen/errors.py"), "from .suggest import shorten")])
    assert not room_offences([Source(PurePosixPath("streamgen/stream/a.py"), "from ..engine.noise import N")])
    first = Source(PurePosixPath("distill/a.py"), "if TYPE_CHECKING:\n    from .b import B")
    second = Source(PurePosixPath("distill/b.py"), "def f():\n    from . import c")
    third = Source(PurePosixPath("distill/c.py"), "import distill.a")
    assert circles([first, second, third])
    assert not circles([first, second])


@pytest.mark.parametrize("package", ALLOWED_IMPORTS)
def test_package_is_found(package: str) -> None:
    """A package that moved away would otherwise pass every rule above."""
    assert any(source.path.parts[0] == package for source in repository_sources())


def test_no_package_escapes_the_rules() -> None:
    packages = {init.parent.name for init in ROOT.glob("*/__init__.py")}
    assert packages <= set(ALLOWED_IMPORTS), "a new top-level package needs a row in ALLOWED_IMPORTS"


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
LONG_METHOD = "class A:\n    async def f():\n" + "        x = 1\n" * MAX_FUNCTION_LINES
OFFENDERS: list[tuple[Rule, str, str]] = [
    (import_direction, "models/a.py", "from streamgen.engine.geometry import LatentGeometry"),
    (import_direction, "models/a.py", "import torch, distill"),
    (import_direction, "models/deep/a.py", "def f():\n    import streamgen.stream.rollout as r"),
    (import_direction, "streamgen/a.py", "if TYPE_CHECKING:\n    from distill import losses"),
    (import_direction, "streamgen/a.py", "importlib.import_module('demo.server')"),
    (import_direction, "streamgen/a.py", "from streamgen.engine.geometry import LatentGeometry"),
    (import_direction, "distill/a.py", "import demo"),
    (import_direction, "demo/a.py", "from models import CausalDiT"),
    (file_length, "streamgen/a.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
    (function_length, "streamgen/a.py", LONG_FUNCTION),
    (function_length, "tests/test_a.py", LONG_METHOD),
    (no_grab_bag, "streamgen/utils.py", ""),
    (no_grab_bag, "models/utils/rope.py", ""),
    (no_config_getattr, "models/a.py", "getattr(config, 'width', 3)"),
    (no_config_getattr, "models/a.py", "x = [getattr(self.cfg, name) for name in names]"),
    (no_config_getattr, "distill/a.py", "getattr(train_config, 'steps')"),
    (public_module_docstring, "streamgen/a.py", "x = 1"),
    (public_module_docstring, "streamgen/__init__.py", ""),
    (no_print, "streamgen/pipeline.py", "def f():\n    print('x')"),
    (no_print, "distill/trainer.py", "print('x')"),
]
INNOCENT: list[tuple[Rule, str, str]] = [
    (import_direction, "models/a.py", "import torch\nfrom .rope import rotate"),
    (import_direction, "distill/a.py", "from streamgen.stream.rollout import rollout\nimport models"),
    (import_direction, "tests/test_a.py", "import models, distill, demo"),
    (file_length, "streamgen/a.py", "x = 1\n" * MAX_FILE_LINES),
    (function_length, "streamgen/a.py", LONG_FUNCTION.removesuffix("    x = 1\n")),
    (no_grab_bag, "streamgen/utilisation.py", ""),
    (no_config_getattr, "models/a.py", "getattr(module, 'weight')"),
    (public_module_docstring, "streamgen/a.py", '"""What it does."""'),
    (public_module_docstring, "streamgen/_a.py", "x = 1"),
    (no_print, "streamgen/cli/app.py", "print('x')"),
    (no_print, "streamgen/cli/render.py", "print('x')"),
    (no_print, "demo/server.py", "print('x')"),
    (no_print, "streamgen/a.py", "console.print('x')"),
]


@pytest.mark.parametrize(("rule", "path", "text"), OFFENDERS)
def test_rule_catches_offender(rule: Rule, path: str, text: str) -> None:
    assert Source(PurePosixPath(path), text).offences(rule)


@pytest.mark.parametrize(("rule", "path", "text"), INNOCENT)
def test_rule_spares_the_innocent(rule: Rule, path: str, text: str) -> None:
    assert not Source(PurePosixPath(path), text).offences(rule)


def test_every_rule_has_an_offender() -> None:
    assert {rule for rule, _, _ in OFFENDERS} == set(RULES)
