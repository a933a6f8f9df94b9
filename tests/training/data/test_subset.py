"""The subset that the package carries is what it says, and the script that made it makes it again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from dwsep.training.data import encode_idx, load_fashion_mnist_subset, load_idx
from dwsep.training.data.idx import DEBIAN_FOLDER

ROOT = Path(__file__).resolve().parents[3]
ASSETS = ROOT / "src" / "dwsep" / "training" / "assets" / "fashion_mnist"
COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2017, An Owner
License: Expat

License: Expat
 Permission is granted.
 .
 No warranty.
"""


@pytest.fixture(scope="module")
def script():
    path = ROOT / "scripts" / "make_fashion_mnist_subset.py"
    spec = importlib.util.spec_from_file_location("make_fashion_mnist_subset", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path):
    """Eight images of each of ten classes in either split; every image is different."""
    folder = tmp_path / "source"
    folder.mkdir()
    for first, stem in ((0, "train"), (80, "t10k")):
        numbers = torch.arange(first, first + 80, dtype=torch.uint8)
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(encode_idx(numbers.reshape(-1, 1, 1).expand(-1, 4, 4)))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(encode_idx(numbers % 10))
    (folder / "copyright").write_text(COPYRIGHT, encoding="utf-8")
    return folder


def run(script, source, output, *more):
    copyright_file = source / "copyright"
    where = ["--source-dir", source, "--output-dir", output, "--copyright-file", copyright_file]
    return script.main([str(word) for word in [*where, "--train-per-class", 5, "--test-per-class", 2, *more]])


@pytest.mark.parametrize(("split", "per_class"), [("train", 1000), ("test", 200)])
def test_subset_is_balanced_and_shuffled(split, per_class):
    data = load_fashion_mnist_subset(split)
    assert data.images.shape == (10 * per_class, 1, 28, 28)
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert torch.bincount(data.labels).tolist() == [per_class] * 10
    # In random order, neighbours share a class one time in ten.
    assert (data.labels[1:] == data.labels[:-1]).float().mean() < 0.15
    assert data.images.float().mean() > 40  # real images, not zeros


def test_subset_is_small_and_has_its_licence():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 6e6
    licence = (ASSETS / "LICENSE").read_text(encoding="utf-8")
    assert "Zalando SE" in licence
    assert "Permission is hereby granted, free of charge" in licence


def test_subset_comes_from_the_original_splits():
    if not DEBIAN_FOLDER.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    for split in ("train", "test"):
        whole = {image.tobytes() for image in load_idx(DEBIAN_FOLDER, split).images.numpy()}
        assert all(image.tobytes() in whole for image in load_fashion_mnist_subset(split).images.numpy())


def test_script_takes_whole_images_of_every_class(script, source, tmp_path):
    assert run(script, source, tmp_path / "out") == 0
    for split, per_class, first in (("train", 5, 0), ("test", 2, 80)):
        data = load_idx(tmp_path / "out", split)
        numbers = data.images[:, 0, 0, 0].long()
        assert torch.bincount(data.labels).tolist() == [per_class] * 10
        assert torch.equal(numbers % 10, data.labels)
        assert len(numbers.unique()) == len(numbers)
        assert int(numbers.min()) >= first
        assert data.labels.tolist() != sorted(data.labels.tolist())
    assert (tmp_path / "out" / "LICENSE").read_text(encoding="utf-8") == (
        "MIT License (Expat)\n\nCopyright (c) 2017, An Owner\n\nPermission is granted.\n\nNo warranty.\n"
    )


def test_script_writes_the_same_bytes_for_the_same_seed(script, source, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(script, source, tmp_path / name, "--seed", seed) == 0
    content = {name: (tmp_path / name / "train-images-idx3-ubyte.gz").read_bytes() for name in "abc"}
    assert content["a"] == content["b"] != content["c"]


def test_script_says_what_is_wrong(script, source, tmp_path, capsys):
    assert run(script, source, tmp_path / "out", "--train-per-class", 9) == 2
    assert "class 0 has 8 images, 9 are needed" in capsys.readouterr().err
    assert run(script, tmp_path / "nowhere", tmp_path / "out") == 2
    assert "nowhere" in capsys.readouterr().err
    (source / "copyright").write_text("Files: *\nCopyright: 2017, An Owner\nLicense: other\n", encoding="utf-8")
    assert run(script, source, tmp_path / "out") == 2
    assert "no paragraph 'Files: *' under 'License: Expat'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
