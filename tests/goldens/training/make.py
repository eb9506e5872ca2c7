"""Writes losses.npz beside this file: 200 steps of the authors' training loop, simulated in float64 by JAX.

The model follows the paper and the update rule the published configuration; the code is ours. First, it must
repeat the four steps that the authors' own code took (goldens/scenic/trainstep_*). The project needs no JAX:

    python -m venv /tmp/jax && /tmp/jax/bin/pip install jax==0.10.2
    PYTHONPATH=tests /tmp/jax/bin/python tests/goldens/training/make.py

Weights and clips are formulas (tests/toy_training.py). The order of the clips and the shares of mixup are those
that train.py draws from seed 0; losses.npz keeps them, and tests/parity_training.py writes them anew. In a batch
of two clips, the authors' pairs (the batch reversed) and torchvision's (the neighbors) are the same.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import toy_training as toy

jax.config.update("jax_enable_x64", True)
FILE = Path(__file__).parent / "losses.npz"
SCENIC = Path(__file__).parents[1] / "scenic"


def product(equation, x, y, low):
    """A product of matrices; with `low`, factors and result are rounded to bfloat16, as in mixed precision."""
    if not low:
        return jnp.einsum(equation, x, y)
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    result = jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)
    return result.astype(jnp.bfloat16).astype(jnp.float32)


def norm(p, path, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-6) * p[f"{path}/scale"] + p[f"{path}/bias"]


def attention(p, path, x, low):
    q, k, v = (
        product("bnd,dhe->bnhe", x, p[f"{path}/{part}/kernel"], low) + p[f"{path}/{part}/bias"]
        for part in ("query", "key", "value")
    )
    scores = product("bnhe,bmhe->bhnm", q, k, low) / np.sqrt(q.shape[-1])
    mixed = product("bhnm,bmhe->bnhe", jax.nn.softmax(scores, -1), v, low)
    return product("bnhe,hed->bnd", mixed, p[f"{path}/out/kernel"], low) + p[f"{path}/out/bias"]


def gelu(x):
    return 0.5 * x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(p, path, x, low):
    hidden = gelu(product("bnd,de->bne", x, p[f"{path}/Dense_0/kernel"], low) + p[f"{path}/Dense_0/bias"])
    return product("bne,ed->bnd", hidden, p[f"{path}/Dense_1/kernel"], low) + p[f"{path}/Dense_1/bias"]


def encode(p, path, cls_token, x, low):
    """Returns the class token after the encoder, [B, D]."""
    x = jnp.concatenate([jnp.broadcast_to(p[cls_token], (len(x), 1, x.shape[-1])), x], 1)
    x = x + p[f"{path}/posembed_input/pos_embedding"]
    for i in range(sum(name.startswith(path) and name.endswith("LayerNorm_0/scale") for name in p)):
        block = f"{path}/encoderblock_{i}"
        x = x + attention(p, f"{block}/MultiHeadDotProductAttention_0", norm(p, f"{block}/LayerNorm_0", x), low)
        x = x + mlp(p, f"{block}/MlpBlock_0", norm(p, f"{block}/LayerNorm_1", x), low)
    return norm(p, f"{path}/encoder_norm", x)[:, 0]


def logits(p, video, low=False):
    """video [B, T, H, W, 3] in [-1, 1]."""
    kernel = p["embedding/kernel"]
    t, h, w = kernel.shape[:3]
    B, T, H, W, C = video.shape
    tubelets = video.reshape(B, T // t, t, H // h, h, W // w, w, C).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    x = product("btrcijkl,ijkld->btrcd", tubelets, kernel, low) + p["embedding/bias"]
    if "cls" in p:
        x = encode(p, "Transformer", "cls", x.reshape(B, -1, x.shape[-1]), low)
    else:
        x = encode(p, "SpatialTransformer", "cls_SpatialTransformer", x.reshape(B * T // t, -1, x.shape[-1]), low)
        x = encode(p, "TemporalTransformer", "cls_TemporalTransformer", x.reshape(B, T // t, -1), low)
    return product("bd,dk->bk", x, p["output_projection/kernel"], low) + p["output_projection/bias"]


def loss(p, video, target, smoothing, low):
    """The mean over the batch of the softmax cross-entropy with smoothed targets."""
    smooth = target * (1 - smoothing) + smoothing / target.shape[-1]
    return -(smooth * jax.nn.log_softmax(logits(p, video, low))).sum(-1).mean()


def learning_rate(step, base, warmup, total):
    """Linear warmup times cosine decay to 0."""
    return base * min(1.0, step / warmup) * 0.5 * (1 + np.cos(np.pi * max(0, step - warmup) / (total - warmup)))


@partial(jax.jit, static_argnames=("smoothing", "limit", "momentum", "low"))
def update(p, velocity, video, target, share, lr, *, smoothing, limit, momentum, low=False):
    """One step: mixup with the batch reversed, smoothing, clipping of the gradient's norm, SGD with momentum."""
    video, target = (share * x + (1 - share) * x[::-1] for x in (video, target))
    value, gradient = jax.value_and_grad(loss)(p, video, target, smoothing, low)
    length = jnp.sqrt(sum((g**2).sum() for g in gradient.values()))
    gradient = {name: jnp.where(length < limit, g, g * (limit / length)) for name, g in gradient.items()}
    velocity = {name: momentum * velocity[name] + gradient[name] for name in p}
    return {name: p[name] - lr * velocity[name] for name in p}, velocity, value, length


