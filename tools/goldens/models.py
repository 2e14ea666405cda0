"""Writes tests/goldens/dit-cifar10.json (norms, projections and samples) and tests/goldens/dit-*.safetensors (whole)."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file

from dit import Config, Dit, ordered_parameters
from philox import bits, symmetric, uniform

GOLDENS = pathlib.Path(__file__).resolve().parents[2] / "tests/goldens"

# Items of the counter beyond the parameters', see README.md.
INPUT, TIME, LABEL, COTANGENT = 65536, 65537, 65538, 65539
PROJECTIONS, SAMPLES = 4, 16


def parameter(seed, number, name, shape):
    """f32 values of parameter `number`."""
    if name.endswith((".bias", "position", "class.embedding")):
        return symmetric(seed, shape, number, 0.1)
    if len(shape) == 1:  # norms' weights
        return np.float32(1) + symmetric(seed, shape, number, 0.1)
    return symmetric(seed, shape, number, 1 / math.sqrt(shape[-1]))


def run(config, seed, batch):
    """The model in f64: parameters, input, output, gradients."""
    model = Dit(config).double()
    parameters = ordered_parameters(model)
    with torch.no_grad():
        for number, (name, p) in enumerate(parameters):
            p.copy_(torch.from_numpy(parameter(seed, number, name, tuple(p.shape))))
    shape = (batch, config.image_size, config.image_size, config.image_channels)
    x = torch.from_numpy(symmetric(seed, shape, INPUT, 1.75)).double().requires_grad_()
    time = np.floor(1000 * uniform(seed, batch, TIME))
    label = np.floor(config.num_labels * uniform(seed, batch, LABEL)).astype(np.int64)
    cotangent = torch.from_numpy(symmetric(seed, shape, COTANGENT, 1.0)).double()
    out = model(x, torch.from_numpy(time), torch.from_numpy(label))
    (out * cotangent).sum().backward()
    return dict(
        count=sum(p.numel() for _, p in parameters),
        parameters={name: p.detach().numpy() for name, p in parameters},
        gradients={name: p.grad.numpy() for name, p in parameters},
        input=x.detach().numpy(),
        input_gradient=x.grad.numpy(),
        output=out.detach().numpy(),
        cotangent=cotangent.numpy(),
        time=time,
        label=label,
    )


def summary(seed, number, name, value):
    """What is kept of one tensor: its number decides the probes."""
    flat = value.reshape(-1).astype(np.float64)
    projections = []
    for k in range(PROJECTIONS):
        sign = np.where(bits(seed, flat.size, number, step=1 + k) >> np.uint64(31), 1.0, -1.0)
        projections.append(math.fsum(flat * sign))
    at = (bits(seed, SAMPLES, number, step=1 + PROJECTIONS) * np.uint64(flat.size)) >> np.uint64(32)
    return dict(
        name=name,
        shape=list(value.shape),
        norm=math.sqrt(math.fsum(flat**2)),
        projections=projections,
        samples=flat[at].tolist(),
    )


def projected(name, config, seed, batch):
    result = run(config, seed, batch)
    tensors = list(result["gradients"].items())
    tensors += [("output", result["output"]), ("input", result["input_gradient"])]
    head = dict(
        source=f"tools/goldens/models.py, PyTorch {torch.__version__.split('+')[0]}, f64",
        model=dict(kind="dit", **dataclasses.asdict(config)),
        seed=seed,
        batch=batch,
        parameters=result["count"],
        time=result["time"].tolist(),
        label=result["label"].tolist(),
    )
    rows = ",\n".join(json.dumps(summary(seed, n, *tensor)) for n, tensor in enumerate(tensors))
    path = GOLDENS / f"{name}.json"
    path.write_text(json.dumps(head)[:-1] + ',\n"tensors": [\n' + rows + "\n]}\n")
    print(path.name, path.stat().st_size, "bytes;", result["count"], "parameters")


def whole(name, config, seed, batch, weights=False):
    result = run(config, seed, batch)
    tensors = {key: result[key] for key in ("input", "output", "input_gradient", "cotangent", "time")}
    tensors["label"] = result["label"].astype(np.int32)
    tensors |= {f"gradient.{key}": value for key, value in result["gradients"].items()}
    if weights:
        tensors |= {f"parameter.{key}": value.astype(np.float32) for key, value in result["parameters"].items()}
    metadata = dict(model=json.dumps(dict(kind="dit", **dataclasses.asdict(config))), seed=str(seed), batch=str(batch))
    path = GOLDENS / f"{name}.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata)
    path.chmod(0o644)
    print(path.name, path.stat().st_size, "bytes;", result["count"], "parameters")


def main():
    torch.set_num_threads(2)
    GOLDENS.mkdir(exist_ok=True)
    assert sum(p.numel() for p in Dit(Config(null_label=False)).parameters()) == 19_107_920
    assert sum(p.numel() for p in Dit(Config()).parameters()) == 19_108_048
    projected("dit-cifar10", Config(), seed=1, batch=2)
    small = Config(
        image_size=16, hidden_dim=32, depth=2, num_heads=4, num_kv_heads=2, mlp_ratio=2, time_embedding_dim=16,
        condition_hidden_dim=24, class_embedding_dim=12, num_classes=3,
    )
    change = dataclasses.replace
    # Kept in both ways, so that the reader of the short one is tested by the whole one.
    whole("dit-token", small, seed=2, batch=3, weights=True)
    projected("dit-token", small, seed=2, batch=3)
    whole("dit-adaln", change(small, conditioning="adaln_zero", num_kv_heads=1), seed=3, batch=3)
    grey = change(small, image_size=8, image_channels=1, patch_size=2, null_label=False, depth=1, qk_norm=True)
    whole("dit-token-qknorm-patch2", grey, seed=4, batch=2)
    whole("dit-adaln-qknorm-patch2", change(grey, conditioning="adaln_zero", num_kv_heads=4), seed=5, batch=2)


if __name__ == "__main__":
    main()
