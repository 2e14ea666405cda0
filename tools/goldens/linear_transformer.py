"""A plain PyTorch linear-attention transformer: the independent reference of the engine's `linear-transformer` (see README.md)."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from dit import Mlp, modulated_norm, patchify, sinusoidal, unpatchify
from unet import GROUP_NORM_EPS, ClassEmbedding


@dataclasses.dataclass
class Config:
    """The keys and defaults of the engine's `model` section."""

    image_size: int = 32
    image_channels: int = 3
    patch_size: int = 4
    hidden_dim: int = 256
    depth: int = 6
    num_heads: int = 8
    mlp_ratio: int = 4
    time_embedding_dim: int = 128
    condition_dim: int = 256
    refine_channels: int = 32
    norm_groups: int = 8
    num_classes: int = 2
    null_label: bool = True

    @property
    def num_labels(self):
        return self.num_classes + self.null_label

    @property
    def patch_dim(self):
        return self.patch_size**2 * self.image_channels


def positions(side, width):
    """[side², width]: sines, cosines of the row, then of the column; f_i = 10000^(-i/(width/4))."""
    quarter = width // 4
    f = torch.exp(-torch.log(torch.tensor(10000.0, dtype=torch.float64)) * torch.arange(quarter) / quarter)
    angle = torch.arange(side, dtype=torch.float64)[:, None] * f
    one = torch.cat([angle.sin(), angle.cos()], dim=1)
    return torch.cat([one.repeat_interleave(side, 0), one.repeat(side, 1)], dim=1)


def linear_attention(q, k, v):
    """[B, H, T, D] each: y_t = φ(q_t) Σ φ(k)ᵀv / (φ(q_t)·Σ φ(k)), φ = elu + 1 (Katharopoulos et al. 2020)."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(-2).unsqueeze(-1))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = c.num_heads
        self.modulation = nn.Linear(c.condition_dim, 4 * c.hidden_dim)
        self.qkv = nn.Linear(c.hidden_dim, 3 * c.hidden_dim)
        self.out = nn.Linear(c.hidden_dim, c.hidden_dim)
        self.mlp = gelu_mlp(c)

    def forward(self, x, condition):
        b, t, d = x.shape
        m = self.modulation(condition)[:, None].chunk(4, dim=-1)
        qkv = self.qkv(modulated_norm(x, m[0], m[1])).reshape(b, t, 3, self.heads, d // self.heads)
        attended = linear_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).reshape(b, t, d)
        x = x + self.out(attended)
        return x + self.mlp(modulated_norm(x, m[2], m[3]))


def gelu_mlp(c):
    return Mlp(c.hidden_dim, c.mlp_ratio * c.hidden_dim, c.hidden_dim, lambda x: F.gelu(x, approximate="tanh"))


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        colours, refine = c.image_channels, c.refine_channels
        self.config, self.channels_last = c, True
        self.modulation = nn.Linear(c.condition_dim, 4 * c.hidden_dim)
        self.mlp = gelu_mlp(c)
        self.head = nn.Linear(c.hidden_dim, c.patch_dim)
        self.conv_coarse = nn.Conv2d(colours, refine, 3, padding=1)
        self.conv_noisy = nn.Conv2d(colours, refine, 3, padding=1)
        self.norm1 = nn.GroupNorm(c.norm_groups, refine, eps=GROUP_NORM_EPS)
        self.conv1 = nn.Conv2d(refine, refine, 3, padding=1)
        self.norm2 = nn.GroupNorm(c.norm_groups, refine, eps=GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(refine, colours, 3, padding=1)

    def forward(self, x, noisy, condition):
        c = self.config
        m = self.modulation(condition)[:, None].chunk(4, dim=-1)
        x = x + self.mlp(modulated_norm(x, m[0], m[1]))
        coarse = unpatchify(self.head(modulated_norm(x, m[2], m[3])), c.patch_size, c.image_channels)
        coarse, noisy = coarse.permute(0, 3, 1, 2), noisy.permute(0, 3, 1, 2)
        if not self.channels_last:
            coarse, noisy = coarse.contiguous(), noisy.contiguous()
        r = self.conv_coarse(coarse) + self.conv_noisy(noisy)
        r = r + self.conv1(F.silu(self.norm1(r)))
        return (coarse + self.conv_out(F.silu(self.norm2(r)))).permute(0, 2, 3, 1)


class LinearTransformer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.patch_embed = nn.Linear(c.patch_dim, c.hidden_dim)
        self.register_buffer("position", positions(c.image_size // c.patch_size, c.hidden_dim), persistent=False)
        self.time = Mlp(c.time_embedding_dim, c.condition_dim, c.condition_dim, F.silu)
        self.add_module("class", ClassEmbedding(c.num_labels, c.condition_dim))
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.depth))
        self.decoder = Decoder(c)

    def forward(self, x, t, labels):
        """x [B, H, W, C], t [B] (the network's time input), labels i64 [B] → [B, H, W, C]."""
        c = self.config
        condition = F.silu(self.time(sinusoidal(t, c.time_embedding_dim)) + getattr(self, "class")(labels))
        h = self.patch_embed(patchify(x, c.patch_size)) + self.position.to(x.dtype)
        for layer in self.layers:
            h = layer(h, condition)
        return self.decoder(h, x, condition)


def ordered_parameters(model):
    """[(name, parameter, view)] in the order that README.md gives; convolutions are [out, height, width, in]."""
    out = []

    def both(name, module):
        view = (lambda p: p.permute(0, 2, 3, 1)) if isinstance(module, nn.Conv2d) else (lambda p: p)
        out.append((f"{name}.weight", module.weight, view))
        out.append((f"{name}.bias", module.bias, lambda p: p))

    both("patch_embed", model.patch_embed)
    both("time.fc1", model.time.fc1)
    both("time.fc2", model.time.fc2)
    out.append(("class.embedding", getattr(model, "class").embedding, lambda p: p))
    for i, layer in enumerate(model.layers):
        name = f"layers.{i}"
        both(f"{name}.modulation", layer.modulation)
        both(f"{name}.attn.qkv", layer.qkv)
        both(f"{name}.attn.out", layer.out)
        both(f"{name}.mlp.fc1", layer.mlp.fc1)
        both(f"{name}.mlp.fc2", layer.mlp.fc2)
    d = model.decoder
    both("decoder.modulation", d.modulation)
    both("decoder.mlp.fc1", d.mlp.fc1)
    both("decoder.mlp.fc2", d.mlp.fc2)
    for name in ("head", "conv_coarse", "conv_noisy", "norm1", "conv1", "norm2", "conv_out"):
        both(f"decoder.{name}", getattr(d, name))
    counted = sum(p.numel() for _, p, _ in out)
    assert counted == sum(p.numel() for p in model.parameters()), "parameters are missing or listed twice"
    return out
