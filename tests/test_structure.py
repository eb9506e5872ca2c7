"""The house rules, read from the source. Lists of exceptions may only shrink."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest
from helpers import ROOT

SRC = ROOT / "src/vivit_train"
LINES_OF_FILE, LINES_OF_FUNCTION = 400, 60
LONG_FUNCTIONS: set[str] = set()
PRINTS: set[str] = set()


WINGS = ("utils", "data", "models", "training", "", "tools")  # from the ground up; "" is the story at the top


def wing(module: str) -> str:
    """The package below vivit_train that a module is in."""
    return parts[1] if len(parts := module.split(".")) > 1 and parts[1] in WINGS else ""


def files() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(SRC.rglob("*.py")):
        yield str(file.relative_to(SRC)), ast.parse(file.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    """Modules of this package that a module names in its imports, those within functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vivit_train":
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("vivit_train")}
    return found


def test_no_file_is_longer_than_a_person_reads() -> None:
    long = {name for name, _ in files() if len((SRC / name).read_text().splitlines()) > LINES_OF_FILE}
    assert not long


def test_no_function_is_longer_than_a_screen() -> None:
    long = {
        f"{name}:{node.name}"
        for name, tree in files()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LINES_OF_FUNCTION
    }
    assert long == LONG_FUNCTIONS


def test_nothing_prints_by_itself() -> None:
    calls = {
        name
        for name, tree in files()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert calls == PRINTS


@cache
def imports() -> dict[str, set[str]]:
    """By module the modules of this package that it imports."""
    modules = {
        "vivit_train." + name.removesuffix(".py").removesuffix("__init__").replace("/", ".").rstrip("."): tree
        for name, tree in files()
    }
    return {name: (imported(tree) & modules.keys()) - {name, "vivit_train"} for name, tree in modules.items()}


def test_imports_have_no_circle() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_only_go_down() -> None:
    """And models know no data."""
    rank = WINGS.index
    up = [(a, b) for a, below in imports().items() for b in below if rank(wing(b)) > rank(wing(a))]
    assert not up
    assert not [
        (a, b) for a, below in imports().items() for b in below if (wing(a), wing(b)) == ("models", "data")
    ]


def test_the_readme_shows_the_wings() -> None:
    (block,) = re.findall(r"```\ntrain\.py  eval\.py.*?```", (ROOT / "README.md").read_text(), re.DOTALL)
    shown = re.findall(r"^  (\w+)/", block, re.MULTILINE)
    assert sorted(shown) == sorted(f.parent.name for f in SRC.glob("*/__init__.py"))


def test_every_file_is_in_the_tree() -> None:
    (block,) = re.findall(r"```\ntrain\.py  eval\.py.*?```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    ours = block[block.index("src/vivit_train/") : block.index("benchmarks/  ")]
    shown, folders = [], [""]
    for line in ours.splitlines()[1:]:
        depth = len(line) - len(line.lstrip())
        if folder := re.match(r" +([a-z]+)/", line):
            folders = [*folders[: depth // 2], folder[1]]
        elif depth < 6:
            folders = folders[: depth // 2]
        shown += ["/".join([*folders, name]).strip("/") for name in re.findall(r"(?<!\S)\w+\.py\b", line)]
    assert sorted(shown) == [name for name, _ in files() if not name.endswith("__init__.py")]


def test_modules_that_are_run_log_under_their_own_name() -> None:
    """Run by `python -m`, a module's `__name__` is "__main__", whose messages no handler of ours takes."""
    for name, _ in files():
        text = (SRC / name).read_text(encoding="utf-8")
        assert not ('__name__ == "__main__"' in text and "getLogger(__name__)" in text), name


READ_ELSEWHERE = {  # files that no stranger has made, or whose size and kind are known before they are opened
    "data/synthetic.py",
    "help.py",
    "keys.py",
    "models/weights/flax_file.py",
    "utils/files.py",
    "utils/lock.py",
    "utils/page.py",
    "utils/run_folder.py",
}


def test_files_of_strangers_are_read_by_functions_that_neither_wait_nor_grow() -> None:
    calls = {
        name
        for name, tree in files()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("read_text", "read_bytes", "DictReader")
    }
    assert calls == READ_ELSEWHERE
