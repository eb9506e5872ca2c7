"""The folder of the configuration files."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# A wheel holds conf/ in the package. In a clone, it is next to src/.
CONF = next((f for f in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if f.is_dir()), _PACKAGE / "conf")
