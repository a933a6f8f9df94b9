"""A folder of images, one sub-folder per class."""

from __future__ import annotations

import sys

import pytest
import torch

from dwsep.training.data import load_image_folder

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def draw(path, colour=(10, 20, 30), size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def flat(tmp_path):
    root = tmp_path / "pets"
    for index in range(10):
        draw(root / "dog" / f"{index}.png", (index, 0, 0))
        draw(root / "cat" / f"{index}.jpg" if index % 2 else root / "cat" / f"{index}.bmp", (0, 0, 200 + index))
    (root / ".cache").mkdir()
    (root / "notes.txt").write_text("not an image")
    return root


def test_load_image_folder_divides_every_class(flat):
    train, test = (load_image_folder(flat, split, image_size=8) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog")
    assert torch.bincount(train.labels).tolist() == [8, 8]
    assert torch.bincount(test.labels).tolist() == [2, 2]
    reds = [d.images[d.labels == 1, 0, 0, 0].tolist() for d in (train, test)]
    assert sorted(reds[0] + reds[1]) == list(range(10))


def test_load_image_folder_divides_by_seed(flat):
    def reds(seed):
        return load_image_folder(flat, "test", image_size=8, seed=seed, test_fraction=0.5).images[5:, 0, 0, 0].tolist()

    assert reds(1) == reds(1)
    assert len({tuple(reds(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_load_image_folder_takes_splits_that_are_there(tmp_path, test_name):
    draw(tmp_path / "train" / "a" / "x.png", (1, 1, 1))
    draw(tmp_path / test_name / "a" / "y.png", (2, 2, 2))
    assert load_image_folder(tmp_path, "train", image_size=8).images.unique().tolist() == [1]
    assert load_image_folder(tmp_path, "test", image_size=8).images.unique().tolist() == [2]


def test_load_image_folder_keeps_colours_and_channels_in_order(tmp_path):
    for name in ("x", "y"):
        draw(tmp_path / "a" / f"{name}.png", (10, 20, 30))
    colour = load_image_folder(tmp_path, "train", image_size=8).images
    assert colour.shape == (1, 3, 8, 8)
    assert [int(channel.unique()) for channel in colour[0]] == [10, 20, 30]
    grey = load_image_folder(tmp_path, "train", image_size=(4, 6), in_channels=1).images
    assert grey.shape == (1, 1, 4, 6)
    assert int(grey.unique()) == round(0.299 * 10 + 0.587 * 20 + 0.114 * 30)


def test_load_image_folder_covers_and_crops_at_the_centre(tmp_path):
    for name in ("x", "y"):
        picture = Image.new("L", (30, 10), 0)
        picture.paste(255, (10, 0, 20, 10))
        (tmp_path / "a").mkdir(exist_ok=True)
        picture.save(tmp_path / "a" / f"{name}.png")
    images = load_image_folder(tmp_path, "train", image_size=10, in_channels=1).images
    assert images.eq(255).all()


def test_load_image_folder_turns_photographs_upright(tmp_path):
    picture = Image.new("L", (8, 8), 0)
    picture.paste(255, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (tmp_path / "a").mkdir()
    for name in ("x", "y"):
        picture.save(tmp_path / "a" / f"{name}.png", exif=exif)
    image = load_image_folder(tmp_path, "train", image_size=8, in_channels=1).images[0, 0]
    assert image[:4].eq(0).all()
    assert image[4:].eq(255).all()


def test_load_image_folder_reports_progress(flat):
    calls = []
    load_image_folder(flat, "test", image_size=8, on_progress=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_load_image_folder_names_a_corrupt_image(flat, content):
    victim = flat / "dog" / "3.png"
    victim.write_bytes(victim.read_bytes()[:50] if content is None else content)
    with pytest.raises(ValueError, match=r"cannot read image .*3\.png"):
        for split in ("train", "test"):
            load_image_folder(flat, split, image_size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "all"}, "split: unknown name 'all'; valid names are 'train', 'test'"),
        ({"in_channels": 4}, "in_channels must be 1 or 3, got 4"),
        ({"test_fraction": 0}, "test_fraction must be between 0 and 1, got 0"),
        ({"test_fraction": float("nan")}, "test_fraction must be between 0 and 1, got nan"),
        ({"image_size": 0}, "image_size must be .* got 0"),
        ({"image_size": (8, 8, 8)}, "image_size must be .* got"),
    ],
)
def test_load_image_folder_refuses(flat, options, message):
    with pytest.raises(ValueError, match=message):
        load_image_folder(flat, **{"split": "train", "image_size": 8, **options})


def test_load_image_folder_refuses_empty_and_uneven_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_image_folder(tmp_path / "nowhere", "train", image_size=8)
    with pytest.raises(ValueError, match="is empty: it needs one sub-folder of images per class"):
        load_image_folder(tmp_path, "train", image_size=8)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*a has no images; known suffixes: \.png"):
        load_image_folder(tmp_path, "train", image_size=8)
    draw(tmp_path / "a" / "x.png")
    with pytest.raises(ValueError, match="has one image; a class needs at least two"):
        load_image_folder(tmp_path, "train", image_size=8)


def test_load_image_folder_refuses_splits_that_do_not_match(tmp_path):
    draw(tmp_path / "train" / "a" / "x.png")
    with pytest.raises(FileNotFoundError, match="no sub-folder for the test split, named test or val"):
        load_image_folder(tmp_path, "train", image_size=8)
    draw(tmp_path / "test" / "b" / "x.png")
    with pytest.raises(ValueError, match=r"test has the classes b but .*train has a"):
        load_image_folder(tmp_path, "test", image_size=8)


def test_load_image_folder_names_the_extra_without_pillow(flat, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "dwsep\[train\]"'):
        load_image_folder(flat, "train", image_size=8)
