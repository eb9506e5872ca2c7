"""Reads the rank of this process from the environment, before torch is imported."""

import os

RANKS = ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID", "SUBMITIT_LOCAL_GLOBALID")


def is_first_rank() -> bool:
    """Returns whether this process is rank 0 of the job."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)
