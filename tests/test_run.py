"""train() and evaluate() in this process: every shipped choice runs, and the numbers are the right ones."""

import csv
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, Happened
from omegaconf import DictConfig, OmegaConf
from trees import TREES, make_tree

from vivit_train.build import build_data
from vivit_train.config import derive
from vivit_train.data import dataset
from vivit_train.data.video.decode import read_frames
from vivit_train.run import evaluate, train
from vivit_train.stored_data import given_data
from vivit_train.training.checkpoint import Metadata, build_net, load_checkpoint
from vivit_train.training.profiling import half_precision_speedup
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]


def folder(videos: Path) -> list[str]:
    return ["data=folder", f"data.root={videos}"]


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (ROOT / "conf" / group).glob("[!_]*.yaml"))


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=[pytest.mark.slow] * (name == "videomae")) for name in choices("model")]
)
def test_every_model_trains_and_eval_repeats_its_number(
    model: str, videos: Path, config: Config, tmp_path: Path
) -> None:
    train(config(*folder(videos), f"model={model}", pictures=True))
    run = tmp_path / "run"
    trained = json.loads((run / "metrics.json").read_text())
    assert trained["n"] == 16
    assert trained["failed"] == 0
    for name in ("contact_sheet.png", "curves.png", "confusion.png", "predictions.csv", "metrics.csv"):
        assert (run / name).stat().st_size > 0, name

    again = evaluate(config(f"ckpt_path={run}/checkpoints/best.ckpt", name="eval"))
    assert {key: value for key, value in again.items() if "@" in key} == {
        key: value for key, value in trained.items() if "@" in key
    }
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / 16 == pytest.approx(trained["test/top1@1x1"])


def test_last_is_the_latest_epoch_even_where_best_is_older(videos: Path, config: Config, tmp_path: Path) -> None:
    train(config(*folder(videos), "trainer.max_epochs=3", "optimizer.lr=0"))  # val/top1 never gets better
    epochs = {
        name: torch.load(tmp_path / f"run/checkpoints/{name}.ckpt", weights_only=True)["epoch"]
        for name in ("best", "last")
    }
    assert epochs == {"best": 0, "last": 2}


def test_checkpoints_carry_plain_data_and_load_safely(videos: Path, config: Config, tmp_path: Path) -> None:
    train(config(*folder(videos), "ema_decay=0.9"))
    for name in ("best", "last"):
        path = tmp_path / f"run/checkpoints/{name}.ckpt"
        assert "state_dict" in torch.load(path, weights_only=True)
        metadata, _ = load_checkpoint(path)
        assert metadata.classes[""][0] == "approach"
        assert metadata.config["data"]["frames"] == 4
        assert metadata.mean == [0.5, 0.5, 0.5]


