from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data that only the project's own machines have; tests that use it skip in a user's clone."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside this clone")
    return SHARED
