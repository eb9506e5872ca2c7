"""The flags of Hydra among the words of a command line, each of which takes effect or is refused in one message.

Hydra's flags such as --cfg must answer within a second, so this module must not import anything heavy.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from vivit_train.composition import PATHS, known_keys, refuse_repeated, repeated
from vivit_train.keys import group_options, groups
from vivit_train.utils.conf import CONF
from vivit_train.utils.errors import UserError
from vivit_train.utils.moved_keys import unknown
from vivit_train.utils.rank import is_first_rank

# Flags that take a value.
VALUED = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--cfg", "-c", "--package", "-p")
log = logging.getLogger(__name__)
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
INSTEAD = {"run": "--run", "multirun": "--multirun", "cfg": "--cfg", "shell_completion": "--shell-completion"}
COMPLETION = re.compile(r"(install|uninstall|query)=(bash|fish|zsh)")
# What argparse says, and what is said instead.
ARGPARSE = (
    (r"argument (\S+?)(/\S+)?: expected one argument", r"\1 needs a value"),
    (r"argument (\S+?)(/\S+)?: ignored explicit argument '(.*)'", r"\1 takes no value, not \3"),
    (r"argument (\S+?)(/\S+)?: invalid choice: '(.*)' \(choose from (.*)\)", r"\1 \3: must be one of \4"),
    (r"ambiguous option: (\S+) could match (.*)", r"\1 is cut short: it could be \2"),
)


def checked_words(words: Sequence[str], command: str) -> list[str]:
    """Return the words of a command line with Hydra's flags first: they may be anywhere among the overrides.

    Args:
        words: The words.
        command: "train" or "eval".

    Raises:
        UserError: A flag does not exist, has no effect or lacks its value, or an override has no key.
    """
    flags: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if before in ("--info", "-i") and "=" not in word:
            flags[-1] = f"--info={word}"  # argparse would take the next override for its value.
        elif word in ("--info", "-i"):
            flags.append("--info=all")
        else:
            (flags if word.startswith("-") or before in VALUED else overrides).append(word)
    parser = get_args_parser()
    parser.error = fail  # type: ignore[method-assign]
    known, wrong = parser.parse_known_args(flags)
    if wrong:
        key = wrong[0].lstrip("-").partition("=")[0]
        similar = unknown(key, known_keys(command)).partition("; ")[2]
        fail(f"{wrong[0]} is no flag, and keys have no hyphens: KEY=VALUE{similar and f' ({similar})'}")
    if known.hydra_help:
        return ["--hydra-help"]
    for word in overrides:
        check_override(word, command)
    refuse_repeated(overrides)
    if known.cfg is None and known.info is None and is_first_rank():  # Lightning adds words for the other ranks.
        for key, before, value in repeated(overrides):
            log.info(f"note     {key}={value} takes the place of {key}={before}, which is also typed")
    check_repeated(flags)
    check_modes(known, command, overrides)
    check_places(known, command, overrides)
    return [*flags, *overrides]


def check_repeated(flags: Sequence[str]) -> None:
    """Check that no flag has two values, of which argparse would use the last one.

    Raises:
        UserError: A flag has two values.
    """
    found: dict[str, str] = {}
    for flag, following in zip(flags, [*flags[1:], ""], strict=False):
        name, equals, own = flag.partition("=")
        if name in VALUED:
            value = own if equals else following
            long = VALUED[VALUED.index(name) // 2 * 2]
            if found.setdefault(long, value) != value:
                fail(f"{long} is given with {found[long]} and with {value}: leave out one of them")


def check_override(word: str, command: str) -> None:
    """Check what Hydra itself would not say of an override.

    Raises:
        UserError: The override has no key, or changes nothing in a group.
    """
    if not word:
        raise UserError("one of the words is empty: leave it out, or write its value (a variable may be unset)")
    if word.lstrip("+~").startswith("="):
        raise UserError(f"{word} is not an override: expected KEY=VALUE, without blanks around =")
    name, _, value = word.lstrip("+~").partition("=")
    if not (CONF / name).is_dir():
        return
    if value.startswith(("[", "{}")):
        raise UserError(f"{word}: a group has one option: choose from {', '.join(group_options(CONF, name))}")
    if word == f"~{name}" and groups(CONF, command).get(name) == "":
        raise UserError(f"{word}: no option of this group is chosen, so there is nothing to leave out")


def fail(message: str) -> NoReturn:
    """Raise `UserError` with a message about a flag, which may be that of argparse."""
    for pattern, instead in ARGPARSE:
        if match := re.fullmatch(pattern, message):
            message = match.expand(instead).replace("'", "")
    raise UserError(f"{message}; --hydra-help explains the flags")


def check_modes(known: argparse.Namespace, command: str, overrides: Sequence[str]) -> None:
    """Check that there is one flag that says what to do, and that those about its output have one.

    Raises:
        UserError: Flags exclude each other, or one has no effect.
    """
    modes = [flag for name, flag in INSTEAD.items() if getattr(known, name)]
    modes += ["--info"] if known.info is not None else []
    if len(modes) > 1:
        fail(f"{' and '.join(modes)} exclude each other: leave out all but one")
    for name in ("resolve", "package"):
        if getattr(known, name) and not known.cfg:
            fail(f"--{name} needs --cfg job")
    shown = str(known.package or "_global_")
    if not shown.startswith(("_global_", "hydra")) and not any(shown in word for word in overrides):
        keys = known_keys(command)
        if shown not in keys:
            fail(f"--package {unknown(shown, keys)}")
    if known.shell_completion and not any(map(COMPLETION.fullmatch, overrides)):
        fail("--shell-completion needs install=bash, fish or zsh, or uninstall=SHELL")


def check_places(known: argparse.Namespace, command: str, overrides: Sequence[str]) -> None:
    """Check that the folders and the file that flags name exist.

    Raises:
        UserError: One of them does not exist, or the file is not the configuration of this command.
    """
    folders = [CONF]
    if known.config_path is not None and "://" not in known.config_path:
        folders = [Path(sys.argv[0]).absolute().parent / known.config_path]  # As Hydra understands it.
        if not folders[0].is_dir():
            fail(f"--config-path {known.config_path}: there is no folder {folders[0]}")
    if known.config_dir is not None:
        folders.append(Path(known.config_dir))
        if not folders[1].is_dir():
            fail(f"--config-dir {known.config_dir}: there is no such folder")
    name = known.config_name or command
    others = {"train", "eval"} - {command}
    if name in others or "/" in name:
        fail(f"--config-name {name}: this command needs {command}, or a file of yours that includes it")
    for folder in (folder for word in overrides if "searchpath" in word for folder in PATHS.findall(word)):
        if not Path(folder).is_dir():
            fail(f"hydra.searchpath: there is no folder {folder}")
    elsewhere = any(word.lstrip("+").startswith("hydra.searchpath") for word in overrides)
    if elsewhere or "://" in (known.config_path or ""):
        return
    if not any((folder / f"{name.removesuffix('.yaml')}.yaml").is_file() for folder in folders):
        where = " or ".join(str(folder) for folder in folders)
        fail(f"--config-name {name}: there is no {name.removesuffix('.yaml')}.yaml in {where}")
