"""Small files of weights as PyTorch writes them, in both containers, and the same arrays in f32 as safetensors."""

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

folder = Path(__file__).resolve().parents[2] / "tests" / "goldens"
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
arrays = network.state_dict()  # with the `_metadata` that every module's has
base = torch.arange(10.0)
arrays["shared.whole"] = base
arrays["shared.part"] = base[3:7]
arrays["shared.columns"] = base.reshape(2, 5).t()
arrays["transposed"] = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
arrays["expanded"] = torch.tensor([1.5, 2.5]).reshape(2, 1).expand(2, 3)
arrays["channels_last"] = torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last)
arrays["f16"] = torch.tensor([0.5, -65504.0, 6e-8]).half()
arrays["bf16"] = torch.tensor([1.5, -3e38]).bfloat16()
arrays["f64"] = torch.tensor([0.1, 1e-300], dtype=torch.float64)
arrays["i64"] = torch.tensor([1 << 40, -3])
arrays["i32"] = torch.tensor([-7], dtype=torch.int32)
arrays["i16"] = torch.tensor([-300], dtype=torch.int16)
arrays["i8"] = torch.tensor([-5], dtype=torch.int8)
arrays["u8"] = torch.tensor([200], dtype=torch.uint8)
arrays["bool"] = torch.tensor([True, False])
arrays["scalar"] = torch.tensor(3.25)
arrays["empty"] = torch.zeros(0, 4)
arrays["parameter"] = torch.nn.Parameter(torch.tensor([9.0]))

torch.save(arrays, folder / "weights-zip.pth")
torch.save(arrays, folder / "weights-stream.pth", _use_new_zipfile_serialization=False)
checkpoint = {"epoch": 3, "lr": 0.1, "state_dict": OrderedDict(arrays), "best": None}
torch.save(checkpoint, folder / "weights-checkpoint.pth", pickle_protocol=4)
plain = {name: array.detach().to(torch.float32).contiguous().clone() for name, array in arrays.items()}
save_file(plain, folder / "weights.safetensors")
