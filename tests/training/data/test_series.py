"""Files of series: what is read, and what is wrong with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dwsep.training.data.series import load_series, read_npz, read_ts

HEAD = "#comment\n@problemName toy\n@timeStamps false\n@classLabel true 2 10\n@data\n"
NAN = float("nan")


def write(path, body=("1,2,3:4,5,6:2", "7,8:9,?:10"), head=HEAD):
    path.write_text(head + "\n".join(body) + "\n")
    return path


def test_read_ts_pads_and_marks_what_is_missing(tmp_path):
    values, labels = read_ts(write(tmp_path / "a.ts"))
    expected = torch.tensor([[[1, 2, 3], [4, 5, 6]], [[7, 8, NAN], [9, NAN, NAN]]])
    torch.testing.assert_close(values, expected, equal_nan=True, rtol=0, atol=0)
    assert labels == ["2", "10"]


def test_load_series_finds_the_pair(tmp_path):
    train = write(tmp_path / "Toy_TRAIN.ts")
    write(tmp_path / "Toy_TEST.ts", ("1,2:3,4:10",))
    for path in (train, tmp_path):
        data = load_series(path, "test")
        assert data.class_names == ("2", "10")  # in the order of numbers
        assert data.labels.tolist() == [1]
        assert data.values.shape == (1, 2, 2)
    write(tmp_path / "Toy_TEST.ts", ("1,2:3,4:7",))
    with pytest.raises(ValueError, match=r"Toy_TEST\.ts: unknown label '7'; the classes are '2', '10'"):
        load_series(train, "test")
    write(tmp_path / "Toy_TEST.ts", ("1,2:7",))
    with pytest.raises(ValueError, match=r"Toy_TEST\.ts has 1 channels, .*Toy_TRAIN\.ts has 2"):
        load_series(train, "test")


@pytest.mark.parametrize("flat", [False, True])
def test_load_series_reads_npz(tmp_path, flat):
    x = np.arange(12, dtype=np.float64).reshape((6, 2) if flat else (6, 1, 2))
    y = np.array(["a", "b"] * 3)
    np.savez(tmp_path / "one.npz", x=x, y=y)
    train, test = (load_series(tmp_path / "one.npz", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (4, 2)
    np.savez(tmp_path / "two.npz", X_train=x, y_train=y, X_test=x[:1], y_test=y[:1])
    data = load_series(tmp_path / "two.npz", "test")
    assert data.values.tolist() == [[[0, 1]]]
    assert data.class_names == ("a", "b")


def test_statistics_leave_out_what_is_missing(tmp_path):
    data = load_series(write(tmp_path / "a.ts"), "train", test_path=tmp_path / "a.ts")
    normalisation = data.statistics()
    assert normalisation.mean == pytest.approx((4.2, 6.0))
    assert normalisation.std == pytest.approx((np.std([1, 2, 3, 7, 8]), np.std([4, 5, 6, 9])))
    batch, labels = data.batch(slice(1, 2), normalisation, torch.contiguous_format)
    assert batch.shape == (1, 2, 2)  # no longer than its longest series
    assert labels.tolist() == [1]
    assert batch[0, 0, 0] == pytest.approx((7 - 4.2) / normalisation.std[0])
    randoms = data.draw(torch.Generator().manual_seed(0))
    noisy, _ = data.batch(slice(1, 2), normalisation, torch.contiguous_format, randoms, slice(1, 2))
    assert torch.equal(noisy.isnan(), batch.isnan())
    assert not torch.equal(noisy[0, 0], batch[0, 0])


@pytest.mark.parametrize(
    ("body", "head", "message"),
    [
        ((), HEAD, "is empty: it has no series behind @data"),
        (("1,x:2",), HEAD, "line 6: could not convert string to float: 'x'"),
        (("1:2:a", "1:a"), HEAD, "line 7: 1 channels before the label, expected 2"),
        (("1,2",), HEAD, "line 6: 0 channels before the label, expected at least 1"),
        (("1:a",), "@timestamps true\n@data\n", "line 1: series with timestamps"),
        (("1:a",), "@classLabel false\n@data\n", "line 1: the series have no labels"),
    ],
)
def test_read_ts_names_what_is_wrong(tmp_path, body, head, message):
    with pytest.raises(ValueError, match=message):
        read_ts(write(tmp_path / "a.ts", body, head))


def test_read_npz_names_what_is_wrong(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        read_npz(path, "train")
    np.savez(path, x=np.zeros((2, 1, 3)))
    with pytest.raises(ValueError, match="has the arrays x; it needs x and y"):
        read_npz(path, "train")
    np.savez(path, x=np.zeros((2, 1, 3)), y=np.zeros(3))
    with pytest.raises(ValueError, match=r"got \(2, 1, 3\) float64 and \(3,\)"):
        read_npz(path, "train")


def test_load_series_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_series(tmp_path / "nowhere.ts", "train")
    with pytest.raises(ValueError, match=r"must have one file named \.\.\._TRAIN\.ts, got none"):
        load_series(tmp_path, "train")
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(ValueError, match=r"unknown kind of file '\.csv'; known are \.ts, \.npz"):
        load_series(tmp_path / "a.csv", "train")
