"""Models and kinds of weights that a user's own package defines, used as those of this package are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from nets import randomize, tiny
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from vivit_train.models.vivit import MODELS, ModelName, ViViT, create_model
from vivit_train.models.weights.load import load_pretrained
from vivit_train.models.weights.source import Source, VideoWeights
from vivit_train.run import evaluate, train
from vivit_train.training.checkpoint import load_checkpoint
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]
MODEL = '''
import torch
from torch import Tensor, nn

from vivit_train.models.vivit import ViViTFactorizedEncoder


class Gated(ViViTFactorizedEncoder):
    """A factorized encoder whose representation is scaled by learned gates."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gate = nn.Parameter(torch.ones(self.head.in_features))

    def encode(self, x_BtnD: Tensor) -> Tensor:
        return self.gate * super().encode(x_BtnD)


class Plain(Gated):
    """The same with arguments of its own."""

    def __init__(self, width, clip, num_classes, **kwargs):
        sizes = {"dim": width, "depth": 1, "heads": 2, "image_size": 32}
        super().__init__(num_classes=num_classes, frames=clip, **sizes)
'''
SOURCE = """
from vivit_train.models.weights.keys import our_names, their_names
from vivit_train.models.weights.source import ImageWeights, VideoWeights
from vivit_train.models.weights.timm_vit import TIMM_KEYS, timm_key

KEYS = {ours: tuple(f"backbone/{name}" for name in theirs) for ours, theirs in TIMM_KEYS.items()}


def detect(source, model):
    if "backbone/cls_token" not in source.tensors:
        return None
    theirs = {timm_key(ours): their_names(KEYS, ours)[0] for ours in our_names(KEYS, depth=1)}
    state = {timms: source.tensors[name] for timms, name in theirs.items()}
    return ImageWeights(source.name, state, ((0.4,) * 3, (0.3,) * 3))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of an importable package with the modules `model` and `source`."""
    name = f"own_package_{request.node.name.partition('[')[0]}"
    (tmp_path / name).mkdir()
    for module, text in {"__init__": "", "model": MODEL, "source": SOURCE}.items():
        (tmp_path / name / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def image_vit() -> dict[str, Tensor]:
    """The weights of a tiny image ViT with timm's names, for images of 32 x 32."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32}
    state: dict[str, Tensor] = timm.create_model("vit_tiny_patch16_224", pretrained=False, **sizes).state_dict()
    return state


@pytest.mark.parametrize(
    "target", ["Gated.from_size", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Gated", "Plain"))]
)
def test_a_model_of_another_package_starts_from_an_image_vit_trains_and_is_scored(
    target: str, package: str, videos: Path, config: Config, tmp_path: Path
) -> None:
    save_file(image_vit(), tmp_path / "image.safetensors")
    words = [f"model._target_={package}.model.{target}", f"init.path={tmp_path}/image.safetensors"]
    if target != "Gated.from_size":
        words += ["~model.size", "model.mlp_dim=128"]
    if target == "Plain":
        words += ["~model.model", "~model.compile", "++model.width=32", "++model.clip=${data.frames}"]
    train(config("data=folder", f"data.root={videos}", *words))
    rows = dict(line.split(maxsplit=1)[::-1] for line in report_of(tmp_path))
    assert rows["encoder.blocks.0.mlp.fc1.weight"] == rows["encoder.pos_embed"] == "copied"
    assert rows["gate"] == rows["temporal_encoder.pos_embed"] == "random"
    assert rows["head.weight"] == "zero"
    ckpt = tmp_path / "run/checkpoints/best.ckpt"
    assert "gate" in load_checkpoint(ckpt)[1]
    with pytest.raises(UserError, match=rf"trusted=\[{package}\]"):
        evaluate(config(f"ckpt_path={ckpt}", name="eval"))
    assert evaluate(config(f"ckpt_path={ckpt}", f"trusted=[{package}]", name="eval"))["n"] == 16


def report_of(folder: Path) -> list[str]:
    return (folder / "run/weight_report.txt").read_text().splitlines()[1:]


def test_weights_of_another_kind_are_read_by_a_function_of_another_package(
    package: str, videos: Path, config: Config, tmp_path: Path
) -> None:
    save_file({f"backbone/{name}": value for name, value in image_vit().items()}, tmp_path / "x.safetensors")
    words = ["data=folder", f"data.root={videos}", f"init.path={tmp_path}/x.safetensors", "overwrite=true"]
    with pytest.raises(UserError, match="not a timm ViT"):
        train(config(*words))
    train(config(*words, f"++init.source={package}.source.detect"))
    assert any(line.split() == ["copied", "encoder.blocks.0.attention.qkv.weight"] for line in report_of(tmp_path))
    metadata, _ = load_checkpoint(tmp_path / "run/checkpoints/best.ckpt")
    assert (metadata.mean, metadata.std) == ([0.4] * 3, [0.3] * 3)
    for missing in ("source.no_such", "no_such.detect"):
        with pytest.raises(UserError, match=rf"init\.source={package}\.{missing}: no such function"):
            train(config(*words, f"++init.source={package}.{missing}"))


def test_a_detector_can_return_a_vivit_and_leaves_other_sources_to_the_package(tmp_path: Path) -> None:
    theirs, net = randomize(tiny("vivit_st")), tiny("vivit_st")
    save_file({f"my.{name}": value for name, value in theirs.state_dict().items()}, tmp_path / "my.safetensors")
    save_file(theirs.state_dict(), tmp_path / "ours.safetensors")

    def detect(source: Source, model: ViViT) -> VideoWeights | None:
        state = {name.removeprefix("my."): value for name, value in source.tensors.items()}
        return VideoWeights(source.name, state) if "my.head.bias" in source.tensors else None

    for name in ("my", "ours"):
        report = load_pretrained(net, str(tmp_path / f"{name}.safetensors"), detectors=[detect])
        assert set(report.rows.values()) == {"copied"}
        assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in net.state_dict().items())
        net = tiny("vivit_st")


@pytest.mark.parametrize("name", MODELS)
def test_every_way_to_build_a_model_gives_the_same(name: ModelName) -> None:
    sizes: dict[str, Any] = {"num_classes": 3, "frames": 4, "image_size": 32, "depth": 1, "heads": 4}
    ways: list[Callable[[], ViViT]] = [
        lambda: create_model(name, "Ti", **sizes),
        lambda: ViViT.from_size(name, "Ti", **sizes),
        lambda: ViViT(name, dim=192, **sizes),
        lambda: ViViT(model=name, dim=192, **sizes),
        lambda: MODELS[name](dim=192, **sizes),
        lambda: MODELS[name].from_size(size="Ti", **sizes),
    ]
    states = []
    for way in ways:
        torch.manual_seed(0)
        net = way()
        assert type(net) is MODELS[name]
        assert net.model == name
        states.append(net.state_dict())
    assert all(list(state) == list(states[0]) for state in states)
    assert all(torch.equal(value, state[key]) for state in states for key, value in states[0].items())


def test_models_that_contradict_themselves_say_why() -> None:
    with pytest.raises(ValueError, match="ViViTSpaceTime is a vivit_st, not a vivit_fe"):
        MODELS["vivit_st"]("vivit_fe", num_classes=2)
    with pytest.raises(ValueError, match="model is 'vivit_xl'; it must be one of vivit_st, "):
        create_model("vivit_xl", num_classes=2)  # type: ignore[arg-type]

    class Bare(ViViT):
        pass

    with pytest.raises(TypeError, match="Bare has no layout: make it a subclass of ViViTSpaceTime, "):
        Bare(num_classes=2)
