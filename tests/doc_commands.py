"""The commands that README.md and the pages of docs/ show, and what checks each of them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"(?:^<!-- (not run|run by): ([^>]*) -->\n+)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python (?:train|eval)\.py|vivit (?:train|eval|predict|probe|crossval|prepare)) [^`]*)`")
SHELL = ("", "bash", "sh", "console")
PROGRAMS = r"(vivit|python|make|torchrun|srun|sbatch|find|mv|pip|pre-commit|scripts/\S+)(?=\s)"
COMMAND = re.compile(rf"(\$ )?([A-Z_]+=\S* )*{PROGRAMS}")


@dataclass(frozen=True)
class Command:
    """A command of a page: its words, and what the comment above its block says instead of a check."""

    page: str
    words: tuple[str, ...]
    reason: str = ""
    test: str = ""

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def split_line(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line, without prompt, variables and comment, but with optional words, as in [--gop 32]."""
    line = re.sub(r"^\$ |\s#\s.*$", "", line.strip())
    line = re.sub(r"(?<= )\[([^\]]*)\](?= |$)", r"\1", line)
    for part in re.split(r" \| |; |(?<= )&& ", line):
        words = [word for word in shlex.split(part) if word not in ("...", "\\")]
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words:
            yield tuple(words)


def commands_of(page: Path) -> Iterator[Command]:
    """Every command of a page: those of its blocks without a language, and those within its sentences."""
    name, text = str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")
    for kind, why, language, body in FENCE.findall(text):
        if language not in SHELL:
            continue
        for line in re.sub(r"\\\n\s*", " ", body).splitlines():
            if COMMAND.match(line.strip()):
                for words in split_line(line):
                    yield Command(name, words, why if kind == "not run" else "", why if kind == "run by" else "")
    for code in INLINE.findall(FENCE.sub("", text)):
        for words in split_line(" ".join(code.split())):
            yield Command(name, words)


def all_commands() -> list[Command]:
    return [command for page in PAGES for command in commands_of(page)]
