"""Print the measured device and its software versions as JSON, importing only torch: gpu_about.py [--toy]"""

import json
import sys
from pathlib import Path

import torch


def driver() -> str:
    file = Path("/proc/driver/nvidia/version")
    words = file.read_text(encoding="utf-8").split() if file.exists() else []
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def about(toy: bool) -> dict[str, str]:
    found = {"toy": "yes" if toy else "", "cuda": "", "cudnn": "", "driver": "", "memory": ""}
    if toy or not torch.cuda.is_available():
        name = f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
        return {"device": name, **found}
    properties = torch.cuda.get_device_properties(0)
    found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version()), "driver": driver()}
    return {"device": properties.name, **found, "memory": f"{properties.total_memory / 1e9:.0f} GB"}


if __name__ == "__main__":
    print(json.dumps(about("--toy" in sys.argv)))
