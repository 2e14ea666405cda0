"""A plain PyTorch transformer on a residual network's features: the reference of the engine's `resnet-dit` (see README.md)."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

import dit
import resnet

GROUP_NORM_EPS = 1e-6


@dataclasses.dataclass
class Config:
    """The keys and defaults of the engine's `model` section."""

    image_size: int = 32
    image_channels: int = 3
    backbone: str | None = "resnet18"
    backbone_blocks: tuple = (2, 2, 2, 2)
    backbone_widths: tuple = (64, 128, 256, 512)
    backbone_stem: str = "small"
    backbone_layers: int = 2
    freeze_backbone: bool = True
    hidden_dim: int = 256
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: int = 4
    time_embedding_dim: int = 256
    decoder_channels: int = 64
    norm_groups: int = 8
    num_classes: int = 0
    null_label: bool = False

    @property
    def num_labels(self):
        return self.num_classes + self.null_label

    @property
    def sizes(self):
        """Of the image, halved until the feature map's is reached: the decoder's, in reverse."""
        halvings = self.backbone_layers - 1 + (2 if self.backbone_stem == "imagenet" else 0)
        sizes = [self.image_size]
        for _ in range(halvings):
            sizes.append(-(-sizes[-1] // 2))
        return sizes[::-1]

    def whole_backbone(self):
        return resnet.Config(
            self.image_size, self.image_channels, 1, self.backbone_blocks, self.backbone_widths, self.backbone_stem
        )

    def transformer(self):
        return dit.Config(
            image_size=self.sizes[0], image_channels=1, patch_size=1, hidden_dim=self.hidden_dim, depth=self.depth,
            num_heads=self.num_heads, num_kv_heads=self.num_heads, mlp_ratio=self.mlp_ratio,
            time_embedding_dim=self.time_embedding_dim, condition_hidden_dim=self.hidden_dim,
            class_embedding_dim=self.hidden_dim, num_classes=self.num_classes, null_label=self.null_label,
        )


class Doubling(nn.Module):
    def __init__(self, groups, first, channels, width, size):
        super().__init__()
        self.norm = None if first else nn.GroupNorm(groups, channels, eps=GROUP_NORM_EPS)
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.size = size

    def forward(self, x):
        x = x if self.norm is None else F.silu(self.norm(x))
        return self.conv(F.interpolate(x, size=(self.size, self.size), mode="nearest"))


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, channels, up = c.decoder_channels, c.hidden_dim, []
        for number, size in enumerate(c.sizes[1:]):
            up.append(Doubling(c.norm_groups, number == 0, channels, width, size))
            channels = width
        self.up = nn.ModuleList(up)
        self.project = None if up else nn.Conv2d(channels, width, 1)
        self.noisy = nn.Conv2d(c.image_channels, width, 3, padding=1)
        self.modulation = nn.Linear(c.hidden_dim, 4 * width)
        self.norm1 = nn.GroupNorm(c.norm_groups, 2 * width, eps=GROUP_NORM_EPS)
        self.conv1 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(c.norm_groups, width, eps=GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(width, c.image_channels, 3, padding=1)

    def forward(self, x, noisy, condition):
        for doubling in self.up:
            x = doubling(x)
        if self.project is not None:
            x = self.project(x)
        scale, shift = self.modulation(F.silu(condition))[:, :, None, None].chunk(2, dim=1)
        x = self.norm1(torch.cat([x, self.noisy(noisy)], dim=1))
        x = self.conv1(F.silu(x * (1 + scale) + shift))
        return self.conv_out(F.silu(self.norm2(x)))


class ResnetDit(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config, self.channels_last, t = c, False, c.transformer()
        self.backbone = resnet.Backbone(c.whole_backbone(), c.backbone_layers).eval().requires_grad_(not c.freeze_backbone)
        self.adapter = nn.Linear(c.backbone_widths[c.backbone_layers - 1], c.hidden_dim)
        self.position = nn.Parameter(torch.zeros(t.num_tokens, c.hidden_dim))
        self.time = dit.Mlp(c.time_embedding_dim, c.hidden_dim, c.hidden_dim, F.silu)
        if c.num_classes:
            self.add_module("class", dit.ClassMlp(c.num_labels, c.hidden_dim, c.hidden_dim, c.hidden_dim))
        self.blocks = nn.ModuleList(dit.Block(t) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.hidden_dim, eps=dit.LAYER_NORM_EPS)
        self.decoder = Decoder(c)

    def forward(self, x, t, labels):
        """x [B, H, W, C], t [B], labels i64 [B] → [B, H, W, C]."""
        c, side = self.config, self.config.sizes[0]
        tokens = self.adapter(self.backbone(x).flatten(1, 2))
        condition = self.time(dit.sinusoidal(t, c.time_embedding_dim))
        if c.num_classes:
            condition = condition + getattr(self, "class")(labels)
        h = torch.cat([condition[:, None], tokens], dim=1) + self.position
        for block in self.blocks:
            h = block(h, condition)
        first = [v.permute(0, 3, 1, 2) for v in (self.norm(h)[:, 1:].unflatten(1, (side, side)), x)]
        features, noisy = first if self.channels_last else [v.contiguous() for v in first]
        return self.decoder(features, noisy, condition).permute(0, 2, 3, 1)


def ordered_parameters(model):
    """[(name, tensor, view)] in the order that README.md gives, running statistics among them."""
    rows = {name: (name, tensor, view) for name, tensor, view in resnet.ordered(model)}
    order = [name for name in rows if name.startswith("backbone.")]
    order += ["adapter.weight", "adapter.bias", "position"]
    for prefix in ("time.", "class.", "blocks.", "norm.", "decoder."):
        order += [name for name in rows if name.startswith(prefix)]
    assert sorted(order) == sorted(rows), set(order) ^ set(rows)
    return [rows[name] for name in order]
