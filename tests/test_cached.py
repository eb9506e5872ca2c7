"""`cache=true`: a step from stored features is one through the encoder; runs resume; stale features are seen."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import ROOT, TINY
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import vivit_train
from vivit_train import create_model
from vivit_train.build import build_data
from vivit_train.composition import job_of
from vivit_train.config import derive
from vivit_train.finetune import resolve_training
from vivit_train.models.tuning import set_trained
from vivit_train.models.vivit import ModelName
from vivit_train.recipe import read_recipe
from vivit_train.run import evaluate, train
from vivit_train.training.cached import CachedClassifier, view_dataset
from vivit_train.training.module import VideoClassifier
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]
CASES = [("vivit_fe", "temporal"), ("vivit_st", "head")]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in (("vivit_fe", "head"), ("vivit_fsa", "head"))]


def words(videos: Path, *more: str) -> list[str]:
    return ["data=folder", f"data.root={videos}", "cache=true", "cache_views=2", "optimizer.lr=0.01", *more]


@pytest.mark.parametrize(("model", "part"), [*CASES, *SLOW])
def test_a_step_from_stored_features_is_a_step_through_the_encoder(
    model: ModelName, part: Any, videos: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = create_model(model, "Ti", num_classes=8, dim=16, depth=2, heads=2, frames=4, image_size=32)
    for parameter in net.parameters():  # a trained model: nothing is zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    set_trained(net, part)
    settings: Any = ({"": [str(k) for k in range(8)]}, [0.5] * 3, [0.25] * 3)
    cached, plain = CachedClassifier(net, *settings, train=part, cache_views=2), VideoClassifier(net, *settings)
    data = build_data(
        derive(config("data=folder", f"data.root={videos}", "data.mirror_labels=true", "data.limit_per_class=1"))
    )
    cached.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    stored, of_val = cached.stored(data)

    def step(task: VideoClassifier, batch: Any) -> list[torch.Tensor]:
        inputs, target = task.training_input(batch)
        logits = task.logits(inputs)
        loss = task.loss(logits, target)
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        return [logits, loss, *torch.autograd.grad(loss, trained)]

    keys = [(1, 0, 3), (1, 0, 5)]
    batch = torch.utils.data.default_collate([stored[key] for key in keys])
    seen = torch.utils.data.default_collate([view_dataset(data).clips(key)[0] for key in keys])
    assert torch.equal(batch["box"], seen["box"])
    pairs = zip(step(cached, batch), step(plain, {"video": seen["video"], "label": batch["label"]}), strict=True)
    assert all(torch.allclose(found, wanted, rtol=1e-4, atol=1e-5) for found, wanted in pairs)
    video = data.evaluation_dataset("val", data.protocol)[2]["video"]
    wanted = plain.view_logits({"video": video[None]})
    assert torch.allclose(cached.view_logits({"features": of_val[2]["features"][None]}), wanted, atol=1e-5)
    assert torch.equal(stored[3, 0, 3]["features"], stored[1, 0, 3]["features"])  # the views take turns
    assert not torch.equal(stored[0, 0, 3]["features"], stored[1, 0, 3]["features"])


@pytest.mark.slow
def test_a_run_computes_only_what_is_missing_and_evaluates_alone(
    videos: Path,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = next((videos / "train").glob("*/*.mp4"))
    cfg = config(*words(videos, "train=temporal"))
    train(cfg)
    assert "24 clips x 2 views, 0 of 48 were stored" in capsys.readouterr().out
    ckpt, text = tmp_path / "run/checkpoints/best.ckpt", (tmp_path / "run/metrics.json").read_text()
    found = evaluate(config(f"ckpt_path={ckpt}", f"run_dir={tmp_path / 'again'}", name="eval"))
    assert f'"test/top1@1x1": {found["test/top1@1x1"]}' in text
    (tmp_path / "run").rename(tmp_path / "first")
    status, content = broken.stat(), broken.read_bytes()
    try:
        broken.write_bytes(b"no video")
        train(config(*words(videos, "train=temporal", "optimizer.lr=0.02", "data.max_bad_fraction=0.1")))
    finally:
        broken.write_bytes(content)
        os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    out = capsys.readouterr().out
    assert "has changed since the features were computed" in out
    assert "24 clips x 2 views, 46 of 48 were stored" in out
    assert str(broken) in (tmp_path / "run/bad_videos.csv").read_text()


def test_what_does_not_fit_stored_features_is_refused(videos: Path, config: Config) -> None:
    more = ("train=lora", "mixup=0.8", "data.clips_per_video=2", "model.compile=true")
    with pytest.raises(UserError) as refused:
        train(config(*words(videos, *more)))
    for part in (
        "with train=lora, the features change in each step",
        "mixup=0.8 mixes pixels",
        "cache_views takes its place",
        "model.compile=true would compile",
    ):
        assert part in str(refused.value)
    with pytest.raises(UserError, match="vivit_fsa attends over time in each block"):
        train(config(*words(videos, "train=temporal", "model=vivit_fsa")))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["head", "temporal"])
def test_a_resumed_run_has_the_weights_of_one_that_was_not(
    part: str, videos: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*more: str) -> Any:
        drop = [] if part == "head" else ["model.drop_path=0.1"]
        train(config(*words(videos, f"train={part}", "ema_decay=0.9", *drop, *more)))
        return torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)

    whole = run("trainer.max_epochs=3", "scheduler=constant")
    (tmp_path / "run").rename(tmp_path / "whole")
    run("scheduler=constant")
    resumed = run("trainer.max_epochs=3", "scheduler=constant", "resume=auto")
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(whole[key][name], resumed[key][name]) for name in whole[key])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_run_that_is_stopped_keeps_the_features_it_has(
    number: signal.Signals, code: int, videos: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *TINY, *words(videos, "train=temporal", "cache_views=400")]
    command += ["hydra.run.dir=run", "resume=auto"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + 120
        while not list(tmp_path.glob("features/*/*/*.safetensors")) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        process.send_signal(number)
    assert process.returncode == code
    done = subprocess.run(
        [*command, "trainer.max_epochs=1"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "were stored" in line)
    assert " 0 of" not in line


def image_weights(folder: Path) -> Path:
    """A tiny image ViT with random weights."""
    import timm

    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    torch.save(vit.state_dict(), folder / "vit.pth")
    return folder / "vit.pth"


@pytest.mark.parametrize(
    ("more", "few"),
    [
        (["data.flip=0"], True),
        (["mixup=0.1"], False),
        *(pytest.param([word], False, marks=pytest.mark.slow) for word in ("train=all", "init=none")),
    ],
    ids=str,
)
def test_with_few_clips_a_head_is_trained(
    more: list[str], few: bool, videos: Path, config: Config, tmp_path: Path
) -> None:
    given = [f"data.root={videos}", f"init.path={image_weights(tmp_path)}", "run_dir=/tmp", *more]
    given = given if "init=none" not in more else given[::2]
    cfg, recipe, _ = resolve_training(config("data=folder", *given, tiny=False), read_recipe())
    assert recipe is not None
    assert (cfg.train, cfg.cache, recipe.name) == (
        ("head", True, "few_clips") if few else ("all", False, "folder")
    )
    assert cfg.data.root == str(videos)
    assert cfg.data.flip == (0 if "data.flip=0" in more else 0.5)  # what is typed stays


def test_overrides_in_python_choose_as_a_command_does(videos: Path, tmp_path: Path) -> None:
    given = ["data=folder", f"data.root={videos}", f"init.path={image_weights(tmp_path)}", "trainer=cpu"]
    job = HydraConfig.instance().cfg
    with job_of(given, tmp_path / "run", "train") as cfg:
        assert "hydra" not in cfg
        chosen, recipe, _ = resolve_training(cfg, read_recipe())
    assert recipe is not None
    assert (chosen.train, recipe.name, chosen.run_dir) == ("head", "few_clips", str(tmp_path / "run"))
    assert HydraConfig.instance().cfg is job
    with pytest.raises(UserError, match="cache_views=3 has no effect without cache"):
        vivit_train.train(*given, "cache_views=3", run_dir=tmp_path / "run")
