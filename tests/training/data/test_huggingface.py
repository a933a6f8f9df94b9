"""Data sets of Hugging Face's library, made in memory and saved to a folder: no network is asked."""

from __future__ import annotations

import io
import json

import pytest
import torch
from typer.testing import CliRunner

from dwsep.cli.main import app
from dwsep.networks._weights import read_model
from dwsep.training.data import load_hub_images, load_text
from dwsep.training.data.huggingface import column_of, is_hub, open_split
from dwsep.training.loop import MODEL_FILE

datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'dwsep[datasets]'")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.fixture(autouse=True)
def _no_bars():
    datasets.disable_progress_bars()
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def texts(count, labels=("neg", "pos")):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(labels))})
    values = {"text": ["so bad and dull", "so good and fine"] * (count // 2), "label": [0, 1] * (count // 2)}
    return datasets.Dataset.from_dict(values, features=features)


def pictures(count, spoilt=None):
    rows = []
    for index in range(count):
        content = io.BytesIO()
        Image.new("L", (16, 12), 20 + index + 150 * (index % 2)).save(content, "PNG")
        rows.append({"bytes": b"no image" if index == spoilt else content.getvalue(), "path": None})
    features = datasets.Features(
        {"kind": datasets.ClassLabel(names=["light", "dark"]), "picture": datasets.Image(decode=False)}
    )
    data = datasets.Dataset.from_dict({"kind": [1 - index % 2 for index in range(count)], "picture": rows}, features)
    return data.cast_column("picture", datasets.Image())


def saved(path, **splits):
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return f"hf:{path}"


def test_a_split_is_opened_and_another_stands_in_for_test(tmp_path):
    source = saved(tmp_path / "a", train=texts(6), validation=texts(2))
    assert is_hub(source)
    assert not is_hub(tmp_path)
    assert len(open_split(source, "train")) == 6
    assert len(open_split(source, "test")) == 2
    texts(4).save_to_disk(str(tmp_path / "b"))
    assert len(open_split(f"hf:{tmp_path / 'b'}", "train")) == 4
    assert open_split(f"hf:{tmp_path / 'b'}", "test") is None
    with pytest.raises(ValueError, match="has the splits other; none of them is train"):
        open_split(saved(tmp_path / "c", other=texts(2)), "train")
    with pytest.raises(ValueError, match="split: unknown name 'dev'"):
        open_split(source, "dev")


def test_columns_give_names_and_what_is_wrong_is_named():
    data = texts(4)
    assert column_of(data, "label", "hf:x") == ["neg", "pos", "neg", "pos"]
    with pytest.raises(ValueError, match="hf:x: no column 'sentence', the columns are 'text', 'label'"):
        column_of(data, "sentence", "hf:x")
    unlabelled = data.map(lambda row, index: {"label": -1 if index == 2 else row["label"]}, with_indices=True)
    with pytest.raises(ValueError, match="hf:x: row 2 has no label, got -1"):
        column_of(unlabelled, "label", "hf:x")


@pytest.mark.parametrize("with_test", [True, False])
def test_texts_have_the_splits_of_the_data_set_or_a_division(tmp_path, with_test):
    splits = {"train": texts(20), **({"test": texts(6)} if with_test else {})}
    source = saved(tmp_path / "a", **splits)
    train, test = (load_text(source, split, min_count=1) for split in ("train", "test"))
    assert (len(train), len(test)) == ((20, 6) if with_test else (16, 4))
    assert train.class_names == ("neg", "pos")
    assert test.vocabulary == train.vocabulary
    with pytest.raises(ValueError, match="unknown label 'other'; the classes are 'neg', 'pos'"):
        load_text(saved(tmp_path / "b", train=texts(8), test=texts(2, ("neg", "other"))), "test")


@pytest.mark.parametrize("with_test", [True, False])
def test_images_have_the_classes_in_their_order(tmp_path, with_test):
    splits = {"train": pictures(20), **({"test": pictures(6)} if with_test else {})}
    options = {"image_size": (8, 10), "in_channels": 1, "label_column": "kind"}
    source = saved(tmp_path / "a", **splits)
    train, test = (load_hub_images(source, split, **options) for split in ("train", "test"))
    assert (len(train), len(test)) == ((20, 6) if with_test else (16, 4))
    assert train.class_names == ("light", "dark")
    assert train.images.shape[1:] == (1, 8, 10)
    assert torch.equal(train.images[:, 0, 0, 0] > 100, train.labels == 0)


def test_an_image_that_cannot_be_read_stops_or_is_skipped(tmp_path):
    source = saved(tmp_path / "a", train=pictures(6, spoilt=3), test=pictures(2))
    options = {"image_size": 8, "label_column": "kind"}
    with pytest.raises(ValueError, match=r"cannot read image hf:.* row 3: "):
        load_hub_images(source, "train", **options)
    with pytest.warns(UserWarning, match="1 of 6 images were left out: cannot read image hf:"):
        data = load_hub_images(source, "train", on_bad_file="skip", **options)
    assert data.labels.tolist() == [1, 0, 1, 1, 0]
    with pytest.raises(ValueError, match="no column holds images; the columns are 'text', 'label'"):
        load_hub_images(saved(tmp_path / "b", train=texts(4)), "train", image_size=8)


@pytest.mark.parametrize("task", ["text", "classify"])
def test_train_and_evaluate_take_them_by_their_prefix(task, tmp_path):
    make = texts if task == "text" else pictures
    source = saved(tmp_path / "data", train=make(16), test=make(6))
    own = [] if task == "text" else ["--image-size", "12", "--grey", "--label-column", "kind"]
    options = ["--epochs", "1", "--warmup-epochs", "0", "--batch-size", "8", "--width-multiplier", "0.125"]
    where = ["--output-dir", str(tmp_path / "run"), "--threads", "1"]
    finished = CliRunner().invoke(app, ["train", task, "--data", source, *own, *options, *where])
    assert finished.exit_code == 0, finished.output
    _, info = read_model(tmp_path / "run" / MODEL_FILE)
    assert info.class_names == (("neg", "pos") if task == "text" else ("light", "dark"))
    checked = ["evaluate", "--checkpoint", str(tmp_path / "run" / MODEL_FILE), "--data", source, *own[3:], "--json"]
    shown = CliRunner().invoke(app, checked)
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["images"] == 6
