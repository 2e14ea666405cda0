"""`engine eval` beside the tools that people use, live: their numbers on the same pictures and network, and their speed.

    python tools/peers/evaluation.py ENGINE [--threads 2] [--rounds 3] [--speed-only | --numbers-only]

The network is InceptionV3 of 2015 with the random weights of tools/goldens/evaluation.py, the pictures are its 64 + 64. Numbers have to
agree to 1e-3 relative (precision and recall to 1e-9), else it ends with an error. Speed is measured in turns: PyTorch eager with
pytorch-fid's network in both layouts of images, then the engine, each at batch 32; the ratio is of the medians, against the faster layout.
`cargo bench -p benches --bench evaluation` has the engine's Fréchet distance; SciPy's is printed here.
Needs what tools/goldens/evaluation-requirements.txt names.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "goldens"))
import evaluation as goldens  # noqa: E402

import cleanfid.fid  # noqa: E402
import pytorch_fid.fid_score  # noqa: E402
import pytorch_fid.inception  # noqa: E402
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc  # noqa: E402
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402

BATCH, WIDTH = 32, 2048
RULES = ("pytorch-fid", "torch-fidelity", "clean-fid")


def engine(command, arguments, out):
    """Runs `engine eval`; its JSON, and its pictures a second."""
    call = [command, "eval", "--device", "cpu", "--draws", "0", "--out", out, "--cache", f"{out}-cache", *arguments]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    rate = re.search(r"^features: ([0-9.]+) pictures a second", done.stderr, re.M)
    return json.loads((pathlib.Path(out) / "evaluation_results.json").read_text()), float(rate[1])


def numbers(options, state, file, root):
    """The largest relative difference from each tool."""
    sets = [goldens.images(0), goldens.images(1)]
    for name, pictures in zip("ab", sets):
        (root / name).mkdir()
        for k, picture in enumerate(pictures):
            Image.fromarray(picture).save(root / name / f"{k:03}.png")
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    seitzer = pytorch_fid.inception.InceptionV3([3]).eval()
    fidelity = FeatureExtractorInceptionV3("a", ["2048", "logits_unbiased"], feature_extractor_weights_path=file)
    resize = cleanfid.resize.build_resizer("clean")

    def clean(p):
        x = torch.from_numpy(np.stack([resize(picture) for picture in p])).permute(0, 3, 1, 2).float()
        return goldens.layers(fidelity, (x - 128) / 128)

    by_rule = {
        "pytorch-fid": lambda p: seitzer(goldens.first(p, torch.float32) / 255)[0][:, :, 0, 0],
        "torch-fidelity": lambda p: fidelity(goldens.first(p, torch.uint8))[0],
        "clean-fid": clean,
    }
    whole = [
        {rule: torch.cat([f(p[i : i + 16]) for i in range(0, goldens.COUNT, 16)]).numpy() for rule, f in by_rule.items()}
        for p in sets
    ]
    theirs = goldens.scores(whole, fidelity, sets)
    worst = 0.0
    for rule in RULES:
        found, _ = engine(
            options.engine,
            ["--samples", str(root / "a"), "--reference", str(root / "b"), "--inception", file, "--rule", rule]
            + ["--metrics", "fid,kid,precision-recall"],
            str(root / rule),
        )
        ours = {"fid": found["fid_score"], "precision": found["precision"], "recall": found["recall"]}
        for key, value in ours.items():
            if key in theirs[rule]:
                difference = abs(value / theirs[rule][key] - 1) if theirs[rule][key] else abs(value)
                worst = max(worst, difference)
                print(f"{rule:16}{key:10} engine {value:.9g}, the tool {theirs[rule][key]:.9g}: {difference:.1e}")
    return worst


def torch_rate(network):
    """Pictures a second by layout."""
    rates = {}
    for name, layout in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
        model = network.to(memory_format=layout)
        x = torch.rand(BATCH, 3, 32, 32)
        with torch.no_grad():
            model(x)
            started, rounds = time.perf_counter(), 0
            while rounds < 2 or time.perf_counter() - started < 8:
                model(x)
                rounds += 1
        rates[name] = rounds * BATCH / (time.perf_counter() - started)
    return rates


def speed(options, state, file, root):
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    network = pytorch_fid.inception.InceptionV3([3]).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (5 * BATCH, 32, 32, 3), np.uint8)
    np.save(root / "speed.npy", pictures)
    found = {"contiguous": [], "channels last": [], "engine": []}
    for turn in range(options.rounds):
        for name, rate in torch_rate(network).items():
            found[name].append(rate)
        arguments = ["--samples", str(root / "speed.npy"), "--inception", file, "--metrics", "is"]
        arguments += ["--feature-batch", str(BATCH), "--threads", str(options.threads)]
        found["engine"].append(engine(options.engine, arguments, str(root / f"speed-{turn}"))[1])
        print(f"turn {turn}: " + ", ".join(f"{name} {rates[-1]:.2f}" for name, rates in found.items()), flush=True)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    best = max(medians["contiguous"], medians["channels last"])
    print(f"InceptionV3, batch {BATCH}, {options.threads} threads, pictures a second, medians of {options.rounds} turns:")
    for name, rate in medians.items():
        print(f"  {name:16}{rate:8.2f}")
    print(f"  engine over PyTorch eager: {medians['engine'] / best:.2f}")


def frechet():
    def covariance(seed):
        a = np.random.default_rng(seed).standard_normal((WIDTH, 64))
        return a @ a.T / 64 + 0.1 * np.eye(WIDTH)

    one, two = covariance(1), covariance(2)
    started = time.perf_counter()
    pytorch_fid.fid_score.calculate_frechet_distance(np.zeros(WIDTH), one, np.zeros(WIDTH), two)
    print(f"SciPy's Fréchet distance at {WIDTH}: {time.perf_counter() - started:.1f} s")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--speed-only", action="store_true")
    parser.add_argument("--numbers-only", action="store_true")
    options = parser.parse_args()
    options.engine = str(pathlib.Path(options.engine).resolve())
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    state = goldens.weights()
    with tempfile.TemporaryDirectory() as root, torch.no_grad():
        root = pathlib.Path(root)
        file = str(root / "weights.pth")
        torch.save(state, file)
        if not options.speed_only:
            worst = numbers(options, state, file, root)
            print(f"largest relative difference: {worst:.1e}")
            if worst > 1e-3:
                sys.exit("the engine's numbers are not the tools'")
        if not options.numbers_only:
            speed(options, state, file, root)
            frechet()


if __name__ == "__main__":
    main()
