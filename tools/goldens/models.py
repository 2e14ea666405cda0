"""Writes tests/goldens/dit-*, ddpm-*, unet-*, pets, linear-* and resnet-dit*: JSON of norms, projections and samples, or safetensors of everything.

    python tools/goldens/models.py [PREFIX]    only files whose names begin so
"""

import dataclasses
import json
import math
import pathlib
import sys

import numpy as np
import torch
import yaml
from safetensors.numpy import save_file

import dit
import linear_transformer
import resnet_dit
import unet
from philox import bits, symmetric, uniform

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDENS, PRESETS = ROOT / "tests/goldens", ROOT / "src/config/presets"

# Items of the counter beyond the parameters', see README.md.
INPUT, TIME, LABEL, COTANGENT = 65536, 65537, 65538, 65539
PROJECTIONS, SAMPLES = 4, 16
PREFIX = sys.argv[1] if len(sys.argv) > 1 else ""


def kind(config):
    kinds = {dit.Config: "dit", unet.Config: "unet", linear_transformer.Config: "linear-transformer"}
    kinds[resnet_dit.Config] = "resnet-dit"
    return kinds[type(config)]


def section(config):
    """The engine's `model` section."""
    return dict(kind=kind(config), **dataclasses.asdict(config))


def build(config):
    """The model, and its parameters in the engine's order and layout: [(name, parameter, view)]."""
    if kind(config) == "unet":
        model = unet.Unet(config).double()
        return model, unet.ordered_parameters(model)
    if kind(config) == "resnet-dit":
        model = resnet_dit.ResnetDit(config).double()
        return model, resnet_dit.ordered_parameters(model)
    if kind(config) == "linear-transformer":
        model = linear_transformer.LinearTransformer(config).double()
        return model, linear_transformer.ordered_parameters(model)
    model = dit.Dit(config).double()
    return model, [(name, p, lambda p: p) for name, p in dit.ordered_parameters(model)]


def parameter(seed, number, name, shape):
    """f32 values of parameter `number`."""
    if name.endswith((".bias", "position", "class.embedding")):
        return symmetric(seed, shape, number, 0.1)
    if len(shape) == 1:  # norms' weights
        return np.float32(1) + symmetric(seed, shape, number, 0.1)
    return symmetric(seed, shape, number, 1 / math.sqrt(math.prod(shape[1:])))


