"""What several tests need: a tiny data set of real videos, and runs that take a second."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the scripts do, before torch is imported

import pytest
import torch
from helpers import ROOT, SHARED, TINY
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from vivit_train.data.synthetic import make_demo
from vivit_train.utils.logs import add_terminal_handler

add_terminal_handler()  # as every program does
torch.set_num_threads(1)  # the test processes are the parallelism
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job, and then in all below it
    signal.signal(signal.SIGINT, signal.default_int_handler)


HEAVY = {  # they start processes, decode many files or measure
    *("test_audit.py", "test_bench.py", "test_bench_model.py", "test_children.py", "test_commands.py"),
    *(
        "test_decode.py",
        "test_demo.py",
        "test_doctor.py",
        "test_faults.py",
        "test_faulty_training.py",
        "test_fuzz.py",
    ),
    *("test_gpu_script.py", "test_guard.py", "test_lock.py", "test_logs.py", "test_nets.py", "test_prepare.py"),
    *("test_processes.py", "test_scale.py", "test_sweep.py", "test_transformers.py", "test_untrusted_videos.py"),
    *("test_display.py", "test_help.py", "test_wheel.py"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `make test-fast` leaves out: whole runs too."""
    for item in items:
        if item.path.name in HEAVY or {"config", "videos"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("heavy")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data that only the project's own machines have; tests that use it skip in a user's clone."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside this clone")
    return SHARED


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """{train,val,test}/<class>/*.mp4: eight classes, 3 + 1 + 2 videos each, 36 pixels, 12 frames."""
    root = tmp_path_factory.mktemp("data") / "videos"
    make_demo(root, size=36, num_frames=12, train_per_class=3, val_per_class=1, test_per_class=2)
    return root


@pytest.fixture
def happened(
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, object], None]:
    """Takes a fault and what came of it: a line of docs/reliability.md, under the heading that `fault` names."""
    (section,) = request.node.get_closest_marker("fault").args
    record_property("section", section)

    def record(fault: str, outcome: object) -> None:
        words = (re.sub(rf"{tmp_path_factory.getbasetemp()}/[^/]+/", "", str(part)) for part in (fault, outcome))
        record_property("happened", "\n".join(" ".join(part.split()) for part in words))

    return record


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes a shipped configuration, tiny, with a run folder of its own."""

    def make(*overrides: str, name: str = "train", tiny: bool = True, pictures: bool = False) -> DictConfig:
        run_dir = tmp_path / {"train": "run", "eval": "results"}[name]
        run_dir.mkdir(exist_ok=True)
        small = TINY if tiny and name == "train" else ["trainer.accelerator=cpu", "eval.report=false"]
        small = ["overwrite=true", *small] if name == "eval" else small  # a test may evaluate several times
        if pictures:
            small = [*small, "eval.report=true"]
        elif name == "train":
            small = [*small, "callbacks.contact_sheet=null"]  # drawing it takes as long as an epoch, as do curves
            small += [] if "debug=overfit" in overrides else ["callbacks.report.curves=null"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose(name, [*small, f"run_dir={run_dir}", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)  # as in a job: run.py asks it for the recipe's page
        with open_dict(cfg):
            del cfg.hydra
        return cfg

    return make
