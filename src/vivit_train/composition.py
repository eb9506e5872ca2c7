"""Composes a configuration from conf/ and overrides, and says in one sentence what is wrong with an override."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from vivit_train.recipe import typed_keys, without_foreign_arguments
from vivit_train.utils.conf import CONF
from vivit_train.utils.errors import UserError
from vivit_train.utils.moved_keys import moved_hint, unknown
from vivit_train.utils.text import quoted


def compose(*overrides: str, run_dir: str | Path, command: str = "train") -> DictConfig:
    """Returns the configuration that train.py or eval.py would have with these overrides.

    Args:
        overrides: Words of the command line, such as "data=folder" or "optimizer.lr=0.001".
        run_dir: The folder of the results.
        command: "train" or "eval".

    Raises:
        UserError: An override is invalid.
    """
    with translate_hydra_errors(command), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(command, [f"run_dir={quoted(str(run_dir))}", *overrides])
    return without_foreign_arguments(cfg, typed_keys(overrides))


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
        raise UserError(f"{error.override} is not an override: expected KEY=VALUE") from error
    except MissingConfigException as error:
        raise UserError(unknown_option(error)) from error
    except ConfigCompositionException as error:
        raise UserError(unknown_key(error, command)) from error


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
    key = text.split("'")[1] if text.count("'") == 2 else ""
    if hint := moved_hint(key):
        return hint.removeprefix("; ")
    if not text.startswith("Could not override"):
        return text
    return unknown(key, known_keys(command))


def known_keys(command: str) -> Sequence[str]:
    """Returns the keys and groups of a configuration with the default options."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return list(keys_of(OmegaConf.to_container(hydra.compose(command), resolve=False)))


def keys_of(node: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all nodes of a configuration."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from keys_of(value, f"{prefix}{key}.")