OTHER_RECIPES = ("csv", "demo", "epic_kitchens100", "finetune", "folder", "kinetics400", "something_something_v2")
READ_ALIKE = ("kinetics600", "kinetics700", "moments_in_time", "hmdb51", "ucf101", "something_something_v2")


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in OTHER_RECIPES))  # these change numbers only
        for name in choices("recipe")
    ],
)
def test_every_recipe_trains(
    recipe: str, videos: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # few_clips stores features there
    more = "model.more_poolings=[{input: foreground, space: grid, time: ordered, layers: 1}]"
    tiny = ["model.layers=1", more, "data.sampling=window"] if recipe == "few_clips" else []
    train(config(*folder(videos), f"recipe={recipe}", "init=none", *tiny))


@pytest.mark.parametrize("logger", choices("logger"))
def test_every_logger_logs(
    logger: str, videos: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    train(config(*folder(videos), f"logger={logger}"))
    written = {"csv": "metrics.csv", "tensorboard": "tensorboard/events*", "wandb": "wandb/offline-run*"}[logger]
    assert list((tmp_path / "run").glob(written))


@pytest.mark.parametrize("group", ["trainer", "callbacks", "init", "hparams_search"])
def test_every_choice_composes(group: str, config: Config) -> None:
    for choice in choices(group):
        if group != "hparams_search":  # its sweeper is hydra's part; test_commands.py runs it
            assert config(f"{group}={choice}")[group]


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_runs(experiment: str, videos: Path, config: Config, tmp_path: Path) -> None:
    for split in ("train", "val"):
        lines = [f"{path} {path.parent.name}" for path in sorted(videos.glob(f"{split}/*/*.mp4"))]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    files = [f"data.root={tmp_path}", "data.train=train.csv", "data.val=val.csv"]
    train(config(f"experiment={experiment}", *files, "trainer.check_val_every_n_epoch=1"))


@pytest.mark.parametrize(
    "debug",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "profile")) for name in choices("debug")],
)
def test_every_debug_choice_runs(
    debug: str, videos: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(*folder(videos), f"debug={debug}"))
    # in an epoch of twelve steps; test_health.py lets it have more
    assert ("overfit: 2 clips NOT learned: loss " in capsys.readouterr().out) == (debug == "overfit")
    traces = [json.loads(file.read_text()) for file in tmp_path.glob("run/fit-profile-*training_step*.json")]
    assert len(traces) == (debug == "profile")
    for trace in traces:
        assert any("scaled_dot_product_attention" in event.get("name", "") for event in trace["traceEvents"])
        assert "ProfilerStep" in (tmp_path / "run/fit-profile.txt").read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        ["mixup=0.8", "cutmix=1.0", "loss.label_smoothing=0.1", "data.randaugment=[2,15]"],
        pytest.param(
            ["optimizer=sgd", "scheduler=constant", "loss._target_=torch.nn.CrossEntropyLoss"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "+scheduler.max_lr=0.01"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["global_batch_size=16", "micro_batch_size=3", "model.drop_path=0.2", "data.color_jitter=1"],
            marks=pytest.mark.slow,
        ),
        ["model.temporal_depth=0", "model.pool=mean", "data.num_workers=2", "eval.views=2x3"],
        pytest.param(["model.sampled_frames=2", "model.tubelet=[1,16,16]"], marks=pytest.mark.slow),
        pytest.param(
            ["data.clips_per_video=2", "data.balance=sqrt", "data.num_workers=1"],
            marks=pytest.mark.slow,
        ),
        [
            "data.decoder=pyav",
            "data.padding=repeat_last",
            "data.frames=8",
            "data.limit_per_class=2",
            "data.balance=class",
        ],
        pytest.param(
            ["callbacks.checkpoint=null", "data.padding=black", "data.augment_on=device"], marks=pytest.mark.slow
        ),
    ],
)
def test_options_run(overrides: list[str], videos: Path, config: Config) -> None:
    train(config(*folder(videos), *overrides))


def test_a_single_loss_step_is_what_the_log_says(videos: Path, config: Config, tmp_path: Path) -> None:
    train(config(*folder(videos), "optimizer.lr=0", "trainer.log_every_n_steps=1"))
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    losses = [float(row["train/loss_step"]) for row in rows if row.get("train/loss_step")]
    assert losses == pytest.approx([torch.log(torch.tensor(8.0)).item()] * 3)  # the head starts at zero


def test_annotation_files_train(videos: Path, config: Config, tmp_path: Path) -> None:
    lines = [f"{path.relative_to(videos)} {path.parent.name}" for path in sorted(videos.glob("train/*/*.mp4"))]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    lines = [f"{path.relative_to(videos)} {path.parent.name}" for path in sorted(videos.glob("val/*/*.mp4"))]
    (tmp_path / "val.csv").write_text("\n".join(lines))
    train(
        config(
            "data=csv", f"data.root={videos}", f"data.train={tmp_path}/train.csv", f"data.val={tmp_path}/val.csv"
        )
    )


