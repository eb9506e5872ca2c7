"""vivit-train: trains, evaluates, and sweeps ViViT models (arXiv 2103.15691) on real videos."""

import os

from vivit_train.utils.logs import add_terminal_handler

# Loader workers share the cores with torch's threads, and threads that spin while they wait block a core. On two
# cores, spinning makes the demo 1.5 times slower, or 7 times slower next to another busy process. OpenMP reads the
# variable once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

add_terminal_handler()
