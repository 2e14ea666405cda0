"""A server of the same network in FastAPI and PyTorch, as good as its user can make it, for `tools/serve-bench --peer`.

    python tools/peers/pytorch/serve.py --model unet-fashion-small --port 8000 [--layout channels_last] [--compile]

needs `fastapi` and `uvicorn` beside requirements.txt. Requests share denoising steps and join between any two of them; guidance takes two
rows of a batch; inference mode, weights of random numbers. It answers `POST /v1/images/generations` with `prompt` (a class's number),
`seed`, `steps` and `guidance`, and draws by DDIM.
"""

import argparse
import asyncio
import base64
import io
import queue
import sys
import threading
from dataclasses import dataclass

import numpy
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel

sys.path.insert(0, __file__.rsplit("/", 1)[0])
import peer  # noqa: E402

LEVELS = 1000


class Body(BaseModel):
    prompt: str = "0"
    seed: int = 0
    steps: int = 50
    guidance: float = 2.0


@dataclass
class Underway:
    """An image on its way."""

    body: Body
    x: torch.Tensor
    times: list
    future: asyncio.Future
    loop: asyncio.AbstractEventLoop
    at: int = 0


class Drawer:
    """The thread that draws: one batch, which images join and leave between steps."""

    def __init__(self, args):
        torch.manual_seed(0)
        self.config, self.diffusion, model = peer.build(args.model, args.layout)
        self.model = model.eval().requires_grad_(False)
        if args.compile:
            self.model = torch.compile(self.model, dynamic=False)
        self.sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size < args.max_batch] + [args.max_batch]
        self.pad = args.compile
        self.most = args.max_batch
        beta = torch.linspace(self.diffusion["beta_start"], self.diffusion["beta_end"], LEVELS, dtype=torch.float64)
        alpha_bar = torch.cat([torch.cumprod(1 - beta, 0), torch.ones(1, dtype=torch.float64)])
        self.a, self.s = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
        self.waiting = queue.SimpleQueue()
        with torch.inference_mode():
            for size in self.sizes if args.compile else [2]:
                self.evaluate(torch.zeros(size, *self.shape()), torch.zeros(size), torch.zeros(size, dtype=torch.long))
        threading.Thread(target=self.run, daemon=True).start()

    def shape(self):
        return self.config.image_size, self.config.image_size, self.config.image_channels

    def begin(self, body, future, loop):
        generator = torch.Generator().manual_seed(body.seed)
        # Uniform times from the noisiest, and at last the clean image, which is the level behind the last.
        times = [round((LEVELS - 1) * (1 - k / body.steps)) for k in range(body.steps)] + [LEVELS]
        self.waiting.put(Underway(body, torch.randn(self.shape(), generator=generator), times, future, loop))

    def evaluate(self, x, t, label):
        if not self.pad:
            return self.model(x, t, label)
        count = len(x)
        size = next(size for size in self.sizes if size >= count)
        grown = [torch.cat([v, v.new_zeros(size - count, *v.shape[1:])]) for v in (x, t, label)]
        return self.model(*grown)[:count]

    def step(self, images):
        x = torch.stack([image.x for image in images])
        now = torch.tensor([image.times[image.at] for image in images])
        then = torch.tensor([image.times[image.at + 1] for image in images])
        labels = torch.tensor([int(image.body.prompt) for image in images])
        guided = torch.tensor([k for k, image in enumerate(images) if image.body.guidance != 1], dtype=torch.long)
        rows = torch.cat([torch.arange(len(images)), guided])
        label = torch.cat([labels, torch.full_like(guided, self.config.num_classes)])
        eps = self.evaluate(x[rows], now[rows].float(), label)
        scale = torch.tensor([images[k].body.guidance for k in guided.tolist()]).view(-1, 1, 1, 1)
        whole = eps[: len(images)].clone()
        whole[guided] = scale * whole[guided] + (1 - scale) * eps[len(images) :]
        a, s, b, r = (v.view(-1, 1, 1, 1) for v in (self.a[now], self.s[now], self.a[then], self.s[then]))
        x0 = ((x - s * whole) / a).clamp(-1, 1)
        x = b * x0 + r * (x - a * x0) / s
        for image, value in zip(images, x):
            image.x, image.at = value, image.at + 1

    def run(self):
        images, room = [], lambda: self.most - sum(1 + (image.body.guidance != 1) for image in images)
        with torch.inference_mode():
            while True:
                while room() >= 2 and (not images or not self.waiting.empty()):
                    images.append(self.waiting.get())
                self.step(images)
                done = [image for image in images if image.at + 1 == len(image.times)]
                images = [image for image in images if image.at + 1 < len(image.times)]
                for image in done:
                    pixels = ((image.x + 1) * 127.5).round().clamp(0, 255).byte().numpy()
                    image.loop.call_soon_threadsafe(image.future.set_result, pixels)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(numpy.squeeze(pixels)).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="unet-fashion-small", help="a preset of the engine")
    parser.add_argument("--layout", choices=["default", "channels_last"], default="channels_last")
    parser.add_argument("--compile", action="store_true", help="torch.compile, a batch of each power of two")
    parser.add_argument("--max-batch", type=int, default=16, help="rows; one under guidance counts twice")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    drawer, app = Drawer(args), FastAPI()

    @app.post("/v1/images/generations")
    async def generations(body: Body):
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        drawer.begin(body, future, loop)
        return {"data": [{"b64_json": png(await future)}]}

    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
