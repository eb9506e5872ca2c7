"""Every command that README.md and docs/ show is accepted, run by a test, or says above it why not."""

import re
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER, browse
from build_site import API, write_pages
from commands_page import commands_page
from doc_commands import Command, all_commands
from forked import run_python
from helpers import ROOT
from typer.core import TyperGroup
from typer.main import get_command

import vivit_train
from vivit_train.composition import compose
from vivit_train.help import all_keys
from vivit_train.keys import group_options, groups
from vivit_train.schema import key_problems
from vivit_train.tools.cli import app
from vivit_train.tools.flags import checked_words
from vivit_train.tools.optuna_sweeper import register_search
from vivit_train.tools.overrides import to_overrides
from vivit_train.utils.conf import CONF

Words = tuple[str, ...]
FOLDERS = ("videos", "small", "my_videos", "SOURCE", "TARGET")
SHELL_TOOLS = ("find", "cut", "mv")
OWN_CODE = re.compile(r"--config-dir|mymodule|mypkg")  # test_extending.py runs these
PLACEHOLDER = re.compile(r"\w+=(NAME|SEED)")


def overrides_of(command: Command) -> tuple[str, list[list[str]]]:
    """ "train" or "eval", and the overrides that the command composes: one list per job of a sweep.

    Raises:
        Exception: The command does not exist, an option is wrong, or nothing checks it.
    """
    match command.words:
        case ("vivit", ("train" | "eval") as script, *rest):
            return script, jobs(script, tuple(rest))
        case ("python", ("train.py" | "eval.py") as file, *rest):
            return file[:-3], jobs(file[:-3], tuple(rest))
        case ("torchrun" | "srun", *rest) if "train.py" in rest:
            return "train", jobs("train", tuple(rest[rest.index("train.py") + 1 :]))
        case ("vivit", *rest):
            return "train", [given] if (given := of_tool(tuple(rest))) else []
        case ("make", *targets):
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            names = [target for target in targets if "=" not in target]
            assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in names), targets
        case (program, *_):
            assert program in SHELL_TOOLS, (
                "nothing checks it: write <!-- run by: FILE --> or <!-- not run: REASON --> above its block"
            )
    return "train", []


def jobs(script: str, words: Words) -> list[list[str]]:
    """The overrides of train.py or eval.py, for each combination of a sweep."""
    checked = checked_words(words, script)
    overrides = [word for word in checked if "=" in word and not PLACEHOLDER.fullmatch(word)]
    if not {"-m", "--multirun"} & {*checked}:
        return [overrides]
    values = [(key, value.split(",")) for key, _, value in (word.partition("=") for word in overrides)]
    return [list(job) for job in product(*([f"{key}={one}" for one in options] for key, options in values))]


def of_tool(words: Words) -> list[str]:
    """The overrides among the words of another command of `vivit`, whose parser reads them."""
    command, name = get_command(app), "vivit"
    while isinstance(command, TyperGroup):
        name, *rest = words
        command, words = command.commands[name], tuple(rest)
    given = command.make_context(name, list(words)).params
    return to_overrides(
        given.get("overrides") or (name not in ("predict", "explain", "features") and given.get("videos")) or []
    )


def checked_commands() -> list[Command]:
    found = {command.words: command for command in all_commands() if not (command.test or command.reason)}
    return [command for words, command in found.items() if not OWN_CODE.search(" ".join(words))]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in FOLDERS:
        Path(name).mkdir()


