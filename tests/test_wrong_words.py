"""Wrong words of a command line, in real processes: exit code 1, one message that names the key, nothing else."""

import json
import os
import random
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from forked import run_python
from helpers import ROOT, TINY, leaves
from omegaconf import DictConfig, OmegaConf

pytestmark = pytest.mark.slow
# What Python, Hydra, OmegaConf, Lightning and argparse say.
FOREIGN = re.compile(
    r"Traceback|Could not override|mismatched input|Misconfiguration|Error executing job|Error in call|full_key|"
    r"object_type|Missing key|\[HYDRA\]|usage:|unrecognized arguments|See https|You restored|plain data"
)
# Any text is a valid value of these keys.
TEXTS = (
    *("data.name", "save_dir", "dirpath", "path", "curves", "folder", "filename", "monitor", "run_dir"),
    *("default_root_dir", "init.name", "init.source", "ckpt_path", "reader.classes"),
)


def wrong_word(key: str, value: Any, draw: random.Random) -> str:
    """An override with a value of a wrong type or far out of range, or of a key with a typo."""
    typo = key[:-1] if key[-2] not in "._" else f"{key}x"
    kinds = [
        f"+{key}.a=1" if "." in key else f"{key}={{a: 1}}",
        f"{typo}z=1",
        f"+{typo}z=1",
        f"++{typo}z=1",
        f"{key}=[",
    ]
    if not key.endswith(TEXTS):
        kinds += [f"{key}=nonsense", f"{key}=1e-4x", f"{key}=''"]
    if isinstance(value, bool):
        kinds += [f"{key}=3"]
    elif isinstance(value, int | float):
        kinds += [f"{key}=[1,2,3,4]", f"{key}=-1e12", f"{key}=nan", f"{key}=true"]
    return draw.choice(kinds)


