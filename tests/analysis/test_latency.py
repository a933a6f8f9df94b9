import pytest

from dwsep.analysis.latency import measure


class Clock:
    """A clock that only the cases advance."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def case(self, name, *seconds):
        """A case whose calls take the given durations in turn, then the last one for ever."""
        left = list(seconds)

        def run():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_measure_returns_median_and_quartiles():
    clock = Clock()
    # one warm-up call, then per round one untimed call and one timed
    case = clock.case("a", 9, 9, 1, 9, 2, 9, 3, 9, 4, 9, 5)
    latency = measure({"a": case}, rounds=5, min_seconds=0, warmup_seconds=0, timer=clock)["a"]
    assert (latency.lower_quartile, latency.median, latency.upper_quartile) == (2, 3, 4)
    assert (latency.rounds, latency.calls_per_round) == (5, 1)


def test_measure_of_one_round_has_equal_quartiles():
    clock = Clock()
    latency = measure({"a": clock.case("a", 0.5)}, rounds=1, min_seconds=0, warmup_seconds=0, timer=clock)["a"]
    assert latency.lower_quartile == latency.median == latency.upper_quartile == 0.5


def test_measure_repeats_short_calls_until_they_fill_the_turn():
    clock = Clock()
    cases = {"short": clock.case("short", 0.25), "long": clock.case("long", 8.0)}
    latencies = measure(cases, rounds=2, min_seconds=1.0, warmup_seconds=0, timer=clock)
    assert (latencies["short"].calls_per_round, latencies["long"].calls_per_round) == (4, 1)
    assert (latencies["short"].median, latencies["long"].median) == (0.25, 8.0)
    assert clock.calls.count("short") == 1 + 2 * 5
    assert clock.calls.count("long") == 1 + 2 * 2


def test_measure_bounds_the_calls_of_one_below_the_resolution_of_the_clock():
    clock = Clock()
    latency = measure({"a": clock.case("a", 0.0)}, rounds=1, min_seconds=1.0, warmup_seconds=0, timer=clock)["a"]
    assert latency.median == 0
    assert latency.calls_per_round == 100_000


def test_measure_warms_up_every_case_before_the_first_turn():
    clock = Clock()
    cases = {"a": clock.case("a", 1.0), "b": clock.case("b", 1.0)}
    measure(cases, rounds=1, min_seconds=0, warmup_seconds=3, timer=clock)
    assert clock.calls == ["a"] * 3 + ["b"] * 3 + ["a"] * 2 + ["b"] * 2


def test_measure_takes_turns_and_changes_who_begins():
    clock = Clock()
    cases = {name: clock.case(name, 1.0) for name in "abc"}
    measure(cases, rounds=4, min_seconds=0, warmup_seconds=0, timer=clock)
    turns = "".join(clock.calls[3::2])
    assert turns == "abc" + "bca" + "cab" + "abc"


def test_measure_settles_with_untimed_calls():
    clock = Clock()
    cases = {"a": clock.case("a", 1.0)}
    latency = measure(cases, rounds=2, min_seconds=0, warmup_seconds=0, settle_seconds=3, timer=clock)["a"]
    assert latency.median == 1.0
    assert len(clock.calls) == 1 + 2 * (1 + 3 + 1)


def test_measure_gives_a_machine_that_slows_down_to_all_cases_alike():
    clock = Clock()

    def drifting(factor):
        def run():
            clock.now += factor * (1 if clock.now < 200 else 3)

        return run

    cases = {"a": drifting(1.0), "b": drifting(2.0)}
    latencies = measure(cases, rounds=100, min_seconds=0, warmup_seconds=0, timer=clock)
    assert latencies["a"].upper_quartile > latencies["a"].lower_quartile
    assert latencies["b"].median / latencies["a"].median == 2


def test_measure_stops_after_max_seconds_but_not_before_three_rounds():
    clock = Clock()
    options = {"rounds": 100, "min_seconds": 0, "warmup_seconds": 0, "timer": clock}
    assert measure({"a": clock.case("a", 1.0)}, max_seconds=10, **options)["a"].rounds == 5
    assert measure({"a": clock.case("a", 1.0)}, max_seconds=0, **options)["a"].rounds == 3


def test_measure_reports_progress():
    clock = Clock()
    seen = []
    measure({"a": clock.case("a", 1.0)}, rounds=3, timer=clock, on_round=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_measure_lets_the_error_of_a_case_through():
    def broken():
        raise RuntimeError("broken case")

    with pytest.raises(RuntimeError, match="broken case"):
        measure({"a": broken})


@pytest.mark.parametrize(
    ("cases", "options", "message"),
    [
        ({}, {}, "cases must hold at least one"),
        ({"a": int}, {"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"a": int}, {"min_seconds": -1.0}, "min_seconds must not be negative, got -1.0"),
        ({"a": int}, {"warmup_seconds": float("nan")}, "warmup_seconds must not be negative, got nan"),
        ({"a": int}, {"settle_seconds": -1}, "settle_seconds must not be negative, got -1"),
        ({"a": int}, {"max_seconds": -1}, "max_seconds must not be negative, got -1"),
    ],
)
def test_measure_rejects_bad_arguments(cases, options, message):
    with pytest.raises(ValueError, match=message):
        measure(cases, **options)
