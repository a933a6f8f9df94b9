"""Folders of images and masks: layouts, classes, colours, and what is wrong with them."""

from __future__ import annotations

import pytest
import torch

from dwsep.training.data.masks import SegmentationDataset, load_mask_folder, read_classes

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
SIZE = (12, 8)  # width, height, as Pillow has them


def write(path, pixels, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels.numpy())
    if palette is not None:
        picture.putpalette([value for colour in palette for value in colour])
    picture.save(path)


def make(root, split="train", count=3, *, layout=("{}/images", "{}/masks"), high=2, size=SIZE):
    generator = torch.Generator().manual_seed(len(split))
    masks = []
    for index in range(count):
        mask = torch.randint(0, high + 1, (size[1], size[0]), generator=generator, dtype=torch.uint8)
        mask[0, 0] = high
        picture = (mask * 80)[..., None].repeat(1, 1, 3)
        write(root / layout[0].format(split) / f"{index}.png", picture)
        write(root / layout[1].format(split) / f"{index}.png", mask)
        masks.append(mask)
    return torch.stack(masks)


@pytest.mark.parametrize("layout", [("{}/images", "{}/masks"), ("{}", "{}annot")])
def test_a_folder_gives_its_images_and_masks(tmp_path, layout):
    masks = make(tmp_path, layout=layout)
    make(tmp_path, "val", 1, layout=layout)
    data = load_mask_folder(tmp_path, "train")
    assert torch.equal(data.masks, masks)
    assert torch.equal(data.images[:, 0], masks * 80)
    assert data.class_names == ("0", "1", "2")
    assert load_mask_folder(tmp_path, "test").class_names == ("0", "1", "2")  # val stands in for it
    assert load_mask_folder(tmp_path, "train", in_channels=1).images.shape == (3, 1, 8, 12)


def test_what_is_left_out_is_no_class(tmp_path):
    make(tmp_path, high=11)
    data = load_mask_folder(tmp_path, "train", ignore_index=11)
    assert data.num_classes <= 11
    assert sum(data.class_counts()) == int((data.masks != 11).sum())


def test_images_and_masks_are_brought_to_one_size_alike(tmp_path):
    make(tmp_path, size=(24, 16))
    data = load_mask_folder(tmp_path, "train", image_size=(8, 12))
    assert data.images.shape == (3, 3, 8, 12)
    # Pixels in whose neighbourhood nothing changes keep the relation of colour and class.
    assert int(data.masks.max()) <= 2


def test_colours_are_classes(tmp_path):
    (tmp_path / "classes.txt").write_text("# name and colour\nroad 128 64 128\nsky, 70 130 180\n")
    pixels = torch.tensor([[[128, 64, 128], [70, 130, 180]], [[70, 130, 180], [0, 0, 0]]], dtype=torch.uint8)
    write(tmp_path / "train/images/a.png", pixels)
    write(tmp_path / "train/masks/a.png", pixels)
    data = load_mask_folder(tmp_path, "train")
    assert data.class_names == ("road", "sky")
    assert data.masks[0].tolist() == [[0, 1], [1, 255]]
    assert data.palette == ((128, 64, 128), (70, 130, 180))


@pytest.mark.parametrize("ordered", [True, False])
def test_a_palette_mask_goes_by_its_indices_unless_its_colours_are_the_classes(tmp_path, ordered):
    colours = [(128, 64, 128), (70, 130, 180)]
    (tmp_path / "classes.txt").write_text("".join(f"c{i} {' '.join(map(str, c))}\n" for i, c in enumerate(colours)))
    write(tmp_path / "train/images/a.png", torch.zeros(1, 2, 3, dtype=torch.uint8))
    indices = torch.tensor([[0, 1]], dtype=torch.uint8)
    write(tmp_path / "train/masks/a.png", indices, colours if ordered else colours[::-1])
    assert load_mask_folder(tmp_path, "train").masks[0].tolist() == ([[0, 1]] if ordered else [[1, 0]])


