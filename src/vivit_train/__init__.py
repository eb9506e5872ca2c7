"""vivit-train: train, evaluate and sweep ViViT (arXiv 2103.15691) on real videos."""

import os

from vivit_train.utils.logs import add_terminal_handler

# Loader workers share the cores with torch's threads. Threads that spin while they wait take a core from those
# that work: measured on two cores, the demo is 1.5 times slower so, and 7 times beside another busy process.
# OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

add_terminal_handler()
