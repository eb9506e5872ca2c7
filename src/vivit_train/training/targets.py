"""Calls the functions and classes that a stored configuration names, without executing anything else.

The configuration is treated as data: no interpolations are resolved and nothing is imported. A checkpoint names
its model and reader by short names from a fixed table, and the arguments are checked against the signature before
the call. Code from the user's own packages is called only if the user trusts the package.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any

from vivit_train.utils.arguments import check_arguments
from vivit_train.utils.errors import UserError, reason

TARGETS = {
    "vivit": "vivit_train.models.vivit:ViViT",
    "vivit_of_size": "vivit_train.models.vivit:ViViT.from_size",
    "frame_probe": "vivit_train.models.probe:FrameProbe.from_size",
    "classifier": "vivit_train.training.module:VideoClassifier",
    "masked_pretraining": "vivit_train.training.pretraining:MaskedPretraining",
    "videos": "vivit_train.data.datamodule:VideoDataModule",
    "cross_entropy": "vivit_train.training.losses:CrossEntropy",
    "focal": "vivit_train.training.losses:Focal",
    "logit_adjusted": "vivit_train.training.losses:LogitAdjusted",
    "folder": "vivit_train.data.annotations.folder:read_folder",
    "csv": "vivit_train.data.annotations.csv_file:read_csv",
    "labelstudio": "vivit_train.data.annotations.labelstudio:read_labelstudio",
    "cvat": "vivit_train.data.annotations.cvat:read_cvat",
    "kinetics": "vivit_train.data.annotations.kinetics:read_kinetics",
    "moments": "vivit_train.data.annotations.moments:read_moments",
    "something": "vivit_train.data.annotations.something:read_something",
    "epic": "vivit_train.data.annotations.epic:read_epic",
    "ucf101": "vivit_train.data.annotations.ucf_hmdb:read_ucf101",
    "hmdb51": "vivit_train.data.annotations.ucf_hmdb:read_hmdb51",
    "demo": "vivit_train.data.synthetic:read_demo",
}
READERS = {
    "folder",
    "csv",
    "labelstudio",
    "cvat",
    "kinetics",
    "moments",
    "something",
    "epic",
    "ucf101",
    "hmdb51",
    "demo",
}
MODELS = {"vivit", "vivit_of_size", "frame_probe"}
DATA = {"videos"}
LOSSES = {"cross_entropy", "focal", "logit_adjusted"}
MOVED = {  # Checkpoints from before 2026-11-28 have these names.
    "vivit_train.model.vivit.ViViT": "vivit",
    "vivit_train.model.vivit.ViViT.from_size": "vivit_of_size",
    "vivit_train.data.datamodule.VideoDataModule": "videos",
    "vivit_train.data.manifest.read_folder": "folder",
    "vivit_train.data.manifest.read_csv": "csv",
    "vivit_train.data.published.read_kinetics": "kinetics",
    "vivit_train.data.published.read_moments": "moments",
    "vivit_train.data.published.read_something": "something",
    "vivit_train.data.published.read_epic": "epic",
    "vivit_train.data.published.read_ucf101": "ucf101",
    "vivit_train.data.published.read_hmdb51": "hmdb51",
    "vivit_train.data.demo.read_demo": "demo",
}
SHORT_NAMES = {where.replace(":", "."): name for name, where in TARGETS.items()} | MOVED


def with_short_names(node: Any) -> Any:
    """Returns a configuration for storage in which built-in targets have the short names of `TARGETS`."""
    if isinstance(node, Mapping):
        return {
            key: SHORT_NAMES.get(value, value)
            if key == "_target_" and isinstance(value, str)
            else with_short_names(value)
            for key, value in node.items()
        }
    return [with_short_names(value) for value in node] if isinstance(node, list | tuple) else node


def build(
    node: Any,
    allowed: set[str],
    where: str,
    trusted: Sequence[str] = (),
    offered: Mapping[str, Any] | None = None,
    **given: Any,
) -> Any:
    """Calls the target of a node of a stored configuration.

    Args:
        node: `_target_` and keyword arguments as plain data. A node at the key "reader" becomes a partial.
        allowed: The short names that are valid here.
        where: The location of the node for messages, for example "x.ckpt: model".
        trusted: The packages whose classes and functions may also be called, as typed by the user.
        offered: Additional keyword arguments for a target that has them.
        given: Additional keyword arguments, which are not checked.

    Raises:
        UserError: The target is not allowed, or the arguments do not match its signature.
    """
    function, arguments = parts(node, allowed, where, trusted)
    accepted = inspect.signature(function).parameters if offered else {}
    given |= {name: value for name, value in (offered or {}).items() if name in accepted}
    if isinstance(arguments.get("reader"), Mapping):
        key = f"{where}.reader"
        reader, options = parts(arguments["reader"], READERS, key, trusted)
        if is_ours(reader):
            check_arguments(reader, options, key, also=("root", "train", "val", "test"))
        arguments["reader"] = partial(reader, **options)
    if is_ours(function):
        if function.__name__ == "from_size":  # Null means the default of the size.
            arguments = {key: value for key, value in arguments.items() if value is not None}
        check_arguments(function, arguments, where, also=tuple(given))
    try:
        return function(**arguments, **given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} cannot be built as stored: {reason(error)}") from error


def parts(
    node: Any, allowed: set[str], where: str, trusted: Sequence[str]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Returns the target of a node and its keyword arguments."""
    if not isinstance(node, Mapping):
        raise UserError(f"{where} is missing or is not a mapping of settings")
    function = resolve_target(node.get("_target_"), allowed, where, trusted)
    settings = ("_target_", "_partial_", "_convert_", "_recursive_")
    return function, {key: value for key, value in node.items() if key not in settings}


