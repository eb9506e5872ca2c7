"""Every key of a configuration is used or refused, and every value is checked, before anything starts."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, leaves, run_script
from omegaconf import DictConfig, OmegaConf

import vivit_train
from vivit_train.config import validate, validate_evaluation
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.models.vivit import ViViT
from vivit_train.recipe import typed_keys
from vivit_train.schema import key_problems
from vivit_train.utils.errors import UserError
from vivit_train.values import AUTOMATIC

Config = Callable[..., DictConfig]
# Any text is a valid value of these keys.
TEXTS = (
    *("run_dir", "data.name", "data.root", "ckpt_path", "save_dir", "dirpath", "path", "curves", "folder"),
    *("filename", "monitor", "default_root_dir", "init.name", "init.source", "data.train", "data.val"),
    *("data.test", "trainer.profiler", "trainer.strategy", "data.reader.classes"),
)
# Without the arguments of the recipe's classes.
BARE = ("~optimizer.betas", "~optimizer.weight_decay", "~scheduler.warmup_epochs")


def wrong_values(key: str, value: Any) -> Iterator[Any]:
    """Values of a wrong type, or far out of range."""
    if not key.endswith(TEXTS):
        yield "nonsense"
    yield {"a": 1}
    if isinstance(value, bool):
        yield 3
    elif isinstance(value, int | float):
        yield [value, value, value, value]
        if key not in ("trainer.deterministic",):
            yield -1e12


def message(cfg: DictConfig) -> str:
    try:
        validate(cfg)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "words",
    [
        ["data=folder", "model=vivit_st", "optimizer=adamw"],
        pytest.param([], marks=pytest.mark.slow),
        pytest.param(["data=csv", "optimizer=sgd"], marks=pytest.mark.slow),
    ],
)
def test_a_wrong_value_of_any_key_is_refused_by_name(words: list[str], config: Config) -> None:
    cfg = config(*words, tiny=False)
    validate(cfg)
    tried, accepted = 0, []
    for key, value in leaves(OmegaConf.to_container(cfg, resolve=True)):
        for wrong in wrong_values(key, value):
            other = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
            OmegaConf.update(other, key, wrong, merge=False)
            tried += 1
            if key not in message(other):
                accepted.append((key, wrong))
    assert accepted == []
    assert tried > 150


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+recipe.lr=0.5"], "recipe.lr: there is no such key; did you mean optimizer.lr?"),
        (["+epochs=3", "+batch_size=4"], "epochs: there is no such key; did you mean trainer.max_epochs?"),
        (["+epochs=3", "+batch_size=4"], "batch_size: there is no such key; did you mean global_batch_size?"),
        (["+lr=0.1"], "lr: there is no such key; did you mean optimizer.lr?"),
        (["+trainer.accumulate_grad_batches=4"], "set global_batch_size and micro_batch_size instead"),
        (["+trainer.gpus=2"], "trainer.gpus: there is no such key"),
        (["+data.global_batch_size=4"], "data.global_batch_size: set global_batch_size instead"),
        (["+data.flpi=0.5"], "did you mean data.flip?"),
        (["+data.reader.val_precent=5"], "did you mean data.reader.val_percent?"),
        (["+optimizer.momentum=0.9"], "optimizer.momentum=0.9: torch.optim.AdamW has no such argument"),
        (["loss.label_smoothing=2"], "loss.label_smoothing=2: must be between 0 and 1"),
        (["data.num_workers=-1"], "data.num_workers=-1: must be between 0 and 512"),
        (["model.tubelet=[2,16]"], "model.tubelet=[2, 16]: must be a list of 3, each a whole number"),
        (["ema_decay=2"], "ema_decay=2: must be between 0 and 0.999999"),
        (["model.pool=foo"], "model.pool=foo: must be cls or mean"),
        (["data.flip=3"], "data.flip=3: must be between 0 and 1"),
        (["optimizer.weight_decay=-1"], "optimizer.weight_decay=-1: must be between 0 and 1,000"),
        (["init.mean=[0.5,0.5,0.5]"], "init.mean and init.std belong together"),
        (["init.mean=[123,116,103]", "init.std=[58,57,57]"], "init.mean=[123, 116, 103]: must be between 0 and 1"),
        (["data.scale_jitter=[1.3,0.9]"], "the first number must not exceed the second"),
        (["data.randaugment=[2,25]"], "the authors' operations have magnitudes up to 20"),
        (["trainer.max_epochs=null"], "trainer.max_epochs"),
        (["~trainer.max_epochs"], "trainer.max_epochs: is missing"),
        (["~eval.views"], "eval.views: is missing"),
        (["optimizer.lr='1e-4'"], "optimizer.lr='1e-4': must be a number"),
        (["seed=null"], "seed=null: must be a whole number"),
        (["data.root="], "data.root='': must not be empty"),
        (["data.reader=foo"], "data.reader=foo: must be a group of keys with a _target_"),
        (["+model.foo=1"], "model.foo: there is no such key"),
        (["model.size=null"], "model.size=null: must be text"),
        (["trainer.devices=0"], "trainer.devices=0: must be 1 or more, or auto"),
        (["trainer.devices=[0,1]"], "on a CPU it is a number of processes"),
        (["trainer.strategy=foo"], "trainer.strategy=foo: must be one of auto, "),
        (["trainer.num_nodes=2"], "this process would wait for others forever"),
        (["trainer.profiler=foo"], "trainer.profiler=foo: must be simple, advanced or pytorch"),
        (["+callbacks.x={_target_: pathlib.PurePath}"], "callbacks.x._target_=pathlib.PurePath: is no callback"),
        (
            ["+callbacks.x={_target_: lightning.pytorch.callbacks.EarlyStopping}"],
            "callbacks.x.monitor: is missing; lightning.pytorch.callbacks.EarlyStopping needs it",
        ),
        (["model.frames=8"], "model.frames=8: is data.frames=4; set only data.frames"),
    ],
)
def test_what_people_type(words: list[str], message: str, config: Config) -> None:
    with pytest.raises(UserError) as error:
        validate(config("data=folder", *words))
    assert message in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+optimizer.eps=-1"], "optimizer.eps=-1: must be between 0 and 1"),
        (["optimizer.betas=[2,0]"], "optimizer.betas=[2, 0]: must be between 0 and 0.999999"),
        (["optimizer=sgd", "optimizer.momentum=0", "+optimizer.nesterov=true"], "set optimizer.momentum=0.9"),
        (["+optimizer.foreach=true", "+optimizer.fused=true"], "exclude each other: leave out one of them"),
        (["optimizer._target_=torch.optim.LBFGS", *BARE], "takes several passes per step"),
        (
            ["optimizer._target_=torch.optim.Muon", "~optimizer.betas"],
            "takes only matrices, but a model has biases",
        ),
        (["optimizer._target_=builtins.list"], "optimizer"),
        (
            ["scheduler._target_=torch.optim.lr_scheduler.StepLR", BARE[2]],
            "scheduler.step_size: is missing; torch.optim.",
        ),
        (
            ["scheduler._target_=torch.optim.lr_scheduler.CosineAnnealingLR", "+scheduler.T_max=0", BARE[2]],
            "scheduler.T_max=0: must be between 1 and",
        ),
        (
            ["scheduler._target_=torch.optim.lr_scheduler.LambdaLR", "+scheduler.lr_lambda=3", BARE[2]],
            "scheduler.lr_lambda=3: must be a group of keys with a _target_",
        ),
        (["scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", BARE[2]], "follows a metric"),
        (
            ["loss._target_=torch.nn.NLLLoss", "~loss.label_smoothing"],
            "takes log-probabilities, but a model gives logits",
        ),
        (
            ["+callbacks.x={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/score, mode: foo}"],
            "callbacks.x.mode=foo: must be max or min",
        ),
        (["+callbacks.checkpoint.save_top_k=-3"], "callbacks.checkpoint.save_top_k=-3: must be between -1 and"),
        (["callbacks.checkpoint.monitor=null"], "callbacks.checkpoint.monitor=null: must be text"),
        (
            ["+callbacks.x={_target_: lightning.pytorch.callbacks.BackboneFinetuning}"],
            "set train=head, train=temporal or layer_decay=0.75 instead",
        ),
    ],
)
def test_what_people_type_for_classes_of_torch_and_lightning(
    words: list[str], message: str, config: Config
) -> None:
    with pytest.raises(UserError) as error:
        validate(config("data=folder", *words))
    assert message in str(error.value)


def test_what_has_no_effect_is_refused_if_it_is_typed(config: Config) -> None:
    cfg = config("data=folder", "init.tubelet=inflation", "data.randaugment_kind=torchvision")
    validate(cfg)
    with pytest.raises(UserError) as error:
        validate(cfg, typed={"init.tubelet", "data.randaugment_kind"})
    assert "init.tubelet=inflation has no effect without init.path or init.name" in str(error.value)
    assert "data.randaugment_kind=torchvision has no effect without data.randaugment" in str(error.value)
    with pytest.raises(UserError, match=r"data\.flip has no effect in an evaluation"):
        validate_evaluation(config("ckpt_path=x.ckpt", "+data.flip=0", name="eval"), typed={"data.flip"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["trainer.gradient_clip_val=null", "+trainer.gradient_clip_algorithm=value"],
            "without trainer.gradient_clip_val",
        ),
        (["init.path=x", "init.name=vit"], "init.name=vit has no effect, because init.path=x takes its place"),
        (["init.min_coverage=0"], "init.min_coverage=0 has no effect without init.path or init.name"),
        (["data.changed=accept"], "data.changed=accept has no effect without resume=auto or ckpt_path"),
        (["resume=auto", "ckpt_path=x.ckpt"], "ckpt_path=x.ckpt has no effect, because resume=auto takes"),
        (["resume=auto", "overwrite=true"], "overwrite=true has no effect, because resume=auto goes on"),
        (
            ["data.sampling=segments", "data.padding=black"],
            "data.padding=black has no effect, because data.sampling=",
        ),
        (
            ["patience=3", "trainer.limit_val_batches=0"],
            "patience=3 has no effect, because trainer.limit_val_batches=0",
        ),
        (
            ["patience=9", "trainer.max_epochs=9"],
            "patience=9 has no effect, because training ends at trainer.max_",
        ),
        (
            ["+callbacks.x={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: epoch, patience: 5}"],
            "callbacks.x.patience=5 has no effect, because training ends at trainer.max_epochs=1",
        ),
        (["callbacks.advice.epochs=7"], "callbacks.advice.epochs=7 has no effect, because training ends at"),
        (["trainer.check_val_every_n_epoch=2"], "because trainer.max_epochs=1 ends before the first validation"),
        (["+trainer.min_epochs=1"], "trainer.min_epochs=1 has no effect, because nothing ends this run before"),
        (
            ["+trainer.overfit_batches=1", "trainer.limit_train_batches=2"],
            "trainer.overfit_batches=1 takes its place",
        ),
        (["model=vivit_st", "+model.temporal_depth=4"], "because only model=vivit_fe has a temporal encoder"),
        (["+model.order=time_space"], "because only model=vivit_fsa has two attentions"),
        (["model=vivit_fsa", "+model.pool=cls"], "because vivit_fsa has no cls token and takes the mean"),
        (["init=imagenet", "init.path=x"], "init=imagenet has no effect, because init.path=x takes its place"),
        (["train=head", "model.drop_path=0.2"], "because train=head trains no layer below the head"),
        (["scheduler.warmup_epochs=5"], "scheduler.warmup_epochs=5 has no effect, because training ends within"),
        (
            [
                "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR",
                "+scheduler.max_lr=0.1",
                "optimizer.lr=1",
                BARE[2],
            ],
            "optimizer.lr=1 has no effect, because scheduler.max_lr=0.1 takes its place",
        ),
    ],
)
def test_what_another_key_makes_meaningless_is_refused_if_it_is_typed(
    words: list[str], message: str, config: Config
) -> None:
    cfg = config("data=folder", *words)
    typed = typed_keys(words)
    with pytest.raises(UserError) as error:
        validate(cfg, typed)
    assert message in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["trainer.gradient_clip_val=null"],
        ["init.min_coverage=0", "init.path=x"],
        ["data.changed=accept", "resume=auto"],
        ["patience=3", "+trainer.min_epochs=1", "trainer.max_epochs=9"],
        ["scheduler.warmup_epochs=1"],
        ["train=temporal", "model.drop_path=0.2"],
    ],
)
def test_what_has_an_effect_may_be_typed(words: list[str], config: Config) -> None:
    validate(config("data=folder", *words), typed_keys(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+trainer.min_epochs=2"], "trainer.min_epochs has no effect in an evaluation"),
        (["+data.max_bad_fraction=0.5"], "data.max_bad_fraction has no effect in an evaluation"),
        (["data=folder", "data.reader.val_percent=30"], "data.reader.val_percent has no effect in an evaluation"),
        (["data.stride=2", "data.fps=5"], "data.stride=2 has no effect, because data.fps=5 is set"),
        (["data.sampling=segments", "data.stride=3"], "because data.sampling=segments spreads the frames"),
        (["seed=3"], "seed=3 has no effect without eval.order=shuffled"),
        (["data.test=null"], "data.test=null has no effect, as null is what the checkpoint has: eval.split=val"),
        (["data.fps=null"], "data.fps=null has no effect, as null is what the checkpoint has: set data.stride"),
        (
            ["data=folder", "eval.split=train"],
            "an evaluation with data=folder reads no training clips",
        ),
        (["+trainer.fast_dev_run=true"], "trainer.fast_dev_run has no effect in an evaluation"),
        (["eval.views=999999999x3"], "eval.views=999999999x3: must be up to 999 temporal clips"),
        (["data=csv", "data.val=a", "data.test=b"], "data.val=a has no effect, because data.test=b is evaluated"),
    ],
)
def test_what_an_evaluation_would_ignore_is_refused(words: list[str], message: str, config: Config) -> None:
    cfg = config("ckpt_path=x.ckpt", *words, name="eval")
    with pytest.raises(UserError) as error:
        validate_evaluation(cfg, typed={word.lstrip("+").partition("=")[0] for word in words})
    assert message in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.reader.classes=names.txt"], "data.reader.classes has no effect: "),
        (["data.reader.multi_label=true"], "data.reader.multi_label has no effect: "),
        (["data.train=more.csv"], "data.train=more.csv has no effect: "),
    ],
)
def test_what_a_checkpoint_states_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    checkpoint = ROOT / "tests/nets/run/checkpoints/last.ckpt"
    done = run_script("eval.py", f"ckpt_path={checkpoint}", "trainer=cpu", "data=csv", *words, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")


@pytest.mark.parametrize(
    "words",
    [
        ["+trainer.benchmark=true", "+trainer.detect_anomaly=true"],
        ["+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/score}"],
        ["+optimizer.amsgrad=true"],
        ["logger._target_=lightning.pytorch.loggers.CSVLogger", "+logger.name=x"],
        ["~logger"],
        ["callbacks.health=null"],
        ["data.frames=auto"],
    ],
)
def test_arguments_of_lightning_and_torch_stay_possible(words: list[str], config: Config) -> None:
    validate(config("data=folder", *words))


def test_what_a_run_chooses_may_be_automatic(config: Config) -> None:
    cfg = config("data=folder", tiny=False)
    assert [key for key in AUTOMATIC if OmegaConf.select(cfg, key) == "auto"] == list(AUTOMATIC)
    assert key_problems(cfg) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            ["optimiser.lr=1"],
            "optimiser.lr: there is no such key; did you mean optimizer.lr?",
            marks=pytest.mark.slow,
        ),
        (["recipe.optimizer.lr=1"], "recipe.optimizer.lr is now optimizer.lr"),
        pytest.param(["lr=1"], "lr: there is no such key; did you mean optimizer.lr?", marks=pytest.mark.slow),
        pytest.param(["data=foldr"], "data=foldr does not exist: choose from", marks=pytest.mark.slow),
        pytest.param(["logger=null"], "a group cannot be null", marks=pytest.mark.slow),
        pytest.param(
            ["data.frames=[1"], "data.frames=[1 is not an override: expected KEY=VALUE", marks=pytest.mark.slow
        ),
    ],
)
def test_a_wrong_word_of_the_command_is_one_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    done = run_script("train.py", *words, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+lr=1"], "lr: there is no such key"),
        (["eval.order=backward"], "eval.order=backward: must be one of forward, reversed, shuffled"),
        (["eval.views=4x2"], "eval.views=4x2: must be up to 999 temporal clips x spatial crops"),
        (["+eval.view=4x3"], "eval.view: there is no such key; did you mean eval.views?"),
        (["data.frames=many"], "data.frames=many: must be a whole number"),
        (["+data.flip=0.5", "micro_batch_size=0"], "micro_batch_size=0: must be between 1 and 4,096"),
        (["~ckpt_path"], "ckpt_path: is missing"),
        (["~eval.order"], "eval.order: is missing"),
        (["data.padding=loop"], "data.padding=loop: must be one of wrap, repeat_last, black"),
        (["data.decoder=cv2"], "data.decoder=cv2: must be one of auto, decord, pyav, torchcodec"),
        (["model=vivit_fe", "model.frames=8"], "model.frames=8: set data.frames instead"),
        (["model.compile=true"], "model.compile=True: an evaluation does not use it"),
        (["model.dim=0"], "model.dim=0: must be between 1 and 16,384"),
        (["model.pool=max"], "model.pool=max: must be cls or mean"),
        (["init.mean=[0.5,0.5,0.5]"], "init.mean and init.std belong together"),
    ],
)
def test_what_people_type_for_an_evaluation(words: list[str], message: str, config: Config) -> None:
    with pytest.raises(UserError) as error:
        validate_evaluation(config("ckpt_path=x.ckpt", *words, name="eval"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["data=csv", "data.root=x"],
        ["data.frames=64", "data.crop=288", "eval.split=val"],
        ["model=vivit_fe", "model.size=L", "model.temporal_depth=24", "init.heads=[noun,verb]"],
    ],
)
def test_an_evaluation_may_say_this(words: list[str], config: Config) -> None:
    validate_evaluation(config("ckpt_path=x.ckpt", *words, name="eval"))


@pytest.mark.parametrize(
    ("group", "owner"),
    [("data=kinetics400", VideoDataModule), ("model=vivit_fe", ViViT), ("model=vivit_fsa", ViViT)],
)
def test_the_defaults_of_yaml_and_constructors_are_the_same(group: str, owner: Any, config: Config) -> None:
    node: Any = OmegaConf.to_container(
        config(group, "recipe=none", tiny=False)[group.partition("=")[0]], resolve=True
    )
    for key, parameter in inspect.signature(owner.__init__).parameters.items():
        by_choice = key in ("train", "val", "test", "model", "frames", "image_size")  # of the data set or the clip
        if key in node and node[key] is not None and parameter.default is not parameter.empty and not by_choice:
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            assert node[key] == default, key


def test_compose_leaves_out_only_what_the_recipe_gives(tmp_path: Path) -> None:
    other = "optimizer._target_=torch.optim.AdamW"
    assert "momentum" in vivit_train.compose("data=kinetics400", run_dir=tmp_path).optimizer
    assert "momentum" not in vivit_train.compose("data=kinetics400", other, run_dir=tmp_path).optimizer
    cfg = vivit_train.compose("data=kinetics400", other, "optimizer.momentum=0.8", run_dir=tmp_path)
    with pytest.raises(UserError, match=r"optimizer\.momentum=0\.8: torch\.optim\.AdamW has no such argument"):
        validate(cfg)
