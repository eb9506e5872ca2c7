"""The authors' color operations: TensorFlow's values on a real clip, the same on a device, one draw per clip."""

from collections import Counter

import pytest
import torch
from parity import color_errors
from torch import Tensor

from vivit_train.data.colors import adjust_colors
from vivit_train.data.randaugment import OPERATIONS, AuthorsRandAugment, look_up
from vivit_train.data.transforms import seeded

ERRORS = color_errors()


@pytest.mark.parametrize("name", ERRORS)
def test_colors_are_tensorflows(name: str) -> None:
    worst, share = ERRORS[name]
    if name.startswith("sharpness"):  # they cut off fractions of float32 sums, which may lie below a whole number
        assert worst <= 3
        assert share < 0.004
    elif name.startswith(("jitter", "gray")):
        assert worst <= 0.51  # we round, and float16 stores their values
    else:
        assert worst == 0


def test_every_operation_but_the_drawn_one_has_a_golden() -> None:
    assert set(OPERATIONS) - {name.partition("/")[0] for name in ERRORS} == {"cutout"}


def noise(frames: int = 3) -> Tensor:
    rough = torch.rand(frames, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    return (torch.nn.functional.interpolate(rough, (24, 32), mode="bilinear") * 255).to(torch.uint8)


def test_a_table_is_looked_up_as_by_an_index() -> None:
    clip, draw = noise(), torch.Generator().manual_seed(2)
    table = torch.randint(256, (3, 256), generator=draw).to(torch.uint8)
    assert torch.equal(look_up(clip, table[0]), table[0][clip.int()])
    for c in range(3):
        assert torch.equal(look_up(clip.flip(-1), table)[:, c], table[c][clip.flip(-1)[:, c].int()])


def test_a_clip_at_once_is_its_frames_one_by_one() -> None:
    clip = noise()
    at_once = adjust_colors(clip, (-30, 1.4, 0.6, 0.2))
    assert torch.equal(at_once, torch.stack([adjust_colors(frame, (-30, 1.4, 0.6, 0.2)) for frame in clip]))


def test_a_black_square_is_the_same_in_all_frames() -> None:
    white = torch.full((2, 3, 100, 120), 255, dtype=torch.uint8)
    heights = set()
    for key in range(60):
        with seeded(key):
            black = OPERATIONS["cutout"](white, 1.0) == 0
        box = black[0, 0]
        assert torch.equal(black, box.expand_as(black))
        rows, columns = int(box.any(1).sum()), int(box.any(0).sum())
        assert box.sum() == rows * columns
        assert 40 <= rows <= 80
        assert 40 <= columns <= 80
        heights.add(rows)
    assert white.min() == 255  # the input stays
    assert len(heights) > 5


def test_each_operation_and_the_identity_are_drawn_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: Counter[str] = Counter()
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda video, level, name=name: drawn.update([name]) or video)
    clip, augment = noise(), AuthorsRandAugment(2, 15)
    for key in range(600):
        with seeded(key):
            augment(clip)
    assert set(drawn) == set(OPERATIONS)
    assert all(70 <= count <= 130 for count in drawn.values())  # of 1200, expected 100
    assert 70 <= 1200 - drawn.total() <= 130


def test_operations_leave_their_input_alone() -> None:
    clip = noise()
    before = clip.clone()
    for operation in OPERATIONS.values():
        result = operation(clip, 1.5)
        assert torch.equal(clip, before)
        assert (result.dtype, result.shape) == (torch.uint8, clip.shape)
