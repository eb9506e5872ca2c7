"""The place that weights come from, and the two forms in which a detector returns them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from vivit_train.models.vivit import Grid, ViViT
from vivit_train.models.weights.files import (
    Statistics,
    folder_weights,
    hub_folder,
    is_hub_name,
    kind_of,
    read_file,
    read_json_object,
    refuse_graph,
    unwrapped,
)
from vivit_train.models.weights.flax_file import has_checkpoint


class Source:
    """A file, a folder, or a model name. Each part is read once, when it is first needed; nothing is executed.

    Attributes:
        name: The name as the user gave it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def path(self) -> Path | None:
        """The file or folder, downloaded if it is a name on the Hugging Face Hub, or None for a name of timm.

        Raises:
            UserError: The Hub does not provide the model, or only other programs run it.
        """
        path = Path(self.name)
        if path.is_file() or path.is_dir():
            refuse_graph(path)
            return path
        return hub_folder(self.name) if is_hub_name(self.name) else None

    @cached_property
    def is_file(self) -> bool:
        """Whether this is a single file."""
        return self.path is not None and self.path.is_file()

    @cached_property
    def is_flax(self) -> bool:
        """Whether this is a flax file, or a folder with a file `checkpoint` or `checkpoint_<step>`."""
        if self.path is None or self.is_file:
            return self.path is not None and kind_of(self.path) == "flax"
        return self.config is None and has_checkpoint(self.path)

    @cached_property
    def content(self) -> Any:
        """The content of a PyTorch or safetensors file, or None.

        Raises:
            UserError: The file is damaged or holds more than tensors and plain data.
        """
        return read_file(self.path) if self.path is not None and self.is_file and not self.is_flax else None

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """The config.json of a Hugging Face folder, or None.

        Raises:
            UserError: It cannot be read.
        """
        file = self.path / "config.json" if self.path is not None else None
        return read_json_object(file) if file is not None and file.is_file() else None

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors by name in a PyTorch or safetensors file or in a Hugging Face folder, or {}.

        Raises:
            UserError: The file cannot be read.
        """
        if self.path is not None and self.config is not None:
            return folder_weights(self.path)
        state = unwrapped(self.content)
        items = state.items() if isinstance(state, dict) else ()
        return {name: value for name, value in items if isinstance(value, Tensor)}


@dataclass
class ImageWeights:
    """The weights of an image ViT.

    Attributes:
        source: The file, folder, or model name, for messages.
        state: The weights by timm's parameter names, or by those of an image ViT of Hugging Face.
        statistics: The mean and std of the normalization, for pixels in [0, 1], or None if unknown.
        act: The activation of the MLPs, as an argument of `ViViT`, or None if unknown.
        norm_eps: The epsilon of the layer norms, or None if unknown.
        license: The license of the weights, for the report.
        heads: The number of attention heads, or None if unknown.
    """

    source: str
    state: Mapping[str, Tensor]
    statistics: Statistics | None = None
    act: str | None = None
    norm_eps: float | None = None
    license: str | None = None
    heads: int | None = None


@dataclass
class VideoWeights:
    """The weights of a ViViT with our parameter names. Unknown attributes are None or left out.

    Attributes:
        source: The file, folder, or model name, for messages.
        state: The weights by parameter name.
        settings: Values of `ViViT.settings`, to compare with those of the model.
        grid: The sizes of the token grid: time, rows, and columns.
        classes: The class names by head.
        multi_label: Whether the head was trained for any number of classes per video.
        statistics: The mean and std of the normalization, for pixels in [0, 1].
        heads: The order of the model's heads in the rows of a single output without class names.
        new: The parameters that the source does not have, and why; they stay as they are initialized.
        unused: The names of weights in the source that no model of this package has.
        license: The license of the weights, for the report.
        notes: Further lines for the report.
    """

    source: str
    state: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid | None = None
    classes: Mapping[str, Sequence[str]] | None = None
    multi_label: bool | None = None
    statistics: Statistics | None = None
    heads: Sequence[str] | None = None
    new: Mapping[str, str] = field(default_factory=dict)
    unused: Sequence[str] = ()
    license: str | None = None
    notes: Sequence[str] = ()


# Returns the weights in a source for the model to be initialized, or None if the source is of another kind.
Detector = Callable[[Source, ViViT], ImageWeights | VideoWeights | None]
