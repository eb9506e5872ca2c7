"""`train=`: what is trained changes, what is frozen stays bit by bit; checkpoints evaluate alone and resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from vivit_train import create_model, load_model
from vivit_train.models.tuning import Train, add_adapters, merge_lora, set_trained
from vivit_train.models.vivit import ModelName, ViViT
from vivit_train.models.weights.load import load_pretrained
from vivit_train.run import evaluate, train
from vivit_train.training.optim import parameter_groups
from vivit_train.training.profiling import bytes_kept
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]
CHOICES: tuple[Train, ...] = ("head", "temporal", "norms", "lora", "adapter")
TINY_NET: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "frames": 4, "image_size": 32, "num_classes": 3}


def net_of(model: ModelName = "vivit_fe") -> ViViT:
    torch.manual_seed(0)
    net = create_model(model, "Ti", **TINY_NET)
    for parameter in net.parameters():  # a trained model: nothing is zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def step(net: ViViT) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(net), lr=0.01, weight_decay=0.1)
    for _ in range(2):  # an update that starts at zero lets a gradient pass from its second step on
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.randn(3, 3, 4, 32, 32)), torch.arange(3)).backward()
        optimizer.step()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("model", ["vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp"])
def test_what_is_frozen_stays_and_what_is_trained_changes(choice: Train, model: ModelName) -> None:
    if choice == "temporal" and model in ("vivit_st", "vivit_fdp"):
        return
    net, video = net_of(model), torch.randn(2, 3, 4, 32, 32)
    before = net.eval()(video)
    set_trained(net, choice)
    assert torch.equal(net(video), before)  # it starts as it was
    frozen = {name: x.clone() for name, x in net.named_parameters() if not x.requires_grad}
    trained = {name: x.detach().clone() for name, x in net.named_parameters() if x.requires_grad}
    step(net.train())
    after = dict(net.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert not [name for name, value in trained.items() if torch.equal(after[name], value)]
    assert {"head.weight", "head.bias"} <= trained.keys()
    if model == "vivit_fe" and choice != "head":
        assert any(name.startswith("temporal_encoder") for name in trained)


def test_updates_of_low_rank_are_merged() -> None:
    net, video = net_of(), torch.randn(2, 3, 4, 32, 32)
    set_trained(net, "lora")
    step(net)
    plain = net_of()
    plain.load_state_dict(merge_lora(net.state_dict()))
    with torch.inference_mode():
        assert torch.allclose(plain.eval()(video), net.eval()(video), atol=1e-5)


def test_frozen_layers_keep_no_activations() -> None:
    def kept(choice: Train) -> int:
        net = create_model("vivit_fe", "Ti", **TINY_NET | {"depth": 6, "temporal_depth": 1})
        set_trained(net, choice)
        return bytes_kept(net, lambda: net(torch.randn(2, 3, 4, 32, 32)))  # type: ignore[arg-type,return-value]

    assert kept("head") < kept("temporal") < kept("all") / 3


def test_an_adapter_mixes_the_time_indices() -> None:
    for model in ("vivit_st", "vivit_fe"):
        net = net_of(model)  # type: ignore[arg-type]
        add_adapters(net)
        block = net.encoder.blocks[0].adapter
        torch.nn.init.normal_(block.up.weight)
        x = torch.randn(1, 9, 16) if model == "vivit_st" else torch.randn(1, 2, 5, 16)
        moved = x.clone()
        at = (0, 5) if model == "vivit_st" else (0, 1, 1)  # the first token of the second time index
        moved[at] += 1
        changed = (block(moved) - block(x)).abs().sum(-1) > 1e-6
        expected = {(0, 1), (0, 5)} if model == "vivit_st" else {(0, 0, 1), (0, 1, 1)}
        assert {tuple(place) for place in changed.nonzero().tolist()} == expected


def test_the_learning_rate_decays_from_layer_to_layer() -> None:
    groups = parameter_groups(net_of(), layer_decay=0.5)
    scales = [group["lr_scale"] for group in groups]
    assert scales == [0.125, 0.125, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert ["weight_decay" in group for group in groups] == [False, True] * 4
    assert sum(len(group["params"]) for group in groups) == len(list(net_of().parameters()))
    assert len(parameter_groups(net_of())) == 2


def test_what_cannot_be_trained_is_refused(videos: Path, config: Config) -> None:
    words = ["data=folder", f"data.root={videos}"]
    with pytest.raises(UserError, match="vivit_st has no weights for time alone"):
        train(config(*words, "model=vivit_st", "train=temporal"))
    with pytest.raises(UserError, match="only train=all"):
        train(config(*words, "train=lora", "layer_decay=0.5"))
    with pytest.raises(UserError, match="train=everything: must be one of"):
        train(config(*words, "train=everything"))


def run(config: Config, videos: Path, *words: str) -> dict[str, Any]:
    """A run of three steps in an epoch; its last checkpoint."""
    names = ["optimizer.lr=0.01", "scheduler=constant", "ema_decay=0.9", "mixup=0.3"]
    names += [] if "train=head" in words else ["model.drop_path=0.1"]
    train(config("data=folder", f"data.root={videos}", *names, *words))
    checkpoint: dict[str, Any] = torch.load(
        config("data=folder").run_dir + "/checkpoints/last.ckpt", weights_only=True
    )
    return checkpoint


@pytest.mark.parametrize(
    "choice", ["adapter", *(pytest.param(choice, marks=pytest.mark.slow) for choice in CHOICES[:-1])]
)
def test_a_run_evaluates_alone(choice: Train, videos: Path, config: Config, tmp_path: Path) -> None:
    train(config("data=folder", f"data.root={videos}", f"train={choice}", "optimizer.lr=0.01"))
    ckpt = tmp_path / "run/checkpoints/best.ckpt"
    text = (tmp_path / "run/metrics.json").read_text()
    found = evaluate(config(f"ckpt_path={ckpt}", f"run_dir={tmp_path / 'again'}", name="eval"))
    assert f'"test/top1@1x1": {found["test/top1@1x1"]}' in text
    names = load_model(ckpt).net.state_dict().keys()
    assert not [name for name in names if "lora" in name]
    assert any("adapter" in name for name in names) == (choice == "adapter")
    if choice == "lora":  # its merged weights start another run
        plain = create_model("vivit_fe", "Ti", num_classes=8, dim=32, depth=1, heads=2, frames=4, image_size=32)
        assert "copied" in str(load_pretrained(plain, ckpt))


@pytest.mark.slow
@pytest.mark.parametrize("words", [*([f"train={choice}"] for choice in CHOICES), ["layer_decay=0.6"]], ids=str)
def test_a_resumed_run_has_the_weights_of_one_that_was_not(
    words: list[str], videos: Path, config: Config, tmp_path: Path
) -> None:
    whole = run(config, videos, *words, "trainer.max_epochs=2")
    (tmp_path / "run").rename(tmp_path / "whole")
    run(config, videos, *words)
    resumed = run(config, videos, *words, "trainer.max_epochs=2", "resume=auto")
    for key in ("state_dict", "current_model_state"):
        assert whole[key].keys() == resumed[key].keys()
        assert all(torch.equal(whole[key][name], resumed[key][name]) for name in whole[key])
    changed = ["layer_decay=0.9"] if "layer" in words[0] else ["train=all"]
    with pytest.raises(UserError, match="cannot change when a run resumes"):
        run(config, videos, *changed, "resume=auto", "trainer.max_epochs=3")


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_two_processes_train_as_one(choice: Train, videos: Path, tmp_path: Path) -> None:
    from helpers import TINY, run_script

    words = ["data=folder", f"data.root={videos}", *TINY, f"train={choice}", "optimizer=sgd"]
    ends = []
    for trainer in ("cpu", "ddp_cpu"):
        result = run_script("train.py", *words, f"trainer={trainer}", f"hydra.run.dir={trainer}", folder=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
        ends.append(torch.load(tmp_path / trainer / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-3) for name in ends[0])