@pytest.mark.parametrize(
    "data", [pytest.param(name, marks=[pytest.mark.slow] * (name in READ_ALIKE)) for name in TREES]
)
def test_published_data_sets_train_and_evaluate(data: str, videos: Path, config: Config, tmp_path: Path) -> None:
    root, run = tmp_path / data, tmp_path / "run"
    make_tree(data, root, sorted(videos.glob("train/*/*.mp4")))
    epic = data == "epic_kitchens100"
    train(config(f"data={data}", f"data.root={root}", "init=none", "eval.views=2x3", pictures=epic))
    trained = json.loads((run / "metrics.json").read_text())
    clips = 12 if data == "epic_kitchens100" else 6
    assert (trained["n"], trained["failed"], trained["split"]) == (clips, 0, "val")
    heads = ["action_", "verb_", "noun_"] if data == "epic_kitchens100" else [""]
    assert {key for key in trained if "@" in key} >= {f"test/{head}top1@2x3" for head in heads}
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    assert len({row["id"] for row in rows}) == clips
    if data == "epic_kitchens100":
        assert {row["verb_label"] for row in rows} == {"take", "put"}
        assert "logit:noun:spoon" in rows[0]
        assert {path.name for path in run.glob("confusion*")} == {"confusion_verb.png", "confusion_noun.png"}

    ckpt = f"ckpt_path={run}/checkpoints/best.ckpt"
    for other in ([], [f"data={data}", f"data.root={root}"]):  # as in the checkpoint, and the labels in its terms
        again = evaluate(config(ckpt, "eval.views=2x3", *other, name="eval"))
        assert {k: v for k, v in again.items() if "@" in k} == {k: v for k, v in trained.items() if "@" in k}


def test_every_setting_that_eval_offers_reaches_the_data(stranger: dict[str, Any], config: Config) -> None:
    cfg = config("ckpt_path=none", name="eval")
    metadata = Metadata(**stranger["vivit_train"])
    for key in cfg.data:
        if key not in ("allow_private_urls", "name", "root", "reader", "train", "val", "test"):
            cfg.data[key] = "given"
            assert given_data(metadata, cfg)[key] == "given", key


def test_evaluating_other_data_keeps_the_model_s_classes(videos: Path, config: Config, tmp_path: Path) -> None:
    train(config(*folder(videos)))
    ckpt = f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt"
    other = tmp_path / "other"
    for name in ("recede", "move_up"):  # fewer classes, in another order
        shutil.copytree(videos / "test" / name, other / name)
    results = evaluate(config(ckpt, "data=folder", f"data.root={other}", "eval.views=2x3", name="eval"))
    assert results["n"] == 4
    assert "test/top1@2x3" in results
    rows = list(csv.DictReader((tmp_path / "results/predictions.csv").open()))
    assert {row["label"] for row in rows} == {"recede", "move_up"}
    assert "logit:approach" in rows[0]

    (other / "unheard_of").mkdir()
    shutil.copy(next((videos / "test/recede").iterdir()), other / "unheard_of")
    with pytest.raises(UserError, match="unheard_of"):
        evaluate(config(ckpt, "data=folder", f"data.root={other}", name="eval"))


@pytest.mark.fault("Videos")
def test_bad_videos_within_the_budget_are_named_and_counted_as_wrong(
    videos: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], happened: Happened
) -> None:
    root = tmp_path / "broken"
    shutil.copytree(videos, root)
    bad = root / "train/approach/0000.mp4"
    bad.write_text("not a video")
    bad_test = root / "test/recede/0001.mp4"
    bad_test.write_bytes(bad_test.read_bytes()[:300])
    train(config("data=folder", f"data.root={root}", "trainer.max_epochs=2"))
    results = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (results["n"], results["failed"]) == (16, 1)
    listed = list(csv.DictReader((tmp_path / "run/bad_videos.csv").open()))
    assert [(row["split"], row["path"]) for row in listed] == [("train", str(bad)), ("test", str(bad_test))]
    said = "1 video could not be read and counted as wrong"
    assert said in capsys.readouterr().out
    happened("A bad video in the test split", f"n is that of all videos; {said}")

    with pytest.raises(UserError, match="max_bad_fraction is 0"):
        train(config("data=folder", f"data.root={root}", "data.max_bad_fraction=0", "overwrite=true"))


