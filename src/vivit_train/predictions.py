"""What a model predicts for a video, as plain objects with class names and probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vivit_train.utils.text import percent, printable

ACTION = "action"  # the name of the tuple of the classes of several heads, as in the scores of an evaluation


@dataclass(frozen=True)
class Label:
    """A class with its probability.

    Attributes:
        name: The name of the class; for an action, the names of its classes with blanks between them.
        probability: The probability, 0 to 1. Those of one head add up to 1, unless the model is multi-label.
    """

    name: str
    probability: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model predicts for a video.

    Attributes:
        video: The path or the URL of the video, as it was given.
        heads: The most probable labels of each head, best first. A single head has the name "". With several
            heads, "action" comes last: the most probable tuples of one class per head. Empty if the video failed.
        logits: The logits, averaged over the views of the video, float32 [K]. Those of several heads are
            concatenated. Empty if the video failed.
        error: Why the video cannot be read; "" if it can.
        span_s: The start and the end of the clip within its video in seconds; None if it is the whole video.
    """

    video: str
    heads: Mapping[str, Sequence[Label]] = field(default_factory=dict)
    logits: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32), repr=False)
    error: str = ""
    span_s: tuple[float, float] | None = None

    @property
    def labels(self) -> Sequence[Label]:
        """The most probable labels, best first: of the single head, or the actions of several heads."""
        return list(self.heads.values())[-1] if self.heads else ()

    @property
    def failed(self) -> bool:
        """Whether the video cannot be read, so that there are no labels."""
        return bool(self.error)

    def to_dict(self) -> dict[str, Any]:
        """Returns the prediction without logits as plain data for JSON."""
        heads = {
            head: [{"name": label.name, "probability": round(label.probability, 6)} for label in labels]
            for head, labels in self.heads.items()
        }
        data: dict[str, Any] = {"video": self.video}
        data |= {"start_s": self.span_s[0], "end_s": self.span_s[1]} if self.span_s else {}
        return data | ({"error": self.error} if self.failed else {"labels": heads.get("", heads)})

    def __str__(self) -> str:
        lines = [f"{percent(label.probability, 1):>9}  {printable(label.name)}" for label in self.labels]
        return "\n".join([printable(self.video), *(lines or [f"  cannot be read: {self.error}"])])


def best_labels(
    logits_K: Tensor, classes: Mapping[str, Sequence[str]], *, multi_label: bool, top: int
) -> dict[str, tuple[Label, ...]]:
    """Returns the `top` most probable labels of each head, best first, and of the actions of several heads.

    Args:
        logits_K: The logits of all heads.
        classes: The class names by head.
        multi_label: Whether each class has an independent probability.
        top: The number of labels. A head with fewer classes has all of them.
    """
    sizes = [len(names) for names in classes.values()]
    best: dict[str, tuple[Label, ...]] = {}
    joint_C, texts = torch.zeros(1, dtype=torch.float64), [""]
    for (head, names), logits in zip(classes.items(), logits_K.double().split(sizes), strict=True):
        log_probability_K = torch.nn.functional.logsigmoid(logits) if multi_label else logits.log_softmax(0)
        values, ids = log_probability_K.topk(min(top, len(names)))
        best[head] = labelled([names[k] for k in ids.tolist()], values)
        # Each class of the most probable tuples is among the most probable classes of its head.
        joint_C = (joint_C[:, None] + values).flatten()
        texts = [f"{text} {label.name}".strip() for text in texts for label in best[head]]
    if len(classes) > 1:
        values, places = joint_C.topk(min(top, len(texts)))
        best[ACTION] = labelled([texts[place] for place in places.tolist()], values)
    return best


def labelled(names: Sequence[str], log_probabilities: Tensor) -> tuple[Label, ...]:
    """Returns a label for each name."""
    return tuple(map(Label, names, log_probabilities.exp().tolist()))
