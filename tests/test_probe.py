"""`vivit probe`: its features, its regression, its folds, and a checkpoint that eval.py scores alike."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY_PROBE
from omegaconf import DictConfig

from vivit_train import create_model
from vivit_train.models.probe import (
    AttentiveHead,
    FrameProbe,
    Pooling,
    attentive_logits,
    foreground,
    luminance,
    mirrored,
    motion_energy,
    pooled,
)
from vivit_train.models.relevance import relevance
from vivit_train.models.tuning import feature_shape
from vivit_train.run import evaluate
from vivit_train.tools.probe.run import compose_probe, heads_to_keep, probe
from vivit_train.training.attentive import cross_validate_attentive, fit_attentive
from vivit_train.training.features import FeatureStore, StoredClip, store_in_shards
from vivit_train.training.folds import assign_folds, sources
from vivit_train.training.linear import Standardized, cross_validate, fit
from vivit_train.training.probing import Choice, Features, head_of, mean_head, num_right, pooled_by_all
from vivit_train.utils.errors import UserError

TINY_NET = {"dim": 32, "depth": 1, "heads": 2, "frames": 4, "image_size": 32, "tubelet": (1, 16, 16)}
BASELINES = {"chance", "majority class", "motion", "motion in regions", "motion, tiny model"}


def words(videos: Path, init: Path) -> list[str]:
    shape = [word for word in TINY_PROBE if not word.startswith("model.tubelet")]
    return ["data=folder", f"data.root={videos}", f"init.path={init}", *shape]


def pretrained(folder: Path) -> Path:
    """Random weights in a file, which stand for those of a pretrained model."""
    net = create_model("vivit_fe", "Ti", num_classes=8, **TINY_NET)  # type: ignore[arg-type]
    torch.save(net.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


@pytest.mark.slow
def test_a_probe_ends_with_a_checkpoint_that_scores_the_same(
    videos: Path,
    config: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    init = pretrained(tmp_path)
    probe(words(videos, init), None, 3, "source")
    report = json.loads((tmp_path / "probe/folder/1/probe.json").read_text())
    rows = {row["name"].removesuffix(" *"): row for row in report["rows"]}
    (chosen,) = (row for row in report["rows"] if row["name"].endswith("*"))
    assert rows.keys() > BASELINES | {
        *("appearance", "appearance and motion", "mean", "differences", "attentive", "foreground")
    }
    assert {name for name, row in rows.items() if row["tested"] is None}.isdisjoint(BASELINES)
    ckpt = tmp_path / "probe/folder/1/checkpoints/best.ckpt"
    found = evaluate(config(f"ckpt_path={ckpt}", name="eval"))
    assert found["test/top1@1x1"] == pytest.approx(chosen["tested"] / report["n_test"])
    assert report["n_test"] == found["n"] == 16


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vivit_st", "vivit_fsa", "vivit_fdp"])
def test_models_that_attend_over_time_are_probed_too(
    model: str, videos: Path, config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = create_model(model, "Ti", num_classes=8, **TINY_NET | {"tubelet": (2, 16, 16)})  # type: ignore[arg-type]
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    probe(
        [*words(videos, tmp_path / "weights.pt"), f"model={model}", "model.tubelet=[2,16,16]"], None, 3, "source"
    )
    report = json.loads((tmp_path / "probe/folder/1/probe.json").read_text())
    (chosen,) = (row for row in report["rows"] if row["name"].endswith("*"))
    assert not {row["name"].removesuffix(" *") for row in report["rows"]} & {"appearance", "appearance and motion"}
    found = evaluate(config(f"ckpt_path={tmp_path / 'probe/folder/1/checkpoints/best.ckpt'}", name="eval"))
    assert found["test/top1@1x1"] == pytest.approx(chosen["tested"] / report["n_test"])


@pytest.mark.slow
def test_features_of_a_video_that_changed_are_computed_again(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    init = pretrained(tmp_path)
    probe(words(videos, init), None, 3, "source")
    report = json.loads((tmp_path / "probe/folder/1/probe.json").read_text())
    changed = next((videos / "train").glob("*/*.mp4"))
    before = changed.stat()
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    capsys.readouterr()
    probe(words(videos, init), None, 3, "source")
    out = capsys.readouterr().out
    assert "1 video has changed since the features were computed" in out
    assert "the features of 23 of 24 clips are in features" in out
    assert json.loads((tmp_path / "probe/folder/2/probe.json").read_text()) == report


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init.name=null"], "set init=imagenet"),
        (
            ["model._target_=vivit_train.models.vivit.ViViTFactorizedEncoder.from_size"],
            "needs one of vivit_fe, ",
        ),
        (["data=demo"], "which videos"),
    ],
)
def test_what_a_probe_needs(overrides: list[str], message: str, videos: Path, tmp_path: Path) -> None:
    given = ["data=folder", f"data.root={videos}", *overrides]
    given = given[1:] if "data=demo" in overrides else given
    with pytest.raises(UserError, match=message):
        probe([word for word in given if word != "data=demo"], tmp_path / "out", 3, "source")


def test_a_group_that_tells_nothing_is_refused_before_the_features(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gives 24 clips no group"):
        probe(words(videos, pretrained(tmp_path)), None, 3, "(nowhere)")
    assert not (tmp_path / "features").exists()
    assert not list(tmp_path.glob("probe/folder/*"))


def test_a_window_that_is_typed_keeps_its_stride(videos: Path) -> None:
    given = ["data=folder", f"data.root={videos}", "init=imagenet"]
    by_default, typed = compose_probe(given).data, compose_probe([*given, "data.sampling=window"]).data
    assert (by_default.sampling, by_default.stride, by_default.resize_mode) == ("segments", 1, "stretch")
    assert (typed.sampling, typed.stride, typed.resize_mode) == ("window", "auto", "keep_ratio")


def test_features_that_were_computed_survive_an_interruption(tmp_path: Path) -> None:
    clips = [StoredClip(json.dumps([f"{n}.mp4", None, "1x1"]), (n, 1)) for n in range(5)]
    store = FeatureStore(tmp_path, {"weights": "a"})

    def batches(last: int) -> Iterator[tuple[list[StoredClip], dict[str, torch.Tensor], int]]:
        for n in store.missing(clips):
            if n == last:
                raise KeyboardInterrupt
            yield [clips[n]], {"x": torch.full((1, 2), float(n))}, 0

    with pytest.raises(UserError, match="run the same command"):
        store_in_shards(store, batches(last=3), len(clips), "features")
    store = FeatureStore(tmp_path, {"weights": "a"})  # as another process would open it
    assert store.missing(clips) == [3, 4]
    store_in_shards(store, batches(last=9), 2, "features")
    assert store.load(clips[::-1])["x"][:, 0].tolist() == [4, 3, 2, 1, 0]
    assert FeatureStore(tmp_path, {"weights": "b"}).missing(clips) == [0, 1, 2, 3, 4]
    damaged = next(store.folder.glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert FeatureStore(tmp_path, {"weights": "a"}).missing(clips)


def test_the_regression_is_at_its_minimum_on_the_features_themselves() -> None:
    torch.manual_seed(0)
    x_NE, label_N = torch.randn(20, 50) + 3, torch.arange(20) % 3
    standardized = Standardized.of(x_NE)
    weight, bias = fit(standardized.x, label_N, 3, [1e-2], torch.ones(1, 20))
    logits = F.linear(x_NE, *standardized.head(weight[0], bias[0]))
    assert torch.allclose(logits, (standardized.x @ weight[0] + bias[0]).float(), atol=1e-4)
    z_NE = ((x_NE - x_NE.mean(0)) / x_NE.std(0, correction=0) / 50**0.5).double()
    w = (standardized.x.pinverse() @ z_NE).T @ weight[0]  # the same weights for standardized features
    w = w.requires_grad_()
    (F.cross_entropy(z_NE @ w + bias[0], label_N) + 1e-2 * w.square().sum() / 2).backward()
    assert w.grad is not None
    assert w.grad.abs().max() < 1e-4


def test_a_clip_is_held_out_with_its_fold() -> None:
    torch.manual_seed(0)
    x_Nr, label_N, fold_N = torch.randn(12, 4).double(), torch.arange(12) % 2, torch.arange(12) // 4
    held_out = cross_validate(x_Nr, label_N, 2, [1e-3, 1e-1], fold_N)
    kept = (fold_N != 1).double()[None]
    weight, bias = fit(x_Nr, label_N, 2, [1e-1], kept)
    assert torch.allclose(held_out[1, 4:8], x_Nr[4:8] @ weight[0] + bias[0], atol=1e-3)


@pytest.mark.parametrize("flip", [True, False])
def test_with_flips_a_head_has_the_same_logits_for_a_clip_and_its_mirror_image(flip: bool) -> None:
    torch.manual_seed(0)
    regions, luma = torch.randn(12, 4, 11, 8), torch.randn(12, 4, 32, 32)
    images = mirrored(regions), luma.flip(-1)
    assert torch.equal(mirrored(images[0]), regions)
    train = Features({("frames", 1): regions}, luma, torch.arange(12) % 3, flip)
    for time in ("ordered", "differences", "mean_std"):
        head = head_of(train, Choice(Pooling("grid", time, "map", 1), 1e-3, 0, 0.0), 3)
        pooling = Pooling("grid", time, "map", 1)
        ours, theirs = (head(pooled(x, y, pooling)) for x, y in ((regions, luma), images))
        assert torch.allclose(ours, theirs, atol=1e-3) == flip


def test_the_kept_head_has_the_mean_of_the_logits_of_the_best() -> None:
    torch.manual_seed(0)
    regions = {("frames", 1): torch.randn(12, 4, 11, 8), ("foreground", 1): torch.randn(12, 4, 11, 8)}
    train = Features(regions, torch.randn(12, 4, 32, 32), torch.arange(12) % 3)  # type: ignore[arg-type]
    kept = [
        Choice(Pooling("grid", "ordered", layers=1), 1e-3, 0, 0.0),
        Choice(Pooling("grid", "mean_std", "map", 1, "foreground"), 1e-2, 0, 0.0),
        Choice(Pooling("none", "mean", "map"), 1e-2, 0, 0.0),
    ]
    logits = [head_of(train, one, 3)(train.pooled(one.pooling)) for one in kept]
    head = mean_head(train, kept, 3)
    assert torch.allclose(head(pooled_by_all(train, kept)), torch.stack(logits).mean(0), atol=1e-4)
    assert num_right(train, kept, head) == int((torch.stack(logits).mean(0).argmax(1) == train.labels).sum())


def test_a_baseline_is_kept_only_if_it_is_clearly_better() -> None:
    def named(baseline: int, head: int) -> list[tuple[str, Choice]]:
        motion = Choice(Pooling("none", "mean", "map"), 1e-3, baseline, 0.5)
        poolings = [Pooling("grid", "mean", kind, layer) for layer in (1, 2, 3, 4) for kind in ("none", "map")]  # type: ignore[arg-type]
        found = [("mean", Choice(one, 1e-3, head - fewer, 0.5)) for fewer, one in enumerate(poolings)]
        return sorted([("motion in regions", motion), *found], key=lambda item: item[1].rank, reverse=True)

    def rights(baseline: int, head: int) -> list[int]:
        return [choice.right for choice in heads_to_keep(named(baseline, head), 100)]

    assert rights(83, 80) == [80, 78, 76]  # one standard error is 4 of 100 clips
    assert rights(85, 80) == [85]
    assert rights(10, 80) == [80, 78, 76]
    attentive = Choice(Pooling("grid", "attentive", layers=1), 1e-3, 90, 0.5)
    assert heads_to_keep([("attentive", attentive), *named(10, 80)], 100) == [attentive]
    later = [*named(10, 80)[:1], ("attentive", attentive), *named(10, 80)[1:]]
    assert [choice.right for choice in heads_to_keep(later, 100)] == [80, 78, 76]


def test_an_attentive_head_finds_the_token_that_tells_the_class() -> None:
    torch.manual_seed(0)
    label_N, fold_N, x_NTD = torch.arange(48) % 3, torch.arange(48) // 12, torch.randn(48, 12, 8)
    x_NTD[torch.arange(48), torch.randint(12, (48,)), label_N] += 8  # at any place, so that no linear head sees it
    x_NE = x_NTD.flatten(1)
    (logits,) = cross_validate_attentive(x_NE, 8, label_N, 3, [1e-4], fold_N)
    (linear,) = cross_validate(Standardized.of(x_NE).x, label_N, 3, [1e-4], fold_N)
    assert (logits.argmax(1) == label_N).sum() >= (linear.argmax(1) == label_N).sum() + 10
    alone = fit_attentive(x_NE, 8, label_N, 3, [1e-4], (fold_N != 1)[None])
    assert torch.allclose(attentive_logits(x_NE, **alone)[0, 12:24], logits[12:24], atol=1e-5)
    head = AttentiveHead(12, 8, 3)
    head.load_state_dict({name: x[0] for name, x in alone.items()})
    assert torch.allclose(head(x_NE)[12:24], logits[12:24], atol=1e-5)


def test_clips_of_one_source_stay_in_one_fold() -> None:
    ids = [f"train/{name}/v_g{group:02}_c{clip}.avi" for name in "ab" for group in range(4) for clip in range(3)]
    label_N = np.repeat([0, 1], 12)
    groups = sources(ids, label_N, ["a", "b"])
    assert len(set(groups)) == 4
    fold_N = assign_folds(groups, label_N, 2, 0)
    for group in set(groups):
        assert len({int(f) for f, name in zip(fold_N, groups, strict=True) if name == group}) == 1
    assert np.bincount(fold_N).tolist() == [12, 12]
    plain = [f"{name}/clip_{clip}.mp4" for name in "ab" for clip in range(3)]
    assert sources(plain, np.repeat([0, 1], 3), ["a", "b"]) == plain  # names that tell nothing


@pytest.mark.parametrize("model", ["vivit_st", "vivit_fsa", "vivit_fdp"])
def test_the_time_indices_of_a_video_model_are_its_frames(
    model: Literal["vivit_st", "vivit_fsa", "vivit_fdp"],
) -> None:
    """The mean over all tokens is what the model pools itself, and a class token is that of the clip."""
    video, sizes = torch.randn(2, 3, 4, 32, 32), TINY_NET | {"tubelet": (2, 16, 16), "pool": "mean"}
    whole = create_model(model, "Ti", num_classes=3, **sizes).eval()  # type: ignore[arg-type]
    net = FrameProbe(model, num_classes=3, space="mean", time="mean", **sizes).eval()  # type: ignore[arg-type]
    net.load_state_dict(whole.state_dict())
    assert torch.allclose(net.features(video), whole.features(video), atol=1e-5)
    (regions,) = net.regions(video, [1])
    assert regions.shape == (2, 2, 11, 32)
    if model == "vivit_st":
        whole = create_model(model, "Ti", num_classes=3, **sizes | {"pool": "cls"}).eval()  # type: ignore[arg-type]
        net = FrameProbe(model, num_classes=3, space="cls", time="mean", **sizes | {"pool": "cls"}).eval()  # type: ignore[arg-type]
        net.load_state_dict(whole.state_dict())
        assert torch.allclose(net.features(video), whole.features(video), atol=1e-5)


def test_poolings_of_the_frames() -> None:
    video = torch.randn(2, 3, 4, 32, 32)
    net = FrameProbe(num_classes=3, space="cls", time="mean_diff", motion="energy", **TINY_NET).eval()  # type: ignore[arg-type]
    with torch.inference_mode():
        (regions,) = net.regions(video, [1])
        per_frame = torch.stack([net.encoder(net.embedding(video[:, :, i : i + 1]))[:, 0] for i in range(4)], 1)
        assert torch.allclose(regions[:, :, 0], per_frame, atol=1e-5)
        expected = [per_frame.mean(1), per_frame.diff(dim=1).abs().mean(1), motion_energy(luminance(video))]
        assert torch.allclose(net.features(video), torch.cat(expected, 1), atol=1e-5)
        for time, size in (("differences", 7 * 32), ("attentive", 4 * 32)):
            made = FrameProbe(num_classes=3, space="cls", time=time, **TINY_NET).eval()  # type: ignore[arg-type]
            assert made.features(video).shape == (2, size)
            assert made(video).shape == (2, 3)
            assert feature_shape(made, "head") == (size,)  # as cache=true asks
    still = video[:, :, :1].expand_as(video)
    assert foreground(still).abs().max() == 0
    moved = FrameProbe(num_classes=3, space="mean", input="foreground", **TINY_NET).eval()  # type: ignore[arg-type]
    seen = FrameProbe(num_classes=3, space="mean", **TINY_NET).eval()  # type: ignore[arg-type]
    seen.load_state_dict(moved.state_dict())
    assert torch.equal(moved.features(video), seen.features(foreground(video)))
    assert motion_energy(luminance(still)).abs().max() < 1e-6
    assert pooled(regions, luminance(still), Pooling("none", "mean", "map")).shape == (2, 27)
    with pytest.raises(ValueError, match="no features"):
        FrameProbe(num_classes=3, space="none", **TINY_NET)  # type: ignore[arg-type]


def test_a_head_on_several_poolings_sees_the_features_of_each() -> None:
    video, sizes = torch.randn(2, 3, 4, 32, 32), TINY_NET | {"depth": 3}
    poolings = [
        Pooling("grid", "ordered", "map", 1, "foreground"),
        Pooling("mean", "mean_std", "none", 3, "foreground"),
        Pooling("cls", "differences", "energy", 2),
        Pooling("none", "mean", "map"),
    ]
    first, *more = map(asdict, poolings)
    net = FrameProbe(num_classes=3, **first, more_poolings=more, **sizes).eval()
    assert net.passes == {"foreground": [1, 3], "frames": [2]}
    parts = []
    for pooling in poolings:
        alone = FrameProbe(num_classes=3, **asdict(pooling), **sizes).eval()
        alone.load_state_dict({k: v for k, v in net.state_dict().items() if "head" not in k}, strict=False)
        parts.append(alone.features(video))
    assert torch.allclose(net.features(video), torch.cat(parts, 1), atol=1e-5)
    assert net(video).shape == (2, 3)
    found, logits = relevance(net, video)
    assert found.shape == (2, 4, 2, 2)
    assert torch.allclose(logits, net(video), atol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"space": "grid"}, r"more_poolings\[0\].time is missing"),
        ({"space": "gird", "time": "mean"}, r"more_poolings\[0\].space is 'gird', but must be one of"),
        ({"space": "grid", "time": "mean", "depth": 1}, r"more_poolings\[0\]: unknown setting 'depth'"),
        ({"space": "none", "time": "mean"}, "no features"),
        ({"space": "grid", "time": "attentive"}, r"set more_poolings=\[\]"),
        ({"space": "grid", "time": "mean", "layers": 2}, "the encoder has 1"),
    ],
)
def test_poolings_that_a_head_cannot_have(more: dict[str, object], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        FrameProbe(num_classes=3, more_poolings=[more], **TINY_NET)  # type: ignore[arg-type]