@pytest.mark.fault("Videos")
def test_a_video_that_hangs_the_decoder_is_named(
    videos: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: Happened
) -> None:
    victim = sorted(videos.glob("train/*/*.mp4"))[5]

    def read(path: str, *args: Any, **kwargs: Any) -> Any:
        if path == str(victim):
            time.sleep(60)  # as decord does, for ever, on some files
        return read_frames(path, *args, **kwargs)

    monkeypatch.setattr(dataset, "read_frames", read)
    with pytest.raises(
        UserError, match=rf"{victim}: the decoder has not returned after 2 s .*data\.timeout_s"
    ) as error:
        train(config(*folder(videos), "data.num_workers=1", "data.timeout_s=2"))
    happened("A video's decoder hangs in training", error.value)


def test_all_problems_of_a_configuration_come_at_once(config: Config) -> None:
    with pytest.raises(UserError) as error:
        train(
            config(
                "data.padding=none",
                "data.frames=5",
                "data.crop=40",
                "model=vivit_fdp",
                "model.heads=3",
                "init.path=/nowhere",
            )
        )
    for words in (
        "data.padding=none: must be one of wrap, repeat_last, black",
        "frames 5",
        "height 40",
        "heads must be even",
        "dim 32 is not",
        "crop=40 is larger",
        "/nowhere",
    ):
        assert words in str(error.value)


def test_mixing_needs_clips_to_mix(videos: Path, config: Config) -> None:
    with pytest.raises(UserError, match=r"micro_batch_size .* allow two or more, or set mixup=0"):
        train(config(*folder(videos), "mixup=0.2", "micro_batch_size=1"))


def empty_folder(root: Path) -> list[str]:
    root.mkdir()
    return ["data=folder"]


def class_without_clips(root: Path) -> list[str]:
    for name in ("train/a", "train/b", "train/c", "val/a"):
        (root / name).mkdir(parents=True)
        if name != "train/c":
            (root / name / "0.mp4").touch()
    return ["data=folder"]


