"""The evaluation's peers: PyTorch's InceptionV3 (the graph of 2015, random weights) and SciPy's Fréchet distance.

    python tools/peers/evaluation.py [THREADS]

Beside it, in the same minutes: `engine eval --samples … --inception …`, which says its pictures a second, and
`cargo bench -p benches --bench evaluation`. Needs torch, torchvision, pytorch-fid and SciPy below 1.18.
"""

import sys
import time

import numpy as np
import pytorch_fid.inception
import torch
from pytorch_fid.fid_score import calculate_frechet_distance

THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 2
WIDTH, BATCH = 2048, 32


def covariance(seed):
    a = np.random.default_rng(seed).standard_normal((WIDTH, 64))
    return a @ a.T / 64 + 0.1 * np.eye(WIDTH)


def main():
    torch.set_num_threads(THREADS)
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: None
    torch.nn.Module.load_state_dict, kept = lambda self, *_, **__: None, torch.nn.Module.load_state_dict
    network = pytorch_fid.inception.InceptionV3([3]).eval()
    torch.nn.Module.load_state_dict = kept
    for name, layout in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
        model = network.to(memory_format=layout)
        x = torch.rand(BATCH, 3, 32, 32)
        with torch.no_grad():
            model(x)
            started, rounds = time.perf_counter(), 0
            while rounds < 3 or time.perf_counter() - started < 20:
                model(x)
                rounds += 1
        print(f"InceptionV3, {name}: {rounds * BATCH / (time.perf_counter() - started):.1f} pictures a second")
    one, two = covariance(1), covariance(2)
    started = time.perf_counter()
    calculate_frechet_distance(np.zeros(WIDTH), one, np.zeros(WIDTH), two)
    print(f"Fréchet distance at {WIDTH}: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
