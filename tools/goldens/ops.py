"""Writes tests/goldens/ops.safetensors: single ops, their gradients, and five steps of AdamW, in f64.

Each op's tensors are named `op.input`, `op.output`, `op.cotangent`, `op.grad.input`; all values, inputs too, are stored.
"""

import math
import pathlib
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

from dit import LAYER_NORM_EPS, QK_NORM_EPS, modulated_norm, patchify, sinusoidal
from philox import symmetric

SEED = 30
GROUP_NORM_EPS = 1e-5
torch.set_default_dtype(torch.float64)
items = iter(range(10_000))
tensors = {}


def draw(*shape, radius=1.5):
    return torch.from_numpy(symmetric(SEED, shape, next(items), radius)).double()


def golden(op, function, **inputs):
    """Forward and, through a random cotangent, the gradient of every floating-point input."""
    for value in inputs.values():
        if value.is_floating_point():
            value.requires_grad_()
    output = function(**inputs)
    cotangent = draw(*output.shape, radius=1.0)
    (output * cotangent).sum().backward()
    tensors[f"{op}.output"], tensors[f"{op}.cotangent"] = output, cotangent
    for name, value in inputs.items():
        tensors[f"{op}.{name}"] = value
        if value.is_floating_point():
            tensors[f"{op}.grad.{name}"] = value.grad


def attention(qkv, heads, kv_heads, norms=None):
    b, t, width = qkv.shape
    d = width // (heads + 2 * kv_heads)
    q, k, v = qkv.reshape(b, t, -1, d).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    if norms is not None:
        q, k = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + QK_NORM_EPS) * w for x, w in zip((q, k), norms))
    # Written out, not F.scaled_dot_product_attention: what is checked here is the definition.
    k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
    p = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(d), dim=-1)
    return (p @ v).transpose(1, 2).reshape(b, t, heads * d)


def linear_attention(qkv, heads):
    b, t, width = qkv.shape
    q, k, v = qkv.reshape(b, t, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    # As in Katharopoulos et al. 2020: the state first, never the weights of all pairs.
    y = (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(dim=-2)[..., None])
    return y.transpose(1, 2).reshape(b, t, -1)


def ops():
    golden(
        "layer_norm",
        lambda x, weight, bias: F.layer_norm(x, x.shape[-1:], weight, bias, eps=LAYER_NORM_EPS),
        x=draw(5, 24), weight=draw(24), bias=draw(24),
    )
    golden(
        "layer_norm_modulated",
        lambda x, shift, scale: modulated_norm(x, shift[:, None], scale[:, None]),
        x=draw(3, 4, 24), shift=draw(3, 24), scale=draw(3, 24),
    )
    golden("attention", lambda qkv: attention(qkv, 4, 2), qkv=draw(2, 7, 8 * 8, radius=2.0))
    golden(
        "attention_qk_norm",
        lambda qkv, q_norm, k_norm: attention(qkv, 4, 1, (q_norm, k_norm)),
        qkv=draw(2, 5, 6 * 8, radius=2.0), q_norm=draw(8), k_norm=draw(8),
    )
    for name, activation in (
        ("linear", lambda x: x),
        ("linear_gelu", lambda x: F.gelu(x, approximate="tanh")),
        ("linear_silu", F.silu),
    ):
        golden(
            name,
            lambda x, weight, bias, f=activation: f(F.linear(x, weight, bias)),
            x=draw(5, 10), weight=draw(6, 10), bias=draw(6),
        )
    golden("gated_residual", lambda x, gate, y: x + gate[:, None] * y, x=draw(2, 3, 8), gate=draw(2, 8), y=draw(2, 3, 8))
    golden("embedding", lambda weight, index: weight[index], weight=draw(5, 6), index=torch.tensor([3, 0, 3, 4]))
    golden("patchify", lambda x: patchify(x, 2), x=draw(2, 4, 6, 3))
    golden("mse", lambda prediction, target: F.mse_loss(prediction, target)[None], prediction=draw(3, 20), target=draw(3, 20))
    tensors["sinusoidal.t"] = torch.tensor([0.0, 1.0, 37.0, 512.25, 999.0])
    tensors["sinusoidal.output"] = sinusoidal(tensors["sinusoidal.t"], 32)


def group_norms():
    """Channels last, as the op has them; with two sources, a group lies across their border."""

    def norm(x, groups, weight, bias):
        return F.group_norm(x.movedim(-1, 1), groups, weight, bias, eps=GROUP_NORM_EPS).movedim(1, -1)

    def scaled(x, skip, weight, bias, scale_shift):
        scale, shift = scale_shift[:, None, None].chunk(2, dim=-1)
        return F.silu(norm(torch.cat((x, skip), dim=-1), 4, weight, bias) * (1 + scale) + shift)

    golden("group_norm", lambda x, weight, bias: norm(x, 3, weight, bias), x=draw(2, 7, 12), weight=draw(12), bias=draw(12))
    golden(
        "group_norm_silu",
        lambda x, weight, bias: F.silu(norm(x, 4, weight, bias)),
        x=draw(2, 3, 5, 8), weight=draw(8), bias=draw(8),
    )
    golden(
        "group_norm_silu_skip",
        scaled,
        x=draw(2, 3, 4, 10), skip=draw(2, 3, 4, 6), weight=draw(16), bias=draw(16), scale_shift=draw(2, 32, radius=0.6),
    )


def adamw():
    """Two parameters, clipped together at norm 1, learning rate changing, an EMA of decay 0.9 after each step."""
    parameters = [torch.nn.Parameter(draw(5, 6)), torch.nn.Parameter(draw(7))]
    averages = [p.detach().clone() for p in parameters]
    for i, p in enumerate(parameters):
        tensors[f"adamw.start.{i}"] = p.detach().clone()
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    rates, norms = [2e-3, 1e-3, 3e-3, 1e-3, 5e-4], []
    for step, rate in enumerate(rates):
        # The last step's gradient is small enough not to be clipped.
        for i, p in enumerate(parameters):
            p.grad = draw(*p.shape, radius=0.1 if step == 4 else 1.5)
            tensors[f"adamw.gradient.{step}.{i}"] = p.grad.clone()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0).item())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for i, p in enumerate(parameters):
            averages[i] = averages[i].lerp(p.detach(), 0.1)
            tensors[f"adamw.after.{step}.{i}"] = p.detach().clone()
            tensors[f"adamw.ema.{step}.{i}"] = averages[i]
    tensors["adamw.learning_rate"] = torch.tensor(rates)
    tensors["adamw.gradient_norm"] = torch.tensor(norms)


