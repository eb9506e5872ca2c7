#!/usr/bin/env bash
# Run the checks and measurements that need a GPU, most valuable first, on a machine with torch but no network:
#   scripts/gpu.sh [check|speed|all] [--budget SECONDS] [--out DIR] [--toy] [--only ROW,...]
#   scripts/gpu.sh page --out DIR      renders docs/gpu.md from the results of another machine
# PYTHON=python3.12 selects the interpreter. The default is the one in .venv, or python3. If hydra-core,
# omegaconf, antlr4-python3-runtime, av or msgpack is missing, it is installed from wheels/ (`make gpu-wheels`)
# into .gpu/. The system is not changed. Packages that are imported only when used are not needed: wandb, decord,
# torchcodec, optuna, submitit, aiohttp, fsspec and flax.
set -euo pipefail
STARTED=$(date +%s.%N)
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi

missing=$("$PYTHON" - <<'END'
from importlib.util import find_spec

names = {"hydra": "hydra_core", "omegaconf": "omegaconf", "antlr4": "antlr4_python3_runtime", "av": "av"}
print(*(wheel for module, wheel in (names | {"msgpack": "msgpack"}).items() if find_spec(module) is None))
END
)
version=$("$PYTHON" -c 'import sys; print(*sys.version_info[:2], sep=".")')
site=$PWD/.gpu/site-$version
for name in $missing; do
    [ -e "$site/$name.installed" ] && continue
    wheel=$(compgen -G "wheels/$name-*-cp${version/./}-*.whl" || compgen -G "wheels/$name-*-none-any.whl" || compgen -G "wheels/$name-*-abi3-*.whl") || {
        echo "$name is not installed, and wheels/ has none for Python $version: run" \
            "make gpu-wheels GPU_PYTHON=$version on a machine with a network" >&2
        exit 1
    }
    mkdir -p "$site"
    if "$PYTHON" -c 'import pip' 2>/dev/null; then
        "$PYTHON" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" "$wheel"
    else
        "$PYTHON" -m zipfile -e "$wheel" "$site" # A wheel is a zip file.
    fi
    touch "$site/$name.installed"
done
export PYTHONPATH="$PWD/src:$site${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" benchmarks/gpu.py "$@" --started "$STARTED"