def is_ours(function: Callable[..., Any]) -> bool:
    """Returns whether a function or class belongs to vivit_train."""
    return package_of(function) == "vivit_train"


def package_of(function: Any) -> str | None:
    """Returns the top-level package that defines a function or class.

    A class method belongs to the class that it is looked up in, which may inherit it from another package.
    """
    owner = getattr(function, "__self__", None)
    module = getattr(owner if isinstance(owner, type) else function, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else None


def check_trusted(trusted: Sequence[str]) -> None:
    """Checks that each package that the user trusts exists. None is imported.

    Raises:
        UserError: There is no package of one of these names.
    """
    for name in trusted:
        if not name.isidentifier() or find_spec(name) is None:
            raise UserError(
                f"trusted: there is no package {name}: name one that Python can import, without its modules; "
                "PYTHONPATH=FOLDER adds a folder to those in which Python looks"
            )


def resolve_target(target: Any, allowed: set[str], where: str, trusted: Sequence[str]) -> Callable[..., Any]:
    """Returns the function or class with a given name.

    A trusted package provides only what it defines itself, not what it imports, such as `os`.
    """
    name = SHORT_NAMES.get(target, target) if isinstance(target, str) else None
    if name in allowed:
        ours: Callable[..., Any] = resolve_name(TARGETS[name])
        return ours
    shown = ascii(target)[:200] if isinstance(target, str) else "an object without a name"
    refusal = f"{where}: refusing to call {shown}, which the file names: it is not part of vivit_train"
    names = target.split(".") if isinstance(target, str) else [""]
    if names[0] not in trusted or names[0] == "vivit_train" or not all(map(str.isidentifier, names)):
        advice = f". If you wrote the package {names[0]}, trusted=[{names[0]}] allows it"
        raise UserError(refusal + advice * (names[0].isidentifier() and names[0] != "vivit_train"))
    try:
        theirs: Any = resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: {shown} cannot be imported ({reason(error)})") from error
    if not callable(theirs) or package_of(theirs) != names[0]:
        raise UserError(f"{refusal}, nor defined in the trusted package {names[0]}")
    return theirs