def zeros(p):
    return {name: jnp.zeros_like(value) for name, value in p.items()}


def check(case):
    """Repeats the authors' four steps and prints the largest difference."""
    config = json.loads((SCENIC / case / "config.json").read_text())
    schedule = config["lr"]["lr_configs"]
    with np.load(SCENIC / case / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    p = {
        n.removeprefix("params0/"): jnp.array(x, jnp.float64)
        for n, x in arrays.items()
        if n.startswith("params0/")
    }
    velocity, errors = zeros(p), []
    for step in range(4):
        lr = learning_rate(
            step, schedule["base_learning_rate"], schedule["warmup_steps"], schedule["steps_per_cycle"]
        )
        target = jax.nn.one_hot(arrays[f"step{step}/label"], config["num_classes"], dtype=jnp.float64)
        p, velocity, value, length = update(
            p,
            velocity,
            jnp.array(arrays[f"step{step}/video"], jnp.float64),
            target,
            float(arrays[f"step{step}/lambda"]),
            lr,
            smoothing=config["label_smoothing"],
            limit=config["clip"],
            momentum=config["momentum"],
        )
        pairs = {"loss": value, "grad_norm": length, "lr": lr}
        errors += [abs(float(x) - float(arrays[f"step{step}/{name}"])) for name, x in pairs.items()]
    errors += [float(abs(p[n.removeprefix("params_end/")] - x).max()) for n, x in arrays.items() if "_end/" in n]
    print(f"{case}: {max(errors):.1e} from the authors' four steps")
    assert max(errors) < 1e-6, errors


def train(model, order, shares, low=False):
    """Returns the loss of each step."""
    dtype = jnp.float32 if low else jnp.float64
    p = {path: jnp.array(value, dtype) for path, value in toy.parameters(model).items()}
    clips = jnp.array([toy.clip(i) for i in range(toy.VIDEOS)], dtype) / 127.5 - 1
    velocity, losses = zeros(p), []
    for step, (rows, share) in enumerate(zip(order, shares, strict=True)):
        target = jax.nn.one_hot(rows % toy.CLASSES, toy.CLASSES, dtype=dtype)
        p, velocity, value, _ = update(
            p,
            velocity,
            clips[rows],
            target,
            dtype(share),
            dtype(learning_rate(step, toy.LR, toy.WARMUP_STEPS, toy.STEPS)),
            smoothing=toy.SMOOTHING,
            limit=toy.CLIP,
            momentum=toy.MOMENTUM,
            low=low,
        )
        losses.append(float(value))
    return np.array(losses)


def main():
    check("trainstep_spacetime")
    check("trainstep_factorized_encoder")
    with np.load(FILE) as file:
        arrays = {name: file[name] for name in ("order", "shares")}
    for model in toy.MODELS:
        arrays[model] = train(model, arrays["order"], arrays["shares"])
        arrays[f"{model}/bf16"] = train(model, arrays["order"], arrays["shares"], low=True)
        print(model, arrays[model][[0, 1, 50, 100, 199]], np.abs(arrays[f"{model}/bf16"] - arrays[model]).max())
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE}: {FILE.stat().st_size} bytes, JAX {jax.__version__}")


if __name__ == "__main__":
    main()
