"""What tests import from each other."""

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
Happened = Callable[[str, object], None]  # see conftest.happened

# a model and clips so small that an epoch takes a second
TINY = [
    "model.size=Ti",
    "model.dim=32",
    "model.depth=1",
    "model.heads=2",
    "model.tubelet=[2,16,16]",
    "data.frames=4",
    "data.stride=2",
    "data.crop=32",
    "data.short_side=36",
    "data.num_workers=0",
    "global_batch_size=8",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
]
