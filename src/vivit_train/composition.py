"""Composes a configuration from conf/ and overrides, and says in one sentence what is wrong with an override."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict

from vivit_train.keys import group_options, groups
from vivit_train.recipe import typed_keys, without_foreign_arguments
from vivit_train.utils.conf import CONF
from vivit_train.utils.errors import UserError
from vivit_train.utils.moved_keys import moved_hint, unknown
from vivit_train.utils.text import quoted

PATHS = re.compile(r"file://([^,'\"\]]+)")


def compose(*overrides: str, run_dir: str | Path, command: str = "train") -> DictConfig:
    """Returns the configuration that train.py or eval.py would have with these overrides.

    Args:
        overrides: Words of the command line, such as "data=folder" or "optimizer.lr=0.001".
        run_dir: The folder of the results.
        command: "train" or "eval".

    Raises:
        UserError: An override is invalid.
    """
    return without_foreign_arguments(composed(overrides, run_dir, command), typed_keys(overrides))


@contextmanager
def job_of(overrides: Sequence[str], run_dir: str | Path, command: str) -> Iterator[DictConfig]:
    """A context manager that yields the configuration of overrides, and within which they are those of a command.

    A run then knows which keys the user sets, as in a job of train.py or eval.py. The arguments are those of
    `compose`.

    Raises:
        UserError: An override is invalid.
    """
    cfg = composed(overrides, run_dir, command, with_hydra=True)
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(cfg)
    try:
        with open_dict(cfg):
            del cfg.hydra
        yield cfg
    finally:
        instance.cfg = before


def composed(
    overrides: Sequence[str], run_dir: str | Path, command: str, *, with_hydra: bool = False
) -> DictConfig:
    """Returns the configuration of overrides as Hydra composes it, with or without its own; see `compose`."""
    with translate_hydra_errors(command), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        own = [
            folder for text in overrides if text.startswith("hydra.searchpath=") for folder in PATHS.findall(text)
        ]
        check_recipe(overrides, [CONF, *map(Path, own)])
        words = [f"run_dir={quoted(str(run_dir))}", *overrides]
        return hydra.compose(command, words, return_hydra_config=with_hydra)


def check_recipe(overrides: Iterable[str], folders: Sequence[Path]) -> None:
    """Checks that a recipe that the user names exists. It is optional, so Hydra would ignore another name.

    Raises:
        UserError: There is no such recipe in any of the configuration folders.
    """
    for text in overrides:
        group, _, name = text.lstrip("+").partition("=")
        if group == "recipe" and not any((folder / f"recipe/{name}.yaml").is_file() for folder in folders):
            names = sorted({option for folder in folders for option in group_options(folder, "recipe")})
            raise UserError(f"recipe={name} does not exist: choose from {', '.join(names)}")


def repeated(overrides: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yields each key or group that is set to another value than before, of which Hydra uses the last one.

    Yields:
        The key, the value before, and the value.
    """
    found: dict[str, str] = {}
    for word in overrides:
        key, equals, value = word.lstrip("+").partition("=")
        if not equals or key.startswith("~"):
            continue
        if key in found and found[key] != value:
            yield key, found[key], value
        found[key] = value


def refuse_repeated(overrides: Iterable[str], keys: Collection[str] = ()) -> None:
    """Refuses a group, or one of some keys, that overrides set twice: the whole first choice would be ignored.

    Raises:
        UserError: One is set to different values.
    """
    for key, before, value in repeated(overrides):
        if key in keys or (CONF / key).is_dir():
            raise UserError(f"{key} is set to {before} and to {value}: leave out one of them")


@contextmanager
def translate_hydra_errors(command: str) -> Iterator[None]:
    """Turns Hydra's error about an override into a `UserError` that names the override and what would be valid."""
    try:
        yield
    except ValueError as error:
        if "Config group override must be" not in str(error):
            raise
        raise UserError(
            "a group cannot be null: choose one of its options, or leave it out with ~GROUP"
        ) from error
    except OverrideParseException as error:
        raise UserError(unparsed(str(error.override))) from error
    except MissingConfigException as error:
        raise UserError(unknown_option(error)) from error
    except ConfigCompositionException as error:
        raise UserError(unknown_key(error, command)) from error


