"""A plain PyTorch diffusion transformer: the independent reference of the engine's `dit` (see README.md)."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn

LAYER_NORM_EPS = 1e-5
QK_NORM_EPS = 1e-6


@dataclasses.dataclass
class Config:
    """The keys and defaults of the engine's `model` section."""

    image_size: int = 32
    image_channels: int = 3
    patch_size: int = 4
    hidden_dim: int = 384
    depth: int = 12
    num_heads: int = 8
    num_kv_heads: int = 2
    mlp_ratio: int = 4
    conditioning: str = "token"
    qk_norm: bool = False
    time_embedding_dim: int = 128
    condition_hidden_dim: int = 400
    class_embedding_dim: int = 128
    num_classes: int = 10
    null_label: bool = True

    @property
    def adaln(self):
        return self.conditioning == "adaln_zero"

    @property
    def num_patches(self):
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self):
        return self.num_patches + (not self.adaln)

    @property
    def patch_dim(self):
        return self.patch_size**2 * self.image_channels

    @property
    def num_labels(self):
        return self.num_classes + self.null_label


def patchify(x, p):
    """[B, H, W, C] → [B, H/p · W/p, p·p·C], a patch's values in the order [row, column, channel]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // p, p, w // p, p, c).transpose(2, 3).reshape(b, (h // p) * (w // p), p * p * c)


def unpatchify(x, p, c):
    """The inverse, for square images."""
    b, n, _ = x.shape
    side = math.isqrt(n)
    return x.reshape(b, side, side, p, p, c).transpose(2, 3).reshape(b, side * p, side * p, c)


def sinusoidal(t, dim):
    """[B] → [B, dim]: [cos(t·f), sin(t·f)], f_i = 10000^(-i/(dim/2))."""
    half = dim // 2
    f = torch.exp(-math.log(10000) * torch.arange(half, dtype=t.dtype, device=t.device) / half)
    angle = t[:, None] * f
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Mlp(nn.Module):
    def __init__(self, inner, hidden, outer, activation):
        super().__init__()
        self.fc1 = nn.Linear(inner, hidden)
        self.fc2 = nn.Linear(hidden, outer)
        self.activation = activation

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class ClassMlp(Mlp):
    def __init__(self, labels, inner, hidden, outer):
        nn.Module.__init__(self)
        self.embedding = nn.Parameter(torch.empty(labels, inner))
        self.fc1 = nn.Linear(inner, hidden)
        self.fc2 = nn.Linear(hidden, outer)
        self.activation = F.silu

    def forward(self, labels):
        return super().forward(self.embedding[labels])


class RmsNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + QK_NORM_EPS) * self.weight


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.dim = c.num_heads, c.num_kv_heads, c.hidden_dim // c.num_heads
        self.qkv = nn.Linear(c.hidden_dim, (self.heads + 2 * self.kv_heads) * self.dim)
        self.q_norm = RmsNorm(self.dim) if c.qk_norm else None
        self.k_norm = RmsNorm(self.dim) if c.qk_norm else None
        self.out = nn.Linear(c.hidden_dim, c.hidden_dim)

    def forward(self, x):
        b, t, _ = x.shape
        qkv = self.qkv(x).reshape(b, t, self.heads + 2 * self.kv_heads, self.dim).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(out.transpose(1, 2).reshape(b, t, -1))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        if c.adaln:
            self.modulation = nn.Linear(c.hidden_dim, 6 * c.hidden_dim)
        else:
            self.modulation = None
            self.norm1 = nn.LayerNorm(c.hidden_dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(c)
        if not c.adaln:
            self.norm2 = nn.LayerNorm(c.hidden_dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(c.hidden_dim, c.mlp_ratio * c.hidden_dim, c.hidden_dim, lambda x: F.gelu(x, approximate="tanh"))

    def forward(self, x, condition):
        if self.modulation is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        m = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        x = x + m[2] * self.attn(modulated_norm(x, m[0], m[1]))
        return x + m[5] * self.mlp(modulated_norm(x, m[3], m[4]))


def modulated_norm(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS) * (1 + scale) + shift


class Final(nn.Module):
    def __init__(self, c):
        super().__init__()
        if c.adaln:
            self.modulation = nn.Linear(c.hidden_dim, 2 * c.hidden_dim)
        else:
            self.modulation = None
            self.norm = nn.LayerNorm(c.hidden_dim, eps=LAYER_NORM_EPS)
        self.linear = nn.Linear(c.hidden_dim, c.patch_dim)

    def forward(self, x, condition):
        if self.modulation is None:
            return self.linear(self.norm(x))
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        return self.linear(modulated_norm(x, shift, scale))


class Dit(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.patch_embed = nn.Linear(c.patch_dim, c.hidden_dim)
        self.position = nn.Parameter(torch.zeros(c.num_tokens, c.hidden_dim))
        self.time = Mlp(c.time_embedding_dim, c.condition_hidden_dim, c.hidden_dim, F.silu)
        if c.num_classes:
            self.add_module("class", ClassMlp(c.num_labels, c.class_embedding_dim, c.condition_hidden_dim, c.hidden_dim))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.final = Final(c)

    def forward(self, x, t, labels):
        """x [B, H, W, C], t [B] (the network's time input), labels i64 [B] → [B, H, W, C]."""
        c = self.config
        condition = self.time(sinusoidal(t, c.time_embedding_dim))
        if c.num_classes:
            condition = condition + getattr(self, "class")(labels)
        x = self.patch_embed(patchify(x, c.patch_size))
        if not c.adaln:
            x = torch.cat([condition[:, None], x], dim=1)
        x = x + self.position
        for block in self.blocks:
            x = block(x, condition)
        x = self.final(x[:, c.num_tokens - c.num_patches :], condition)
        return unpatchify(x, c.patch_size, c.image_channels)


def ordered_parameters(model):
    """[(name, parameter)] in the order that README.md gives; it differs from the order of registration."""
    parameters = dict(model.named_parameters())
    c, names = model.config, ["patch_embed.weight", "patch_embed.bias", "position"]

    def linear(name):
        names.extend([f"{name}.weight", f"{name}.bias"])

    for name in ("time.fc1", "time.fc2"):
        linear(name)
    if c.num_classes:
        names.append("class.embedding")
        for name in ("class.fc1", "class.fc2"):
            linear(name)
    for i in range(c.depth):
        block = f"blocks.{i}"
        linear(f"{block}.modulation" if c.adaln else f"{block}.norm1")
        linear(f"{block}.attn.qkv")
        if c.qk_norm:
            names.extend([f"{block}.attn.q_norm.weight", f"{block}.attn.k_norm.weight"])
        linear(f"{block}.attn.out")
        if not c.adaln:
            linear(f"{block}.norm2")
        linear(f"{block}.mlp.fc1")
        linear(f"{block}.mlp.fc2")
    linear("final.modulation" if c.adaln else "final.norm")
    linear("final.linear")
    assert sorted(names) == sorted(parameters), set(names) ^ set(parameters)
    return [(name, parameters[name]) for name in names]
