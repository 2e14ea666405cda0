"""A plain PyTorch U-Net: the independent reference of the engine's `unet` (see README.md)."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from dit import sinusoidal

GROUP_NORM_EPS = 1e-6


@dataclasses.dataclass
class Config:
    """The keys and defaults of the engine's `model` section."""

    image_size: int = 32
    image_channels: int = 3
    channels: tuple = (64, 128, 256)
    res_blocks: int = 2
    attention_sizes: tuple = (16, 8)
    middle_attention: bool = True
    num_heads: int = 4
    norm_groups: int = 8
    time_embedding_dim: int = 128
    time_hidden_dim: int = 512
    time_output_dim: int = 128
    time_conditioning: str = "add"
    skips: str = "block"
    downsample_padding: str = "symmetric"
    dropout: float = 0.0
    num_classes: int = 0
    null_label: bool = False

    @property
    def num_labels(self):
        return self.num_classes + self.null_label

    @property
    def sizes(self):
        sizes = [self.image_size]
        while len(sizes) < len(self.channels):
            sizes.append((sizes[-1] + 1) // 2)
        return sizes


class Mlp(nn.Module):
    def __init__(self, inner, hidden, outer):
        super().__init__()
        self.fc1 = nn.Linear(inner, hidden)
        self.fc2 = nn.Linear(hidden, outer)

    def forward(self, x):
        return self.fc2(F.silu(self.fc1(x)))


class ClassEmbedding(nn.Module):
    def __init__(self, labels, width):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(labels, width).normal_(std=0.02))

    def forward(self, labels):
        return self.embedding[labels]


class ResBlock(nn.Module):
    """`split`: the channels of the first part of a concatenated input."""

    def __init__(self, c, split, skip, out):
        super().__init__()
        self.split, self.skip = split, skip
        self.scale_shift = c.time_conditioning == "scale_shift"
        self.norm1 = nn.GroupNorm(c.norm_groups, split + skip, eps=GROUP_NORM_EPS)
        self.conv1 = nn.Conv2d(split + skip, out, 3, padding=1)
        self.time = nn.Linear(c.time_output_dim, 2 * out if self.scale_shift else out)
        self.norm2 = nn.GroupNorm(c.norm_groups, out, eps=GROUP_NORM_EPS)
        self.dropout = nn.Dropout(c.dropout)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(split + skip, out, 1) if skip or split != out else None

    def forward(self, x, condition):
        h = self.conv1(F.silu(self.norm1(x)))
        time = self.time(condition)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        h = self.conv2(self.dropout(F.silu(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Attention(nn.Module):
    def __init__(self, c, channels):
        super().__init__()
        self.heads = c.num_heads
        self.norm = nn.GroupNorm(c.norm_groups, channels, eps=GROUP_NORM_EPS)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x):
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x).flatten(2).transpose(1, 2))
        q, k, v = qkv.reshape(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.out(out).transpose(1, 2).reshape(b, c, h, w)


class Downsample(nn.Conv2d):
    def __init__(self, c, channels):
        super().__init__(channels, channels, 3, stride=2)
        self.same = c.downsample_padding == "same"

    def forward(self, x):
        # TensorFlow's SAME: an even image has its one row below and its one column to the right.
        before = 0 if self.same and x.shape[-1] % 2 == 0 else 1
        return super().forward(F.pad(x, (before, 1, before, 1)))


class Level(nn.Module):
    def __init__(self, blocks, attentions):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)

    def run(self, number, x, condition):
        x = self.blocks[number](x, condition)
        return self.attentions[number](x) if len(self.attentions) else x


