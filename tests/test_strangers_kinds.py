"""More files from strangers: links in run folders, tars, dtypes, states of optimizers, and files of the kernel."""

import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from helpers import Happened
from omegaconf import DictConfig
from typer.testing import CliRunner

from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.video import storage
from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.files import read_file
from vivit_train.run import train
from vivit_train.tools.cli import app
from vivit_train.training.checkpoint import KEY, Metadata, load_weights
from vivit_train.training.resume import check_optimizer, check_schedules
from vivit_train.utils.errors import UserError, VideoError
from vivit_train.utils.lock import FolderLock

SECTION = "Strangers' files"
Config = Callable[..., DictConfig]


class TooLongError(BaseException):
    """Not an Exception, so that nothing takes it for an error of the file."""


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """Ends a test that waits for something that never comes."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize(
    "name",
    [
        *(".lock", "metrics.csv", ".hydra/config.yaml", "checkpoints/last.ckpt.part", ".hydra"),
        *("tensorboard/hparams.yaml", "wandb/sent.txt"),
    ],
)
def test_a_link_in_a_run_s_folder_leads_to_no_file_outside(name: str, tmp_path: Path, happened: Happened) -> None:
    precious, link = tmp_path / "precious", tmp_path / "run" / name
    precious.write_text("of somebody else")
    link.parent.mkdir(parents=True)
    link.symlink_to(precious)
    with pytest.raises(UserError, match="is a link out of the folder") as error:
        FolderLock(tmp_path / "run")
    assert precious.read_text() == "of somebody else"
    assert os.listdir(tmp_path / "run") == [name.partition("/")[0]]
    happened(f"A run's folder from a stranger, in which {name} is a link to another file", error.value)


@pytest.mark.parametrize("to", ["/dev/full", "/dev/null", "/dev/full/../null", "/dev/fullest"])
def test_a_link_to_a_device_is_one_out_of_the_folder(to: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.csv").symlink_to(to)
    with pytest.raises(UserError, match="is a link out of the folder"):
        FolderLock(tmp_path / "run")


def test_a_link_within_a_run_s_folder_may_be(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/best.ckpt").symlink_to("last.ckpt")
    (tmp_path / "link").symlink_to("run")
    FolderLock(tmp_path / "link")


def number(size: int) -> bytes:
    """A number of a tar's header in twelve bytes, which may be negative."""
    return (b"\x80" if size >= 0 else b"\xff") + (size % 256**11).to_bytes(11, "big")


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize(
    ("size", "pax"),
    [
        (-512, {}),
        (-1, {}),
        (2**70, {}),
        (2**80, {}),
        (None, {"size": "9" * 40}),
        (None, {"GNU.sparse.map": "a,b"}),
        (None, {"GNU.sparse.size": "x"}),
        (None, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
    ],
    ids=str,
)
def test_a_tar_with_absurd_numbers_is_damaged(
    size: int | None, pax: dict[str, str], tmp_path: Path, happened: Happened
) -> None:
    info = tarfile.TarInfo("a.mp4")
    info.pax_headers = pax
    header = bytearray(info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT))
    if size is not None:
        header[124:136], header[148:156] = number(size), b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(2048))
    with pytest.raises(VideoError, match="not an uncompressed tar archive, or damaged") as error:
        storage.members(str(tmp_path / "a.tar"))
    happened(f"A tar whose member has {f'a size of {size}' if size is not None else pax}", error.value)


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_weights_of_other_types_are_refused_by_name(
    dtype: torch.dtype, tmp_path: Path, happened: Happened
) -> None:
    net = ViViT("vivit_st", num_classes=2, frames=4, image_size=32, dim=16, depth=1, heads=2)
    torch.save(net.state_dict() | {"head.bias": torch.zeros(2, dtype=dtype)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"'head\.bias' are of torch|complex numbers") as error:
        load_weights(net, read_file(tmp_path / "x.pt"), tmp_path / "x.pt")
    happened(f"Weights of {dtype} in a checkpoint", error.value)


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize(
    ("key", "value"), [("seed", float("inf")), ("frame_numbers", torch.full((1, 4), torch.inf))]
)
def test_a_saved_step_with_infinite_numbers_is_one_message(
    key: str, value: Any, tmp_path: Path, happened: Happened
) -> None:
    net = {
        "_target_": "vivit",
        "model": "vivit_st",
        "frames": 4,
        "image_size": 32,
        "dim": 16,
        "depth": 1,
        "heads": 2,
    }
    weights = ViViT("vivit_st", num_classes=2, frames=4, image_size=32, dim=16, depth=1, heads=2).state_dict()
    batch = {"video": torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8), "label": torch.tensor([[1]]), "seed": 0}
    batch |= {"paths": ["x"], "frame_numbers": torch.zeros(1, 4), "times_s": torch.zeros(1, 4), "loss": 1.0}
    step = {"step": 1, "epoch": 1, "rank": 0, "processes": 1, "precision": "32", "device": "cpu"}
    step |= {"gradient_norm": 1.0, "micro_batches": [batch | {key: value}]}
    config = {"model": net, "loss": {"_target_": "cross_entropy"}, "mixup": 0.0, "cutmix": 0.0}
    metadata = Metadata(config, {"": ["a", "b"]}, [0.5] * 3, [0.5] * 3).to_dict()
    state = {f"net.{name}": weight for name, weight in weights.items()}
    torch.save({"state_dict": state, KEY: metadata, "replay": step}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"does not hold a valid step: .*infinity") as error:
        CliRunner().invoke(app, ["replay", str(tmp_path / "x.pt")], catch_exceptions=False)
    happened(f"A saved step whose {key} is infinite, and `vivit replay`", error.value)


