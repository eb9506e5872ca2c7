"""Says whether a trained model uses the order of the frames: its score on clips whose frames are shuffled."""

import logging
import math
from dataclasses import replace

import lightning as L
import numpy as np

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.training.metrics import Rows
from vivit_train.training.module import VideoClassifier
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)
MOST_CLIPS = 2000  # More are not tested twice.
LEVEL = 0.05  # of the test whether the order makes a difference


def compare_shuffled(task: VideoClassifier, data: VideoDataModule, trainer: L.Trainer) -> None:
    """Tests a model again on shuffled frames, and logs whether it then answers as well as in `task.test_rows`.

    It does not if there are many clips, several labels per clip or a single frame.
    """
    clips, protocol = len(data.manifest_of(data.test_split)), data.protocol
    if clips > MOST_CLIPS or task.multi_label or len(task.heads) > 1 or data.sampling.frames < 2:
        return
    forward = task.test_rows
    data.protocol = replace(protocol, order="shuffled")
    try:
        with data.translate_worker_errors():
            trainer.test(task, datamodule=data, verbose=False)
    finally:
        data.protocol = protocol
    text = difference(forward, task.test_rows)
    task.test_rows = forward
    if trainer.is_global_zero:
        log.info(text)


def difference(forward: Rows, shuffled: Rows) -> str:
    """Returns a line about the top-1 of the same clips in both orders, by a sign test of the clips that change."""
    right, other = (rows["logits"].argmax(1) == rows["label"][:, 0] for rows in (forward, shuffled))
    right, other = right & ~forward["failed"], other & ~shuffled["failed"]
    gained, lost = int((other & ~right).sum()), int((right & ~other).sum())
    scores = f"with shuffled frames, top-1 is {other.mean():.3f}, and {right.mean():.3f} in order"
    if lost > gained and sign_test(lost, gained) < LEVEL:
        return f"order    {scores} ({plural(len(right), 'clip')}): the model uses the order of the frames"
    return (
        f"advice: {scores}, which is no evidence that the model uses the order of the frames: {lost} of "
        f"{plural(len(right), 'clip')} are lost and {gained} gained. If the classes differ by motion, compare the "
        "baselines of `vivit probe`, and try more frames or a longer data.stride"
    )


def sign_test(lost: int, gained: int) -> float:
    """Returns how likely at least so many of the changed clips are lost if the order does not matter."""
    changed = lost + gained
    ways = [math.comb(changed, k) for k in range(lost, changed + 1)]
    return float(np.sum(ways, dtype=object)) / 2**changed