class Unet(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config, self.channels_last = c, True
        first, last, every_block = c.channels[0], len(c.channels) - 1, c.skips == "block"
        self.conv_in = nn.Conv2d(c.image_channels, first, 3, padding=1)
        self.time = Mlp(c.time_embedding_dim, c.time_hidden_dim, c.time_output_dim)
        if c.num_classes:
            self.add_module("class", ClassEmbedding(c.num_labels, c.time_output_dim))
        attentions = lambda level, n: [
            Attention(c, c.channels[level]) for _ in range(n) if c.sizes[level] in c.attention_sizes
        ]
        skips = [first] if every_block else []
        x = first
        self.down = nn.ModuleList()
        for i, out in enumerate(c.channels):
            blocks = []
            for _ in range(c.res_blocks):
                blocks.append(ResBlock(c, x, 0, out))
                x = out
                skips += [x] if every_block else []
            skips += [] if every_block else [x]
            level = Level(blocks, attentions(i, c.res_blocks))
            if i < last:
                level.downsample = Downsample(c, out)
                skips += [x] if every_block else []
            self.down.append(level)
        self.middle = nn.Module()
        self.middle.block1 = ResBlock(c, x, 0, x)
        self.middle.attention = Attention(c, x) if c.middle_attention else None
        self.middle.block2 = ResBlock(c, x, 0, x)
        self.up = nn.ModuleList()  # up[i] is level i, so that names agree; they run from the last to the first
        for i, out in reversed(list(enumerate(c.channels))):
            blocks = []
            for number in range(c.res_blocks + every_block):
                blocks.append(ResBlock(c, x, skips.pop() if every_block or number == 0 else 0, out))
                x = out
            level = Level(blocks, attentions(i, c.res_blocks + every_block))
            if i > 0:
                level.upsample = nn.Conv2d(out, out, 3, padding=1)
            self.up.insert(0, level)
        assert not skips
        self.norm_out = nn.GroupNorm(c.norm_groups, first, eps=GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(first, c.image_channels, 3, padding=1)

    def forward(self, x, t, labels):
        """x [B, H, W, C], t [B] (the network's time input), labels i64 [B] → [B, H, W, C]."""
        c, every_block = self.config, self.config.skips == "block"
        condition = self.time(sinusoidal(t, c.time_embedding_dim))
        if c.num_classes:
            condition = condition + getattr(self, "class")(labels)
        condition = F.silu(condition)
        x = x.permute(0, 3, 1, 2)
        x = self.conv_in(x if self.channels_last else x.contiguous())
        skips = [x] if every_block else []
        for level in self.down:
            for number in range(len(level.blocks)):
                x = level.run(number, x, condition)
                skips += [x] if every_block else []
            skips += [] if every_block else [x]
            if hasattr(level, "downsample"):
                x = level.downsample(x)
                skips += [x] if every_block else []
        x = self.middle.block1(x, condition)
        if self.middle.attention is not None:
            x = self.middle.attention(x)
        x = self.middle.block2(x, condition)
        for level in reversed(self.up):
            for number in range(len(level.blocks)):
                if every_block or number == 0:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = level.run(number, x, condition)
            if hasattr(level, "upsample"):
                x = level.upsample(F.interpolate(x, size=skips[-1].shape[2:], mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x))).permute(0, 2, 3, 1)


def ordered_parameters(model):
    """[(name, parameter, view)] in the order that README.md gives; `view` shows the parameter as the engine lays it out.

    Convolutions are [out, height, width, in], and the 1x1 shortcut of a concatenation is a matrix for each of its parts.
    """
    c, every_block, out = model.config, model.config.skips == "block", []

    def whole(name, parameter):
        out.append((name, parameter, lambda p: p))

    def both(name, module, view=lambda p: p):
        out.append((f"{name}.weight", module.weight, view))
        whole(f"{name}.bias", module.bias)

    def conv(name, module):
        both(name, module, lambda p: p.permute(0, 2, 3, 1))

    def block(name, module):
        both(f"{name}.norm1", module.norm1)
        conv(f"{name}.conv1", module.conv1)
        both(f"{name}.time", module.time)
        both(f"{name}.norm2", module.norm2)
        conv(f"{name}.conv2", module.conv2)
        if module.shortcut is not None:
            split = module.split
            both(f"{name}.shortcut", module.shortcut, lambda p: p[:, :split, 0, 0])
            if module.skip:
                out.append((f"{name}.shortcut.skip_weight", module.shortcut.weight, lambda p: p[:, split:, 0, 0]))

    def attention(name, module):
        both(f"{name}.norm", module.norm)
        both(f"{name}.qkv", module.qkv)
        both(f"{name}.out", module.out)

    def level(name, module):
        for n in range(len(module.blocks)):
            block(f"{name}.blocks.{n}", module.blocks[n])
            if len(module.attentions):
                attention(f"{name}.attentions.{n}", module.attentions[n])

    conv("conv_in", model.conv_in)
    both("time.fc1", model.time.fc1)
    both("time.fc2", model.time.fc2)
    if c.num_classes:
        whole("class.embedding", getattr(model, "class").embedding)
    for i, module in enumerate(model.down):
        level(f"down.{i}", module)
        if hasattr(module, "downsample"):
            conv(f"down.{i}.downsample", module.downsample)
    block("middle.block1", model.middle.block1)
    if c.middle_attention:
        attention("middle.attention", model.middle.attention)
    block("middle.block2", model.middle.block2)
    for i, module in reversed(list(enumerate(model.up))):
        level(f"up.{i}", module)
        if hasattr(module, "upsample"):
            conv(f"up.{i}.upsample", module.upsample)
    both("norm_out", model.norm_out)
    conv("conv_out", model.conv_out)
    counted = sum(view(p).numel() for _, p, view in out)
    assert counted == sum(p.numel() for p in model.parameters()), "parameters are missing or listed twice"
    return out


def to_diffusers(model):
    """The same weights under the names of diffusers' UNet2DModel."""
    state, last = {}, len(model.config.channels) - 1

    def both(name, module):
        state[f"{name}.weight"], state[f"{name}.bias"] = module.weight, module.bias

    def block(name, m):
        parts = dict(norm1=m.norm1, conv1=m.conv1, time_emb_proj=m.time, norm2=m.norm2, conv2=m.conv2)
        for part, module in parts.items():
            both(f"{name}.{part}", module)
        if m.shortcut is not None:
            both(f"{name}.conv_shortcut", m.shortcut)

    def attention(name, m):
        both(f"{name}.group_norm", m.norm)
        for part, weight, bias in zip("qkv", m.qkv.weight.chunk(3), m.qkv.bias.chunk(3)):
            state[f"{name}.to_{part}.weight"], state[f"{name}.to_{part}.bias"] = weight, bias
        both(f"{name}.to_out.0", m.out)

    def level(name, m):
        for n, part in enumerate(m.blocks):
            block(f"{name}.resnets.{n}", part)
        for n, part in enumerate(m.attentions):
            attention(f"{name}.attentions.{n}", part)

    both("conv_in", model.conv_in)
    both("time_embedding.linear_1", model.time.fc1)
    both("time_embedding.linear_2", model.time.fc2)
    for i, m in enumerate(model.down):
        level(f"down_blocks.{i}", m)
        if i < last:
            both(f"down_blocks.{i}.downsamplers.0.conv", m.downsample)
    block("mid_block.resnets.0", model.middle.block1)
    attention("mid_block.attentions.0", model.middle.attention)
    block("mid_block.resnets.1", model.middle.block2)
    for i, m in enumerate(model.up):
        level(f"up_blocks.{last - i}", m)
        if i > 0:
            both(f"up_blocks.{last - i}.upsamplers.0.conv", m.upsample)
    both("conv_norm_out", model.norm_out)
    both("conv_out", model.conv_out)
    return state


def main():
    """Holds the module against diffusers' with the architecture of Ho et al. 2020."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    c = Config(
        channels=(128, 256, 256, 256), attention_sizes=(16,), num_heads=1, norm_groups=32, time_output_dim=512,
        downsample_padding="same",
    )
    model = Unet(c).double()
    peer = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, freq_shift=0, flip_sin_to_cos=True, block_out_channels=c.channels,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2, downsample_padding=0, attention_head_dim=None, norm_num_groups=32, norm_eps=GROUP_NORM_EPS,
    ).double()
    peer.load_state_dict(to_diffusers(model))
    x, t = torch.randn(2, 32, 32, 3).double(), torch.tensor([17.0, 802.0]).double()
    with torch.no_grad():
        ours, theirs = model(x, t, None), peer(x.permute(0, 3, 1, 2), t).sample.permute(0, 2, 3, 1)
    count, error = sum(p.numel() for p in model.parameters()), ((ours - theirs).norm() / theirs.norm()).item()
    print(f"{count} parameters; relative difference from diffusers {error:.1e}")
    # diffusers computes its time features in f32.
    assert count == 35_746_307 and error < 2e-6


if __name__ == "__main__":
    main()
