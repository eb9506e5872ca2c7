"""The pages say what the paper's Table 7 says, and a run says what it does otherwise."""

from collections.abc import Callable
from typing import Any

import pytest
from helpers import ROOT
from omegaconf import DictConfig, OmegaConf

from vivit_train import recipe
from vivit_train.config import check
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]

PAGES = sorted(file.stem for file in (ROOT / "conf/recipe").glob("*.yaml"))
PAPER: dict[str, dict[str, Any]] = {  # Table 7
    "kinetics400": {"lr": 0.1, "epochs": 30, "color_jitter": 0.8},
    "kinetics600": {"lr": 0.1, "epochs": 30, "color_jitter": 0.8},
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
        "randaugment": [2, 20],
        "drop_path": 0.3,
        "label_smoothing": 0.3,
        "mixup": 0.3,
    },
}
AUTHORS: dict[str, dict[str, Any]] = {  # where their released configurations differ from the paper
    "authors_kinetics400_fe_b": {"recipe.optimizer.lr": 0.05},
    "authors_kinetics400_fe_l": {"model.size": "L", "model.temporal_depth": 24},
    "authors_kinetics600_fe_l": {"recipe.optimizer.lr": 0.05, "model.size": "L", "model.temporal_depth": 24},
    "authors_epic_kitchens100": {"data.stride": 1, "model.size": "L", "eval.views": "4x3"},
    "authors_something_something_v2": {
        "recipe.optimizer.lr": 0.4,
        "data.stride": 1,
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
    assert cfg.task.optimizer == {
        "_target_": "torch.optim.SGD",
        "_partial_": True,
        "lr": stated["lr"],
        "fused": True,
        "momentum": 0.9,
    }
    assert (cfg.trainer.max_epochs, cfg.recipe.warmup_epochs) == (stated["epochs"], 2.5)
    assert (cfg.data.global_batch, cfg.trainer.gradient_clip_val, cfg.task.weight_decay) == (64, 1.0, 0.0)
    assert (cfg.data.frames, cfg.data.stride, cfg.data.short_side, cfg.data.crop) == (32, 2, 256, 224)
    assert (list(cfg.data.scale_jitter), cfg.data.flip) == ([0.9, 1.33], 0.5)
    assert (cfg.data.color_jitter, cfg.data.randaugment) == (stated["color_jitter"], stated["randaugment"])
    assert (cfg.task.label_smoothing, cfg.task.mixup, cfg.task.cutmix) == (
        stated["label_smoothing"],
        stated["mixup"],
        0.0,
    )
    assert (cfg.model.drop_path, cfg.recipe.ema, cfg.data.random_erasing) == (stated["drop_path"], None, 0.0)
    assert cfg.eval.views == ("4x3" if "kinetics" in data else "4x1")
    assert (cfg.model.model, cfg.model.size, cfg.model.temporal_depth) == ("vivit_fe", "B", 4)
    assert (cfg.init.name, cfg.init.tubelet, list(cfg.model.tubelet)) == (
        "imagenet",
        "central_frame",
        [2, 16, 16],
    )
    page = recipe.read_page()
    assert page is not None
    assert recipe.differences(cfg, page) == []
    assert recipe.table(cfg, page) == f"no settings differ from recipe `{data}`"


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_variants_change_only_what_theirs_do(name: str, config: Config) -> None:
    base = next(data for data in PAPER if name.startswith(f"authors_{data}"))
    paper = recipe.flatten(config(f"data={base}", tiny=False))
    theirs = recipe.flatten(config(f"data={base}", f"recipe={name}", tiny=False))
    derived = ("task.", "model.image_size")
    changed = {
        key: value for key, value in theirs.items() if paper.get(key) != value and not key.startswith(derived)
    }
    assert changed == AUTHORS[name]


@pytest.mark.parametrize("name", PAGES)
def test_every_page_takes_effect_and_says_what_it_costs(name: str, config: Config) -> None:
    data = name if (ROOT / f"conf/data/{name}.yaml").is_file() else "folder"
    cfg = config(f"data={data}", f"recipe={name}", tiny=False)
    page = recipe.read_page()
    assert page is not None
    assert page.name == name
    assert recipe.differences(cfg, page) == []
    check(cfg)
    stated = set(page.values)
    common = {"recipe.optimizer._target_", "recipe.optimizer._partial_", "recipe.optimizer.lr", *recipe.EFFECT}
    assert stated >= common, common - stated
    header = (ROOT / f"conf/recipe/{name}.yaml").read_text()
    if name not in ("demo", "finetune", "csv", "folder"):
        assert "python train.py" in header
        assert "Cost" in header
        assert "Expected" in header


def test_every_key_of_a_page_is_compared(config: Config) -> None:
    cfg = config("data=kinetics400", tiny=False)
    page = recipe.read_page()
    assert page is not None
    for key in page.values | recipe.UNSTATED:
        where = recipe.EFFECT.get(key, key.replace("recipe.optimizer.", "task.optimizer."))
        other = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
        OmegaConf.update(other, where, "something else")
        shown = where.replace("task.optimizer.", "recipe.optimizer.")
        assert [row[0] for row in recipe.differences(other, page)] == [shown]


def test_a_run_says_what_it_does_otherwise(config: Config) -> None:
    cfg = config("data=kinetics400", "recipe.epochs=10", "data.flip=0", "init=none", "eval.views=1x1", tiny=False)
    text = recipe.table(cfg, recipe.read_page())
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("4 settings differ from recipe `kinetics400`")
    assert lines[1] == ["recipe", "this", "run"]
    assert ["trainer.max_epochs", "30", "10"] in lines
    assert ["data.flip", "0.5", "0"] in lines
    assert ["init.name", "imagenet", "None"] in lines
    assert ["eval.views", "4x3", "1x1"] in lines


@pytest.mark.parametrize(
    ("rule", "batch", "lr"), [("null", 256, 0.1), ("linear", 256, 0.4), ("sqrt", 256, 0.2), ("linear", 16, 0.025)]
)
def test_the_learning_rate_is_scaled_only_when_asked(rule: str, batch: int, lr: float, config: Config) -> None:
    cfg = config("data=kinetics400", f"recipe.global_batch={batch}", f"recipe.scale_lr={rule}", tiny=False)
    page = recipe.read_page()
    recipe.scale_learning_rate(cfg, page)
    assert cfg.task.optimizer.lr == pytest.approx(lr)
    assert ("recipe.optimizer.lr" in recipe.table(cfg, page)) == (lr != 0.1)


def test_an_unknown_rule_is_an_error(config: Config) -> None:
    with pytest.raises(UserError, match=r"recipe\.scale_lr=cubic: must be null, linear or sqrt"):
        check(config("recipe.scale_lr=cubic"))


def test_pages_are_not_needed_outside_of_a_job(config: Config) -> None:
    assert "no recipe to compare with" in recipe.table(config(), None)
