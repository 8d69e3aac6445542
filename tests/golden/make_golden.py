"""Writes the golden vectors in this folder: an independent float64 model of the pipeline.

    pip install 'jax==0.10.2' 'numpy' 'safetensors' && python make_golden.py

Three cases, one per boundary codec (see ARCHITECTURE.md), of one tiny decoder that is
cut into STAGES stages of one block each. Every case holds what a stage is given and what
it must give back, so that a stage can be tested alone, and the whole model at once.

Names in the files (all float32 unless said; [a, b] is the shape; linear weights are
[in, out], y = x W):
  tokens, targets            int32 [BATCH, CONTEXT]
  basis                      [WIDTH, RANK]      U (subspace), orthonormal columns
  basis.<s>                  [WIDTH, RANK]      A of the border after stage s (projector), orthonormal columns
  fixed                      [VOCAB, WIDTH]     fixed token rows F (subspace)
  anchor_out                 [ANCHOR, WIDTH]    fixed P (projector)
  param.<s>.<name>           parameters of stage s
  boundary.<s>               what stage s sends to stage s+1: [BATCH, CONTEXT, RANK or WIDTH]
  boundary_grad.<s>          dloss/d(boundary.<s>), what stage s+1 sends back
  loss                       [1] mean cross entropy over all positions, natural log; all gradients here
                             are of this mean (on the wire they are of the sum: times BATCH CONTEXT)
  grad.<s>.<name>            dloss/dparam

golden_adamw: three steps of AdamW on two tensors, `matrix` and `gain`, from given gradients. Before a
step both gradients are scaled by min(1, CLIP / norm of both together); CLIP is such that the
second step is clipped and the others are not. Decay acts on two-dimensional tensors only.
  before.<t>, grad.<i>.<t>, after.<i>.<t>, first.<i>.<t>, second.<i>.<t>   i = 1, 2, 3 (moments m, v)
"""
import jax, jax.numpy as jnp, numpy as np
from safetensors.numpy import save_file

jax.config.update("jax_enable_x64", True)
VOCAB, WIDTH, HEADS, HIDDEN, CONTEXT, BATCH, STAGES, RANK, ANCHOR = 61, 32, 4, 48, 16, 2, 4, 8, 6
LR, BETA1, BETA2, EPS, DECAY, CLIP = 1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0
NORM_EPS, ROPE_BASE = 1e-5, 10000.0


def rms_norm(x, gain):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + NORM_EPS) * gain


def rope(x):  # [batch, heads, time, head_dim]; neighbours (2i, 2i+1) form a pair
    t, dim = x.shape[-2:]
    angle = jnp.arange(t)[:, None] * ROPE_BASE ** (-jnp.arange(0, dim, 2) / dim)[None, :]
    even, odd = x[..., 0::2], x[..., 1::2]
    out = jnp.stack([even * jnp.cos(angle) - odd * jnp.sin(angle),
                     odd * jnp.cos(angle) + even * jnp.sin(angle)], -1)
    return out.reshape(x.shape)


def attention(p, x):
    b, t, d = x.shape
    split = lambda y: y.reshape(b, t, HEADS, d // HEADS).transpose(0, 2, 1, 3)
    q, k, v = rope(split(x @ p["query"])), rope(split(x @ p["key"])), split(x @ p["value"])
    score = q @ k.swapaxes(-1, -2) / jnp.sqrt(d / HEADS)
    score = jnp.where(jnp.tril(jnp.ones((t, t), bool)), score, -jnp.inf)
    return (jax.nn.softmax(score, -1) @ v).transpose(0, 2, 1, 3).reshape(b, t, d)


def block(p, h, lift):
    """lift maps what a branch writes (RANK or WIDTH wide) into the residual stream."""
    h = h + lift(attention(p, rms_norm(h, p["norm_attention"])) @ p["attention_out"])
    x = rms_norm(h, p["norm_mlp"])
    return h + lift((jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"])


def stage(codec, const, s, p, incoming, tokens):
    """Stage s: `incoming` is None for stage 0. Returns the outgoing boundary, or logits."""
    last = s == STAGES - 1
    if codec == "subspace":
        U, F = const["basis"], const["fixed"][tokens]
        coords = p["embed"][tokens] if s == 0 else incoming
        h = coords @ U.T + F
        h = block(p, h, (lambda y: y) if last else (lambda y: y @ U.T))
        out = (h - F) @ U
    elif codec == "projector":
        A = const["bases"]
        h = p["embed"][tokens] if s == 0 else incoming @ A[s - 1].T + p["anchor"][tokens] @ const["anchor_out"]
        h = block(p, h, lambda y: y)
        out = h @ A[s] if not last else h
    else:
        h = p["embed"][tokens] if s == 0 else incoming
        h = out = block(p, h, lambda y: y)
    return rms_norm(h, p["norm_final"]) @ p["head"] if last else out


def cross_entropy(logits, targets):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits, -1), targets[..., None], -1))


