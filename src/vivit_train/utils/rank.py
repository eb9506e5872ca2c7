"""Which process of a job this is, from the environment: known before torch is imported."""

import os

RANKS = ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID", "SUBMITIT_LOCAL_GLOBALID")


def is_first_rank() -> bool:
    return all(os.environ.get(name, "0") == "0" for name in RANKS)
