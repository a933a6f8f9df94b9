"""The script that made the subset inside the package makes it again, byte for byte."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import pytest
import torch

import dwsep
from dwsep.training.data import encode_idx, load_idx

REPOSITORY = Path(__file__).parents[2]
ASSETS = Path(dwsep.__file__).parent / "training" / "assets" / "fashion_mnist"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2017 Somebody <somebody@example.org>
License: Expat

License: Expat
 Permission is granted.
 .
 Without warranty.
"""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "make_fashion_mnist_subset", REPOSITORY / "scripts" / "make_fashion_mnist_subset.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path):
    """Eight training and four test images of each class; an image's pixels tell which one it is."""
    folder = tmp_path / "full"
    folder.mkdir()
    for prefix, per_class in (("train", 8), ("t10k", 4)):
        labels = torch.arange(10 * per_class) % 10
        images = torch.arange(10 * per_class, dtype=torch.uint8)[:, None, None].expand(-1, 3, 2)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(encode_idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(gzip.decompress(encode_idx(labels.to(torch.uint8))))
    (folder / "copyright").write_text(COPYRIGHT)
    return folder


def arguments(source, output, **options):
    values = {"train-per-class": 3, "test-per-class": 2, "copyright-file": source / "copyright", **options}
    extra = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    return ["--source-dir", str(source), "--output-dir", str(output), *extra]


def test_main_writes_a_balanced_subset(script, source, tmp_path):
    output = tmp_path / "subset"
    assert script.main(arguments(source, output)) == 0
    for split, per_class in (("train", 3), ("test", 2)):
        data = load_idx(output, split)
        assert torch.bincount(data.labels).tolist() == [per_class] * 10
        which = data.images[:, 0, 0, 0].long()
        assert torch.equal(which % 10, data.labels)  # labels stay with their images
        assert len(which.unique()) == len(which)
        assert which.tolist() != sorted(which.tolist())
    assert (output / "LICENSE").read_text() == (
        "MIT License (Expat)\n\nCopyright (c) 2017 Somebody <somebody@example.org>\n\n"
        "Permission is granted.\n\nWithout warranty.\n"
    )
    assert "30 training and 20 test images" in (output / "README.md").read_text()


def test_main_gives_the_same_bytes_for_the_same_seed(script, source, tmp_path):
    def files(name, seed):
        assert script.main(arguments(source, tmp_path / name, seed=seed)) == 0
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    assert files("a", 4) == files("b", 4)
    assert files("a", 4) != files("c", 5)


def test_main_says_what_is_wrong_and_writes_nothing(script, source, tmp_path, capsys):
    output = tmp_path / "subset"
    assert script.main(arguments(source, output, **{"train-per-class": 9})) == 2
    assert capsys.readouterr().err == "error: class 0 has 8 images, 9 are needed\n"
    assert script.main(arguments(tmp_path / "nowhere", output, **{"copyright-file": source / "copyright"})) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    (source / "copyright").write_text("Files: *\nLicense: GPL\n")
    assert script.main(arguments(source, output)) == 2
    assert "no paragraph 'Files: *' under 'License: Expat'" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_main_makes_the_files_in_the_package(script, tmp_path):
    assert script.main(["--output-dir", str(tmp_path)]) == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_bytes() for path in ASSETS.iterdir()}
    assert made.keys() == kept.keys()
    for name, content in made.items():
        same = (
            gzip.decompress(content) == gzip.decompress(kept[name]) if name.endswith(".gz") else content == kept[name]
        )
        assert same, name
