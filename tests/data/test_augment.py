"""All frames of a clip go through the same draw, draws are functions of their key, and none leaves its range."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from parity import processor_error
from torch import Tensor

from vivit_train.data.colors import jitter_colors
from vivit_train.data.transforms import (
    RandAugmentKind,
    TrainTransform,
    crop_views,
    mirrored_classes,
    mix_batch,
    mix_seed,
    seeded,
)

Transform = Callable[[Tensor], Tensor]


def transform(
    crop: int = 24,
    short_side: int = 32,
    scale_jitter: tuple[float, float] | None = None,
    flip: float = 0.0,
    color_jitter: float = 0.0,
    randaugment: tuple[int, int] | None = None,
    random_erasing: float = 0.0,
    strong_color: bool = False,
    kind: RandAugmentKind = "torchvision",
) -> Transform:
    chances = (flip, color_jitter, randaugment, random_erasing, strong_color, kind)
    apply = TrainTransform(crop, short_side, "keep_ratio", scale_jitter, *chances)
    return lambda clip: augment(apply, clip)[0]


def augment(apply: TrainTransform, clip: Tensor) -> tuple[Tensor, bool]:
    params = apply.draw(*clip.shape[-2:])
    return apply.finish(params.cut(clip), params), params.flipped


def still(height: int = 32, width: int = 48, frames: int = 4) -> Tensor:
    """A clip of one noisy picture."""
    picture = torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(0))
    return picture.to(torch.uint8).repeat(frames, 1, 1, 1)


def ruler(height: int, width: int) -> Tensor:
    """One frame whose red is the column and whose green is the row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)])[None].to(torch.uint8)


def draws(make: Callable[[], Tensor], count: int = 100) -> Iterator[Tensor]:
    for key in range(count):
        with seeded(key):
            yield make()


EVERYTHING = {
    "crop": transform(),
    "scale": transform(scale_jitter=(0.9, 1.33)),
    "flip": transform(flip=0.5),
    "color": transform(color_jitter=0.8),
    "randaugment": transform(randaugment=(2, 15)),
    "the authors' randaugment": transform(randaugment=(2, 20), kind="authors"),
    "strong color": transform(color_jitter=1.0, strong_color=True),
    "erasing": transform(random_erasing=0.9),
    "all": transform(scale_jitter=(0.9, 1.33), flip=0.5, color_jitter=0.8, randaugment=(2, 20)),
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_all_frames_of_a_clip_get_the_same(name: str) -> None:
    seen = set()
    for clip in draws(lambda: EVERYTHING[name](still()), 20):
        assert type(clip) is Tensor
        assert (clip.shape, clip.dtype) == ((4, 3, 24, 24), torch.uint8)
        inner = clip[..., 2:-2, :]  # the authors' sharpness sees the next frame below a frame's last row
        assert torch.equal(inner, inner[:1].expand_as(inner))
        seen.add(clip.numpy().tobytes())
    assert len(seen) > (10 if "randaugment" not in name else 5)


def test_same_key_same_draw() -> None:
    apply = EVERYTHING["all"]
    for key in range(5):
        with seeded(7, key):
            first = apply(still())
        torch.rand(3)
        with seeded(7, key):
            assert torch.equal(apply(still()), first)


def test_seeded_leaves_the_state_outside_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    got = [torch.rand(2)]
    with seeded(1, 2):
        torch.rand(100)
    with pytest.raises(ZeroDivisionError), seeded(3):
        _ = int(torch.rand(1) * 0) // 0
    got.append(torch.rand(2))
    assert torch.equal(torch.cat(got), expected)


def test_seeds_are_well_mixed() -> None:
    keys = [(a, b, c) for a in range(8) for b in range(8) for c in range(8)]
    seeds = [mix_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix_seed(1, 2) == mix_seed(1, 2)


def boxes(apply: Transform, height: int, width: int) -> Tensor:
    """Of 300 draws: left, right, top and bottom of the crop in the source, in pixels, measured on the picture."""
    rows = []
    for clip in draws(lambda: apply(ruler(height, width)), 300):
        x, y = clip[0, 0].double().mean(0), clip[0, 1].double().mean(1)
        middle = slice(4, -4)  # the border of a resized picture is bent
        i = torch.arange(len(x), dtype=torch.double)[middle] + 0.5
        row = []
        for values in (x[middle], y[middle]):
            slope = ((i - i.mean()) * (values - values.mean())).sum() / ((i - i.mean()) ** 2).sum()
            start = values.mean() + 0.5 - slope * i.mean()
            row += [start, start + slope * len(x)]
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (80, 80), (128, 200)])
def test_crops_lie_in_the_picture_and_have_the_size_asked_for(height: int, width: int) -> None:
    low, high = 0.9, 1.33
    left, right, top, bottom = boxes(transform(48, 64, (low, high)), height, width).T
    for start, end, size in ((left, right, width), (top, bottom, height)):
        assert start.min() > -1
        assert end.max() < size + 1
        assert start.min() < 3  # and reach all of it
        assert end.max() > size - 3
        # box = crop / (short_side / source short side x factor)
        factor = 48 / (64 / min(height, width) * (end - start))
        assert low - 0.05 < factor.min() < low + 0.06
        assert high - 0.06 < factor.max() < high + 0.05
    ratio = (right - left) / (bottom - top)
    assert ratio.min() < 0.85  # height and width are drawn each for itself
    assert ratio.max() > 1.15


