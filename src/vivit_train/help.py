"""`--help`: all config groups and keys on one screen, one of them in detail, and docs/configuration.md."""

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from vivit_train.keys import Key, description, group_options, groups, read_keys
from vivit_train.utils.errors import UserError

EXAMPLES = {
    "train": (
        ("python train.py", "the demo, two to four minutes on two cores"),
        ("python train.py data=folder data.root=videos init=imagenet", "videos/<class>/*.mp4"),
        ("python train.py model=vivit_fe data=kinetics400 data.root=DIR trainer=ddp", "the paper's recipe"),
        ("python train.py -m model=vivit_st,vivit_fe optimizer.lr=0.01,0.1", "a sweep of four runs"),
    ),
    "eval": (
        ("python eval.py ckpt_path=runs/mine/checkpoints/best.ckpt eval.views=4x3", "twelve views per video"),
        (
            "python eval.py ckpt_path=FILE data=csv data.root=DIR data.val=test.csv",
            "other videos, the same classes",
        ),
        ("python eval.py ckpt_path=SOURCE data=kinetics400 data.root=DIR eval.views=4x3", "weights of others"),
    ),
}
SHOWN_ELSEWHERE = ("hydra.", "defaults")


def answer_help(command: str, conf: Path, arguments: Sequence[str]) -> bool:
    """Prints the help if the command line asks for it; returns whether it does.

    Args:
        command: "train" or "eval".
        conf: The configuration folder.
        arguments: The command line. A group or key after `--help` selects a page.

    Raises:
        UserError: There is no group or key of this name.
    """
    if not {"--help", "-h"} & set(arguments):
        return False
    topics = [word for word in arguments if not word.startswith("-") and "=" not in word]
    text = topic(command, conf, topics[0]) if topics else overview(command, conf)
    sys.stdout.write(text + "\n")
    return True


def overview(command: str, conf: Path) -> str:
    """Returns the help on one screen: examples, groups with their options, and the keys outside of groups."""
    width = min(shutil.get_terminal_size().columns, 120)
    examples = EXAMPLES[command]
    longest = max(len(line) for line, _ in examples)
    lines = [f"usage: python {command}.py [GROUP=OPTION] [KEY=VALUE] ...", ""]
    lines += [f"  {line:<{longest}}  # {why}" for line, why in examples]
    lines += ["", f"Groups (* is the default; python {command}.py --help GROUP shows the keys of one)"]
    for group, default in groups(conf, command).items():
        options = " ".join(f"{name}*" if name == default else name for name in group_options(conf, group))
        lines += textwrap.wrap(options, width, initial_indent=f"  {group:<14} ", subsequent_indent=" " * 17)
    lines += ["", f"Keys (python {command}.py --help KEY shows one)"]
    known = groups(conf, command)
    alone = [key for key in own_keys(command, conf) if key.name.partition(".")[0] not in known]
    longest = max(len(f"{key.name}={key.default}") for key in alone)
    for key in alone:
        setting = f"{key.name}={key.default}".ljust(longest)
        lines.append(
            f"  {setting}  {textwrap.shorten(key.meaning, max(20, width - longest - 4), placeholder=' ...')}"
        )
    lines += ["", "--cfg job prints the whole configuration. -m runs all combinations of values such as a,b."]
    return "\n".join(lines)


def topic(command: str, conf: Path, name: str) -> str:
    """Returns the help of a group or of one key.

    Raises:
        UserError: There is none of this name.
    """
    known = groups(conf, command)
    if name in known:
        return group_page(command, conf, name, text_row)
    for key in all_keys(command, conf):
        if key.name == name:
            return text_row(key)
    raise UserError(f"--help {name}: there is no such group or key; python {command}.py --help lists them")


def group_page(command: str, conf: Path, group: str, row: Callable[[Key], str]) -> str:
    """Returns the options of a group with their descriptions, and every key of any of them once."""
    default = groups(conf, command)[group]
    options = group_options(conf, group)
    lines = []
    for name in options:
        mark = " (default)" if name == default else ""
        lines.append(f"{group}={name}{mark}: {description(conf / group / f'{name}.yaml')}")
    keys = [key for key in own_keys(command, conf) if key.name.startswith(f"{group}.") and key.meaning]
    for name in sorted(options, key=lambda option: option != default):
        keys += keys_of(conf, group, name)
    once: dict[str, Key] = {}
    for key in keys:
        once.setdefault(key.name, key)
    return "\n".join([*lines, "", *map(row, once.values())]).rstrip()


def keys_of(conf: Path, group: str, option: str) -> list[Key]:
    """Returns the keys of an option; an option that sets keys outside of its group has none."""
    file = f"{group}/{option}.yaml"
    if "# @package _global_" in (conf / file).read_text(encoding="utf-8"):
        return []
    return [key for key in read_keys(conf, file, f"{group}.") if not key.name.endswith("defaults")]


def own_keys(command: str, conf: Path) -> list[Key]:
    """Returns the keys of a primary configuration that belong to no group, or to the default of one."""
    return [key for key in read_keys(conf, f"{command}.yaml") if not key.name.startswith(SHOWN_ELSEWHERE)]


def all_keys(command: str, conf: Path) -> list[Key]:
    """Returns every key, those of groups too."""
    pages = [keys_of(conf, group, name) for group in groups(conf, command) for name in group_options(conf, group)]
    return [*own_keys(command, conf), *(key for page in pages for key in page)]


def text_row(key: Key) -> str:
    """Formats a key for the terminal."""
    kind = f" ({key.type})" if key.type else ""
    indent = " " * 4
    text = textwrap.fill(key.meaning, 100, initial_indent=indent, subsequent_indent=indent) if key.meaning else ""
    return "\n".join(filter(None, [f"  {key.name}={key.default}{kind}", text]))


def markdown_row(key: Key) -> str:
    """Formats a key as a row of a Markdown table."""
    cells = (f"`{key.name}`", f"`{key.default}`", key.type, key.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def configuration_page(conf: Path) -> str:
    """Returns docs/configuration.md."""
    head = ["| key | default | type | meaning |", "|---|---|---|---|"]
    lines = [
        "# Configuration",
        "",
        "Every key of `python train.py` and `python eval.py`. `--help` shows the same on a terminal.",
    ]
    lines += ["This page is generated: `make configuration`.", "", "## Keys outside of groups", "", *head]
    known = groups(conf, "train")
    lines += [markdown_row(key) for key in own_keys("train", conf) if key.name.partition(".")[0] not in known]
    for group in known:
        page = group_page("train", conf, group, markdown_row)
        options, _, rows = page.partition("\n\n")
        lines += ["", f"## {group}", ""]
        lines += [
            f"- `{name}`: {text}" for name, _, text in (line.partition(": ") for line in options.splitlines())
        ]
        if rows:
            lines += ["", *head, rows]
    lines += [
        "",
        "## eval.py",
        "",
        "`data` and `trainer` are as above; null keeps the checkpoint's value.",
        "",
        *head,
    ]
    lines += [markdown_row(key) for key in own_keys("eval", conf) if key.meaning]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(configuration_page(Path(sys.argv[1])))