def adam(**state: Any) -> torch.optim.Optimizer:
    """A fused optimizer after a step, with other values in the state of its weight."""
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.sum().backward()
    optimizer.step()
    optimizer.state[weight] |= state
    return optimizer


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exp_avg", torch.zeros(3)),
        ("exp_avg_sq", torch.zeros(1).expand(64, 64)),
        ("exp_avg", "${oc.env:HOME}"),
        ("step", torch.zeros(64, 3)),
    ],
)
def test_moments_of_other_shapes_reach_no_kernel(name: str, value: Any, happened: Happened) -> None:
    """A fused kernel takes the size from the weight: it wrote to memory that is not the tensor's."""
    check_optimizer(adam(), "x.ckpt")
    with pytest.raises(
        UserError, match=rf"x\.ckpt cannot be resumed: the optimizer's '{name}' does not fit"
    ) as error:
        check_optimizer(adam(**{name: value}), "x.ckpt")
    kind = value if isinstance(value, str) else f"of shape {[*value.shape]} and strides {[*value.stride()]}"
    happened(f"A checkpoint whose optimizer has {name} {kind} for a weight of [64, 64]", error.value)


def test_options_of_the_optimizer_are_those_of_the_run() -> None:
    optimizer = adam()
    optimizer.param_groups[0] |= {"foreach": "x", "differentiable": True, "capturable": 3}
    check_optimizer(optimizer, "x.ckpt")
    assert {name: optimizer.param_groups[0][name] for name in ("foreach", "differentiable", "capturable")} == {
        "foreach": None,
        "differentiable": False,
        "capturable": False,
    }
    optimizer.param_groups[0]["eps"] = "x"
    with pytest.raises(UserError, match="eps is no number"):
        check_optimizer(optimizer, "x.ckpt")
    weight = torch.nn.Parameter(torch.ones(4, 8))
    adafactor = torch.optim.Adafactor([weight])
    weight.sum().backward()
    adafactor.step()
    check_optimizer(adafactor, "x.ckpt")  # Its means of rows and columns have other shapes.


def test_the_state_of_a_schedule_replaces_no_method() -> None:
    for odd in ({"step": "x"}, {"get_lr": 3}, {"optimizer": 3}):
        with pytest.raises(ValueError, match="replaces"):
            check_schedules([{"base_lrs": [1.0], "lr_lambdas": [None], "last_epoch": 3} | odd])
    with pytest.raises(ValueError, match="another number"):
        check_schedules([{"base_lrs": [1.0], "lr_lambdas": [None] * 9}])


@pytest.mark.slow
@pytest.mark.fault(SECTION)
def test_a_hostile_state_of_a_run_is_refused_when_it_is_resumed(
    videos: Path, config: Config, tmp_path: Path, happened: Happened
) -> None:
    words = ("data=folder", f"data.root={videos}", "resume=auto")
    train(config(*words))
    last = tmp_path / "run/checkpoints/last.ckpt"
    for change in ("data", "loops", "schedule", "moments"):
        content = torch.load(last, weights_only=True)
        if change == "data":
            content["VideoDataModule"] = 3
        elif change == "loops":
            content["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] = -(10**12)
        elif change == "schedule":
            content["lr_schedulers"][0]["step"] = "x"
        else:
            content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3)
        torch.save(content, tmp_path / "run/x.ckpt")
        with pytest.raises(UserError, match="cannot be resumed") as error:
            train(config(*words[:2], f"ckpt_path={tmp_path}/run/x.ckpt", "trainer.max_epochs=2"))
        happened(f"A checkpoint with a hostile state of its {change}, which is resumed", error.value)


@pytest.mark.fault(SECTION)
@pytest.mark.skipif(not os.path.exists("/proc/kmsg"), reason="no /proc/kmsg")
def test_a_file_of_the_kernel_is_no_annotation(tmp_path: Path, happened: Happened) -> None:
    """It claims 0 bytes; reading /proc/kmsg waits for the next message."""
    for name in ("/proc/kmsg", "/proc/self/environ"):
        with pytest.raises(UserError) as error:
            read_csv(tmp_path, train=name, val=name)
        assert "PATH" not in str(error.value)
    with pytest.raises(UserError, match="no train file"):
        read_csv(tmp_path, train="x" * 5000, val="x" * 5000)
    happened("/proc/self/environ or /proc/kmsg as a file of annotations", error.value)
