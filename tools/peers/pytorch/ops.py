"""Times single ops in PyTorch at the sizes of the engine's large cases: the peer of `cargo bench -p benches --bench ops`.

    python tools/peers/pytorch/ops.py --device cuda --dtype bf16 --compile default [linear_attention]

Linear attention, the balanced loss, convolution and group norm + SiLU, forward and forward with backward, as a user writes them
in PyTorch; images in channels-last layout. Where the package flash-linear-attention is installed, its kernels are timed
too (they are causal, so the sums differ, not the work per token; normalised by the caller as ours are). Prints one JSON
line an op and direction; each time is the median of `--repeat` groups, synchronised after each.
"""

import argparse
import importlib.util
import json
import statistics
import time

import torch
import torch.nn.functional as F

from peer import balanced_loss


def linear_attention(b, t, h, d):
    qkv = torch.randn(3, b, h, t, d)

    def run(qkv):
        q, k, v = qkv
        q, k = F.elu(q) + 1, F.elu(k) + 1
        return (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(-2).unsqueeze(-1))

    return run, [qkv]


def chunked_linear_attention(b, t, h, d):
    from fla.ops.linear_attn import chunk_linear_attn

    qkv = torch.randn(3, b, t, h, d)

    def run(qkv):
        q, k, v = qkv
        return chunk_linear_attn(F.elu(q) + 1, F.elu(k) + 1, v, normalize=True)[0]

    return run, [qkv]


def balanced(b, height, width, c):
    prediction, target = torch.randn(b, c, height, width), torch.randn(b, c, height, width)
    means, weights, weight = torch.ones(5), torch.tensor([1.0, 0.5, 0.1, 0.5, 0.25]), torch.ones(b)

    def run(prediction, target, weight, means, weights):
        return balanced_loss(prediction.float(), target.float(), weight, means, weights)

    return run, [prediction, target, weight, means, weights]


def convolution(b, height, channels):
    x = torch.randn(b, channels, height, height).to(memory_format=torch.channels_last)
    weight = (torch.randn(channels, channels, 3, 3) / (3 * channels**0.5)).to(memory_format=torch.channels_last)
    return lambda x, weight, bias: F.conv2d(x, weight, bias, padding=1), [x, weight, torch.randn(channels)]


def group_norm_silu(b, height, channels, groups):
    x = torch.randn(b, channels, height, height).to(memory_format=torch.channels_last)
    weight, bias = torch.rand(channels) + 0.5, torch.randn(channels)
    return lambda x, weight, bias: F.silu(F.group_norm(x, groups, weight, bias, 1e-6)), [x, weight, bias]


CASES = {
    "linear_attention/b32_t64_h8_d32": lambda: linear_attention(32, 64, 8, 32),
    "linear_attention/b32_t256_h8_d32": lambda: linear_attention(32, 256, 8, 32),
    "linear_attention/b32_t1024_h8_d32": lambda: linear_attention(32, 1024, 8, 32),
    "linear_attention/b8_t1024_h4_d128": lambda: linear_attention(8, 1024, 4, 128),
    "linear_attention_fla/b32_t64_h8_d32": lambda: chunked_linear_attention(32, 64, 8, 32),
    "linear_attention_fla/b32_t1024_h8_d32": lambda: chunked_linear_attention(32, 1024, 8, 32),
    "balanced_loss/balanced_b128_32x32x3": lambda: balanced(128, 32, 32, 3),
    "conv2d/level0_b32_h32_c64_o64": lambda: convolution(32, 32, 64),
    "conv2d/level1_b32_h16_c128_o128": lambda: convolution(32, 16, 128),
    "conv2d/level2_b32_h8_c256_o256": lambda: convolution(32, 8, 256),
    "conv2d/gpu_b128_h32_c128_o128": lambda: convolution(128, 32, 128),
    "group_norm_silu/b32_32x32x64_g8": lambda: group_norm_silu(32, 32, 64, 8),
    "group_norm_silu/b128_32x32x64_g8": lambda: group_norm_silu(128, 32, 64, 8),
    "group_norm_silu/b128_16x16x128_g8": lambda: group_norm_silu(128, 16, 128, 8),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filter", nargs="?", default="", help="only cases whose names contain it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--compile", nargs="?", const="default", help="torch.compile, with this mode")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=11)
    parser.add_argument("--group", type=int, help="calls between synchronisations: 1 on the CPU, 20 on CUDA")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    on_cuda = args.device.startswith("cuda")
    synchronize = torch.cuda.synchronize if on_cuda else lambda: None
    group = args.group or (20 if on_cuda else 1)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    installed = importlib.util.find_spec("fla") is not None

    for name, make in CASES.items():
        if args.filter not in name or ("_fla/" in name and not (installed and on_cuda)):
            continue
        run, inputs = make()
        small = name.startswith("balanced_loss")  # the loss is f32 everywhere
        inputs = [x.to(args.device, torch.float32 if small else dtype) for x in inputs]
        learnt = inputs[:1] if small else inputs
        for x in learnt:
            x.requires_grad_()
        if args.compile:
            run = torch.compile(run, mode=args.compile)
        with torch.no_grad():
            cotangent = torch.randn_like(run(*inputs))

        def forward():
            with torch.no_grad():
                run(*inputs)

        def both():
            torch.autograd.grad(run(*inputs), learnt, cotangent)

        for direction, call in [("forward", forward), ("forward_backward", both)]:
            times = []
            for i in range(3 + args.repeat):
                synchronize()
                start = time.perf_counter()
                for _ in range(group):
                    call()
                synchronize()
                if i >= 3:
                    times.append((time.perf_counter() - start) / group)
            result = dict(
                peer="pytorch",
                version=torch.__version__,
                case=f"{name}/{direction}",
                device=torch.cuda.get_device_name() if on_cuda else "cpu",
                mode=f"compile:{args.compile}" if args.compile else "eager",
                dtype=args.dtype,
                us=round(1e6 * statistics.median(times), 2),
                min_us=round(1e6 * min(times), 2),
            )
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
