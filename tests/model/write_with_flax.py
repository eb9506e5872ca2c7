"""What flax itself writes and reads, for test_scenic_files.py; a process of its own, as JAX and forks do not mix.

python write_with_flax.py FOLDER: reads FOLDER/tree.npz and FOLDER/ours, writes the rest.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization, traverse_util
from flax.training import checkpoints


def main(folder: Path) -> None:
    with np.load(folder / "tree.npz") as file:
        flat = {name: jnp.asarray(file[name]) for name in file.files}
    params = traverse_util.unflatten_dict(flat, sep="/")
    ones = jax.tree_util.tree_map(jnp.ones_like, params)
    rest = {"global_step": np.int32(7), "model_state": {}, "rng": jax.random.PRNGKey(0), "metadata": {"steps": 3}}
    momentum = serialization.to_state_dict(optax.sgd(0.1, momentum=0.9).init(params))
    # before Linen, modules were numbered all together
    new_to_old = {"MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1"}
    new_to_old |= {"LayerNorm_1": "LayerNorm_2", "MlpBlock_0": "MlpBlock_3"}
    old = {"/".join(new_to_old.get(part, part) for part in path.split("/")): value for path, value in flat.items()}
    forms: dict[str, Any] = {
        "train state": rest | {"params": params, "opt_state": momentum},
        "before optax": rest
        | {"optimizer": {"target": params, "state": {"step": 7, "param_states": {"momentum": ones}}}}
        | {"accum_train_time": 1.5, "complex": 1 + 2j},
        "before linen": rest
        | {"optimizer": {"target": {"params": traverse_util.unflatten_dict(old, sep="/")}, "state": {}}},
        "bare": params,
        "params": {"params": params},
    }
    for name, form in forms.items():
        (folder / name).mkdir()
        (folder / name / "checkpoint_7").write_bytes(serialization.msgpack_serialize(form))

    serialization.MAX_CHUNK_SIZE = 40  # bytes: arrays above it are cut
    value = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    odd = {"params": {"a": value, "b": {"c": jnp.asarray(value, jnp.bfloat16)}}, "scalar": np.float64(0.5)}
    (folder / "odd").write_bytes(serialization.msgpack_serialize(odd))
    np.savez(folder / "odd.npz", a=value, c=np.asarray(odd["params"]["b"]["c"]).astype(np.float32))

    state = checkpoints.restore_checkpoint(str(folder / "ours"), None)
    assert {"params", "model_state", "global_step", "rng"} <= set(state)  # what the authors' loader takes from it
    np.savez(folder / "ours.npz", **traverse_util.flatten_dict(state["params"], sep="/"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
