"""Writes docs/commands.md: every command of `vivit` with its arguments, options and examples."""

import re
import sys
from collections.abc import Iterator

from typer import Context
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from vivit_train.tools.cli import app
from vivit_train.tools.usage import label, readable

HEAD = """# Commands

Every command of `vivit`. `vivit COMMAND --help` shows the same on a terminal, and `vivit --install-completion`
turns on completion in your shell. This page is generated: `make configuration`.

"""


def commands(group: TyperGroup, name: str) -> Iterator[tuple[str, TyperCommand]]:
    """Yields the full name and the command of each command below a group."""
    for word, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def cells(parameter: TyperArgument | TyperOption, context: Context) -> tuple[str, str, str]:
    """Returns how a parameter is written, its default and its meaning."""
    written, meaning = parameter.get_help_record(context) or ("", "")
    if isinstance(parameter, TyperArgument):
        written = label(parameter)
    written = re.sub(r"<(.*?)>", r"\1", written)
    meaning, _, notes = meaning.partition("  [")
    default = re.search(r"default: ([^;\]]*)", notes)
    return f"`{written}`", f"`{default[1]}`" if default else "required" if parameter.required else "", meaning


def table_row(*texts: str) -> str:
    """Returns a row of a Markdown table."""
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def section(name: str, command: TyperCommand) -> str:
    """Returns what the help of one command says."""
    context = Context(command, info_name=name)
    rows = [table_row(*cells(parameter, context)) for parameter in command.params]
    _, *examples = (command.epilog or "").split("\n\n")
    lines = [f"## {name}", "", command.help or "", ""]
    lines += ["| argument or option | default | meaning |", "|---|---|---|", *rows, ""]
    lines += ["```", *examples, "```", ""] if examples else []
    return "\n".join(lines)


def commands_page() -> str:
    """Returns docs/commands.md."""
    group = readable(get_command(app))
    assert isinstance(group, TyperGroup)
    found = list(commands(group, "vivit"))
    summary = [table_row("command", "what it does"), "|---|---|"]
    for name, command in found:
        first = (command.help or "").partition("\n\n")[0]
        summary.append(table_row(f"[`{name}`](#{name.replace(' ', '-')})", first))
    return HEAD + "\n".join([*summary, "", *(section(*one) for one in found)]).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(commands_page())
