"""Mutated files: a few of each kind here, a thousand in `make test-all`, more by `make fuzz`."""

from pathlib import Path

import pytest
from fuzz import NAMES, fuzz
from helpers import Happened


@pytest.mark.parametrize("target", NAMES)
def test_mutated_files_end_in_a_value_or_a_message(target: str, tmp_path: Path) -> None:
    assert fuzz(target, 25, 0, tmp_path) == []


@pytest.mark.slow
@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize("target", NAMES)
def test_a_thousand_mutated_files_do(target: str, tmp_path: Path, happened: Happened) -> None:
    assert fuzz(target, 1000, 1000, tmp_path) == []
    happened(f"1,000 mutated files of the kind {target}", "each is read, or refused in one message")