def test_without_scale_jitter_a_crop_is_a_cut() -> None:
    picture = ruler(32, 48)
    lefts, tops = set(), set()
    for clip in draws(lambda: transform(24, 32)(picture), 300):
        left, top = int(clip[0, 0, 0, 0]), int(clip[0, 1, 0, 0])
        assert torch.equal(clip, picture[..., top : top + 24, left : left + 24])
        lefts.add(left)
        tops.add(top)
    assert lefts == set(range(25))
    assert tops == set(range(9))


def test_a_box_larger_than_the_picture_is_the_picture() -> None:
    clip = transform(64, 64, (0.5, 0.5))(ruler(64, 64))
    assert torch.equal(clip, ruler(64, 64))


@pytest.mark.parametrize(("probability", "flipped"), [(0.0, {False}), (0.5, {False, True}), (1.0, {True})])
def test_flips_are_as_frequent_as_asked(probability: float, flipped: set[bool]) -> None:
    apply, said = TrainTransform(24, 32, "keep_ratio", None, probability, 0.0, None), []

    def draw() -> Tensor:
        clip, was_flipped = augment(apply, ruler(32, 48))
        said.append(was_flipped)
        return clip

    clips = list(draws(draw))
    found = [bool(clip[0, 0, 0, 0] > clip[0, 0, 0, -1]) for clip in clips]
    assert found == said
    assert set(found) == flipped
    if len(flipped) == 2:
        assert 30 < sum(found) < 70
    assert all((clip[0, 1, 1:] > clip[0, 1, :-1]).all() for clip in clips)  # never upside down


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.8, 65, 95), (1.0, 100, 100)])
def test_colour_jitter_is_as_frequent_as_asked(probability: float, low: int, high: int) -> None:
    clip = still(24, 24, frames=1)
    changed = [
        not torch.equal(out, clip) for out in draws(lambda: transform(24, 24, color_jitter=probability)(clip))
    ]
    assert low <= sum(changed) <= high


def test_colour_jitter_stays_in_its_range() -> None:
    # saturation, contrast and hue leave grey alone, but for rounding down once each
    grey = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)
    levels = {int(out.float().mean()) for out in draws(lambda: jitter_colors(grey), 400)}
    assert min(levels) in range(93, 99)
    assert max(levels) in range(154, 161)

    noise = still(frames=1)
    grey_ones = [torch.equal(out[:, 0], out[:, 2]) for out in draws(lambda: jitter_colors(noise), 400)]
    assert 20 <= sum(grey_ones) <= 65  # of 400, with probability 0.1

    black, white = torch.zeros_like(grey), torch.full_like(grey, 255)
    assert max(int(out.max()) for out in draws(lambda: jitter_colors(black))) in range(25, 33)
    assert min(int(out.min()) for out in draws(lambda: jitter_colors(white))) in range(223, 231)