def learning_rates():
    """Rates of updates 1…40 with 8 of warm-up, 2e-4 falling to 1e-5."""
    schedulers = torch.optim.lr_scheduler
    warmup, total, peak, end = 8, 40, 2e-4, 1e-5
    for name in ("constant", "cosine", "linear"):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
        rise = schedulers.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
        if name == "constant":
            after = schedulers.ConstantLR(optimizer, factor=1.0)
        elif name == "cosine":
            after = schedulers.CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min=end)
        else:
            after = schedulers.LinearLR(optimizer, start_factor=1.0, end_factor=end / peak, total_iters=total - warmup)
        scheduler = schedulers.SequentialLR(optimizer, [rise, after], milestones=[warmup - 1])
        rates = []
        for _ in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        tensors[f"learning_rate.{name}"] = torch.tensor(rates)


def convolutions():
    """Images are channels last, weights [out, k, k, in]; what surrounds a convolution is a part of it."""

    def convolve(x, weight, bias=None, channel_add=None, residual=None, stride=1, pad=None, size=None):
        x = x.permute(0, 3, 1, 2)
        if size is not None:
            x = F.interpolate(x, size=size, mode="nearest")
        # Left, right, top, bottom.
        x = F.pad(x, pad or [weight.shape[1] // 2] * 4)
        y = F.conv2d(x, weight.permute(0, 3, 1, 2), bias, stride=stride).permute(0, 2, 3, 1)
        y = y if channel_add is None else y + channel_add[:, None, None]
        return y if residual is None else y + residual

    golden(
        "conv2d", convolve,
        x=draw(2, 5, 4, 6), weight=draw(7, 3, 3, 6), bias=draw(7), channel_add=draw(2, 7), residual=draw(2, 5, 4, 7),
    )
    golden("conv2d_point", convolve, x=draw(2, 3, 4, 5), weight=draw(6, 1, 1, 5), bias=draw(6))
    for name, options in (
        ("down", {"stride": 2}),
        ("down_after", {"stride": 2, "pad": [0, 1, 0, 1]}),
        ("up", {"size": (8, 12)}),
        ("up_odd", {"size": (7, 11)}),
    ):
        golden(f"conv2d_{name}", partial(convolve, **options), x=draw(2, 4, 6, 3), weight=draw(4, 3, 3, 3), bias=draw(4))


def linear_attentions():
    golden("linear_attention", lambda qkv: linear_attention(qkv, 3), qkv=draw(2, 7, 9 * 8, radius=2.0))
    golden("linear_attention_odd", lambda qkv: linear_attention(qkv, 2), qkv=draw(1, 70, 6 * 5, radius=4.0))


def balanced_losses():
    """Images are channels last; the running means in `state` are five sums and the sum of their weights."""

    def terms(prediction, target):
        d = prediction - target
        padded = F.pad(d.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)
        left, right = padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
        up, down = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]
        high = d - (left + right + up + down) / 4
        edge = ((right - d).square() + (down - d).square() + 1e-6).sqrt() - 1e-3
        cosine = 1 - F.cosine_similarity(prediction.flatten(1), target.flatten(1))
        means = [x.flatten(1).mean(1) for x in (d.square(), d.abs(), high.square(), edge)]
        return torch.stack((*means[:2], cosine, *means[2:]), dim=1)

    def loss(prediction, target, weight=None, state=None, name=None):
        # The weights are f32 in the engine.
        each, factors = terms(prediction, target), torch.tensor([1.0, 0.5, 0.1, 0.5, 0.25], dtype=torch.float32).double()
        if state is not None:
            means = state[:5] / state[5]
            factors = factors * (means[0] / means).clamp(0.01, 100.0)
        items = each @ factors * (1.0 if weight is None else weight)
        tensors[f"{name}.items"], tensors[f"{name}.terms"] = items, each.mean(0)
        return items.mean()[None]

    golden(
        "balanced_loss", partial(loss, name="balanced_loss"), prediction=draw(3, 5, 4, 3), target=draw(3, 5, 4, 3),
    )
    # The fourth mean is beyond the largest ratio, the fifth beyond the smallest.
    state = torch.tensor([0.6, 0.3, 0.8, 0.005, 70.0, 0.75])
    tensors["balanced_loss_state.weight"], tensors["balanced_loss_state.state"] = draw(2).abs() + 0.25, state
    golden(
        "balanced_loss_state",
        partial(loss, weight=tensors["balanced_loss_state.weight"], state=state, name="balanced_loss_state"),
        prediction=draw(2, 4, 7, 1), target=draw(2, 4, 7, 1),
    )


def residual_networks():
    """What a ResNet is made of besides convolutions, channels last. Momentum and smoothing are exact in f32 too."""
    first = lambda x: x.movedim(-1, 1)

    def norm(x, weight, bias, residual=None, name=None, training=True):
        # Fresh copies: in training, PyTorch moves them on in place.
        mean, variance = tensors[f"{name}.running_mean"].clone(), tensors[f"{name}.running_variance"].clone()
        y = F.batch_norm(first(x), mean, variance, weight, bias, training, momentum=0.125, eps=GROUP_NORM_EPS).movedim(1, -1)
        tensors[f"{name}.mean_after"], tensors[f"{name}.variance_after"] = mean, variance
        return y if residual is None else F.relu(y + residual)

    for name, training, residual in (
        ("batch_norm", True, False), ("batch_norm_residual", True, True), ("batch_norm_inference", False, True),
    ):
        tensors[f"{name}.running_mean"], tensors[f"{name}.running_variance"] = draw(7), draw(7).abs() + 0.5
        inputs = dict(x=draw(3, 4, 5, 7), weight=draw(7), bias=draw(7))
        if residual:
            inputs["residual"] = draw(3, 4, 5, 7)
        golden(name, partial(norm, name=name, training=training), **inputs)
    labels = torch.tensor([3, 0, 9, 3, 6])
    for name, smoothing in (("cross_entropy", 0.0), ("cross_entropy_smooth", 0.125)):
        golden(
            name,
            lambda logits, labels, s=smoothing: F.cross_entropy(logits, labels, label_smoothing=s)[None],
            logits=draw(5, 10, radius=4.0), labels=labels,
        )
    pool = lambda x, k, s, p: F.max_pool2d(first(x), k, s, p).movedim(1, -1)
    golden("max_pool", lambda x: pool(x, 3, 2, 1), x=draw(2, 7, 6, 5))
    golden("max_pool_rest", lambda x: pool(x, 2, 3, 0), x=draw(1, 6, 9, 3))
    golden("global_average_pool", lambda x: F.adaptive_avg_pool2d(first(x), 1).flatten(1), x=draw(2, 3, 5, 6))
    stem = lambda x, weight, bias: F.conv2d(first(x), first(weight), bias, 2, 3).movedim(1, -1)
    golden("conv2d_stem", stem, x=draw(1, 9, 10, 3), weight=draw(4, 7, 7, 3), bias=draw(4))


def main():
    ops()
    adamw()
    learning_rates()
    convolutions()
    group_norms()
    linear_attentions()
    balanced_losses()
    residual_networks()
    path = pathlib.Path(__file__).resolve().parents[2] / "tests/goldens/ops.safetensors"
    arrays = {name: np.ascontiguousarray(value.detach().numpy()) for name, value in tensors.items()}
    save_file(arrays, path, dict(source=f"tools/goldens/ops.py, PyTorch {torch.__version__.split('+')[0]}"))
    path.chmod(0o644)
    print(path.name, path.stat().st_size, "bytes;", len(arrays), "tensors")


if __name__ == "__main__":
    main()
