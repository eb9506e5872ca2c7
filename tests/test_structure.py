"""The house rules, read from the source. Lists of exceptions may only shrink."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest
from helpers import ROOT

SRC = ROOT / "src/vivit_train"
LINES_OF_FILE, LINES_OF_FUNCTION = 400, 60
LONG_FILES = {
    "run.py",
    "prepare.py",
    "bench/loader.py",
    "data/datamodule.py",
    "data/decode.py",
    "data/manifest.py",
    "data/published.py",
    "data/source.py",
    "model/exchange.py",
}
LONG_FUNCTIONS = {
    "data/datamodule.py:__init__",
    "data/decode.py:_scan",
    "data/demo.py:make_demo",
    "data/manifest.py:make_splits",
    "data/manifest.py:read_csv",
    "data/manifest.py:read_folder",
    "doctor/examine.py:examine",
    "model/exchange.py:save_huggingface",
    "model/pretrained.py:init_from_vit",
    "prepare.py:prepare",
    "bench/loader.py:bench_loader",
    "run.py:check",
    "run.py:train_once",
}
PRINTS = {"bench/model.py", "lock.py", "names.py", "prepare.py", "processes.py"}


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
    assert long == LONG_FILES


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


def test_imports_have_no_circle() -> None:
    modules = {
        "vivit_train." + name.removesuffix(".py").removesuffix("__init__").replace("/", ".").rstrip("."): tree
        for name, tree in files()
    }
    graph = {name: (imported(tree) & modules.keys()) - {name, "vivit_train"} for name, tree in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
