"""What a file from a stranger may hold: tensors no larger than the file, and plain data."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivit_train.utils.errors import UserError

MAX_DEPTH = 64  # of lists and maps within each other; a checkpoint has about 8
MAX_INTEGER = 2**63


def check_content(content: Any, path: str | Path) -> None:
    """Checks what `torch.load` has made of a file.

    A few bytes can claim a tensor of any shape (by strides of 0), a list that holds itself, or a number of a
    million digits. Whatever touches these later fills the memory or never ends.

    Raises:
        UserError: a tensor is larger than the file or not dense, or data is nested or large beyond all use.
    """
    room, storages, seen = os.path.getsize(path), dict[int, int](), set[int]()
    waiting: list[tuple[Any, int]] = [(content, 0)]
    while waiting:
        item, depth = waiting.pop()
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
            raise UserError(f"{path} is refused: it holds a whole number of more than 64 bits")
        elif not isinstance(item, str | int | float | bytes | torch.dtype | torch.device | None):
            raise UserError(
                f"{path} is refused: it holds a {type(item).__name__}, not tensors and plain data alone"
            )
    if sum(storages.values()) > room:
        raise UserError(
            f"{path} is refused: its tensors claim {sum(storages.values()):,} bytes, the file has {room:,}"
        )


def storage_of(tensor: Tensor, path: str | Path) -> dict[int, int]:
    """Where a dense tensor's numbers are, and how many bytes."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise UserError(f"{path} is refused: it holds a tensor that is sparse, quantized or without values")
    storage = tensor.untyped_storage()
    if tensor.numel() * tensor.element_size() > storage.nbytes():
        raise UserError(f"{path} is refused: a tensor of shape {list(tensor.shape)} has fewer numbers than that")
    return {storage.data_ptr(): storage.nbytes()}


def check_finite(state: Mapping[str, Tensor], source: str | Path) -> None:
    """Weights that are not finite give scores that look like scores.

    Raises:
        UserError: with the name of the first such tensor.
    """
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(
            f"{source}: the weights '{bad[0]}'{more} are not finite (nan or infinite): use another file"
        )


def check_statistics(mean: Any, std: Any, source: str | Path) -> None:
    """
    Raises:
        UserError: the mean and std of a normalization are not three usable numbers each.
    """
    for name, values, low in (("mean", mean, -1e6), ("std", std, 1e-6)):
        numbers = values if isinstance(values, Sequence) and not isinstance(values, str) else []
        usable = [type(n) in (int, float) and math.isfinite(n) and low <= n <= 1e6 for n in numbers]
        if len(usable) != 3 or not all(usable):
            positive = " positive" if name == "std" else ""
            raise UserError(f"{source}: the {name} of its normalization must be three finite{positive} numbers")
