import pytest

from dwsep.analysis.promise import summarise_promise


def row(group, label, epoch_seconds, batch_1, batch_64, macs=100, macs_spatial=80):
    latency = {"1": {"median": batch_1}, "64": {"median": batch_64}}
    return {
        "key": label,
        "group": group,
        "label": label,
        "macs": macs,
        "macs_spatial": macs_spatial,
        "epoch_seconds": epoch_seconds,
        "latency": latency,
    }


DENSE = row("dense", "dense", 8, 40, 9, macs=900, macs_spatial=880)
ROWS = (DENSE, row("eager", "NCHW", 5, 10, 4), row("eager", "NHWC", 4, 20, 3), row("dwsep", "dwsep", 2, 5, 1.5))


def test_summarise_promise_takes_each_figure_from_the_best_layout():
    eager, dwsep = summarise_promise(ROWS)["speedups"]
    assert (eager["training"], eager["batch_1"], eager["batch_64"]) == (2, 4, 3)
    assert eager["best"] == {"training": "NHWC", "batch_1": "NCHW", "batch_64": "NHWC"}
    assert (dwsep["training"], dwsep["batch_1"], dwsep["batch_64"]) == (4, 8, 6)
    assert (eager["label"], dwsep["label"]) == ("separable, PyTorch (best layout)", "dwsep")


def test_summarise_promise_divides_dense_macs_by_separable_ones():
    promise = summarise_promise(ROWS)
    assert (promise["macs_ratio"], promise["macs_ratio_spatial"]) == (9, 11)


@pytest.mark.parametrize("rows", [ROWS[1:], ROWS[:1], (*ROWS, DENSE), ()])
def test_summarise_promise_needs_one_dense_row_and_a_separable_one(rows):
    with pytest.raises(ValueError, match="one dense row"):
        summarise_promise(rows)