def outcomes(commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Runs each command in an empty folder, two at a time. Its first word is a script, or `vivit`."""

    def outcome(command: Sequence[str]) -> dict[str, Any]:
        program, *words = command
        start = ["-m", "vivit_train.tools.cli"] if program == "vivit" else [str(ROOT / program)]
        with TemporaryDirectory() as folder:
            done = run_python(*start, *words, folder=Path(folder), env=environment, timeout_s=120)
        return {"words": command, "code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}

    environment = os.environ | {"COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(outcome, commands))


def is_one_message(done: dict[str, Any], names: Sequence[str]) -> bool:
    said = done["stderr"]
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    named = any(name in said for name in names)
    return (
        done["code"] == 1 and said.startswith("error: ") and len(lines) == 1 and named and not FOREIGN.search(said)
    )


def test_wrong_values_of_drawn_keys(config: Callable[..., DictConfig], videos: Path) -> None:
    draw = random.Random(18)
    programs: dict[str, list[str]] = {
        "train.py": [*TINY, "data=folder", f"data.root={videos}"],
        "eval.py": ["ckpt_path=none.ckpt", "trainer=cpu"],
    }
    commands, keys = [], []
    for program, number in (("train.py", 45), ("eval.py", 15)):
        words = programs[program]
        cfg = config(*words, tiny=False, name=program.removesuffix(".py"))
        known = list(leaves(OmegaConf.to_container(cfg, resolve=True)))
        for key, value in draw.sample(known, number):
            word = wrong_word(key, value, draw)
            commands.append([program, *words, word])
            keys.append(word.lstrip("+").partition("=")[0])
    done = {json.dumps(one["words"]): one for one in outcomes(commands)}
    silent = []
    for command, key in zip(commands, keys, strict=True):
        one = done[json.dumps(command)]
        if not is_one_message(one, [key, key.rpartition(".")[0] or key]):
            silent.append((command[-1], one["code"], one["stderr"][-500:]))
    assert silent == []


WRONG = {
    "~optimzer": "optimzer",
    "~optimizer.foo": "optimizer.foo",
    "~data": "data",
    "~trainer.max_epochs": "trainer.max_epochs",
    "~eval.views": "eval.views",
    "optimizer._target_=torch.optim.SparseAdam": "takes only sparse gradients",
    "+optimizer=sgd": "optimizer=OPTION",
    "++optimizer=sgd": "optimizer=OPTION",
    "recipe=kinetics": "recipe=kinetics",
    "optimizer.lr=1,2": "optimizer.lr=1,2",
    "optimizer.lr='1e-4'": "optimizer.lr='1e-4': must be a number",
    "seed=null": "seed=null: must be a whole number",
    "--lr=1": "did you mean optimizer.lr",
    "-lr": "-lr is no flag",
    "--resolve": "--cfg job",
    "--config-dir=nowhere": "--config-dir nowhere: there is no such folder",
    "--config-name=mine": "there is no mine.yaml",
    "--info=foo": "--info foo: must be one of all, config",
    "--shell-completion": "--shell-completion needs install=bash",
    "=3": "expected KEY=VALUE",
    "data.reader=foo": "data.reader=foo: must be a group of keys",
    "data.root=": "data.root='': must not be empty",
    "run_dir=null": "run_dir: must be the path of a folder",
    "hydra.run.dir=": "hydra.run.dir",
    "+hydra.rn.dir=x": "hydra.rn.dir: there is no such key",
    "hydra.sweep.dir=x": "hydra.sweep.dir is for a sweep",
    "init.tubelet=inflation": "init.tubelet=inflation has no effect without init.path or init.name",
    "+model.foo=1": "model.foo: there is no such key",
    "model.size=null": "model.size=null",
    "trainer.devices=0": "trainer.devices=0: must be 1 or more",
    "trainer.devices=[0,1]": "on a CPU",
    "trainer.strategy=foo": "trainer.strategy=foo: must be one of auto, single_device, ddp",
    "trainer.strategy=fsdp": "trainer=fsdp shards a model",
    "trainer.strategy=ddp_spawn": "trainer.strategy=ddp_spawn: must be one of auto, single_device, ddp",
    "trainer.strategy={_target_:lightning.pytorch.strategies.DDPStrategy,foo:1}": "trainer.strategy.foo: there is",
    "trainer.strategy={_target_:lightning.pytorch.strategies.DDPStrategy,start_method:fork}": "start_method=fork",
    "trainer.accelerator=mps": "trainer.accelerator=mps: there is none",
    "trainer.max_steps=0": "trainer.max_steps=0: must be -1",
    "trainer.limit_train_batches=0": "trainer.limit_train_batches=0: must be a fraction",
    "+trainer.val_check_interval=0": "trainer.val_check_interval=0: must be a fraction",
    "+trainer.val_check_interval=1.5": "trainer.val_check_interval=1.5: must be a fraction",
    "+trainer.fast_dev_run=true": "trainer.fast_dev_run: set debug=default instead",
    "+trainer.barebones=true": "trainer.barebones: this is not supported; leave it out",
    "+trainer.enable_checkpointing=false": "set callbacks.checkpoint=null",
    "+trainer.default_root_dir=/x": "trainer.default_root_dir has a value already",
    "trainer.limit_train_batches=0.0001": "trainer.limit_train_batches=0.0001: this is less than one of the 3",
    "callbacks.checkpoint.filename=../../x": "callbacks.checkpoint.filename=../../x: must be the name of a file",
    "+callbacks.g={_target_:lightning.pytorch.callbacks.BatchSizeFinder}": "auto_micro_batch_size=true instead",
    "optimizer.betas=[1.0,0.9]": "optimizer.betas=[1.0, 0.9]: must be between 0 and 0.999999",
    "optimizer._target_=torch.nn.Linear": "optimizer",
    "optimizer._target_=builtins.dict": "optimizer._target_=builtins.dict: cannot be imported",
    "data.decoder=os.system": "data.decoder=os.system: a decoder takes path",
    "trainer.num_nodes=2": "would wait for others forever",
    "trainer.profiler=foo": "must be simple, advanced or pytorch",
    "+trainer.val_check_interval=5": "val_check_interval",
    "callbacks.checkpoint.monitor=val/foo": "val/foo",
    "+callbacks.x={_target_: os.getcwd}": "is no callback of Lightning",
    "+callbacks.x={_target_: lightning.pytorch.callbacks.EarlyStopping}": "callbacks.x.monitor: is missing",
    "ema_decay=1": "ema_decay=1: must be between",
    "+optimizer.eps=-1": "optimizer.eps=-1: must be between 0 and 1",
    "callbacks.checkpoint.monitor=null": "callbacks.checkpoint.monitor=null: must be text",
    "scheduler._target_=torch.optim.lr_scheduler.StepLR": "scheduler.step_size: is missing",
    "scheduler.warmup_epochs=5": "scheduler.warmup_epochs=5 has no effect",
    "loss._target_=torch.nn.MSELoss": "gives no loss for logits [2, 8] and class ids [2] (the shapes differ)",
    "loss.class_weights=[0,0,0,0,0,0,0,0]": "all are 0 for the classes that have training clips",
    "loss.class_weights=[1,2]": "must be balanced or 8 numbers, one per class",
    "data.reader.val_percent=30": "has no effect, because the data has a validation split of its own",
    "hparams_search=optuna": "hparams_search=optuna is for a sweep, which needs -m",
    "hydra/launcher=submitit_local": "hydra/launcher is for a sweep, which needs -m",
    "logger._target_=lightning.pytorch.loggers.MLFlowLogger": "a package that it needs is missing",
    "logger.save_dir=/proc/x": "/proc/x",
}


def test_what_people_type_in_real_processes(videos: Path) -> None:
    words = [*TINY, "data=folder", f"data.root={videos}"]
    commands = [["train.py", *words, word] for word in WRONG]
    commands += [["train.py", *words, "-m", "lr=1,2"], ["train.py", *words, "-m", "hydra.run.dir=x", "seed=1"]]
    said = {one["words"][-1]: one for one in outcomes(commands)}
    expected = WRONG | {"lr=1,2": "did you mean optimizer.lr", "seed=1": "hydra.run.dir is for a single run"}
    wrong = {w: said[w]["stderr"] for w, text in expected.items() if not is_one_message(said[w], [text])}
    assert wrong == {}