def label_out_of_range(root: Path) -> list[str]:
    class_without_clips(root)
    (root / "classes.txt").write_text("a\nb\n")
    (root / "train.csv").write_text("train/a/0.mp4 0\ntrain/b/0.mp4 7\n")
    (root / "val.csv").write_text("val/a/0.mp4 0\n")
    return ["data=csv"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: ["data=folder"], ("no folder", "<class>/<video>.mp4")),
        (lambda root: ["data=kinetics400", "init=none"], ("no folder", "train.csv")),
        (empty_folder, ("no class folders", "<class>/<video>.mp4")),
        (class_without_clips, ("without videos", "train/c")),
        (label_out_of_range, ("train.csv:2", "7", "0 to 1")),
    ],
    ids=["no folder", "no kinetics", "empty folder", "class without clips", "label out of range"],
)
def test_data_that_is_not_there_is_one_message(
    make: Callable[[Path], list[str]], words: tuple[str, ...], config: Config, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    with pytest.raises(UserError) as error:
        train(config(f"data.root={root}", *make(root)))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize("node", ["model", "data", "reader"])
@pytest.mark.parametrize(
    "target",
    [
        pytest.param("os.system", marks=pytest.mark.slow),
        "vivit_train.run.os.system",
        pytest.param("vivit_train.data.annotations.csv_file.os.listdir", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_cannot_name_what_is_called(
    node: str, target: str, stranger: dict[str, Any], config: Config, tmp_path: Path, happened: Happened
) -> None:
    settings = stranger["vivit_train"]["config"]
    place = {"model": settings["model"], "data": settings["data"], "reader": settings["data"]["reader"]}[node]
    place["_target_"] = target
    torch.save(stranger, tmp_path / "stranger.ckpt")
    with pytest.raises(UserError, match=f"refusing to call '{target}'") as error:
        evaluate(config(f"ckpt_path={tmp_path}/stranger.ckpt", name="eval"))
    happened(f"A checkpoint that names `{target}` as what makes its model, data or reader", error.value)


@pytest.fixture
def stranger(videos: Path, config: Config) -> dict[str, Any]:
    """A checkpoint to put something bad into, made without training."""
    cfg = config(*folder(videos))
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    data = build_data(derive(cfg))
    classes = {"": list(data.splits.classes[""])}
    net = build_net(settings["model"], classes)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    metadata = Metadata(settings, classes, [0.5] * 3, [0.5] * 3).to_dict()
    return {"state_dict": state, "vivit_train": metadata}


def test_a_checkpoint_that_is_not_there_is_said_to_be_missing(config: Config) -> None:
    with pytest.raises(UserError, match=r"ckpt_path=/nowhere\.ckpt: no such file"):
        evaluate(config("ckpt_path=/nowhere.ckpt", name="eval"))


@pytest.mark.fault("Strangers' files")
def test_a_checkpoint_whose_parts_do_not_belong_together_is_refused(
    stranger: dict[str, Any], config: Config, tmp_path: Path, happened: Happened
) -> None:
    stranger["state_dict"].popitem()
    torch.save(stranger, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="do not match the model in its configuration") as error:
        evaluate(config(f"ckpt_path={tmp_path}/x.ckpt", name="eval"))
    happened("A checkpoint without some of its model's weights", error.value)


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize("content", [b"no checkpoint", b""])
def test_files_that_are_no_checkpoints_are_refused(
    content: bytes, config: Config, tmp_path: Path, happened: Happened
) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.ckpt cannot be read as a checkpoint") as error:
        evaluate(config(f"ckpt_path={path}", name="eval"))
    happened(f"A file of {len(content)} bytes given as a checkpoint", error.value)


def test_init_path_fills_the_model_and_writes_a_receipt(
    videos: Path, shared: Path, config: Config, tmp_path: Path
) -> None:
    weights = shared / "weights/deit_tiny_patch16_224.fp16.safetensors"
    size = ["model.dim=null", "model.depth=null", "model.heads=null"]
    train(config(*folder(videos), *size, f"init.path={weights}", "optimizer.lr=0"))
    report = (tmp_path / "run/weight_report.txt").read_text()
    assert "copied             encoder.blocks.11.mlp.fc2.weight" in report
    metadata, state = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert metadata.mean == pytest.approx([0.485, 0.456, 0.406])
    assert state["encoder.cls_token"].abs().sum() > 0


@pytest.mark.slow
def test_init_path_moves_a_checkpoint_to_other_frames_and_classes(
    videos: Path, config: Config, tmp_path: Path
) -> None:
    train(config(*folder(videos), "data.crop=32", "init.mean=[0.4,0.4,0.4]", "init.std=[0.2,0.2,0.2]"))
    (tmp_path / "run/checkpoints/last.ckpt").rename(tmp_path / "before.ckpt")
    other = tmp_path / "other"
    for name in ("recede", "move_up"):
        for split in ("train", "val"):
            shutil.copytree(videos / split / name, other / split / name)
    larger = ["data.frames=8", "data.stride=1", "data.short_side=52", "data.crop=48"]
    start = [f"init.path={tmp_path}/before.ckpt", "optimizer.lr=0"]
    train(config("data=folder", f"data.root={other}", *larger, *start, "overwrite=true"))
    report = (tmp_path / "run/weight_report.txt").read_text()
    assert re.search(r"interpolated +encoder.pos_embed", report)
    assert re.search(r"interpolated .*temporal_encoder.pos_embed", report)
    assert re.search(r"zero \(other classes\) .*head.weight", report)
    (_, before), (metadata, after) = (
        load_checkpoint(tmp_path / name) for name in ("before.ckpt", "run/checkpoints/last.ckpt")
    )
    assert torch.equal(before["encoder.blocks.0.mlp.fc1.weight"], after["encoder.blocks.0.mlp.fc1.weight"])
    assert (metadata.mean, metadata.std) == ([0.4] * 3, [0.2] * 3)


@pytest.mark.slow
def test_resuming_goes_on_where_the_run_stopped(videos: Path, config: Config, tmp_path: Path) -> None:
    train(config(*folder(videos), "trainer.max_epochs=2"))
    whole = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    train(config(*folder(videos), "trainer.max_epochs=2", "trainer.max_steps=3", "overwrite=true"))
    last = tmp_path / "run/checkpoints/last.ckpt"
    train(config(*folder(videos), "trainer.max_epochs=2", f"ckpt_path={last}"))
    resumed = torch.load(last, weights_only=True)
    assert resumed["global_step"] == whole["global_step"] == 6
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_a_processor_is_not_asked_to_be_slower_in_half_precision(
    precision: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vivit_train.config.half_precision_speedup", {torch.bfloat16: 0.5, torch.float16: 0.5}.get)
    named = rf"trainer\.precision={precision}: on this CPU a step takes 2\.0 times as long .*32-true"
    with pytest.raises(UserError, match=named):
        train(config(f"trainer.precision={precision}"))
    with pytest.raises(UserError, match=named):
        evaluate(config("ckpt_path=none.ckpt", f"trainer.precision={precision}", name="eval"))


@pytest.mark.slow
def test_half_precision_where_the_processor_gains_by_it(
    videos: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert half_precision_speedup(torch.bfloat16) > 0
    assert torch.equal(torch.rand(1), expected)  # what is measured draws nothing from the run's seed
    monkeypatch.setattr("vivit_train.config.half_precision_speedup", {torch.bfloat16: 2.0}.get)
    train(config(*folder(videos), "trainer.precision=bf16-mixed"))
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert {value.dtype for name, value in saved["state_dict"].items() if "weight" in name} == {torch.float32}
    evaluate(
        config(
            *folder(videos),
            f"ckpt_path={tmp_path / 'run/checkpoints/last.ckpt'}",
            "trainer.precision=bf16-mixed",
            name="eval",
        )
    )


def test_choices_of_speed_that_cannot_be(config: Config) -> None:
    with pytest.raises(UserError, match=r"model\.checkpoint_activations=all: must be one of none, mlp, block"):
        train(config("model.checkpoint_activations=all"))
    with pytest.raises(UserError, match=r"model\.compile=true: trainer=fsdp"):
        train(config("trainer=fsdp", "model.compile=true"))


@pytest.mark.slow
def test_a_machine_that_cannot_compile_says_so(
    videos: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    with pytest.raises(UserError, match=r"model\.compile=true: torch\.compile fails here .*model\.compile=false"):
        train(config(*folder(videos), "model=vivit_st", "model.compile=true"))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", ["mlp", "block"])
def test_activations_computed_again_train_to_the_same_weights(
    checkpointed: str, videos: Path, config: Config, tmp_path: Path
) -> None:
    weights = []
    for which in ("none", checkpointed):
        (tmp_path / which).mkdir()
        settings = [f"model.checkpoint_activations={which}", "model.drop_path=0.3", f"run_dir={tmp_path / which}"]
        train(config(*folder(videos), *settings))
        weights.append(load_checkpoint(tmp_path / which / "checkpoints/last.ckpt")[1])
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vivit_st", "vivit_fsa", "vivit_fdp"])
def test_a_model_that_has_no_temporal_encoder_is_scored_whatever_its_depth_is_set_to(
    model: str, videos: Path, config: Config, tmp_path: Path
) -> None:
    """As conf/recipe/demo.yaml sets it for every model."""
    train(config(*folder(videos), "recipe=demo", f"model={model}"))
    scores = evaluate(config(f"ckpt_path={tmp_path}/run/checkpoints/best.ckpt", name="eval"))
    assert scores["n"] == 16
