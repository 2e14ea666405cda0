"""Measures PyTorch on the engine's own task: training steps and DDIM steps of the same model, batch and dtype.

    python tools/peers/pytorch/peer.py --model dit-cifar10 --batch 32 --threads 2
    python tools/peers/pytorch/peer.py --model ddpm-cifar10 --layout channels_last --batch 32 --threads 2
    python tools/peers/pytorch/peer.py --device cuda --dtype bf16 --compile max-autotune --batch 256   # with CUDA graphs

A classifier's training step compares logits by cross-entropy with label smoothing, and its forward pass stands for the DDIM step.
Else a training step is what the engine does in one: gather u8 images that lie on the device, draw timesteps and noise, mix them,
forward, MSE (or the preset's balanced loss), backward, clip at global norm 1, fused AdamW, EMA by `_foreach`. It is meant to be as fast as a user
makes it, `tools/peers/run --best` tries every combination of modes. Prints one JSON line. Peak memory is the process's
largest resident set on the CPU (Python and PyTorch included, as a user pays for them; `import_mib` is their share) and
PyTorch's allocations on CUDA, both up to the end of the training steps.
"""

import argparse
import contextlib
import copy
import importlib
import json
import pathlib
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools/goldens"))
import dit  # noqa: E402
import linear_transformer  # noqa: E402
import unet  # noqa: E402

IMAGES = 4096


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dit-cifar10", help="a preset of the engine")
    parser.add_argument(
        "--layout", choices=["default", "channels_last"], default="default", help="of a U-Net's images and weights"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--ddim-batch", type=int, default=32, help="images in a DDIM step, or a classifier's forward pass")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16 means autocast")
    parser.add_argument("--tf32", action="store_true", help="let f32 products on CUDA use TF32")
    parser.add_argument("--compile", nargs="?", const="default", help="torch.compile, with this mode")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=2, help="steps (or, on CUDA, groups) that are not counted")
    parser.add_argument("--repeat", type=int, default=7, help="steps (or groups) of which the median is taken")
    parser.add_argument("--group", type=int, help="steps between synchronisations: 1 on the CPU, 10 on CUDA")
    return parser.parse_args()


def build(name, layout):
    """The preset's model and its configuration, as `tools/goldens` has them."""
    preset = yaml.safe_load((ROOT / f"src/config/presets/{name}.yaml").read_text())
    section, diffusion = preset["model"], preset.get("diffusion")
    modules = {"dit": dit, "unet": unet, "linear-transformer": linear_transformer}
    kind = section.pop("kind")
    # These two alone need torchvision.
    module = modules.get(kind) or importlib.import_module(kind.replace("-", "_"))
    config = module.Config(**section)
    if module is dit:
        assert layout == "default", "a transformer has no layout to choose"
        return config, diffusion, dit.Dit(config)
    if module is unet:
        model = convolutional = unet.Unet(config)
    elif kind == "resnet":
        model = convolutional = module.Resnet(config)
    elif kind == "resnet-dit":
        model = convolutional = module.ResnetDit(config)
        model.backbone.channels_last = layout == "channels_last"
    else:
        model = linear_transformer.LinearTransformer(config)
        convolutional = model.decoder
    convolutional.channels_last = layout == "channels_last"
    if convolutional.channels_last:
        convolutional.to(memory_format=torch.channels_last)
    return config, diffusion, model


def balanced_loss(prediction, target, weight, means, weights):
    """The engine's five terms of [B, C, H, W], each weighed by the running means of all (kernels/balanced_loss.cu)."""
    d = prediction - target
    p, t = prediction.flatten(1), target.flatten(1)
    padded = F.pad(d, (1, 1, 1, 1), mode="replicate")
    around = padded[:, :, 1:-1, :-2] + padded[:, :, 1:-1, 2:] + padded[:, :, :-2, 1:-1] + padded[:, :, 2:, 1:-1]
    x, y = F.pad(d[..., 1:] - d[..., :-1], (0, 1)), F.pad(d[:, :, 1:] - d[:, :, :-1], (0, 0, 0, 1))
    over = (1, 2, 3)
    terms = torch.stack(
        [
            d.square().mean(over),
            d.abs().mean(over),
            1 - F.cosine_similarity(p, t, dim=1, eps=1e-8),
            (d - around / 4).square().mean(over),
            ((x.square() + y.square() + 1e-6).sqrt() - 1e-3).mean(over),
        ]
    )
    with torch.no_grad():
        factors = weights * (means[0] / means).clamp(0.01, 100.0)
        means.lerp_(terms.mean(1), 0.01)
    return (weight * (factors[:, None] * terms).sum(0)).mean()


def max_rss_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def median_ms(step, args, synchronize):
    """Median over groups of the time of one step."""
    times = []
    for i in range(args.warmup + args.repeat):
        synchronize()
        start = time.perf_counter()
        for _ in range(args.group):
            step()
        synchronize()
        if i >= args.warmup:
            times.append((time.perf_counter() - start) / args.group)
    return 1e3 * statistics.median(times), 1e3 * min(times)


