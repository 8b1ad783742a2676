"""Imports look down the layers only, wherever they are written, and no file imports itself through others."""

import ast
import functools
import importlib
import inspect
from pathlib import Path

import pytest

import fulmen

SRC = Path(fulmen.__file__).parent

# From the bottom to the top; a folder may import from itself and from those in rows above it.
LAYERS = [
    ["dispatching"],
    ["core"],
    ["augmentations", "data", "environments", "metric_types", "models", "objectives", "schedules"],
    ["interop"],
    ["compose"],
    ["optimizers"],
    ["devices"],
    ["train"],
    ["inspect"],
    ["systems"],
    ["robust"],
    ["__init__"],
    ["testing"],
    ["commands"],
    ["__main__"],
]
LEVEL = {folder: level for level, row in enumerate(LAYERS) for folder in row}


def module_of(path: Path, root: Path = SRC) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(module: str) -> str:
    """The folder, or at the top the file, that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(source: str, module: str, known: set[str]) -> set[str]:
    """The modules of the package that a file imports, at its top, in functions and under `TYPE_CHECKING`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            assert not node.level, f"{module} has a relative import, {base}"
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return {name for name in found if name in known and name != module}


FILES = {module_of(path): path for path in sorted(SRC.rglob("*.py"))}


@functools.cache
def graph_of_files() -> dict[str, set[str]]:
    """The modules that each file imports."""
    return {module: imports_of(path.read_text(), module, set(FILES)) for module, path in FILES.items()}


def upward(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports from a folder of a folder that is not below it."""
    pairs = ((a, b) for a, inside in graph.items() for b in inside if folder_of(a) != folder_of(b))
    return sorted((a, b) for a, b in pairs if LEVEL[folder_of(b)] >= LEVEL[folder_of(a)])


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The sets of files that import each other, directly or through others (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            circle = [stack.pop()]
            while circle[-1] != node:
                circle.append(stack.pop())
            found.extend([sorted(circle)] if len(circle) > 1 else [])

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_every_folder_has_a_layer():
    assert {folder_of(module) for module in FILES} <= set(LEVEL)


def test_imports_look_down_only():
    assert not upward(graph_of_files()), "\n".join(f"{a} imports {b}" for a, b in upward(graph_of_files()))


def test_no_file_imports_itself_through_others():
    assert not circles(graph_of_files()), "\n".join(", ".join(circle) for circle in circles(graph_of_files()))


@pytest.mark.parametrize(
    "line",
    [
        "from fulmen.train.step import differentiate",
        "def f():\n    from fulmen.train.step import differentiate",
        "if TYPE_CHECKING:\n    from fulmen.train import step",
        "def f():\n    import fulmen.train.step",
    ],
)
def test_an_upward_import_is_found_wherever_it_is_written(line):
    module = "fulmen.core.tree"
    added = imports_of(f"{FILES[module].read_text()}\n{line}\n", module, set(FILES))
    assert (module, "fulmen.train.step") in upward({**graph_of_files(), module: added})
    assert any(module in circle for circle in circles({**graph_of_files(), module: added}))


def test_every_file_but_the_contracts_is_short():
    lengths = {str(path.relative_to(SRC)): len(path.read_text().splitlines()) for path in SRC.rglob("*.py")}
    assert {name for name, length in lengths.items() if length >= 300} == {"core/verbs.py"}


def test_no_two_files_have_the_same_name():
    names: dict[str, list[str]] = {}
    for module in FILES:
        names.setdefault(module.rpartition(".")[2], []).append(module)
    assert not {name: modules for name, modules in names.items() if len(modules) > 1}


def test_no_public_name_hides_a_module():
    for module, path in FILES.items():
        if path.name == "__init__.py":
            inside = {other.rpartition(".")[2] for other in FILES if other.rpartition(".")[0] == module}
            package = importlib.import_module(module)
            assert not [name for name in inside if not inspect.ismodule(getattr(package, name, inspect))], module