def test_masks_of_two_values_are_two_classes(tmp_path):
    write(tmp_path / "train/images/a.png", torch.zeros(1, 2, 3, dtype=torch.uint8))
    path = tmp_path / "train/masks/a.png"
    path.parent.mkdir(parents=True)
    two = Image.fromarray(torch.tensor([[0, 255]], dtype=torch.uint8).numpy())
    two.convert("1").save(path)
    assert load_mask_folder(tmp_path, "train").masks[0].tolist() == [[0, 1]]
    two.save(path)
    with pytest.raises(ValueError, match="have class 0 alone, beside 255, which is left out"):
        load_mask_folder(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("ground 0 0 0\nobject 255 255 255\n")
    assert load_mask_folder(tmp_path, "train").masks[0].tolist() == [[0, 1]]
    (tmp_path / "classes.txt").write_text("sea 20 60 160\nland 60 140 40\n")  # numbers, whatever the colours
    write(path, torch.tensor([[0, 0]], dtype=torch.uint8))
    assert load_mask_folder(tmp_path, "train").masks[0].tolist() == [[0, 0]]


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_mask_folder(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match="split: unknown name 'dev'"):
        load_mask_folder(tmp_path, "dev")
    with pytest.raises(FileNotFoundError, match="has no train or training with sub-folders images and masks"):
        load_mask_folder(tmp_path, "train")
    make(tmp_path)
    with pytest.raises(ValueError, match="on_bad_file: unknown name 'ask'"):
        load_mask_folder(tmp_path, "train", on_bad_file="ask")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"masks/0\.png has the class 2; known are 0 to 1, and ignore_index=255"):
        load_mask_folder(tmp_path, "train")
    (tmp_path / "classes.txt").unlink()
    write(tmp_path / "train/masks/1.png", torch.zeros(4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"masks/1\.png is 4 x 4 pixels .*images/1\.png 8 x 12"):
        load_mask_folder(tmp_path, "train")
    write(tmp_path / "train/masks/1.png", torch.zeros(8, 12, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"masks/1\.png holds colours \(mode RGB\); classes\.txt must say"):
        load_mask_folder(tmp_path, "train")
    (tmp_path / "train/masks/1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images have no mask: .*images/1\.png needs"):
        load_mask_folder(tmp_path, "train")


def test_an_unknown_colour_is_named(tmp_path):
    (tmp_path / "classes.txt").write_text("road 128 64 128\n")
    write(tmp_path / "train/images/a.png", torch.zeros(1, 2, 3, dtype=torch.uint8))
    write(tmp_path / "train/masks/a.png", torch.tensor([[[128, 64, 128], [1, 2, 3]]], dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"a\.png has the colour \(1, 2, 3\) at row 0, column 1"):
        load_mask_folder(tmp_path, "train")


def test_a_corrupt_image_stops_or_is_skipped(tmp_path):
    masks = make(tmp_path)
    path = tmp_path / "train/images/1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cannot read image .*images/1\.png"):
        load_mask_folder(tmp_path, "train")
    with pytest.warns(UserWarning, match=r"1 of 3 images were left out: cannot read image .*1\.png"):
        data = load_mask_folder(tmp_path, "train", on_bad_file="skip")
    assert torch.equal(data.masks, masks[[0, 2]])


def test_several_sizes_need_a_size(tmp_path):
    make(tmp_path)
    for name in ("images", "masks"):
        pixels = torch.zeros((5, 5, 3) if name == "images" else (5, 5), dtype=torch.uint8)
        write(tmp_path / f"train/{name}/9.png", pixels)
    with pytest.raises(ValueError, match=r"several sizes, \[\(5, 5\), \(8, 12\)\]: give image_size"):
        load_mask_folder(tmp_path, "train")
    assert len(load_mask_folder(tmp_path, "train", image_size=4)) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n#x\n", "is empty"),
        ("a 1 2 3\nb\n", "1 of 2 classes have a colour"),
        ("a 1 2 300\n", r"line 1: a colour has values from 0 to 255, got \(1, 2, 300\)"),
    ],
)
def test_read_classes_refuses(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / "classes.txt")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, TypeError, "images must be uint8, got torch.float32"),
        ({"masks": torch.zeros(2, 4, 5, dtype=torch.uint8)}, ValueError, r"need masks of shape \(N, H, W\), got"),
        ({"class_names": ("a",)}, ValueError, r"class 1 at row 0, column 0 of mask 0 is outside \[0, 1\), and not 255"),
    ],
)
def test_segmentation_dataset_refuses(changes, error, message):
    values = {
        "images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        "masks": torch.ones(2, 4, 4, dtype=torch.uint8),
        "class_names": ("a", "b"),
        "name": "toy",
    }
    with pytest.raises(error, match=message):
        SegmentationDataset(**{**values, **changes})
