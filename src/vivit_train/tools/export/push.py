"""Uploads a checkpoint to the Hugging Face Hub as plain data: safetensors, JSON, and a model card."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vivit_train.loading import load
from vivit_train.models.weights.files import HUB_NAME, hub_reason
from vivit_train.models.weights.source import Source
from vivit_train.tools.export.run import write_folder
from vivit_train.utils.errors import UserError, reason
from vivit_train.utils.files import read_text
from vivit_train.utils.text import printable
from vivit_train.utils.version import package_version

log = logging.getLogger(__name__)
HEADER = """---
library_name: vivit-train
pipeline_tag: video-classification
tags:
- vivit
- video-classification
---

"""
USAGE = """
## Usage

```python
import vivit_train

model = vivit_train.load("{repository}")
print(model.predict("video.mp4", views="4x3"))
```
"""


def push(checkpoint: str, repository: str, *, private: bool = False) -> str:
    """Uploads what `export` writes, and the checkpoint as plain data that `load` reads; returns the address.

    Args:
        checkpoint: A checkpoint of vivit-train, or the folder of a run.
        repository: The name "user/name".
        private: Whether a new repository is private; None of the others changes.

    Raises:
        UserError: The checkpoint is of another kind, there is no token, or the Hub refuses the upload.
    """
    import huggingface_hub

    if not HUB_NAME.fullmatch(repository):
        raise UserError(f"{repository} is no name of a repository: expected user/name")
    if huggingface_hub.get_token() is None:
        raise UserError(
            "there is no token for the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN (with write access)"
        )
    if not os.path.exists(checkpoint):
        raise UserError(f"{checkpoint}: no such file or folder")
    others = Source(checkpoint)
    if others.is_flax or others.config is not None:
        raise UserError(f"{checkpoint} is no checkpoint of vivit-train: vivit export writes other formats")
    model = load(checkpoint, device="cpu")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_folder(model, checkpoint, folder, "safetensors")
        card = folder / "README.md"
        text = HEADER + read_text(card) + USAGE.format(repository=repository)
        card.write_text(text, encoding="utf-8")
        with translated(repository):
            api = huggingface_hub.HfApi(library_name="vivit-train", library_version=package_version()["version"])
            url = api.create_repo(repository, private=private or None, exist_ok=True)
            words = f"Upload {model.task.net.model} with vivit-train"
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=words)
    log.info(f"uploaded: {printable(str(url))}; vivit_train.load({url.repo_id!r}) loads it")
    return str(url)


@contextmanager
def translated(repository: str) -> Iterator[None]:
    """Turns the errors of an upload into messages.

    Raises:
        UserError: The upload has failed.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        answer: Any = error.response
        status = getattr(answer, "status_code", None)
        advice = {
            401: "the token is not valid: run `hf auth login`, or set HF_TOKEN to one that may write",
            403: f"the token may not write to {repository}: create one with write access, or choose another name",
            404: f"there is no such repository or user: check the name {repository}",
        }.get(int(status or 0), "try again later")
        said = printable(getattr(error, "server_message", None) or reason(error))
        raise UserError(f"the Hugging Face Hub refuses {repository} ({status}: {said}): {advice}") from error
    except Exception as error:  # Uploads fail in many ways that this package cannot control.
        raise UserError(
            f"{repository} could not be uploaded ({hub_reason(error)}): check the "
            "network, and run the same command again"
        ) from error
