"""Make the balanced Fashion-MNIST subset that the package carries.

Reads the full data set as gzipped IDX files, takes the same number of images of every class, shuffles them, and writes
gzipped IDX files with LICENSE and README.md. The same seed gives the same bytes.

    apt-get install dataset-fashion-mnist
    python scripts/make_fashion_mnist_subset.py
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from dwsep.training.data import encode_idx, load_idx

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_OUTPUT = REPOSITORY / "src" / "dwsep" / "training" / "assets" / "fashion_mnist"
DEFAULT_SOURCE = Path("/usr/share/datasets/fashion-mnist")
DEFAULT_COPYRIGHT = Path("/usr/share/doc/dataset-fashion-mnist/copyright")
FILE_STEMS = {"train": "train", "test": "t10k"}


def select_balanced(labels: Tensor, per_class: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Choose per_class indices of every class, in shuffled order.

    Args:
        labels: Class indices of shape (N,), dtype int64.
        per_class: How many of each class.
        num_classes: Number of classes.
        generator: Decides which images and which order.

    Returns:
        Indices of shape (per_class * num_classes,), dtype int64.

    Raises:
        ValueError: If a class has fewer than per_class images.
    """
    chosen = []
    for index in range(num_classes):
        members = (labels == index).nonzero().flatten()
        if len(members) < per_class:
            raise ValueError(f"class {index} has {len(members)} images, {per_class} are needed")
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    indices = torch.cat(chosen)
    return indices[torch.randperm(len(indices), generator=generator)]


def licence_text(copyright_file: Path) -> str:
    """Turn the Debian package's machine-readable copyright file into a licence file.

    Args:
        copyright_file: File in Debian's copyright format 1.0 with a "Files: *" paragraph under the Expat licence.

    Returns:
        Copyright line and licence text.

    Raises:
        ValueError: If the file has no such paragraph.
    """
    text = copyright_file.read_text(encoding="utf-8")
    holder = re.search(r"^Files: \*\nCopyright: (.+)\nLicense: Expat$", text, flags=re.MULTILINE)
    terms = re.search(r"^License: Expat\n((?: .*\n?)+)", text, flags=re.MULTILINE)
    if holder is None or terms is None:
        raise ValueError(f"{copyright_file}: no paragraph 'Files: *' under 'License: Expat'")
    lines = ["" if line.strip() == "." else line.strip() for line in terms.group(1).splitlines()]
    owner = holder.group(1).replace("https:tech", "https://tech")
    return "\n".join(["MIT License (Expat)", "", f"Copyright (c) {owner}", "", *lines, ""])


def make_subset(
    source_dir: Path, output_dir: Path, copyright_file: Path, *, train_per_class: int, test_per_class: int, seed: int
) -> None:
    """Write the subset.

    Args:
        source_dir: Folder with the full data set as IDX files.
        output_dir: Folder to write to; made if missing.
        copyright_file: The Debian package's copyright file.
        train_per_class: Training images of each class.
        test_per_class: Test images of each class.
        seed: Decides which images and which order.
    """
    licence = licence_text(copyright_file)
    files: dict[str, bytes] = {"LICENSE": licence.encode()}
    counts = {"train": train_per_class, "test": test_per_class}
    for split, per_class in counts.items():
        data = load_idx(source_dir, split)
        generator = torch.Generator().manual_seed(seed)
        indices = select_balanced(data.labels, per_class, data.num_classes, generator)
        stem = FILE_STEMS[split]
        files[f"{stem}-images-idx3-ubyte.gz"] = encode_idx(data.images[indices, 0])
        files[f"{stem}-labels-idx1-ubyte.gz"] = encode_idx(data.labels[indices].to(torch.uint8))
    files["README.md"] = readme_text(counts, seed).encode()
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (output_dir / name).write_bytes(content)
        print(f"{output_dir / name}: {len(content):,} bytes")


def readme_text(counts: dict[str, int], seed: int) -> str:
    """Describe the subset in a few lines of Markdown."""
    train, test = counts["train"], counts["test"]
    return f"""# Fashion-MNIST, balanced subset

{train * 10:,} training and {test * 10:,} test images of Fashion-MNIST (Zalando SE, MIT licence, see LICENSE): 28x28
pixels, grey, 10 classes, {train:,} and {test:,} images of each. Training images come from the original training set,
test images from the original test set. Gzipped IDX files, as the original.

Made by `python scripts/make_fashion_mnist_subset.py --seed {seed}` from the Debian package dataset-fashion-mnist.
Source: https://github.com/zalandoresearch/fashion-mnist, described in Xiao, Rasul and Vollgraf,
"Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", arXiv 1708.07747.
"""


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and write the subset."""
    parser = argparse.ArgumentParser(description="Make the Fashion-MNIST subset that the package carries.")
    parser.add_argument("--source-dir", type=Path, default=DEFAULT_SOURCE, help="folder with the full IDX files")
    parser.add_argument("--output-dir", type=Path, default=DEFAULT_OUTPUT, help="folder to write to")
    parser.add_argument("--copyright-file", type=Path, default=DEFAULT_COPYRIGHT, help="Debian copyright file")
    parser.add_argument("--train-per-class", type=int, default=1000)
    parser.add_argument("--test-per-class", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        make_subset(
            options.source_dir,
            options.output_dir,
            options.copyright_file,
            train_per_class=options.train_per_class,
            test_per_class=options.test_per_class,
            seed=options.seed,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
