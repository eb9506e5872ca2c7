"""The pages say what the paper's Table 7 says, and a run says what it does otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vivit_train.config import derive, validate
from vivit_train.recipe import data_defaults, flatten, read_recipe, typed_in_job
from vivit_train.run import train
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]

CLIP = {"frames": 32, "stride": 2, "short_side": 256, "crop": 224}  # where a recipe leaves them to the run
PAGES = sorted(file.stem for file in (ROOT / "conf/recipe").glob("*.yaml") if file.stem != "none")
PAPER: dict[str, dict[str, Any]] = {  # Table 7
    "kinetics400": {"lr": 0.1, "epochs": 30, "color_jitter": 0.8, "fps": 12.5},
    "kinetics600": {"lr": 0.1, "epochs": 30, "color_jitter": 0.8, "fps": 12.5},
    "moments_in_time": {"lr": 0.25, "epochs": 10, "color_jitter": 0.8},
    "epic_kitchens100": {
        "lr": 0.5,
        "epochs": 50,
        "randaugment": [2, 15],
        "drop_path": 0.2,
        "label_smoothing": 0.2,
        "mixup": 0.1,
    },
    "something_something_v2": {
        "lr": 0.5,
        "epochs": 35,
        "stride": 1,  # the authors' own; at 12 fps, the table's stride of 2 is longer than most videos
        "randaugment": [2, 20],
        "drop_path": 0.3,
        "label_smoothing": 0.3,
        "mixup": 0.3,
    },
}
AUTHORS: dict[str, dict[str, Any]] = {  # where their released configurations differ from the paper
    "authors_kinetics400_fe_b": {"data.resize": "authors", "optimizer.lr": 0.05},
    "authors_kinetics400_fe_l": {"data.resize": "authors", "model.size": "L", "model.temporal_depth": 24},
    "authors_kinetics600_fe_l": {
        "data.resize": "authors",
        "optimizer.lr": 0.05,
        "model.size": "L",
        "model.temporal_depth": 24,
    },
    "authors_epic_kitchens100": {
        "data.resize": "authors",
        "data.stride": 1,
        "model.size": "L",
        "eval.views": "4x3",
    },
    "authors_something_something_v2": {
        "data.resize": "authors",
        "optimizer.lr": 0.4,
        "data.mirror_labels": False,
        "data.short_side": 288,
        "data.crop": 256,
        "model.size": "L",
        "eval.views": "4x3",
    },
}


@pytest.mark.parametrize("data", PAPER)
def test_the_papers_recipes(data: str, config: Config) -> None:
    cfg = config(f"data={data}", tiny=False)
    stated = {"randaugment": None, "drop_path": 0.0, "label_smoothing": 0.0, "mixup": 0.0, "color_jitter": 0.0}
    stated |= PAPER[data]
    assert cfg.optimizer == {
        "_target_": "torch.optim.SGD",
        "lr": stated["lr"],
        "weight_decay": 0.0,
        "momentum": 0.9,
    }
    assert (cfg.trainer.max_epochs, cfg.scheduler.warmup_epochs) == (stated["epochs"], 2.5)
    assert (cfg.global_batch_size, cfg.trainer.gradient_clip_val) == (64, 1.0)
    assert (cfg.data.frames, cfg.data.short_side, cfg.data.crop) == (32, 256, 224)
    assert (cfg.data.stride, cfg.data.fps) == (stated.get("stride", 2), stated.get("fps"))
    assert (list(cfg.data.scale_jitter), cfg.data.flip) == ([0.9, 1.33], 0.5)
    assert (cfg.data.color_jitter, cfg.data.randaugment) == (stated["color_jitter"], stated["randaugment"])
    assert (cfg.loss.label_smoothing, cfg.mixup, cfg.cutmix) == (
        stated["label_smoothing"],
        stated["mixup"],
        0.0,
    )
    assert (cfg.model.drop_path, cfg.ema_decay, cfg.data.random_erasing) == (stated["drop_path"], None, 0.0)
    assert cfg.eval.views == ("4x3" if "kinetics" in data else "4x1")
    assert (cfg.model.model, cfg.model.size, cfg.model.temporal_depth) == ("vivit_fe", "B", 4)
    assert (cfg.init.name, cfg.init.tubelet, list(cfg.model.tubelet)) == (
        "imagenet",
        "central_frame",
        [2, 16, 16],
    )
    recipe = read_recipe()
    assert recipe is not None
    assert recipe.differences(cfg) == []
    assert recipe.table(cfg) == f"no settings differ from recipe `{data}`"


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_variants_change_only_what_theirs_do(name: str, config: Config) -> None:
    base = next(data for data in PAPER if name.startswith(f"authors_{data}"))
    paper = flatten(config(f"data={base}", tiny=False))
    theirs = flatten(config(f"data={base}", f"recipe={name}", tiny=False))
    derived = ("model.image_size",)
    changed = {
        key: value for key, value in theirs.items() if paper.get(key) != value and not key.startswith(derived)
    }
    assert changed == AUTHORS[name]


@pytest.mark.parametrize("name", PAGES)
def test_every_page_takes_effect_and_says_what_it_costs(name: str, config: Config) -> None:
    data = name if (ROOT / f"conf/data/{name}.yaml").is_file() else "folder"
    cfg = config(f"data={data}", f"recipe={name}", tiny=False)
    recipe = read_recipe()
    assert recipe is not None
    assert recipe.name == name
    assert recipe.differences(cfg) == []
    validate(OmegaConf.merge(cfg, {"data": CLIP if cfg.data.frames == "auto" else {}}))  # type: ignore[arg-type]
    page = (ROOT / f"conf/recipe/{name}.yaml").read_text()
    for key, value in flatten(OmegaConf.create(page)).items():
        if key != "defaults":
            assert OmegaConf.select(cfg, key) == value
            assert key in recipe.values or key == "micro_batch_size"
    if name not in ("demo", "finetune", "few_clips", "csv", "folder", "labelstudio", "cvat"):
        assert "python train.py" in page
        assert "Cost" in page
        assert "Expected" in page


def test_every_key_of_a_recipe_is_compared(config: Config) -> None:
    cfg = config("data=kinetics400", tiny=False)
    recipe = read_recipe()
    assert recipe is not None
    common = {
        "optimizer.lr",
        "optimizer.weight_decay",
        "loss.label_smoothing",
        "mixup",
        "data.flip",
        "data.padding",
    }
    common |= {
        "trainer.max_epochs",
        "trainer.max_steps",
        "model.drop_path",
        "init.path",
        "scheduler.warmup_epochs",
    }
    assert common <= recipe.values.keys()
    for key in recipe.values:
        other = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
        OmegaConf.update(other, key, "something else")
        assert [row[0] for row in recipe.differences(other)] == [key]


def test_what_only_costs_time_is_not_compared(config: Config) -> None:
    words = ["data.num_workers=3", "micro_batch_size=2", "data.root=/x", "trainer.devices=1", "model.compile=true"]
    cfg = config("data=kinetics400", "model.size=L", "model=vivit_st", *words, tiny=False)
    recipe = read_recipe()
    assert recipe is not None
    assert recipe.differences(cfg) == []


def test_the_size_is_compared_where_a_recipe_states_it(config: Config) -> None:
    cfg = config("data=folder", "model.size=B", tiny=False)
    recipe = read_recipe()
    assert recipe is not None
    assert recipe.differences(cfg) == [("model.size", "Ti", "B")]


@pytest.mark.parametrize("data", ["demo", "kinetics400"])
@pytest.mark.parametrize(("name", "other"), [("sgd", "betas"), ("adamw", "momentum")])
def test_another_optimizer_comes_with_its_own_arguments(data: str, name: str, other: str, config: Config) -> None:
    cfg = config(f"data={data}", f"optimizer={name}", tiny=False)
    file = OmegaConf.load(ROOT / f"conf/optimizer/{name}.yaml")
    assert cfg.optimizer == {key: file[key] for key in file if key != "defaults"}
    assert other not in cfg.optimizer
    cfg = config(f"data={data}", f"optimizer={name}", "optimizer.lr=0.3", tiny=False)
    assert cfg.optimizer.lr == 0.3


def test_data_of_ones_own_needs_no_recipe(config: Config, tmp_path: Path) -> None:
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/mine.yaml").write_text("defaults: [_base, _self_]\nname: mine\nreader: x\n")
    cfg = config("data=mine", f"hydra.searchpath=[file://{tmp_path}/conf]", tiny=False)
    recipe = read_recipe()
    assert recipe is not None
    assert recipe.table(cfg) == "no settings differ from the defaults of conf/train.yaml"
    assert (cfg.optimizer.lr, cfg.global_batch_size) == (0.0001, 64)


def test_a_run_says_what_it_does_otherwise(config: Config) -> None:
    cfg = config(
        "data=kinetics400", "trainer.max_epochs=10", "data.flip=0", "init=none", "eval.views=1x1", tiny=False
    )
    recipe = read_recipe()
    assert recipe is not None
    text = recipe.table(cfg)
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("4 settings differ from recipe `kinetics400`")
    assert lines[1] == ["recipe", "this", "run"]
    assert ["trainer.max_epochs", "30", "10"] in lines
    assert ["data.flip", "0.5", "0"] in lines
    assert ["init.name", "imagenet", "null"] in lines
    assert ["eval.views", "4x3", "1x1"] in lines


@pytest.mark.parametrize(
    ("rule", "batch", "lr"), [("null", 256, 0.1), ("linear", 256, 0.4), ("sqrt", 256, 0.2), ("linear", 16, 0.025)]
)
def test_the_learning_rate_is_scaled_only_when_asked(rule: str, batch: int, lr: float, config: Config) -> None:
    cfg = config("data=kinetics400", f"global_batch_size={batch}", f"scale_lr={rule}", tiny=False)
    recipe = read_recipe()
    assert recipe is not None
    derived = derive(cfg, recipe)
    assert derived.optimizer.lr == pytest.approx(lr)
    assert cfg.optimizer.lr == 0.1  # what is composed is never changed
    assert ("optimizer.lr" in recipe.table(derived)) == (lr != 0.1)


def test_a_stride_that_the_recipes_rate_overrides_is_refused(config: Config) -> None:
    words = ["data=kinetics400", "init=none", "data.stride=4"]
    with pytest.raises(UserError, match=r"data.stride=4 has no effect, because data.fps=12.5"):
        validate(config(*words, tiny=False), ["data.stride"])
    validate(config(*words, "data.fps=null", tiny=False), ["data.stride", "data.fps"])


def test_pages_that_follow_other_code_claim_no_accuracy() -> None:
    for page in (ROOT / "conf/recipe").glob("modern_*.yaml"):
        text = page.read_text()
        assert "things differ: " in text
        assert "Expected accuracy: not measured" in text


def test_an_unknown_rule_is_an_error(config: Config) -> None:
    with pytest.raises(UserError, match=r"scale_lr=cubic: must be linear or sqrt or null"):
        validate(config("scale_lr=cubic"))


def test_a_configuration_that_hydra_did_not_compose_has_no_recipe(
    config: Config, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config("data=folder", f"data.root={videos}")
    monkeypatch.setattr(HydraConfig, "initialized", lambda: False)
    train(cfg)
    assert "no recipe to compare with" in (tmp_path / "run/recipe_differences.txt").read_text()


def test_training_in_a_hydra_job_of_another_program_has_no_recipe(config: Callable[..., DictConfig]) -> None:
    """An evaluation stands for it: its job has no model= and no recipe."""
    config("ckpt_path=none.ckpt", name="eval")
    assert read_recipe() is None


def test_another_program_s_hydra_job_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of one's own that uses Hydra has other groups, and its folders are not ours."""
    other = OmegaConf.create({"runtime": {"choices": {"db": "mysql"}, "config_sources": []}})
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: other))
    assert read_recipe() is None
    assert typed_in_job() == frozenset()
    assert data_defaults("folder")[0] == "folder"