def unparsed(word: str) -> str:
    """Describes a word that Hydra cannot parse; without quotes, a value may hold only some characters."""
    key, equals, value = word.partition("=")
    advice = ""
    if key != key.rstrip() or value != value.lstrip():
        advice = ", without blanks around ="
    elif equals and value and not re.search(r"['\"\[\]{}]", value):
        advice = f", and this value needs quotes within quotes: '{key}=\"{value}\"'"
    return f"{word} is not an override: expected KEY=VALUE{advice}"


def refuse_shadowed_files() -> None:
    """Refuses a folder of the user's own (--config-dir) with a file of the name of one of ours.

    Hydra would use ours without a word. Call this in a Hydra job.

    Raises:
        UserError: There is such a file.
    """
    sources = HydraConfig.get().runtime.config_sources
    folders = [Path(source.path) for source in sources if source.provider in ("command-line", "hydra.searchpath")]
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")) if folder.is_dir() else ():
            name = file.relative_to(folder)
            if (CONF / name).is_file() and not CONF.samefile(folder):
                raise UserError(f"{file}: vivit-train has {name} itself and would use that: rename the file")


def unknown_option(error: MissingConfigException) -> str:
    """Describes an option of a group that does not exist, such as data=foldr."""
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    names = ", ".join(name for name in error.options or () if not name.startswith("_"))
    return f"{group}={option} does not exist: choose from {names}" if names else str(error).partition("\n")[0]


def unknown_key(error: HydraException, command: str) -> str:
    """Describes an override of a key that does not exist, with its new name or the most similar key."""
    text = str(error).partition("\n")[0].rstrip(".")
    quoted_words = text.split("'")[1::2]
    key = quoted_words[0] if len(quoted_words) == 1 else ""
    if hint := moved_hint(key):
        return hint.removeprefix("; ")
    if text.startswith("Ambiguous value"):
        return (
            f"{key}: a comma separates the values of a sweep, which needs -m; a list has brackets, as in [1,2], "
            "and text with a comma has quotes"
        )
    if "force-add" in text or text.startswith("Multiple values for"):
        several = text.removeprefix("Multiple values for ").partition(".")[0]
        group = several if several != text else key.lstrip("+").partition("=")[0]
        return f"{group} is a group, which has an option already: write {group}=OPTION, without +"
    if "looks like a config group" in text:
        return f"{key}: there is no config group of this name"
    if "interpolation" in text and "${" in text:
        return f"the group {text.partition('${')[2].partition('}')[0]} cannot be left out: others refer to it"
    if text.startswith("Error merging override +"):
        word = text.removeprefix("Error merging override ")
        return f"{word.lstrip('+').partition('=')[0]} has a value already: write {word.lstrip('+')}, without +"
    if text.startswith("Error merging override "):
        return f"{text.removeprefix('Error merging override ')}: this key takes a value of another type"
    if text.startswith("Could not append"):
        return f"{key} has a value already: write {key}=VALUE, without +"
    if key and text.startswith("Could not"):
        known = known_keys(command)
        if text.startswith("Could not delete") and key in known:
            return f"~{key}: {key} is null, so there is nothing to leave out"
        other = "train" if command == "eval" else "eval"
        name = key.partition("=")[0]
        if name not in known and (name in known_keys(other) or name in groups(CONF, other)):
            return f"{name} has no effect here, only for vivit {other}"
        left_out = f"{key}: the group {key.partition('.')[0]} is left out by ~, or has another option"
        return left_out if key in known else unknown(key.partition("=")[0], known)
    return text


def known_keys(command: str) -> Sequence[str]:
    """Returns the keys and groups of a configuration with the default options."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return list(keys_of(OmegaConf.to_container(hydra.compose(command), resolve=False)))


def keys_of(node: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all nodes of a configuration."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from keys_of(value, f"{prefix}{key}.")
