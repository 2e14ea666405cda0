"""Evaluation: the tools that people use, on the same images and one random network (see README.md).

    python tools/goldens/evaluation.py    writes tests/goldens/evaluation.safetensors, evaluation.json and frechet.json

Needs torch, torchvision, pytorch-fid, torch-fidelity, clean-fid, scipy below 1.18 and mpmath: evaluation-requirements.txt.
"""

import json
import pathlib
import tempfile

import numpy as np
import torch
from safetensors.numpy import save_file

import cleanfid.fid
import cleanfid.resize
import pytorch_fid.fid_score
import pytorch_fid.inception
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision.models import inception_v3

from philox import bits, symmetric

GOLDENS = pathlib.Path(__file__).resolve().parents[2] / "tests/goldens"
WEIGHTS, IMAGES, SIZES = 41, 42, 43
COUNT, SIDE, GRID = 64, 32, 4
# Images whose features are kept whole: the first two of each set.
KEPT = 2
PROJECTIONS = 4


def weights():
    """The file's arrays: number k in the order of the names is item k."""
    model = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    state = model.state_dict()
    names = sorted(name for name in state if not name.endswith("num_batches_tracked"))
    for item, name in enumerate(names):
        shape = tuple(state[name].shape)
        if name.endswith("conv.weight"):
            values = symmetric(WEIGHTS, shape, item, (6 / np.prod(shape[1:])) ** 0.5)
        elif name == "fc.weight":
            values = symmetric(WEIGHTS, shape, item, 0.2)
        elif name.endswith("running_var"):
            values = 1 + symmetric(WEIGHTS, shape, item, 0.5)
        elif name.endswith("bn.weight"):
            values = 1 + symmetric(WEIGHTS, shape, item, 0.3)
        else:
            values = symmetric(WEIGHTS, shape, item, 0.3)
        state[name] = torch.from_numpy(np.ascontiguousarray(values))
    return state


