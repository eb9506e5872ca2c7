"""Parses JSON files whose content is not trusted."""

import json
from pathlib import Path
from typing import Any

from vivit_train.utils.errors import UserError


def parse_json(text: str, file: Path) -> Any:
    """Returns the content of a JSON file.

    Args:
        text: The text of the file.
        file: The path of the file, for messages.

    Raises:
        UserError: If the text is not JSON, is nested too deeply, or has an integer that Python cannot parse.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}; is the file complete?") from None
    except RecursionError:
        raise UserError(f"{file}: the JSON is nested too deeply") from None
    except ValueError:
        raise UserError(f"{file}: the JSON cannot be parsed: a number has too many digits") from None