@pytest.mark.usefixtures("folders")
def test_every_command_of_the_pages_has_known_words() -> None:
    """Options, groups and keys; the slow test below composes each command."""
    keys = {key.name for script in ("train", "eval") for key in all_keys(script, CONF)}
    options = {group: set(group_options(CONF, group)) for group in groups(CONF)}
    wrong = []
    commands = checked_commands()
    assert len(commands) > 80
    for command in commands:
        try:
            _, composed = overrides_of(command)
        except Exception as error:
            wrong.append(f"{command}: {type(error).__name__}: {error}")
            continue
        for word in {word for job in composed for word in job}:
            key, _, value = word.lstrip("+~").partition("=")
            is_known = value in options[key] if key in options else key in keys or key.startswith("hydra")
            if not is_known and not any(name.startswith(f"{key}.") for name in keys):
                wrong.append(f"{command}: {word}")
    assert not wrong, "\n".join(wrong)


def test_what_is_run_elsewhere_is_run_there() -> None:
    elsewhere = [command for command in all_commands() if command.test]
    assert elsewhere
    assert [str(command) for command in elsewhere if not (ROOT / command.test).is_file()] == []


@pytest.mark.slow
@pytest.mark.usefixtures("folders")
def test_every_command_of_the_pages_composes() -> None:
    register_search()
    wrong = []
    for script, job in {
        (script, tuple(job)) for c in checked_commands() for script, found in [overrides_of(c)] for job in found
    }:
        try:
            cfg = compose(*job, run_dir="runs/mine", command=script)
            is_search = any(word.startswith("hparams_search") for word in job)  # its callbacks need a job of Hydra
            problems = key_problems(cfg) if script == "train" and not is_search else []
        except Exception as error:
            problems = [str(error)]
        wrong += [f"{' '.join(job)}: {problem}" for problem in problems]
    assert not wrong, "\n".join(wrong)


def test_the_page_of_the_commands_is_what_make_configuration_writes() -> None:
    assert (ROOT / "docs/commands.md").read_text(encoding="utf-8") == commands_page()


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    write_pages(tmp_path / "docs")

    def listed(entries: list[Any]) -> Iterator[str]:
        for value in (value for entry in entries for value in entry.values()):
            yield from [value] if isinstance(value, str) else listed(value)

    shown = list(listed(tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]))
    assert sorted(shown) == sorted(file.name for file in (tmp_path / "docs").glob("*.md"))
    assert sorted(name for names in API.values() for name in names) == sorted(vivit_train.__all__)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_site_works_in_a_browser(tmp_path: Path) -> None:
    """Built without a warning; no error, no request to a server, nothing wider than a phone."""
    pytest.importorskip("zensical")
    site = tmp_path / "site"
    done = run_python(str(ROOT / "scripts/build_site.py"), str(site), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    policy = "default-src file: data: blob: 'unsafe-inline' 'unsafe-eval'"  # browse reports each violation of it
    for page in ("index.html", "tutorial.html", "api.html", "commands.html"):
        file = site / page
        text = file.read_text(encoding="utf-8")
        file.write_text(
            text.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">', 1),
            encoding="utf-8",
        )
        for width, dark in ((1280, False), (500, False), (1280, True)):
            seen = browse(file, LOOK, width=width, dark=dark)
            assert seen["pictures"] == [], (page, seen)
            assert seen["width"] <= width, (page, seen)
            assert (seen["brightness"] < 100) == dark, (page, seen)
    assert "Export" in browse(site / "index.html", SEARCH)


LOOK = """
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
for (const image of document.images) { image.loading = "eager"; }
for (let tries = 0; tries < 50 && [...document.images].some((image) => !image.complete); tries++) await wait(200);
return {
  pictures: [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src),
  width: document.documentElement.scrollWidth,
  brightness: Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]),
};
"""
SEARCH = """
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
document.querySelector(".md-search__button").click();
await wait(500);
const hosts = [...document.querySelectorAll("*")].filter((element) => element.shadowRoot);
const dialog = hosts.find((element) => element.shadowRoot.querySelector("dialog")).shadowRoot;
const input = dialog.querySelector("input");
input.value = "torch-export";
input.dispatchEvent(new InputEvent("input", { bubbles: true, composed: true }));
await wait(5000);
return dialog.querySelector("[role=listbox]").textContent;
"""