def images(set_):
    """[COUNT, SIDE, SIDE, 3] u8: a coarse grid of colours, and noise; the second set is paler."""
    cells, pixels = GRID * GRID * 3, SIDE * SIDE * 3
    made = np.empty((COUNT, SIDE, SIDE, 3), np.uint8)
    for k in range(COUNT):
        grid = (bits(IMAGES, cells, k, step=2 * set_) >> np.uint64(24)).astype(np.int64).reshape(GRID, GRID, 3)
        noise = (bits(IMAGES, pixels, k, step=2 * set_ + 1) >> np.uint64(24)).astype(np.int64).reshape(SIDE, SIDE, 3)
        if set_ == 1:
            grid = grid // 2 + 96
        coarse = grid.repeat(SIDE // GRID, 0).repeat(SIDE // GRID, 1)
        made[k] = np.clip(coarse + noise // 8 - 16, 0, 255)
    return made


def first(pictures, dtype):
    """NCHW."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).to(dtype)


def layers(network, x):
    """torch-fidelity's network behind its resize and scaling, as clean-fid's file has it."""
    names = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"]
    names += [f"Mixed_{part}" for part in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")] + ["AvgPool"]
    for name in names:
        x = getattr(network, name)(x)
    return torch.flatten(x, 1)


def tensorflow(x):
    return interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)


def resized(picture, rule):
    """What the network sees of one picture, [299, 299, 3] f64, scaled to values of 0 to 255."""
    x = torch.from_numpy(picture[None]).permute(0, 3, 1, 2).double()
    if rule == "pytorch-fid":
        x = torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
    elif rule == "torch-fidelity":
        # In f32, as the tool does.
        x = tensorflow(x.float()).double()
    else:
        return cleanfid.resize.build_resizer("clean")(picture).astype(np.float64)
    return x[0].permute(1, 2, 0).numpy()


def scores(whole, fidelity, sets):
    """The tools' numbers from the features that they extracted."""
    moments = [(f.astype(np.float64).mean(0), np.cov(f.astype(np.float64), rowvar=False)) for f in (w["pytorch-fid"] for w in whole)]
    seitzer = pytorch_fid.fid_score.calculate_frechet_distance(*moments[0], *moments[1])
    a, b = (torch.from_numpy(w["torch-fidelity"]) for w in whole)
    statistics = [metric_fid.fid_features_to_statistics(f) for f in (a, b)]
    kid = metric_kid.kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=COUNT, verbose=False)
    logits = torch.cat([fidelity(first(sets[0][i : i + 16], torch.uint8))[1] for i in range(0, COUNT, 16)])
    isc = metric_isc.isc_features_to_metric(logits, splits=4, shuffle=False)
    prc = metric_prc.prc_features_to_metric(a, b, verbose=False)
    return {
        "pytorch-fid": {"fid": float(seitzer)},
        "torch-fidelity": {
            "fid": metric_fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"],
            "kid": kid["kernel_inception_distance_mean"],
            "isc_mean": isc["inception_score_mean"],
            "isc_std": isc["inception_score_std"],
            "precision": prc["precision"],
            "recall": prc["recall"],
        },
        "clean-fid": {"fid": float(cleanfid.fid.fid_from_feats(whole[0]["clean-fid"], whole[1]["clean-fid"]))},
    }


def main():
    torch.manual_seed(0)
    state = weights()
    sets = [images(0), images(1)]
    tensors, numbers = {}, {"seeds": {"weights": WEIGHTS, "images": IMAGES, "sizes": SIZES}}
    with tempfile.TemporaryDirectory() as root, torch.no_grad():
        root = pathlib.Path(root)
        file = str(root / "weights.pth")
        torch.save(state, file)

        pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
        seitzer = pytorch_fid.inception.InceptionV3([3]).eval()
        fidelity = FeatureExtractorInceptionV3("a", ["2048", "logits_unbiased"], feature_extractor_weights_path=file)
        exact = FeatureExtractorInceptionV3(
            "b", ["2048"], feature_extractor_weights_path=file, feature_extractor_internal_dtype="float64"
        )
        exact = exact.double()
        resize = cleanfid.resize.build_resizer("clean")

        def clean(pictures, network):
            dtype = next(network.parameters()).dtype
            x = torch.from_numpy(np.stack([resize(picture) for picture in pictures])).permute(0, 3, 1, 2).to(dtype)
            return layers(network, (x - 128) / 128)

        features = {
            "pytorch-fid": lambda p: seitzer(first(p, torch.float32) / 255)[0][:, :, 0, 0],
            "torch-fidelity": lambda p: fidelity(first(p, torch.uint8))[0],
            "clean-fid": lambda p: clean(p, fidelity),
        }
        whole = [{rule: torch.cat([f(p[i : i + 16]) for i in range(0, COUNT, 16)]).numpy() for rule, f in features.items()} for p in sets]
        seitzer = seitzer.double()
        kept = np.concatenate([p[:KEPT] for p in sets])
        in_f64 = {
            "pytorch-fid": seitzer(first(kept, torch.float64) / 255)[0][:, :, 0, 0],
            # Its f64 network returns f32, and its resize too.
            "torch-fidelity": layers(exact, (tensorflow(first(kept, torch.float64)).double() - 128) / 128),
            "clean-fid": clean(kept, exact),
        }
        for rule in features:
            tensors[f"{rule}.features"] = in_f64[rule].numpy().astype(np.float32)
            for k in range(2):
                signs = np.stack([np.where(bits(IMAGES, 2048, 1000 + j) >> np.uint64(31) == 1, 1.0, -1.0) for j in range(PROJECTIONS)])
                tensors[f"{rule}.projections.{k}"] = whole[k][rule].astype(np.float64) @ signs.T
        tensors["logits_without_bias"] = fidelity(first(kept, torch.uint8))[1].numpy()
        tensors["set0.sample"] = sets[0][0].reshape(-1)[:192].astype(np.int32)
        tensors["set1.sample"] = sets[1][5].reshape(-1)[:192].astype(np.int32)

        numbers.update(scores(whole, fidelity, sets))
        for rule in features:
            for height, width in ((32, 32), (45, 70), (400, 350)):
                pixels = (bits(SIZES, height * width * 3, height) >> np.uint64(24)).astype(np.uint8).reshape(height, width, 3)
                places = (bits(SIZES, 200, 1000 + height) * np.uint64(299 * 299 * 3)) >> np.uint64(32)
                tensors[f"{rule}.resized.{height}x{width}"] = resized(pixels, rule).reshape(-1)[places.astype(np.int64)]
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, GOLDENS / "evaluation.safetensors")
    (GOLDENS / "evaluation.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(json.dumps(numbers, indent=1))


def frechet():
    """Fréchet distances of given moments at 64 wide, to 50 digits; values are rounded to f64 first."""
    import mpmath

    mpmath.mp.dps = 50
    width, cases = 64, []

    def covariance(item, rank, scale, power):
        a = symmetric(7, (width, rank), item, 1.0).astype(np.float64)
        a = a * (np.arange(1, rank + 1, dtype=np.float64) ** -power)
        sigma = a @ a.T / rank * scale
        return (sigma + sigma.T) / 2

    def root(sigma):
        values, vectors = mpmath.eigsy(mpmath.matrix(sigma.tolist()))
        return vectors * mpmath.diag([mpmath.sqrt(max(v, mpmath.mpf(0))) for v in values]) * vectors.T

    for name, one, two in [
        ("full", (0, 64, 1.0, 0.0), (1, 64, 1.0, 0.0)),
        ("decaying", (2, 64, 1.0, 2.0), (3, 64, 1.0, 2.0)),
        ("rank 10", (4, 10, 1.0, 0.0), (5, 64, 1.0, 0.0)),
        ("both singular", (6, 10, 1.0, 0.5), (7, 20, 1.0, 0.5)),
        ("large", (8, 64, 1e6, 1.0), (9, 64, 1e6, 1.0)),
        ("small", (10, 64, 1e-6, 1.0), (11, 64, 1e-6, 1.0)),
        ("unlike scales", (12, 64, 1e6, 1.0), (13, 64, 1e-6, 1.0)),
        ("nearly equal", (14, 64, 1.0, 1.0), None),
    ]:
        s1 = covariance(*one)
        s2 = s1 * (1 + 1e-9) if two is None else covariance(*two)
        m1 = symmetric(7, (width,), 100 + len(cases), 0.5).astype(np.float64)
        m2 = m1 + 1e-6 if two is None else symmetric(7, (width,), 200 + len(cases), 0.5).astype(np.float64)
        r = root(s1)
        values = mpmath.eigsy(r * mpmath.matrix(s2.tolist()) * r, eigvals_only=True)
        trace = mpmath.fsum(mpmath.sqrt(max(v, mpmath.mpf(0))) for v in values)
        d = [mpmath.mpf(float(a)) - mpmath.mpf(float(b)) for a, b in zip(m1, m2)]
        means = mpmath.fsum(x * x for x in d)
        traces = mpmath.fsum(mpmath.mpf(float(x)) for x in np.concatenate([np.diag(s1), np.diag(s2)]))
        cases.append({
            "name": name, "one": one, "two": two, "distance": float(means + traces - 2 * trace), "scale": float(traces + means),
            # A check that both sides made the same matrices.
            "sums": [float(np.abs(s1).sum()), float(np.abs(s2).sum())],
        })  # fmt: skip
        print(cases[-1])
    (GOLDENS / "frechet.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
    frechet()
