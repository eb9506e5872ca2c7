"""The version and the commit of this package, which a result states."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def package_version() -> dict[str, str]:
    """Returns the version and, if the package runs from a git clone, the commit, marked if files are changed."""
    try:
        found = {"version": version("vivit-train")}
    except PackageNotFoundError:  # The package is on the path, but not installed, as on a GPU machine.
        found = {"version": "not installed"}
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():  # An installed package may lie within another project's clone.
        return found
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # There is no git, or the clone belongs to another user.
        return found
    return found | {"commit": done.stdout.strip()}
