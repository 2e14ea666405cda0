"""Residual networks of torchvision's blocks: the reference of the engine's `resnet` (see README.md).

    python tools/goldens/resnet.py    writes tests/goldens/resnet*: a small network whole, and ResNet-18 as torchvision saves it
"""

import dataclasses
import gzip
import io
import json
import math
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock

from philox import symmetric, uniform

GOLDENS = pathlib.Path(__file__).resolve().parents[2] / "tests/goldens"
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
GREY = ([0.449], [0.226])
INPUT, COTANGENT = 65536, 65539


@dataclasses.dataclass
class Config:
    """The keys and defaults of the engine's `model` section."""

    image_size: int = 32
    image_channels: int = 3
    num_classes: int = 10
    blocks: tuple = (2, 2, 2, 2)
    widths: tuple = (64, 128, 256, 512)
    stem: str = "small"


class Backbone(nn.Module):
    """Stem and the first `layers` layers: x [B, H, W, C] in [-1, 1] → [B, h, w, width]."""

    def __init__(self, c, layers):
        super().__init__()
        mean, std = GREY if c.image_channels == 1 else IMAGENET
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64), persistent=False)
        width, imagenet = c.widths[0], c.stem == "imagenet"
        kernel, stride = (7, 2) if imagenet else (3, 1)
        self.conv1 = nn.Conv2d(c.image_channels, width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        for layer in range(layers):
            out, blocks = c.widths[layer], []
            for number in range(c.blocks[layer]):
                stride = 2 if layer > 0 and number == 0 else 1
                change = stride > 1 or width != out
                down = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if change else None
                blocks.append(BasicBlock(width, out, stride, down))
                width = out
            self.add_module(f"layer{layer + 1}", nn.Sequential(*blocks))
        self.layers, self.channels_last = layers, False

    def forward(self, x):
        x = (((x + 1) / 2 - self.mean) / self.std).to(x.dtype).permute(0, 3, 1, 2)
        # Permuted, the image is stored channels last already.
        x = x if self.channels_last else x.contiguous()
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for layer in range(self.layers):
            x = getattr(self, f"layer{layer + 1}")(x)
        return x.permute(0, 2, 3, 1)


class Resnet(Backbone):
    def __init__(self, c):
        super().__init__(c, len(c.blocks))
        self.fc = nn.Linear(c.widths[-1], c.num_classes)

    def forward(self, x):
        return self.fc(super().forward(x).mean(dim=(1, 2)))


def ordered(module):
    """[(name, tensor, view)] in the engine's order and layout, running statistics among them."""
    rows = []
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not name.endswith("num_batches_tracked"):
            view = (lambda t: t.permute(0, 2, 3, 1)) if tensor.dim() == 4 else (lambda t: t)
            rows.append((name, tensor, view))
    return rows


def parameter(seed, number, name, shape):
    """As models.py."""
    if name.endswith(".bias"):
        return symmetric(seed, shape, number, 0.1)
    if len(shape) == 1:
        return np.float32(1) + symmetric(seed, shape, number, 0.1)
    return symmetric(seed, shape, number, 1 / math.sqrt(math.prod(shape[1:])))


def whole(name, config, seed, batch):
    """A training step's forward and backward in f64, batch norms by their batch."""
    model = Resnet(config).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = float(np.float32(module.momentum))  # a constant of the engine's kernels is f32
    rows = ordered(model)
    with torch.no_grad():
        for number, (key, tensor, view) in enumerate(rows):
            view(tensor).copy_(torch.from_numpy(parameter(seed, number, key, tuple(view(tensor).shape))))
    shape = (batch, config.image_size, config.image_size, config.image_channels)
    x = torch.from_numpy(symmetric(seed, shape, INPUT, 1.75)).double().requires_grad_()
    cotangent = torch.from_numpy(symmetric(seed, (batch, config.num_classes), COTANGENT, 1.0)).double()
    out = model(x)
    (out * cotangent).sum().backward()
    tensors = dict(output=out, input_gradient=x.grad)
    for key, tensor, view in rows:
        if "running" in key:
            tensors[f"after.{key}"] = tensor
        else:
            tensors[f"gradient.{key}"] = view(tensor.grad)
    model.eval()
    tensors["inference"] = model(x)
    tensors = {key: np.ascontiguousarray(value.detach().numpy()) for key, value in tensors.items()}
    section = dict(kind="resnet", **dataclasses.asdict(config))
    write(f"{name}.safetensors", tensors, dict(model=json.dumps(section), seed=str(seed), batch=str(batch)))


def write(file, tensors, metadata):
    path = GOLDENS / file
    save_file(tensors, path, metadata)
    path.chmod(0o644)
    print(file, path.stat().st_size, "bytes")


def pattern(shape, radius):
    """Few values, in a row that repeats after a prime number of elements: random enough for a network, small when packed."""
    row = np.round(31 * (2 * uniform(77, 1021, 0) - 1)) / 32
    scale = 2.0 ** round(math.log2(radius))
    return torch.from_numpy(np.resize(row, shape).astype(np.float32) * np.float32(scale))


def centre(weight):
    """A 3x3 stem out of a 7x7 one: SYSTEMS' adaptation, as the engine does it."""
    inner = weight[:, :, 2:5, 2:5]
    norm = lambda w: w.flatten(1).norm(dim=1)
    return inner * (norm(weight) / norm(inner)).clamp(max=7 / 3)[:, None, None, None]


def torchvision():
    """ResNet-18 with random weights, saved by torch.save in both of its containers, and what torchvision makes of images."""
    model = resnet18(num_classes=10).eval()
    state = model.state_dict()
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            tensor.fill_(3)
        elif key.endswith("running_var"):
            tensor.copy_(1 + 0.5 * pattern(tensor.shape, 1.0))
        elif key.endswith((".bias", "running_mean")):
            tensor.copy_(0.125 * pattern(tensor.shape, 1.0))
        elif tensor.dim() == 1:
            tensor.copy_(1 + 0.25 * pattern(tensor.shape, 1.0))
        else:
            tensor.copy_(pattern(tensor.shape, 2 / math.sqrt(tensor[0].numel())))
    for file, zipped in (("resnet18.pth.gz", True), ("resnet18-legacy.pth.gz", False)):
        raw = io.BytesIO()
        torch.save(state, raw, _use_new_zipfile_serialization=zipped)
        (GOLDENS / file).write_bytes(gzip.compress(raw.getvalue(), 9, mtime=0))
        print(file, (GOLDENS / file).stat().st_size, "bytes of", raw.getbuffer().nbytes)
    model = model.double()
    x = torch.from_numpy(symmetric(78, (2, 64, 64, 3), INPUT, 1.0)).double()
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in IMAGENET)
    normed = lambda x: ((x.permute(0, 3, 1, 2) + 1) / 2 - mean) / std
    with torch.no_grad():
        tensors = dict(logits=model(normed(x)))
        model.conv1.weight, model.conv1.stride, model.conv1.padding = nn.Parameter(centre(model.conv1.weight)), (1, 1), (1, 1)
        model.maxpool = nn.Identity()
        small = normed(x[:, :32, :32])
        tensors["small_logits"] = model(small)
        features = model.layer2(model.layer1(torch.relu(model.bn1(model.conv1(small)))))
    # A few pixels of the map are enough.
    tensors["small_features"] = features.permute(0, 2, 3, 1)[:, ::5, ::5]
    tensors = {key: np.ascontiguousarray(value.numpy()) for key, value in tensors.items()}
    write("resnet18.safetensors", tensors, dict(seed="78"))


def main():
    torch.set_num_threads(2)
    tiny = Config(image_size=10, num_classes=5, blocks=(1, 2), widths=(6, 8))
    whole("resnet", tiny, seed=15, batch=3)
    whole("resnet-grey", dataclasses.replace(tiny, image_size=9, image_channels=1, stem="imagenet"), seed=16, batch=4)
    torchvision()


if __name__ == "__main__":
    main()