def test_strong_colour_jitter_is_stronger() -> None:
    noise = still(frames=1)
    clips = list(draws(lambda: transform(32, 32, color_jitter=1.0, strong_color=True)(noise)))
    assert 18 <= sum(torch.equal(out[:, 0], out[:, 2]) for out in clips) <= 45  # grey: 30 %
    weaker = list(draws(lambda: transform(32, 32, color_jitter=1.0)(noise)))
    spread = [torch.stack([clip.float().mean() for clip in outs]).std() for outs in (clips, weaker)]
    assert spread[0] > 1.5 * spread[1]


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 32), (32, 32)])
@pytest.mark.parametrize("crop", [32, 24])
def test_views_are_left_centre_right_or_top_centre_bottom(height: int, width: int, crop: int) -> None:
    picture = ruler(height, width)
    if width >= height:
        corners = [((height - crop) // 2, left) for left in (0, (width - crop) // 2, width - crop)]
    else:
        corners = [(top, (width - crop) // 2) for top in (0, (height - crop) // 2, height - crop)]
    expected = [picture[..., top : top + crop, left : left + crop] for top, left in corners]
    views = crop_views(picture, crop, short_side=32, resize_mode="keep_ratio", crops=3)
    assert len(views) == 3
    assert all(torch.equal(view, want) for view, want in zip(views, expected, strict=True))
    (centre,) = crop_views(picture, crop, short_side=32, resize_mode="keep_ratio", crops=1)
    assert torch.equal(centre, expected[1])


def test_half_a_pixel_is_rounded_up_for_the_middle_of_three_crops() -> None:
    picture = ruler(33, 41)  # 224 of 341 pixels in a video of 4:3 leaves such a half, too
    left, middle, right = crop_views(picture, 24, short_side=33, resize_mode="keep_ratio", crops=3)
    (center,) = crop_views(picture, 24, short_side=33, resize_mode="keep_ratio", crops=1)
    assert torch.equal(middle, picture[..., 5:29, 9:33])
    assert torch.equal(left, picture[..., 5:29, :24])
    assert torch.equal(right, picture[..., 5:29, 17:])
    assert torch.equal(center, picture[..., 4:28, 8:32])


@pytest.mark.parametrize("height", [93, 98, 103, 105, 107, 186, 240, 720])
def test_a_view_may_be_the_whole_short_side(height: int) -> None:
    # short_side / height x height is less than short_side in floating point for some of them
    video = torch.full((1, 3, height, height + 40), 255, dtype=torch.uint8)
    for short_side in (112, 224, 320):
        for view in crop_views(video, short_side, short_side, resize_mode="keep_ratio", crops=3):
            assert view.shape[-2:] == (short_side, short_side)
            assert view.min() == 255  # nothing was padded with black


def test_views_of_a_small_video_show_the_same_part() -> None:
    large, small = ruler(96, 144), ruler(96, 144)[..., 1::3, 1::3]
    for a, b in zip(crop_views(large, 24, 32, False, 3), crop_views(small, 24, 32, False, 3), strict=True):
        assert a.shape == b.shape == (1, 3, 24, 24)
        assert (a.int() - b.int()).abs().max() <= 2


def clips_to_mix(batch: int = 6) -> tuple[Tensor, Tensor]:
    """Each clip is its own constant, so that a mixed pixel says what it is made of."""
    video = torch.arange(1.0, batch + 1).view(-1, 1, 1, 1, 1).expand(-1, 4, 3, 16, 16).clone()
    return video, torch.arange(batch)[:, None]


def test_mixup_mixes_pixels_and_targets_by_the_same_lambda() -> None:
    video, label = clips_to_mix()
    lambdas = []
    for key in range(50):
        with seeded(key):
            mixed, target = mix_batch(video, label, [8], mixup=0.8, cutmix=0)
        assert type(mixed) is Tensor
        torch.testing.assert_close(target.sum(1), torch.ones(6))
        lam = target[0, 0]
        assert all(torch.isclose(target[i, i], lam) for i in range(6))  # one lambda per batch
        rolled = torch.roll(video, 1, 0)
        torch.testing.assert_close(mixed, lam * video + (1 - lam) * rolled)
        torch.testing.assert_close(target[:, :6], lam * torch.eye(6) + (1 - lam) * torch.eye(6).roll(1, 0))
        lambdas.append(float(lam))
    assert 0.35 < sum(lambdas) / 50 < 0.65
    assert len(set(lambdas)) > 40


def test_cutmix_pastes_one_box_into_every_frame_and_counts_its_area() -> None:
    video, label = clips_to_mix()
    pasted_somewhere = 0
    for key in range(50):
        with seeded(key):
            mixed, target = mix_batch(video, label, [8], mixup=0, cutmix=1.0)
        foreign = mixed != video
        assert torch.equal(mixed, torch.where(foreign, torch.roll(video, 1, 0), video))
        assert torch.equal(foreign, foreign[:1, :1, :1].expand_as(foreign))  # same box for clips, frames, channels
        box = foreign[0, 0, 0]
        assert box.sum() == box.any(0).sum() * box.any(1).sum()
        share = box.double().mean().float()
        torch.testing.assert_close(target[:, :6], (1 - share) * torch.eye(6) + share * torch.eye(6).roll(1, 0))
        torch.testing.assert_close(target.sum(1), torch.ones(6))
        pasted_somewhere += int(box.any())
    assert pasted_somewhere > 40


def test_where_both_are_on_each_comes_up() -> None:
    video, label = clips_to_mix()
    kinds = []
    for key in range(60):
        with seeded(key):
            mixed, _ = mix_batch(video, label, [8], mixup=0.8, cutmix=1.0)
        whole_numbers = bool((mixed == mixed.round()).all())
        kinds.append(whole_numbers)
    assert 15 < sum(kinds) < 45


def test_soft_targets_of_clips_of_one_class_stay_hard() -> None:
    video, _ = clips_to_mix()
    _, target = mix_batch(video, torch.full((6, 1), 3), [5], mixup=0.8, cutmix=0)
    torch.testing.assert_close(target, torch.eye(5)[3].expand(6, -1))


def test_several_heads_are_mixed_alike() -> None:
    video, _ = clips_to_mix()
    label_BH = torch.stack([torch.arange(6) % 4, torch.arange(6).flip(0)], dim=1)
    with seeded(3):
        mixed, target = mix_batch(video, label_BH, [4, 6], mixup=0.8, cutmix=0)
    share = float(mixed[1, 0, 0, 0, 0]) - 1  # of clip 1 in itself, mixed with clip 0
    verb, noun = target.split([4, 6], dim=1)
    torch.testing.assert_close(verb[1], share * torch.eye(4)[1] + (1 - share) * torch.eye(4)[0])
    torch.testing.assert_close(noun[1], share * torch.eye(6)[4] + (1 - share) * torch.eye(6)[5])


def test_erasing_blackens_one_rectangle_as_often_as_asked() -> None:
    white = torch.full((3, 3, 24, 24), 255, dtype=torch.uint8)
    black = [clip == 0 for clip in draws(lambda: transform(24, 24, random_erasing=0.25)(white))]
    assert 12 <= sum(bool(mask.any()) for mask in black) <= 38
    for mask in black:
        box = mask[0, 0]
        assert torch.equal(mask, box.expand_as(mask))
        assert box.sum() == box.any(0).sum() * box.any(1).sum()


@pytest.mark.parametrize(
    ("names", "mirrored"),
    [
        (["swipe_left", "swipe_right", "wave"], [1, 0, 2]),
        (["Swiping Right", "Swiping Left"], [1, 0]),
        (["from left to right", "from right to left"], [1, 0]),
        (["TurnLeft", "TurnRight", "Leftovers", "Rightovers"], [1, 0, 2, 3]),
        (["stand upright", "stand upleft"], [0, 1]),  # no sides
        (["pulling it right out", "leave"], [0, 1]),  # no class "pulling it left out"
    ],
)
def test_classes_in_a_mirror(names: list[str], mirrored: list[int]) -> None:
    assert mirrored_classes(names).tolist() == mirrored


def test_the_mirrored_classes_of_something_something(shared: Path) -> None:
    labels = json.loads((shared / "annotations/ssv2/labels.json").read_text())
    names = sorted(labels, key=lambda name: int(labels[name]))
    mirrored = mirrored_classes(names).tolist()
    pairs = {(names[i], names[j]) for i, j in enumerate(mirrored) if i < j}
    assert pairs == {
        ("Pulling something from left to right", "Pulling something from right to left"),
        ("Pushing something from left to right", "Pushing something from right to left"),
        ("Turning the camera left while filming something", "Turning the camera right while filming something"),
    }
    assert [mirrored[i] for i in mirrored] == list(range(174))  # twice is the class itself
    sided = [i for i, name in enumerate(names) if re.search(r"\b(left|right)\b", name)]
    assert [names[i] for i in sided if mirrored[i] == i] == [
        "Plugging something into something but pulling it right out as you remove your hand"
    ]


def test_views_are_huggingfaces_pictures(shared: Path) -> None:
    assert processor_error(shared) <= 1  # they round twice, in PIL


def test_squash_keeps_what_a_crop_would_cut_off() -> None:
    video = torch.zeros(2, 3, 24, 64, dtype=torch.uint8)
    video[..., :4], video[..., -4:] = 255, 255  # white at the far left and right
    (cropped,) = crop_views(video, 24, short_side=24, resize_mode="keep_ratio", crops=1)
    (whole,) = crop_views(video, 24, short_side=24, resize_mode="stretch", crops=1)
    assert cropped.max() == 0
    assert whole[..., 0].min() > 200
    assert whole[..., -1].min() > 200
    assert augment(TrainTransform(24, 24, "stretch", None, 0, 0, None), video)[0].equal(whole)
