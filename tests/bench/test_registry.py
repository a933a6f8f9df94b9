import json

import pytest

from dwsep.bench import registry
from dwsep.bench.registry import DEPTHWISE, SEPARABLE, SHORT, Task, plan


def test_plan_has_every_case_at_its_batches():
    inference, training = plan("separable"), plan("separable", training=True)
    assert len(inference) == len(SEPARABLE) * 2 * 2
    assert len(training) == len(SEPARABLE) * 2 * 3
    assert {(task.variant, task.case.batch) for task in inference} == {(v, b) for v in ("bare", "norm") for b in (1, 8)}
    assert {task.variant for task in training} == {"bare", "inner_relu"}
    assert [(t.case.batch, t.case.kernel, t.variant) for t in plan("short")] == [
        (batch, (taps,), "silu") for batch in (1, 4) for taps in (2, 3, 4)
    ]
    assert [task.case for task in plan("depthwise")] == sorted(DEPTHWISE, key=lambda case: case.batch)


def test_plan_keys_are_unique():
    tasks = [
        task for training in (False, True) for dtype in registry.DTYPES for task in plan(training=training, dtype=dtype)
    ]
    assert len({task.key for task in tasks}) == len(tasks)
    assert len({case.name for case in SEPARABLE + DEPTHWISE + SHORT}) == len(SEPARABLE + DEPTHWISE + SHORT)


def test_plan_takes_batches_and_parts_of_names():
    tasks = plan("all", batches=[3], names=["@33", "k31"])
    assert [(task.case.name, task.case.batch) for task in tasks if task.variant == "bare"] == [
        ("256-256@33d6", 3),
        ("320-256@33d12", 3),
        ("768@2048-k31", 3),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"which": "dense"}, "set: unknown name 'dense'; valid names are 'separable', 'depthwise', 'short', 'all'"),
        ({"dtype": "float16"}, "dtype: unknown name 'float16'"),
        ({"names": ["@28", "nothing"]}, "case: unknown name 'nothing'; valid names are '32-64@112'"),
        ({"which": "depthwise", "names": ["32-64"]}, "case: unknown name '32-64'"),
    ],
)
def test_plan_names_what_is_unknown(options, message):
    with pytest.raises(ValueError, match=message):
        plan(**options)


@pytest.mark.parametrize(
    "task", plan("separable", names=["33d6"]) + plan("depthwise", training=True) + plan("short"), ids=lambda t: t.key
)
def test_task_survives_json(task):
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


def test_cases_keep_their_size_over_the_stride():
    for case in SEPARABLE + DEPTHWISE + SHORT:
        assert case.out_spatial == tuple(-(-size // case.stride) for size in case.spatial), case.name
