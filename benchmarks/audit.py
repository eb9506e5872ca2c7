"""The packages of requirements.lock beside the published advisories: python benchmarks/audit.py

Where the advisories cannot be had, the age of the lock is said, which is no fault of the lock's.
"""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
AUDIT = ["-m", "uv", "tool", "run", "--quiet", "pip-audit==2.10.1", "--disable-pip", "--no-deps", "-r", str(LOCK)]
TIMEOUT_S = 60
OLD_DAYS = 90


def age_days(lock: Path) -> float:
    """Since the lock was last committed; where git does not know, since it was written."""
    command = ["git", "log", "-1", "--format=%ct", "--", lock.name]
    asked = subprocess.run(command, cwd=lock.parent, capture_output=True, text=True, check=False)
    made = float(asked.stdout.strip() or lock.stat().st_mtime)
    return (time.time() - made) / 86_400


def main() -> None:
    try:
        result = subprocess.run([sys.executable, *AUDIT], capture_output=True, text=True, timeout=TIMEOUT_S)
        output = result.stdout + result.stderr
        # an index without advisories knows no package
        reached = "could not be audited" not in output and (result.returncode == 0 or "Found" in result.stderr)
    except (OSError, subprocess.TimeoutExpired) as error:
        output, reached, result = str(error), False, None
    if reached and result is not None:
        print(output.strip())
        sys.exit(result.returncode)
    days = age_days(LOCK)
    advice = "; make lock takes newer ones" if days > OLD_DAYS else ""
    print(f"audit: the advisories cannot be had here. The lock is {days:.0f} days old{advice}")


if __name__ == "__main__":
    main()