def main():
    args = arguments()
    import_mib = max_rss_mib()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    on_cuda = device.type == "cuda"
    if args.group is None:
        args.group = 10 if on_cuda else 1
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    if args.tf32:
        torch.set_float32_matmul_precision("high")
    # The sizes never change: it pays to try cuDNN's algorithms.
    torch.backends.cudnn.benchmark = True
    synchronize = torch.cuda.synchronize if on_cuda else lambda: None

    config, diffusion, model = build(args.model, args.layout)
    model = model.to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    # Of a frozen backbone nothing is optimised or averaged.
    pairs = [(p, a) for p, a in zip(model.parameters(), average.parameters()) if p.requires_grad]
    parameters, averages = [p for p, _ in pairs], [a for _, a in pairs]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.01, fused=True)
    run = torch.compile(model, mode=args.compile, dynamic=False) if args.compile else model
    # These two modes replay CUDA graphs, whose memory a new step may use again.
    graphs = on_cuda and args.compile in ("max-autotune", "reduce-overhead")
    begin_step = torch.compiler.cudagraph_mark_step_begin if graphs else lambda: None

    def autocast():
        # Entered anew in each step: autocast keeps the weights it has converted until its end.
        return torch.autocast(device.type, torch.bfloat16) if args.dtype == "bf16" else contextlib.nullcontext()

    size, channels = config.image_size, config.image_channels
    images = torch.randint(256, (IMAGES, size, size, channels), dtype=torch.uint8, device=device)
    labels = torch.randint(max(config.num_classes, 1), (IMAGES,), device=device)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    a, s = (x.sqrt().float().to(device) for x in (alpha_bar, 1 - alpha_bar))
    classifier = diffusion is None
    balanced = not classifier and diffusion.get("loss") == "balanced"
    if balanced:
        weights = torch.tensor(diffusion["balanced_weights"], device=device)
        means = torch.ones(5, device=device)
        min_snr = ((a / s).square().clamp(max=diffusion["min_snr_gamma"])).to(device)

    def classifier_loss(x0, label):
        with autocast():
            logits = run(x0)
        return F.cross_entropy(logits.float(), label, label_smoothing=0.1)

    def denoiser_loss(x0, label):
        t = torch.randint(1000, (args.batch,), device=device)
        noise = torch.randn_like(x0)
        x = a[t].view(-1, 1, 1, 1) * x0 + s[t].view(-1, 1, 1, 1) * noise
        with autocast():
            prediction = run(x, t.float(), label)
        if balanced:
            channels_first = [v.float().permute(0, 3, 1, 2) for v in (prediction, x0)]
            return balanced_loss(*channels_first, min_snr[t], means, weights)
        return F.mse_loss(prediction.float(), noise)

    def train_step():
        begin_step()
        index = torch.randint(IMAGES, (args.batch,), device=device)
        x0 = images[index].float() / 127.5 - 1
        loss = (classifier_loss if classifier else denoiser_loss)(x0, labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averages, parameters, 1e-4)

    step_ms, step_min_ms = median_ms(train_step, args, synchronize)
    if classifier:
        run.eval()
    if on_cuda:
        peak_mib = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        peak_mib = max_rss_mib()

    state = torch.randn(args.ddim_batch, size, size, channels, device=device)
    label = labels[torch.arange(args.ddim_batch, device=device) % IMAGES]
    t, following = 499, 479
    time_input = torch.full((args.ddim_batch,), float(t), device=device)

    def ddim_step():
        begin_step()
        if classifier:
            with torch.no_grad(), autocast():
                return run(state)
        with torch.no_grad(), autocast():
            eps = run(state, time_input, label).float()
        x0 = ((state - s[t] * eps) / a[t]).clamp(-1, 1)
        eps = (state - a[t] * x0) / s[t]
        return a[following] * x0 + s[following] * eps

    ddim_ms, ddim_min_ms = median_ms(ddim_step, args, synchronize)
    result = dict(
        peer="pytorch" if args.layout == "default" else "pytorch-channels-last",
        version=torch.__version__,
        device=torch.cuda.get_device_name(device) if on_cuda else "cpu",
        threads=None if on_cuda else args.threads,
        mode=f"compile:{args.compile}" if args.compile else "eager",
        model=args.model,
        parameters=sum(p.numel() for p in model.parameters()),
        dtype="tf32" if args.tf32 and args.dtype == "f32" else args.dtype,
        batch=args.batch,
        step_ms=round(step_ms, 3),
        step_min_ms=round(step_min_ms, 3),
        images_per_second=round(1e3 * args.batch / step_ms, 2),
        peak_mib=round(peak_mib, 1),
        import_mib=round(import_mib, 1),
        ddim_batch=args.ddim_batch,
        ddim_step_ms=round(ddim_ms, 3),
        ddim_step_min_ms=round(ddim_min_ms, 3),
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
