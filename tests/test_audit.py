"""make audit says how old the lock is where no advisories can be had."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT, Happened


@pytest.mark.fault("Others")
def test_without_a_network_the_age_of_the_lock_is_said(happened: Happened) -> None:
    command, offline = [sys.executable, str(ROOT / "benchmarks/audit.py")], {"UV_OFFLINE": "1", "UV_NO_CACHE": "1"}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, check=True)
    assert re.search(r"the advisories cannot be had here\. The lock is \d+ days old", done.stdout)
    happened("`make audit` without a network", re.sub(r"\d+ days", "N days", done.stdout))