def make(codec):
    rng = np.random.default_rng(20261120)
    normal = lambda *shape, std=1.0: rng.standard_normal(shape) * std
    tokens = rng.integers(0, VOCAB, (BATCH, CONTEXT + 1))
    tokens, targets = tokens[:, :-1], tokens[:, 1:]
    const = dict(basis=np.linalg.qr(normal(WIDTH, RANK))[0],
                 fixed=np.sign(normal(VOCAB, WIDTH)),
                 bases=[np.linalg.qr(normal(WIDTH, RANK))[0] for _ in range(STAGES - 1)], anchor_out=normal(ANCHOR, WIDTH, std=ANCHOR ** -0.5))
    params = []
    for s in range(STAGES):
        write = RANK if codec == "subspace" and s < STAGES - 1 else WIDTH
        p = dict(query=normal(WIDTH, WIDTH, std=WIDTH ** -0.5), key=normal(WIDTH, WIDTH, std=WIDTH ** -0.5),
                 value=normal(WIDTH, WIDTH, std=WIDTH ** -0.5), attention_out=normal(WIDTH, write, std=WIDTH ** -0.5),
                 gate=normal(WIDTH, HIDDEN, std=WIDTH ** -0.5), up=normal(WIDTH, HIDDEN, std=WIDTH ** -0.5),
                 down=normal(HIDDEN, write, std=HIDDEN ** -0.5),
                 norm_attention=1 + normal(WIDTH, std=0.1), norm_mlp=1 + normal(WIDTH, std=0.1))
        if s == 0:
            p["embed"] = normal(VOCAB, RANK if codec == "subspace" else WIDTH)
        elif codec == "projector":
            p["anchor"] = normal(VOCAB, ANCHOR)
        if s == STAGES - 1:
            p["norm_final"], p["head"] = 1 + normal(WIDTH, std=0.1), normal(WIDTH, VOCAB, std=WIDTH ** -0.5)
        params.append(p)
    # everything starts from float32 values, so that a float32 reader starts from the same numbers
    f32 = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float32).astype(np.float64), tree)
    const, params = f32(const), f32(params)

    def run(params, nudges):
        sent, x = [], None
        for s in range(STAGES):
            x = stage(codec, const, s, params[s], x, tokens)
            if s < STAGES - 1:
                x = x + nudges[s]
                sent.append(x)
        return cross_entropy(x, targets), sent

    wide = WIDTH if codec == "dense" else RANK
    nudges = [np.zeros((BATCH, CONTEXT, wide)) for _ in range(STAGES - 1)]
    (loss, sent), (grads, boundary_grads) = jax.value_and_grad(run, (0, 1), has_aux=True)(params, nudges)

    out = {"tokens": tokens.astype(np.int32), "targets": targets.astype(np.int32), "loss": np.array([loss], np.float32)}
    if codec == "subspace":
        out["basis"], out["fixed"] = const["basis"], const["fixed"]
    if codec == "projector":
        out["anchor_out"] = const["anchor_out"]
        out |= {f"basis.{s}": basis for s, basis in enumerate(const["bases"])}
    for s in range(STAGES):
        if s < STAGES - 1:
            out[f"boundary.{s}"], out[f"boundary_grad.{s}"] = sent[s], boundary_grads[s]
        for name, p in params[s].items():
            out[f"param.{s}.{name}"], out[f"grad.{s}.{name}"] = p, np.asarray(grads[s][name])
    save(codec, out, vocab=VOCAB, width=WIDTH, heads=HEADS, hidden=HIDDEN, context=CONTEXT, batch=BATCH, stages=STAGES,
         rank=RANK, anchor=ANCHOR, norm_eps=NORM_EPS, rope_base=ROPE_BASE)
    print(codec, "loss", float(loss), "tensors", len(out))


def save(name, tensors, **meta):
    arrays = {k: np.asarray(v) for k, v in tensors.items()}
    arrays = {k: np.ascontiguousarray(v if v.dtype == np.int32 else v.astype(np.float32)) for k, v in arrays.items()}
    save_file(arrays, f"golden_{name}.safetensors", metadata={k: str(v) for k, v in meta.items()})


def make_adamw():
    rng = np.random.default_rng(4)
    p = {"matrix": rng.standard_normal((7, 5)), "gain": 1 + 0.1 * rng.standard_normal(5)}
    p = {t: x.astype(np.float32).astype(np.float64) for t, x in p.items()}
    m, v, out = {t: 0 * x for t, x in p.items()}, {t: 0 * x for t, x in p.items()}, {}
    out |= {f"before.{t}": x for t, x in p.items()}
    for i, size in ((1, 0.02), (2, 0.5), (3, 0.05)):
        g = {t: (size * rng.standard_normal(x.shape)).astype(np.float32).astype(np.float64) for t, x in p.items()}
        out |= {f"grad.{i}.{t}": x for t, x in g.items()}
        norm = np.sqrt(sum((x * x).sum() for x in g.values()))
        assert (norm > CLIP) == (i == 2)
        for t in p:
            c = g[t] * min(1.0, CLIP / norm)
            m[t] = BETA1 * m[t] + (1 - BETA1) * c
            v[t] = BETA2 * v[t] + (1 - BETA2) * c * c
            step = (m[t] / (1 - BETA1 ** i)) / (np.sqrt(v[t] / (1 - BETA2 ** i)) + EPS)
            p[t] = p[t] - LR * DECAY * (p[t].ndim == 2) * p[t] - LR * step
            out |= {f"after.{i}.{t}": p[t], f"first.{i}.{t}": m[t], f"second.{i}.{t}": v[t]}
    save("adamw", out, lr=LR, beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=DECAY, clip=CLIP)


for codec in ("dense", "subspace", "projector"):
    make(codec)
make_adamw()
