"""The choices of the key `train`. This module imports no torch, so that --help and --cfg answer at once."""

from typing import Literal

Train = Literal["auto", "all", "head", "temporal", "norms", "lora", "adapter"]
