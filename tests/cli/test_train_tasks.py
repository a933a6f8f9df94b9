"""``dwsep train segment|text|series``, ``evaluate`` and ``predict`` from the command line, on data made here."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from typer.testing import CliRunner

from dwsep.cli.main import app
from dwsep.networks._weights import read_model
from dwsep.training.log import read_log
from dwsep.training.loop import LOG_FILE, MODEL_FILE
from tests.cli.toys import invoke, write_series

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A CamVid-like folder, a table of texts, a pair of .ts files, a folder of pictures."""
    root = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        for folder in ("images", "masks"):
            (root / "road" / split / folder).mkdir(parents=True)
        for index in range(count):
            mask = torch.randint(0, 3, (4, 4), generator=generator).repeat_interleave(8, 0).repeat_interleave(8, 1)
            mask[0] = 11
            picture = (mask * 20 + 10).to(torch.uint8)[..., None].repeat(1, 1, 3)
            Image.fromarray(picture.numpy()).save(root / "road" / split / "images" / f"{index}.png")
            Image.fromarray(mask.to(torch.uint8).numpy()).save(root / "road" / split / "masks" / f"{index}.png")
    (root / "road" / "classes.txt").write_text("".join(f"class{i}\n" for i in range(11)))
    texts = [("so good and fine", "pos"), ("so bad and dull", "neg")] * 20
    (root / "texts.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in texts))
    write_series(root)
    for name, colour in (("dark", 20), ("light", 200)):
        (root / "pictures" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("L", (12, 12), colour + index).save(root / "pictures" / name / f"{index}.png")
    return root


TASKS = {
    "classify": ["pictures", "--image-size", 12, "--grey", "--batch-size", 4, "--width-multiplier", 0.125],
    "segment": ["road", "--batch-size", 4, "--width-multiplier", 0.125, "--ignore-index", 11],
    "text": ["texts.csv", "--batch-size", 8, "--width-multiplier", 0.125],
    "series": ["Toy_TRAIN.ts", "--batch-size", 8, "--width-multiplier", 0.125],
}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of every task, made when it is first asked for."""
    made = {}

    def of(task):
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            where, *options = TASKS[task]
            finished = invoke(
                *["train", task, "--data", data / where, *options, "--epochs", 4, "--warmup-epochs", 0.5],
                *["--no-augment", "--threads", 1, "--lr", 0.01, "--output-dir", folder],
            )
            assert finished.exit_code == 0, finished.stderr
            made[task] = folder, finished
        return made[task]

    return of


def last_epoch(folder):
    return [record for record in read_log(folder / LOG_FILE) if record["type"] == "epoch"][-1]


@pytest.mark.parametrize("task", TASKS)
def test_train_trains_every_task(trained, task):
    folder, finished = trained(task)
    record = last_epoch(folder)
    iou = f"test mIoU {100 * record['metrics']['mean_iou']:.2f} %, " if task == "segment" else ""
    assert finished.stdout.endswith(
        f": {iou}test accuracy {100 * record['test_accuracy']:.2f} % after 4 epochs, {folder / MODEL_FILE}\n"
    )
    unit = {"text": "texts", "series": "series"}.get(task, "images")
    assert f"{unit}/s" in finished.stderr
    header = read_log(folder / LOG_FILE)[0]
    read = rf"^\w+ train: {header['train_images']} {unit}, \w+ \w+: {header['test_images']}, (2|11) classes: \w+, \w+"
    assert re.search(read, finished.stderr, re.MULTILINE)
    _, info = read_model(folder / MODEL_FILE)
    assert info.task == task
    assert info.num_classes == (11 if task == "segment" else 2)
    again = ["train", *(() if task == "classify" else (task,)), "--resume", "--output-dir", folder]
    assert invoke(*again).stdout == finished.stdout


@pytest.mark.parametrize("task", TASKS)
def test_evaluate_gives_what_training_gave(trained, data, task):
    folder, _ = trained(task)
    where = ["folder", "--data-dir", data / TASKS[task][0]] if task == "classify" else [data / TASKS[task][0]]
    split = ["--split", "val"] if task == "segment" else []
    finished = invoke("evaluate", "--checkpoint", folder / MODEL_FILE, "--data", *where, *split, "--json")
    assert finished.exit_code == 0, finished.stderr
    result, record = json.loads(finished.stdout), last_epoch(folder)
    assert result["accuracy"] == pytest.approx(record["test_accuracy"])
    if task == "segment":
        assert result["mean_iou"] == pytest.approx(record["metrics"]["mean_iou"])
        shown = invoke("evaluate", "--checkpoint", folder / MODEL_FILE, "--data", *where)
        assert "mIoU" in shown.stdout
        assert "IoU %" in shown.stdout


def test_predict_labels_images_and_folders(trained, data):
    folder, _ = trained("classify")
    inputs = [data / "pictures" / "dark", data / "pictures" / "light" / "3.png"]
    finished = invoke("predict", "--checkpoint", folder / MODEL_FILE, *inputs)
    assert finished.exit_code == 0, finished.stderr
    lines = [line.split("\t") for line in finished.stdout.splitlines()]
    assert len(lines) == 11
    assert {label for label, _, _ in lines} <= {"dark", "light"}
    found = invoke("predict", "--checkpoint", folder / MODEL_FILE, *inputs, "--json", "--no-accelerate")
    entries = [json.loads(line) for line in found.stdout.splitlines()]
    assert [entry["label"] for entry in entries] == [label for label, _, _ in lines]
    assert sum(entries[0]["probabilities"].values()) == pytest.approx(1)


def test_predict_writes_masks_and_overlays(trained, data, tmp_path):
    folder, _ = trained("segment")
    Image.new("RGB", (50, 40), (30, 30, 30)).save(tmp_path / "other.png")
    inputs = [data / "road" / "test" / "images", tmp_path / "other.png"]
    out = tmp_path / "out"
    finished = invoke("predict", "--checkpoint", folder / MODEL_FILE, "--output-dir", out, *inputs, "--json")
    assert finished.exit_code == 0, finished.stderr
    entries = [json.loads(line) for line in finished.stdout.splitlines()]
    assert len(entries) == 4
    with Image.open(out / "other.png") as mask, Image.open(out / "other-overlay.png") as overlay:
        assert (mask.mode, mask.size) == ("P", (50, 40))
        assert (overlay.mode, overlay.size) == ("RGB", (50, 40))
        assert max(value for _, value in mask.getcolors()) < 11
    assert all(sum(entry["shares"].values()) == pytest.approx(1) for entry in entries)


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_predict_stops_at_a_bad_image_or_skips_it(task, trained, tmp_path):
    folder, _ = trained(task)
    for name in ("a", "c"):
        Image.new("RGB", (32, 32), (30, 30, 30)).save(tmp_path / f"{name}.png")
    bad = tmp_path / "b.png"
    bad.write_bytes((tmp_path / "a.png").read_bytes()[:60])
    options = ["--checkpoint", folder / MODEL_FILE, "--output-dir", tmp_path / "out", "--json", "--threads", 1]
    # The masks that this writes below the folder are no input of the next call.
    stopped = invoke("predict", *options, tmp_path)
    assert stopped.exit_code == 2
    assert f"error: cannot read image {bad}: " in stopped.stderr
    with pytest.warns(UserWarning, match=f"left out: cannot read image {bad}"):
        finished = invoke("predict", *options, "--on-bad-file", "skip", tmp_path)
    assert finished.exit_code == 0, finished.stderr
    found = [json.loads(line)["input"] for line in finished.stdout.splitlines()]
    assert found == [str(tmp_path / f"{name}.png") for name in ("a", "c")]
    refused = invoke("predict", *options, "--on-bad-file", "mend", tmp_path)
    assert "on_bad_file: unknown name 'mend'; valid names are 'stop', 'skip'" in refused.stderr


def test_predict_labels_texts(trained, data, tmp_path):
    folder, _ = trained("text")
    (tmp_path / "lines.txt").write_text("so good and fine\n\nso bad and dull\n")
    (tmp_path / "table.csv").write_text("text\nso good and fine\n")
    checkpoint = ["--checkpoint", folder / MODEL_FILE]
    finished = invoke("predict", *checkpoint, "so bad and dull", tmp_path / "lines.txt", tmp_path / "table.csv")
    assert finished.exit_code == 0, finished.stderr
    lines = [line.split("\t") for line in finished.stdout.splitlines()]
    assert [source for _, _, source in lines] == [
        "so bad and dull", "so good and fine", "so bad and dull", "so good and fine",
    ]  # fmt: skip
    assert lines[0][:2] == lines[2][:2]
    piped = CliRunner().invoke(app, ["predict", *map(str, checkpoint), "-"], input="so bad and dull\n")
    assert piped.stdout.splitlines() == finished.stdout.splitlines()[:1]


def test_predict_labels_series(trained, data):
    folder, _ = trained("series")
    finished = invoke("predict", "--checkpoint", folder / MODEL_FILE, data / "Toy_TEST.ts")
    assert finished.exit_code == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == 8
    assert f"{data / 'Toy_TEST.ts'}:7"[-57:] in finished.stdout or "..." in finished.stdout


def test_settings_come_from_yaml_and_flags_come_before_them(data, tmp_path):
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    path = tmp_path / "series.yaml"
    path.write_text(
        f"task: series\ndata: {data / 'Toy_TRAIN.ts'}\nepochs: 1\nwarmup_epochs: 0\nbatch_size: 8\n"
        "network_options:\n  dilations: [1, 2]\n  width_multiplier: 0.125\n"
    )
    folder = tmp_path / "run"
    finished = invoke("train", "series", "--config", path, "--epochs", 2, "--dropout", 0.2, "--output-dir", folder)
    assert finished.exit_code == 0, finished.stderr
    config = read_log(folder / LOG_FILE)[0]["config"]
    assert config["epochs"] == 2
    assert config["network_options"] == {"dilations": [1, 2], "width_multiplier": 0.125, "dropout": 0.2}
    refused = invoke("train", "text", "--config", path)
    assert "is for the task 'series': dwsep train series" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment"], "dwsep train segment needs --data"),
        (["text", "--data", "nowhere.csv"], "No such file or directory: nowhere.csv"),
        (["series", "--data", "nowhere.ts"], "data nowhere.ts does not exist"),
        (["segment", "--data", "nowhere"], "data folder nowhere does not exist"),
        (["segment", "--data", "x", "--image-size", "big"], "image_size must be pixels or HEIGHTxWIDTH, got 'big'"),
        (
            ["segment", "--data", "x", "--ignore-index", "300"],
            "ignore_index: Input should be less than or equal",
        ),
        (["text", "--data", "x.csv", "--network", "xception"], "network 'xception' is for the task 'classify'"),
        (["text", "--data", "x.csv", "--class-weights", "1;2"], "class_weights must be balanced or numbers"),
        (["text", "--config", "nowhere.yaml"], "No such file or directory: nowhere.yaml"),
        (["speech"], "task: unknown name 'speech'; valid names are 'classify', 'segment', 'text', 'series'"),
        (
            ["series", "--data", "x.ts", "--epochs", "2", "--warmup-epochs", "2"],
            "error: warmup_epochs must be less than epochs, got 2.0 and 2",
        ),
    ],
)
def test_train_says_in_one_line_what_is_wrong(arguments, message, tmp_path):
    finished = invoke("train", *arguments, "--output-dir", tmp_path / "run")
    assert finished.exit_code == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1


def spoil(root, what):
    """Break one file of the data; returns what is to be passed as --data, and what its error names."""
    if what == "corrupt image":
        path = root / "road" / "train" / "images" / "3.png"
        path.write_bytes(path.read_bytes()[:70])
        return "segment", "road", f"cannot read image {path}: "
    if what == "empty image":
        path = root / "road" / "train" / "images" / "3.png"
        path.write_bytes(b"")
        return "segment", "road", f"cannot read image {path}: the file is empty"
    if what == "corrupt mask":
        path = root / "road" / "val" / "masks" / "1.png"
        path.write_bytes(b"no image at all")
        return "segment", "road", f"cannot read image {path}: it is in no format that Pillow knows"
    if what == "mask of another size":
        path = root / "road" / "train" / "masks" / "2.png"
        Image.new("L", (16, 8)).save(path)
        image = root / "road" / "train" / "images" / "2.png"
        return "segment", "road", f"{path} is 8 x 16 pixels (height x width), its image {image} 32 x 32"
    if what == "unknown class":
        path = root / "road" / "train" / "masks" / "5.png"
        Image.new("L", (32, 32), 40).save(path)
        return "segment", "road", f"{path} has the class 40; known are 0 to 10, and ignore_index=11, which is left out"
    if what == "corrupt picture":
        path = root / "pictures" / "dark" / "4.png"
        path.write_bytes(b"")
        return "classify", "pictures", f"cannot read image {path}: "
    if what == "unknown label":
        (root / "Toy_TEST.ts").write_text("@data\n1,2,3:sideways\n")
        return "series", "Toy_TRAIN.ts", "Toy_TEST.ts: unknown label 'sideways'; the classes are 'down', 'up'"
    if what == "one class":
        (root / "texts.csv").write_text("text,label\n" + "so good,pos\n" * 20)
        return "text", "texts.csv", "texts train has one class, 'pos'; training needs two"
    name = {"empty table": "texts.csv", "empty series": "Toy_TRAIN.ts"}[what]
    (root / name).write_bytes(b"")
    return ("text" if name == "texts.csv" else "series"), name, f"{root / name} is empty: it has no "


SPOILT = ["corrupt image", "empty image", "corrupt mask", "mask of another size", "unknown class", "corrupt picture"]


@pytest.mark.parametrize("what", [*SPOILT, "unknown label", "one class", "empty table", "empty series"])
def test_a_bad_file_is_named_in_one_line(what, data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    task, name, message = spoil(root, what)
    options = ["--data", root / name, *TASKS[task][1:], "--output-dir", tmp_path / "run"]
    finished = invoke("train", task, *options, "--epochs", 1, "--warmup-epochs", 0)
    assert finished.exit_code == 2, finished.output
    assert finished.stderr.startswith("error: ")
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["mask of another size", "corrupt picture"])
def test_a_bad_file_is_skipped_where_asked(what, data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    task, name, message = spoil(root, what)
    options = ["--data", root / name, *TASKS[task][1:], "--output-dir", tmp_path / "run", "--on-bad-file", "skip"]
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        finished = invoke("train", task, *options, "--epochs", 1, "--warmup-epochs", 0, "--threads", 1)
    assert finished.exit_code == 0, finished.output
    assert re.match(r"1 of \d+ images were left out: ", str(caught[0].message))
    header = read_log(tmp_path / "run" / LOG_FILE)[0]
    assert header["train_images"] + header["test_images"] == (11 if task == "segment" else 20) - 1


@pytest.mark.parametrize("named", [True, False])
def test_camvids_layout_works_as_it_is(named, data, tmp_path):
    """train and trainannot beside each other, masks of indices, 11 for what is left out, with or without names."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for folder in (split, f"{split}annot"):
            (tmp_path / "CamVid" / folder).mkdir(parents=True)
        for index in range(count):
            mask = torch.randint(0, 12, (3, 4), generator=generator).to(torch.uint8)
            mask[0] = torch.tensor([0, 10, 11, 5])
            mask = mask.repeat_interleave(8, 0).repeat_interleave(8, 1)
            Image.fromarray(mask.numpy()).save(tmp_path / "CamVid" / f"{split}annot" / f"{index}.png")
            picture = (mask * 20)[..., None].repeat(1, 1, 3)
            Image.fromarray(picture.numpy()).save(tmp_path / "CamVid" / split / f"{index}.png")
    if named:
        (tmp_path / "CamVid" / "classes.txt").write_text("".join(f"class{i}\n" for i in range(11)))
    folder = tmp_path / "run"
    options = ["--ignore-index", 11, "--batch-size", 2, "--width-multiplier", 0.125, "--epochs", 1]
    where = ["--data", tmp_path / "CamVid", "--output-dir", folder]
    finished = invoke("train", "segment", *where, *options, "--warmup-epochs", 0, "--threads", 1)
    assert finished.exit_code == 0, finished.output
    _, info = read_model(folder / MODEL_FILE)
    assert info.num_classes == 11
    assert info.class_names[10] == ("class10" if named else "10")
    assert set(last_epoch(folder)["metrics"]["class_iou"]) == set(info.class_names)
    for split in ("val", "test"):
        shown = invoke("evaluate", "--checkpoint", folder / MODEL_FILE, *where[:2], "--split", split, "--json")
        counted = json.loads(shown.stdout)["confusion"]
        assert 0 < sum(map(sum, counted)) < 2 * 24 * 32  # pixels of class 11 count nowhere


def test_predict_says_in_one_line_what_is_wrong(trained, tmp_path):
    text, _ = trained("text")
    series, _ = trained("series")
    (tmp_path / "a.ts").write_text("@data\n1,2:3,4:x\n")
    (tmp_path / "a.txt").write_text("\n")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9\n")
    for arguments, message in (
        (["--checkpoint", text / MODEL_FILE], "predict needs at least one input"),
        (["--checkpoint", tmp_path / "no.safetensors", "x"], "does not exist"),
        (["--checkpoint", text, "x"], "is a folder, not a file"),
        (["--checkpoint", text / MODEL_FILE, tmp_path], "is a folder; the network takes texts, and files of them"),
        (["--checkpoint", text / MODEL_FILE, tmp_path / "a.txt"], "a.txt is empty: it has no line of text"),
        (["--checkpoint", text / MODEL_FILE, tmp_path / "b.txt"], "b.txt is not in the encoding utf-8"),
        (["--checkpoint", series / MODEL_FILE, tmp_path / "a.ts"], "has 2 channels, the network takes 1"),
        (["--checkpoint", text / MODEL_FILE, tmp_path / "no.csv"], "No such file or directory"),
    ):
        finished = invoke("predict", *arguments)
        assert finished.exit_code == 2
        assert message in finished.stderr


def test_resuming_the_wrong_task_says_which(trained):
    folder, _ = trained("series")
    finished = invoke("train", "text", "--resume", "--output-dir", folder)
    assert f"is of another task: dwsep train series --resume --output-dir {folder}" in finished.stderr


@pytest.mark.parametrize("task", TASKS)
def test_the_help_shows_the_defaults_that_the_settings_have(task):
    """Those stand in the options, too, since help must not wait for pydantic."""
    from dwsep.cli._train_options import COMMON, DATA
    from dwsep.training.config import make_config

    settings = make_config({"task": task, "data": "fashion-mnist" if task == "classify" else "x"})
    no_value = ("none", "no limit", "never", "all alike", "as they are", "random weights")
    checked = 0
    for option in (*DATA[task], *COMMON):
        value = getattr(settings, option.field)
        if option.field in ("data", "test_data") or option.default is None:
            continue
        if option.field == "in_channels":
            value = value == 1  # the option is --grey
        if isinstance(value, bool):
            assert option.default == (option.field if value else "no"), option
        else:
            assert option.default in (no_value if value is None else (str(value), str(value).removesuffix(".0"))), (
                option
            )
        checked += 1
    assert checked > 10
