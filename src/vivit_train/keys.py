"""Every configuration key with its default, type and meaning, read from conf/ and the constructors' signatures.

The YAML files hold the defaults and, in the comment of each line, the meaning. The types are the annotations of
our function or class that the `_target_` of a node names; those of libraries differ from version to version.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, get_type_hints

from omegaconf import OmegaConf

from vivit_train.models.choices import Train
from vivit_train.utils.arguments import own_parameters, signature, wording

RGB = tuple[float, float, float]
PRECISION = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", 32]
# The types of the keys that are not arguments of a `_target_`.
TYPES: dict[str, Any] = {
    "seed": int,
    "ckpt_path": str | None,
    "resume": Literal["auto"] | None,
    "run_dir": str,
    "overwrite": bool,
    "global_batch_size": int,
    "micro_batch_size": int,
    "auto_micro_batch_size": bool,
    "mixup": float,
    "cutmix": float,
    "ema_decay": float | None,
    "patience": int | None,
    "train": Train,
    "cache": bool,
    "cache_views": int,
    "layer_decay": float | None,
    "scale_lr": Literal["linear", "sqrt"] | None,
    "init.name": str | None,
    "init.path": str | None,
    "init.source": str | None,
    "init.tubelet": Literal["central_frame", "inflation"],
    "init.min_coverage": float,
    "init.frames": int | None,
    "init.heads": list[str] | None,
    "init.mean": RGB | None,
    "init.std": RGB | None,
    "eval.views": str,
    "eval.report": bool,
    "eval.hardest_first": bool,
    "trainer.accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
    "trainer.devices": int | Literal["auto"] | list[int],
    "trainer.strategy": str,
    "trainer.precision": PRECISION | None,
    "trainer.max_epochs": int,
    "trainer.max_time": str | None,
    "callbacks.checkpoint.monitor": str,
    "callbacks.checkpoint.mode": Literal["max", "min"],
}
# These keys affect where and how fast a run is computed, but not what it learns.
SPEED = (
    *("data.augment_on", "data.num_workers", "data.decoder", "data.timeout_s", "data.allow_private_urls"),
    *("data.changed", "data.max_bad_fraction", "model.checkpoint_activations", "model.compile", "optimizer.fused"),
)
# What classes of Lightning pass their further arguments on to.
RECEIVERS = {
    "DDPStrategy": "torch.nn.parallel.DistributedDataParallel",
    "TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter",
    "WandbLogger": "wandb.init",
}
# What a list of a YAML file is for an annotation that a module imports only for type checkers.
ABSTRACT: dict[str, Any] = {"Iterable": Sequence, "Sequence": Sequence, "Callable": Callable}
KEY = re.compile(r"^(?P<indent> *)(?P<name>[\w.]+):(?: (?P<value>.*?))?(?: *# (?P<meaning>.*))?$")


@dataclass(frozen=True)
class Key:
    """A configuration key.

    Attributes:
        name: The dotted name.
        default: The value in the YAML file, as text.
        hint: The type annotation; `inspect.Parameter.empty` if there is none.
        meaning: The comment of its line.
    """

    name: str
    default: str
    hint: Any
    meaning: str

    @property
    def type(self) -> str:
        """The type in words, or "" if it is unknown."""
        if self.hint is inspect.Parameter.empty:
            parsed: Any = OmegaConf.to_container(OmegaConf.create(f"value: {self.default}"), resolve=False)
            value = parsed["value"]
            return {bool: "true or false", int: "a number", float: "a number"}.get(type(value), "")
        return wording(self.hint)


def group_options(conf: Path, group: str) -> list[str]:
    """Returns the options of a config group in alphabetical order; files that others include are left out."""
    return sorted(file.stem for file in (conf / group).glob("[!_]*.yaml"))


def groups(conf: Path, command: str = "train") -> dict[str, str]:
    """Returns the config groups of a primary configuration and the default option of each, "" if there is none."""
    found = {}
    for entry in defaults_list(conf / f"{command}.yaml"):
        if isinstance(entry, str):
            continue
        name, option = next(iter(entry.items()))
        if not name.startswith("override "):
            found[name.removeprefix("optional ")] = str(option or "")
    return found


def defaults_list(file: Path) -> list[Any]:
    """Returns the defaults list of a YAML file, without resolving the interpolations in it."""
    content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    return list(content.get("defaults", []))


def description(file: Path) -> str:
    """Returns the comment at the start of a file, as one paragraph."""
    lines = file.read_text(encoding="utf-8").splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            head.append(line.removeprefix("#").strip())
    return " ".join(head)


def read_keys(conf: Path, file: str, prefix: str = "") -> list[Key]:
    """Returns the keys of a YAML file and of those that it includes, in the order of the files.

    Args:
        conf: The configuration folder.
        file: The file in it, for example "train.yaml" or "data/csv.yaml".
        prefix: The config group of the file, as a prefix of the keys; "" for a primary file.
    """
    lines: dict[str, tuple[str, str]] = {}
    for part in (*included(conf, file), file):
        for name, value, meaning in parse(conf / part):
            lines[prefix + name] = (value, meaning or lines.get(prefix + name, ("", ""))[1])
    targets = {name: value for name, (value, _) in lines.items() if name.endswith("_target_")}
    hints = {at.removesuffix("_target_"): annotations(value) for at, value in targets.items()}
    keys = []
    for name, (default, meaning) in lines.items():
        node, _, argument = name.rpartition(".")
        hint = TYPES.get(name, hints.get(node + "." if node else "", {}).get(argument, inspect.Parameter.empty))
        if not argument.startswith("_"):
            keys.append(Key(name, default, hint, meaning))
    return keys


def included(conf: Path, file: str) -> Iterator[str]:
    """Yields the files of the same group whose keys a file includes."""
    for entry in defaults_list(conf / file):
        path = f"{Path(file).parent}/{entry}.yaml"
        if isinstance(entry, str) and entry not in ("_self_", "_reset") and (conf / path).is_file():
            yield from included(conf, path)
            yield path


def parse(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yields (dotted name, value, meaning) for each leaf of a YAML file."""
    above: list[tuple[int, str]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        match = KEY.match(line)
        if not match:
            continue
        indent = len(match["indent"])
        above = [(i, name) for i, name in above if i < indent]
        path = ".".join([*(name for _, name in above), match["name"]])
        if match["value"]:
            yield path, match["value"], match["meaning"] or ""
        else:
            above.append((indent, match["name"]))


def annotations(target: str) -> Mapping[str, Any]:
    """Returns the type hints of the arguments of a function or class of ours, given by its dotted path."""
    return hints_of(resolve_name(target)) if target.startswith("vivit_train.") else {}


def hints_of(function: Any) -> dict[str, Any]:
    """Returns the annotation of each named argument of a function or class, resolved if its module allows it."""
    owner = function.__init__ if inspect.isclass(function) else function
    resolved, names = None, dict(ABSTRACT)
    while resolved is None:
        try:
            resolved = get_type_hints(owner, localns=names)
        except NameError as error:  # The module imports this name only for type checkers.
            names[str(error.name)] = Any
        except (TypeError, AttributeError):
            resolved = {}
    named = {n: p for n, p in signature(function).items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return {name: resolved.get(name, p.annotation) for name, p in named.items()}


def accepted_hints(function: Any) -> tuple[dict[str, Any], bool]:
    """Returns the annotations of the arguments that a function or class accepts, and whether it accepts others."""
    hints, is_open = hints_of(function), takes_any_argument(function)
    for cls in getattr(function, "__mro__", ()):
        try:
            receiver = resolve_name(RECEIVERS[cls.__name__])
        except (KeyError, ImportError, AttributeError):  # A package that is not installed is missed later.
            continue
        return {**hints_of(receiver), **hints}, False
    return hints, is_open


def takes_any_argument(function: Any) -> bool:
    """Returns whether a function or class accepts arguments of any name."""
    if getattr(function, "__name__", "") == "from_size":
        return any(p.kind is p.VAR_KEYWORD for p in own_parameters(function.__self__).values())
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