def run(config, seed, batch):
    """The model in f64: parameters, input, output, gradients."""
    model, parameters = build(config)
    with torch.no_grad():
        for number, (name, p, view) in enumerate(parameters):
            view(p).copy_(torch.from_numpy(parameter(seed, number, name, tuple(view(p).shape))))
    shape = (batch, config.image_size, config.image_size, config.image_channels)
    x = torch.from_numpy(symmetric(seed, shape, INPUT, 1.75)).double().requires_grad_()
    time = np.floor(1000 * uniform(seed, batch, TIME))
    label = np.floor(max(config.num_labels, 1) * uniform(seed, batch, LABEL)).astype(np.int64)
    cotangent = torch.from_numpy(symmetric(seed, shape, COTANGENT, 1.0)).double()
    out = model(x, torch.from_numpy(time), torch.from_numpy(label))
    (out * cotangent).sum().backward()
    return dict(
        count=sum(p.numel() for p in model.parameters()),
        parameters={name: view(p.detach()).numpy() for name, p, view in parameters},
        gradients={name: view(p.grad).numpy() for name, p, view in parameters if p.grad is not None},
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
    if not name.startswith(PREFIX):
        return
    result = run(config, seed, batch)
    tensors = list(result["gradients"].items())
    tensors += [("output", result["output"]), ("input", result["input_gradient"])]
    head = dict(
        source=f"tools/goldens/models.py, PyTorch {torch.__version__.split('+')[0]}, f64",
        model=section(config),
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
    if not name.startswith(PREFIX):
        return
    result = run(config, seed, batch)
    tensors = {key: result[key] for key in ("input", "output", "input_gradient", "cotangent", "time")}
    tensors["label"] = result["label"].astype(np.int32)
    tensors |= {f"gradient.{key}": value for key, value in result["gradients"].items()}
    if weights:
        tensors |= {f"parameter.{key}": value.astype(np.float32) for key, value in result["parameters"].items()}
    metadata = dict(model=json.dumps(section(config)), seed=str(seed), batch=str(batch))
    path = GOLDENS / f"{name}.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata)
    path.chmod(0o644)
    print(path.name, path.stat().st_size, "bytes;", result["count"], "parameters")


def dits():
    Config, count = dit.Config, lambda config: sum(p.numel() for p in dit.Dit(config).parameters())
    assert count(Config(null_label=False)) == 19_107_920
    assert count(Config()) == 19_108_048
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


def preset(name):
    """The `model` section of the engine's preset."""
    values = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())["model"]
    assert values.pop("kind") == "unet"
    # Masks of dropout are drawn by each side in its own way.
    return unet.Config(**(values | dict(dropout=0.0)))


def unets():
    for seed, name in enumerate(["ddpm-cifar10", "ddpm-cifar10-paper", "unet-fashion", "unet-fashion-small"], 6):
        projected(name, preset(name), seed=seed, batch=1 if name == "ddpm-cifar10-paper" else 2)
    # Odd sizes (9, 5, 3), groups across the border of two sources, both kinds of everything.
    tiny = unet.Config(
        image_size=9, channels=(4, 8, 12), res_blocks=1, attention_sizes=(5,), num_heads=2, norm_groups=2,
        time_embedding_dim=8, time_hidden_dim=12, time_output_dim=8, time_conditioning="scale_shift",
        downsample_padding="same", num_classes=3, null_label=True,
    )
    whole("unet-scale-shift", tiny, seed=10, batch=2)
    change = dict(time_conditioning="add", skips="level", num_classes=0, null_label=False, middle_attention=False)
    change |= dict(image_channels=1, image_size=10, channels=(4, 8))
    whole("unet-level", dataclasses.replace(tiny, **change), seed=11, batch=2)


def linear_transformers():
    projected("pets", linear_transformer.Config(), seed=12, batch=2)
    # Another patch, heads of 6, a grid of 5 by 5 and a layer of each width.
    tiny = linear_transformer.Config(
        image_size=10, patch_size=2, hidden_dim=24, depth=2, num_heads=4, mlp_ratio=2, time_embedding_dim=8,
        condition_dim=12, refine_channels=6, norm_groups=3, num_classes=3,
    )
    whole("linear-transformer", tiny, seed=13, batch=2)
    grey = dict(image_channels=1, image_size=8, depth=1, num_heads=2, null_label=False)
    whole("linear-transformer-grey", dataclasses.replace(tiny, **grey), seed=14, batch=3)


def resnet_dits():
    projected("resnet-dit", resnet_dit.Config(), seed=17, batch=1)
    # Odd maps (9, 5, 3), labels, two doublings.
    tiny = resnet_dit.Config(
        image_size=9, backbone=None, backbone_blocks=(1, 1, 2), backbone_widths=(4, 6, 8), backbone_layers=3, hidden_dim=16, depth=1,
        num_heads=2, mlp_ratio=2, time_embedding_dim=8, decoder_channels=6, norm_groups=3, num_classes=3, null_label=True,
    )
    whole("resnet-dit", tiny, seed=18, batch=2)
    grey = dict(image_size=8, image_channels=1, backbone_layers=1, freeze_backbone=False, num_classes=0, null_label=False)
    whole("resnet-dit-unfrozen", dataclasses.replace(tiny, **grey), seed=19, batch=2)


def main():
    torch.set_num_threads(2)
    GOLDENS.mkdir(exist_ok=True)
    dits()
    unets()
    linear_transformers()
    resnet_dits()


if __name__ == "__main__":
    main()
