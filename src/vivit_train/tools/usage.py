"""What the commands of `vivit` share: an argument, and what is said of wrong words.

They end in one message of this package, not in the usage text of Typer.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import typer

from vivit_train.utils.arguments import wording
from vivit_train.utils.errors import CTRL_C, NOTHING_DONE, UserError, end_by_ctrl_c, exit_with_message, log
from vivit_train.utils.moved_keys import COMMON_WORDS
from vivit_train.utils.text import printable

# Later versions of Typer have their own copy of Click, so the class is found by what Typer exports.
UsageError: type[Any] = typer.BadParameter.__bases__[0]
HELP = {"help_option_names": ["--help", "-h"]}
Videos = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FOLDER | OVERRIDES", help="Folder of the videos, or overrides: data=csv data.root=DIR ..."
    ),
]
# The exit code 1 of these commands says that a video is unreadable, or that a part of the work is not done.
BY_VIDEO = ("predict", "explain", "features", "search", "export", "push")


def run_app(app: typer.Typer) -> None:
    """Run the command that sys.argv names, and end the process with its exit code."""

    def run() -> None:
        root = readable(typer.main.get_command(app))
        if problem := word_problem(root, sys.argv[1:]):
            end(problem)
        try:
            code = root.main(prog_name="vivit", standalone_mode=False)
        except typer.Abort:  # Ctrl-C, with earlier versions of Typer
            end_by_ctrl_c()
        except UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
                sys.exit(1)
            end(describe(error, root, sys.argv[1:]))
        if code == CTRL_C:
            end_by_ctrl_c()
        sys.exit(code)

    exit_with_message(run)


def readable(command: Any) -> Any:
    """Return a command whose help names values N, X, PATH or TEXT, not by Python's types, and joins lines."""
    for own in getattr(command, "commands", {}).values():
        readable(own)
    command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help or "")
    for option in command.params:
        if option.param_type_name == "option" and option.metavar is None:
            option.metavar = "" if option.is_flag else value_word(command.callback, option.name)
    return command


def value_word(function: Callable[..., Any], name: str) -> str | None:
    """Return how the help shows the value of an option, or None if its choices say it."""
    kind, _ = annotated(function, name)
    if get_origin(kind) is Literal:
        return None
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def end(problem: str) -> NoReturn:
    """End the process with a message about the words of the command line."""
    log.error(f"error: {printable(problem)}")
    sys.exit(NOTHING_DONE if sys.argv[1] in BY_VIDEO else 1)


def word_problem(root: Any, words: Sequence[str]) -> str:
    """Return what Typer itself would not say of the words of a command, or "".

    An option of two values would have the last one, and an empty word would be the current folder.
    """
    command, name = command_of(root, words)
    if any(word == "" or re.fullmatch(r"--[\w-]+=", word) for word in words):
        text = "one of the words is empty: leave it out, or write its value (a variable may be unset)"
        return f"{name}: {text}; {name} --help explains more"
    for option in command.params:
        if option.param_type_name != "option" or option.is_flag or option.multiple:
            continue
        values = [*dict.fromkeys(given(option.opts, words))]
        if len(values) > 1:
            text = f"{option.opts[0]} is given with {' and with '.join(values)}: leave out all but one"
            return f"{name}: {text}; {name} --help explains more"
    return ""


def command_of(root: Any, words: Sequence[str]) -> tuple[Any, str]:
    """Return the command that the first words name, and its full name."""
    command, name = root, "vivit"
    for word in words:
        if word not in getattr(command, "commands", ()):
            break
        command, name = command.commands[word], f"{name} {word}"
    return command, name


def check_new(option: str, file: Path | None) -> None:
    """Check before any work that a file that an option names can be written, and replaces nothing.

    Raises:
        UserError: It exists.
    """
    if file is not None and os.path.lexists(file):
        raise UserError(f"{option} {file} exists: choose another file")


def describe(error: Any, root: Any, words: Sequence[str]) -> str:
    """Return what is wrong with the words of a command, what was probably meant, and how to get help.

    Args:
        error: A UsageError.
        root: The command `vivit`.
        words: The words after it.
    """
    command, name = command_of(root, words)  # Not all errors know their command.
    option: Any = getattr(error, "option_name", None)
    parameter: Any = getattr(error, "param", None)
    if type(error).__name__ == "NoSuchOption":
        known = [text.strip("-") for other in command.params for text in other.opts if text.startswith("-")]
        key = option.strip("-").replace("-", "_")
        key = COMMON_WORDS.get(key, key if "." in key else "")
        takes_keys = any("OVERRIDES" in label(other).upper() for other in command.params)
        if takes_keys and key:
            text = f"there is no option {option} (did you mean {key if '=' in key else f'{key}=VALUE'}?)"
        else:
            text = f"there is no option {option}{meant(option, known, '--')}"
        text += "; keys of the configuration have no hyphens: KEY=VALUE" if takes_keys else ""
    elif option is not None:
        with_value = next((word for word in words if word.startswith(f"{option}=")), "")
        text = f"{with_value}: {option} takes no value" if with_value else f"{option} needs a value"
    elif type(error).__name__ == "MissingParameter":
        is_option = parameter.param_type_name == "option"
        text = f"{label(parameter)} is missing" + ("" if is_option else f": expected {usage(command)}")
    elif parameter is not None:
        value = (given(parameter.opts, words) or [""])[-1]
        text = f"{parameter.opts[0]} {value}: must be {expected(command.callback, parameter.name)}"
    elif hasattr(command, "commands"):
        word = next((word for word in words if repr(word) in error.message), "this")
        text = f"{word} is no command{meant(word, command.commands)}"
    else:
        text = f"{error.message.rpartition('(')[2].rstrip(').')} is too much: expected {usage(command)}"
    return f"{name}: {text}; {name} --help explains more"


def meant(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the question whether the most similar known word was meant, or "" if none is similar."""
    similar = get_close_matches(word.strip("-"), known, 1)
    return f" (did you mean {prefix}{similar[0]}?)" if similar else ""


def label(parameter: Any) -> str:
    """Return an option, or the name of an argument as the help shows it."""
    if parameter.param_type_name == "option":
        return str(parameter.opts[0])
    name = str(parameter.metavar or parameter.name.upper())
    return f"{name}..." if parameter.nargs == -1 and " " not in name else name


def usage(command: Any) -> str:
    """Return the names of the arguments of a command."""
    return " ".join(label(other) for other in command.params if other.param_type_name == "argument")


def given(options: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return the values of an option in the words of a command."""
    pairs = zip(words, [*words[1:], ""], strict=False)
    parts = [(*word.partition("="), following) for word, following in pairs]
    return [own if equals else following for name, equals, own, following in parts if name in options]


def expected(function: Callable[..., Any], name: str) -> str:
    """Return the type and range of an option in words, by the annotation of its argument."""
    kind, described = annotated(function, name)
    text = wording(kind)
    low, high = (getattr(described, bound, None) for bound in ("min", "max"))
    if low is not None and high is not None:
        return f"{text} between {low:g} and {high:g}"
    return text if low is None else f"{text} of at least {low:g}"


def annotated(function: Callable[..., Any], name: str) -> tuple[Any, Any]:
    """Return the type of an argument of a function without None, and what its annotation adds, or None."""
    hint, described = get_type_hints(function, include_extras=True)[name], None
    if get_origin(hint) is Annotated:
        hint, described, *_ = get_args(hint)
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if NoneType in get_args(hint) else []
    return kinds[0] if kinds else hint, described
