"""Checks arguments from a file against the signature and the bounds of the function that they are passed to."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from vivit_train.utils.errors import UserError, reason

# The form of `eval.views`, as a regular expression and in words.
VIEWS = (r"[1-9]\d{0,2}x[13]", "up to 999 temporal clips x spatial crops (1 or 3), such as 4x3")
# The smallest and largest value of each number that determines memory or time, by argument name. The bounds are
# ample for any existing model or dataset; a file that asks for more is damaged or hostile.
LIMITS: dict[str, tuple[float, float]] = {
    "dim": (1, 16_384),
    "depth": (1, 512),
    "heads": (1, 1024),
    "mlp_dim": (1, 131_072),
    "temporal_depth": (0, 512),
    "tubelet": (1, 4096),
    "num_classes": (0, 1_000_000),
    "frames": (1, 16_384),
    "sampled_frames": (1, 16_384),
    "image_size": (1, 4096),
    "norm_eps": (1e-12, 0.1),
    "reg_tokens": (0, 1024),
    "drop_path": (0, 1),
    "label_smoothing": (0, 1),
    "first_id": (0, 1_000_000),
    "flip": (0, 1),
    "color_jitter": (0, 1),
    "random_erasing": (0, 1),
    "stride": (1, 1_000_000),
    "fps": (1e-3, 1000),
    "clips_per_video": (1, 1024),
    "limit_per_class": (1, 2**40),
    "short_side": (1, 8192),
    "crop": (1, 4096),
    "global_batch_size": (1, 2**24),
    "micro_batch_size": (1, 4096),
    "num_workers": (0, 512),
    "timeout_s": (0, 1e6),
    "randaugment": (0, 100),
    "scale_jitter": (0.01, 100),
    "seed": (0, 2**63 - 1),
    "val_percent": (0, 100),
    "max_missing": (0, 1),
    "max_bad_fraction": (0, 1),
    "fold": (1, 100),
}
MAX_CLIP_BYTES = 1 << 28  # This is about 1,700 RGB frames of 224 x 224 in uint8.
PLAIN = "plain data"
WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
}


def check_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any], where: str, also: Sequence[str] = ()
) -> None:
    """Checks names, types, and sizes, so that the call itself cannot allocate an absurd amount of memory.

    Args:
        function: The callable whose signature defines the valid arguments. If it is a classmethod that forwards
            `**kwargs` to its class, the arguments of the class are valid as well.
        arguments: The keyword arguments as plain data read from a file. A list stands for a tuple.
        where: The prefix of the messages, for example "x.ckpt: model".
        also: Names of arguments that are supplied elsewhere and are not checked here.

    Raises:
        UserError: An argument is unknown, missing, or invalid. The message has one line per problem.
    """
    parameters = signature(function)
    problems = [f"{where}: unknown setting {shown(name)}" for name in arguments if name not in parameters]
    for name, value in arguments.items():
        if name in parameters:
            hint = parameters[name].annotation
            if not conforms(value, hint):
                problems.append(f"{where}.{name} is {shown(value)}, but must be {wording(hint)}")
            else:
                problems += limit_problems(f"{where}.{name}", name, value)
    if not problems:
        problems = clip_problems(where, arguments)
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and name not in (*arguments, *also)
    ]
    problems += [f"{where}.{name} is missing" for name in missing]
    if problems:
        raise UserError("\n".join(problems[:10]))


def limit_problems(key: str, name: str, value: Any) -> list[str]:
    """Returns a one-line message if a number, or any number in a list, is out of the bounds in `LIMITS`."""
    numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    low, high = LIMITS.get(name, (-(2.0**63), 2.0**63))
    if all(low <= n <= high for n in numbers if isinstance(n, int | float) and not isinstance(n, bool)):
        return []
    return [f"{key} is {shown(value)}, but must be between {low:,} and {high:,}"]


def clip_problems(where: str, arguments: Mapping[str, Any]) -> list[str]:
    """Returns a one-line message if a single clip would exceed `MAX_CLIP_BYTES`."""
    size = arguments.get("crop", arguments.get("image_size"))
    if "frames" not in arguments or size is None:
        return []
    rows, columns = size if isinstance(size, Sequence) else (size, size)
    num_bytes = 3 * arguments["frames"] * rows * columns
    if num_bytes <= MAX_CLIP_BYTES:
        return []
    return [f"{where}: a clip of {arguments['frames']} frames of {rows}x{columns} would take {num_bytes:,} bytes"]


def accepted_arguments(node: Mapping[Any, Any], where: str) -> Collection[str]:
    """Returns the names of the arguments that the `_target_` of a node accepts.

    A target with `**kwargs` accepts whatever the node states.

    Raises:
        UserError: The target cannot be imported. The message names the node as `where`.
    """
    name = node.get("_target_")
    try:
        target = resolve_name(str(name))
        parameters = inspect.signature(target).parameters
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"{where}._target_={name}: cannot be imported ({reason(error)})") from error
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {*parameters, *node}
    return parameters.keys()


def signature(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a function, with `**kwargs` replaced by those of the class it forwards to."""
    parameters = own_parameters(function)
    passes_on = [name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD]
    for name in passes_on:
        del parameters[name]
    cls = getattr(function, "__self__", None)
    if passes_on and isinstance(cls, type):
        # A default makes each argument of the class optional here.
        named = {
            name: p for name, p in own_parameters(cls).items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        own = {name: p.replace(default=None) for name, p in named.items()}
        parameters = own | parameters
    return parameters


def own_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a function, or of the `__init__` of a class.

    A class that forwards `**kwargs` to its parent has the parameters of the parent, too.
    """
    if not isinstance(function, type):
        return dict(inspect.signature(function).parameters)
    parameters: dict[str, inspect.Parameter] = {}
    for cls in (cls for cls in function.__mro__ if "__init__" in vars(cls)):
        # `inspect.signature(function)` would show `__new__` instead if the class has one.
        _, *own = inspect.signature(vars(cls)["__init__"]).parameters.items()
        parameters = dict(own) | {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        if not any(p.kind is p.VAR_KEYWORD for _, p in own):
            break
    return parameters


def conforms(value: Any, hint: Any) -> bool:
    """Returns whether plain data matches a type hint.

    Floats must be finite, bools do not count as numbers, and a list is accepted as a tuple.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is inspect.Parameter.empty:
        return True
    if hint is None or hint is NoneType:
        return value is None
    if origin in (Union, UnionType):
        return any(conforms(value, part) for part in args)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if hint in (bool, str):
        return type(value) is hint
    if hint is int:
        return type(value) is int
    if hint is float:
        return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**1023)
    if hint is Path:
        return isinstance(value, str)
    if origin is tuple and Ellipsis not in args:
        return isinstance(value, list | tuple) and len(value) == len(args) and all(map(conforms, value, args))
    if origin in (tuple, list, Sequence):
        return isinstance(value, list | tuple) and all(conforms(item, args[0]) for item in value)
    if origin in (dict, Mapping):
        items = value.items() if isinstance(value, Mapping) else [(None, None)]
        return all(conforms(k, args[0]) and conforms(v, args[1]) for k, v in items)
    if origin is Callable:
        return callable(value)
    return False


def wording(hint: Any) -> str:
    """Describes a type hint in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        parts = dict.fromkeys(wording(part) for part in args)
        # Of a library's types, a file can state only the plain ones, not tensors.
        return " or ".join([part for part in parts if PLAIN not in part] or parts)
    if origin is Literal:
        return " or ".join(map(str, args)) if len(args) < 3 else f"one of {', '.join(map(str, args))}"
    if origin is tuple and Ellipsis not in args:
        return f"a list of {len(args)}, each {wording(args[0])}"
    if origin in (tuple, list, Sequence):
        return f"a list, each {wording(args[0])}"
    if origin in (dict, Mapping):
        return "a mapping"
    if origin is Callable:
        return "one of the built-in readers"
    return WORDS.get(hint, "text" if hint is Path else PLAIN)


def shown(value: Any) -> str:
    """Formats a value from a file for a message: short and on one line."""
    if isinstance(value, int) and abs(value) > 2**63:
        return "an absurdly large number"
    text = ascii(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
