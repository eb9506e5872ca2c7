"""The rows of several heads in a source that has a single output for all of them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vivit_train.utils.errors import UserError

# The authors' EPIC-KITCHENS-100 model has one output of 397 rows: first the nouns, then the verbs. Their
# configuration says so: class_splits of 300 and 97.
EPIC_ROWS = {"noun": 300, "verb": 97}


def authors_order(sizes: Mapping[str, int]) -> tuple[str, ...] | None:
    """Returns the heads in the order of the authors' single output, or None if they have no model with these.

    Args:
        sizes: The number of classes by head, in any order.
    """
    return tuple(EPIC_ROWS) if dict(sizes) == EPIC_ROWS else None


def check_order(order: Sequence[str] | None, sizes: Mapping[str, int], source: str) -> Sequence[str]:
    """Returns the order of the heads in the single output of a source.

    Args:
        order: The order, or None if it is unknown.
        sizes: The number of classes by head.
        source: The source, for messages.

    Raises:
        UserError: The order is unknown, so that only the sum of the sizes fits, or it does not name each head.
    """
    heads = list(sizes)
    if order is None:
        raise UserError(
            f"{source} has a single output of {sum(sizes.values())} rows, which fits the heads "
            f"{' + '.join(f'{head} {size}' for head, size in sizes.items())} only by their sum: set init.heads to "
            f"the heads in the order of its rows, init.heads=[{','.join(heads)}] or "
            f"init.heads=[{','.join(reversed(heads))}]"
        )
    if sorted(order) != sorted(heads):
        names = f"must name each head once: {', '.join(heads)}"
        raise UserError(
            f"init.heads=[{','.join(order)}]: {names if heads != [''] else 'the model has a single head'}"
        )
    return order


def reorder(value: Tensor, sizes: Mapping[str, int], order: Sequence[str]) -> Tensor:
    """Returns the rows of all heads in another order of the heads.

    Args:
        value: A weight or bias [rows, ...].
        sizes: The number of rows by head, in the present order.
        order: The heads in the wanted order.
    """
    blocks = dict(zip(sizes, value.split(list(sizes.values())), strict=True))
    return torch.cat([blocks[head] for head in order])


def from_single_output(value: Tensor, sizes: Mapping[str, int], order: Sequence[str]) -> Tensor:
    """Returns the rows of a single output in the order of `sizes`; `order` is that of the output's heads."""
    return reorder(value, {head: sizes[head] for head in order}, list(sizes))
