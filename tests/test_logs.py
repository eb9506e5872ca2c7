"""What a person reads on the terminal is in the run's log file too; only the first process informs."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from vivit_train.data.synthetic import CLASSES, make_demo


@pytest.mark.parametrize(("rank", "heard"), [("0", ["hello", "careful"]), ("1", ["careful"])])
def test_the_first_process_informs_and_any_process_warns(
    rank: str, heard: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    log = logging.getLogger("vivit_train.some.module")
    log.info("hello")
    log.warning("careful")
    assert capsys.readouterr().out.splitlines() == heard


@pytest.mark.skipif(sys.platform == "win32", reason="its pipes break otherwise")
def test_a_reader_that_leaves_ends_nothing() -> None:
    """As in `python train.py | head`."""
    code = "import logging, vivit_train; log = logging.getLogger('vivit_train.x')"
    code += "\nfor i in range(999): log.info('x' * 999)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_module_run_as_a_program_is_heard(tmp_path: Path) -> None:
    make_demo(tmp_path / "data/demo", train_per_class=1, val_per_class=1, test_per_class=1)
    rows = "".join(f"test/{label}/0000.mp4,{label},{label}\n" for label in CLASSES)
    for order in (".", "reversed", "shuffled"):
        (tmp_path / "run" / order).mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / order / "predictions.csv").write_text("id,label,prediction\n" + rows)
    command = [sys.executable, "-m", "vivit_train.tools.demo_report", "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "frames in order:  100.0 % of 8 test videos correct" in done.stdout
    assert "Try next:" in done.stdout
