"""Checks files from untrusted sources, which may hold only plain data and tensors no larger than the file."""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivit_train.utils.arguments import conforms
from vivit_train.utils.errors import UserError

MAX_DEPTH = 64  # Lists and dicts may be nested this deep; a checkpoint needs about 8 levels.
MAX_INTEGER = 2**63
MAX_POSITIONS = 2**27  # The numbers in a table of positions; the largest released model has 3 million.


def check_content(content: Any, path: str | Path) -> None:
    """Checks the content of a file after `torch.load`.

    A few bytes can claim a tensor of any shape (with strides of 0), a list that contains itself, or a number with
    a million digits. Code that uses them later would run out of memory or never finish.

    Raises:
        UserError: A tensor is not dense or is larger than the file, or data is nested too deeply or too large.
    """
    room, storages, seen = os.path.getsize(path), dict[int, int](), set[int]()
    waiting: list[tuple[Any, int]] = [(content, 0)]
    while waiting:
        item, depth = waiting.pop()
        item = vars(item) if isinstance(item, Namespace) else item
        if isinstance(item, Tensor):
            storages |= storage_of(item, path)
        elif isinstance(item, Mapping | list | tuple):
            if depth > MAX_DEPTH:
                raise UserError(f"{path} is refused: its lists are nested more than {MAX_DEPTH} deep")
            if id(item) not in seen:
                seen.add(id(item))
                parts = [*item.keys(), *item.values()] if isinstance(item, Mapping) else item
                waiting += [(part, depth + 1) for part in parts]
        elif isinstance(item, int) and abs(item) >= MAX_INTEGER:
            raise UserError(f"{path} is refused: it holds an integer of more than 64 bits")
        elif not isinstance(item, str | int | float | bytes | torch.dtype | torch.device | None):
            raise UserError(
                f"{path} is refused: it holds a {type(item).__name__}, but only tensors and plain data are allowed"
            )
    if sum(storages.values()) > room:
        raise UserError(
            f"{path} is refused: its tensors claim {sum(storages.values()):,} bytes, but the file has {room:,}"
        )


def storage_of(tensor: Tensor, path: str | Path) -> dict[int, int]:
    """Returns the address and the size in bytes of a dense tensor's storage."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise UserError(f"{path} is refused: it holds a tensor that is sparse, quantized or without values")
    if tensor.is_complex():  # Conversions would drop a part of each number.
        raise UserError(f"{path} is refused: it holds a tensor of complex numbers")
    storage = tensor.untyped_storage()
    if tensor.numel() * tensor.element_size() > storage.nbytes():
        raise UserError(f"{path} is refused: a tensor of shape {list(tensor.shape)} has too few elements")
    return {storage.data_ptr(): storage.nbytes()}


def check_finite(state: Mapping[str, Tensor], source: str | Path) -> None:
    """Checks that all weights are finite, because non-finite weights can give plausible scores.

    Raises:
        UserError: A tensor is not finite. The message names the first one.
    """
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(f"{source}: the weights '{bad[0]}'{more} are not finite (NaN or inf): use another file")


def check_positions(tokens: int, dim: int, source: str) -> None:
    """Checks the size of a table of positions that is computed from a few numbers of a file.

    Raises:
        UserError: It is larger than that of any model.
    """
    if tokens * dim > MAX_POSITIONS:
        raise UserError(f"{source} is refused: it claims {tokens:,} tokens of width {dim:,}")


def check_statistics(mean: Any, std: Any, source: str | Path) -> None:
    """Checks the mean and std of a normalization.

    Raises:
        UserError: The mean or the std is not three usable numbers.
    """
    for name, values, low in (("mean", mean, -1e6), ("std", std, 1e-6)):
        numbers = values if isinstance(values, Sequence) and not isinstance(values, str) else []
        usable = [conforms(n, float) and low <= n <= 1e6 for n in numbers]
        if len(usable) != 3 or not all(usable):
            positive = " positive" if name == "std" else ""
            raise UserError(f"{source}: the {name} of its normalization must be three finite{positive} numbers")
