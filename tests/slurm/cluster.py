"""A SLURM of one machine and two processors, while a command runs: python tests/slurm/cluster.py COMMAND ...

Needs munged, slurmctld, slurmd, srun and sbatch: on Debian `apt-get install munge slurmctld slurmd slurm-client`.
No service, user or file of the system is touched: all is in one temporary folder.
"""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "sinfo")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
START_S = 30
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
AccountingStorageType=accounting_storage/none
JobRequeue=1
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=test Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


class NoClusterError(Exception):
    """SLURM is not installed, or does not start here; the text says which."""


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which srun and sbatch find it.

    Raises:
        NoClusterError: it cannot be had here.
    """
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        raise NoClusterError(f"not installed: {', '.join(missing)} (Debian: munge slurmctld slurmd slurm-client)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        folder.chmod(0o755)  # munged asks for it
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        ports = [free_port(), free_port()]
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname(),
                user=getpass.getuser(),
                folder=folder,
                controller_port=ports[0],
                node_port=ports[1],
            )
        )
        environment = os.environ | {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
        for command in (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D", "-N", "localhost"],
        ):
            with open(folder / f"{command[0]}.out", "wb") as out:
                daemon = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
        wait_until_idle(folder, environment)
        stack.callback(subprocess.run, ["scancel", "--user", getpass.getuser()], env=environment)
        yield environment


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until_idle(folder: Path, environment: dict[str, str]) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        seen = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
        if seen.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    said = [file.read_text(errors="replace").splitlines()[-1:] for file in sorted(folder.glob("*.out"))]
    raise NoClusterError(f"no node is idle after {START_S} s: {seen.stdout}{seen.stderr} {said}")


if __name__ == "__main__":
    try:
        with cluster() as found:
            sys.exit(subprocess.run(sys.argv[1:] or ["sinfo"], env=found).returncode)
    except NoClusterError as error:
        sys.exit(str(error))
