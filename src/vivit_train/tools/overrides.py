"""Compose the configuration for the tools, from overrides or just the folder of the videos."""

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from vivit_train.tools.scripts import CONF
from vivit_train.utils.errors import UserError


def compose(words: Sequence[str] | None, run_dir: Path) -> DictConfig:
    """Compose the configuration that train.py would use.

    Args:
        words: Overrides and folders; see `to_overrides`.
        run_dir: Folder of the run.

    Raises:
        UserError: A word is neither an existing folder nor a valid override.
    """
    overrides = to_overrides(words)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return hydra.compose("train", [f"run_dir={quoted(str(run_dir))}", *overrides])
        except OverrideParseException as error:
            raise UserError(f"{error.override} is not an override: expected KEY=VALUE") from error
        except MissingConfigException as error:
            raise UserError(_unknown_choice(error)) from error
        except ConfigCompositionException as error:
            raise UserError(_unknown_key(error, hydra.compose("train"))) from error


def compose_data(words: Sequence[str] | None, run_dir: Path, command: str) -> DictConfig:
    """Compose the configuration for a command that reads videos.

    Raises:
        UserError: The words do not say which videos to read, or one of them is invalid.
    """
    cfg = compose(words, run_dir)
    if cfg.data.name == "demo" and "data=demo" not in (
        words or []
    ):  # By default, this would make the demo's videos.
        raise UserError(f"which videos? {command} FOLDER, or {command} data=NAME data.root=DIR")
    return cfg


def to_overrides(words: Sequence[str] | None) -> list[str]:
    """Replace a folder among overrides by the overrides that read it: data=folder data.root=FOLDER.

    Raises:
        UserError: A word is neither an existing folder nor an override.
    """
    overrides: list[str] = []
    for word in words or []:
        if "=" in word or word.startswith("~"):
            overrides.append(word)
        elif os.path.isdir(word):
            overrides += ["data=folder", f"data.root={quoted(word)}"]
        elif os.path.isfile(word):
            raise UserError(
                f"{word} is a file: to read lists, set data=csv data.root=DIR data.train=FILE data.val=FILE"
            )
        else:
            raise UserError(f"{word} is neither a folder nor an override such as data.frames=16")
    return overrides


def quoted(text: str) -> str:
    """Quote a value for Hydra's grammar, in which spaces, commas and non-ASCII letters need quotes."""
    return "'" + re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + end[2].replace("'", r"\'"), text) + "'"


def _unknown_choice(error: MissingConfigException) -> str:
    """Describe a choice that does not exist, such as data=foldr."""
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    names = ", ".join(name for name in error.options or () if not name.startswith("_"))
    return f"{group}={choice} does not exist: choose from {names}" if names else str(error).partition("\n")[0]


def _unknown_key(error: ConfigCompositionException, cfg: DictConfig) -> str:
    """Describe an override of a key that does not exist, with the most similar key."""
    text = str(error).partition("\n")[0].rstrip(".")
    key = text.split("'")[1] if text.count("'") == 2 else ""
    keys = list(_keys(OmegaConf.to_container(cfg)))
    similar = get_close_matches(key, keys, 1) if key not in keys else []
    return text + (f": did you mean {similar[0]}?" if similar else "")


def _keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    return [name for key, value in node.items() for name in (f"{prefix}{key}", *_keys(value, f"{prefix}{key}."))]
