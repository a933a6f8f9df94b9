import json

import pytest
from typer.testing import CliRunner

from dwsep.cli.main import app

FILE = """
import torch
def tiny():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, groups=1), torch.nn.ReLU())
def wide():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU())
def sized(channels):
    return torch.nn.Conv2d(3, channels, 3)
def half():
    return tiny().bfloat16()

def raises():
    raise KeyError("no such weights")

def nothing():
    return 3
"""


@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "tiny.py"
    path.write_text(FILE)
    return f"{path}:tiny"


def invoke(*arguments):
    return CliRunner().invoke(app, ["analyze", *arguments])


def test_analyze_counts_on_meta_without_times():
    finished = invoke("mobilenet_v1", "--no-latency", "--depth", "1")
    assert finished.exit_code == 0, finished.output
    assert "569 M macs" in finished.stdout
    assert "floor" not in finished.stdout


def test_analyze_times_a_function_of_a_file_and_writes_page_and_data(network, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    page, data = tmp_path / "report.html", tmp_path / "report.json"
    finished = invoke(network, "--input", "1,3,20,20", "--seconds", "0", "--html", str(page), "--json", str(data))
    assert finished.exit_code == 0, finished.output
    assert "whole network measured apart" in finished.stdout
    assert json.loads(data.read_text())["totals"]["macs"] == 18 * 18 * 8 * 27
    assert "<svg" in page.read_text(encoding="utf-8")


def test_analyze_trains(network):
    finished = invoke(network, "--input", "2,3,20,20", "--training", "--no-latency")
    assert finished.exit_code == 0, finished.output
    assert "training step, 2x3x20x20" in " ".join(finished.stdout.split())


@pytest.mark.parametrize(
    "more, kept", [([], False), (["--against", "{}"], True), (["--against", "{}", "--no-latency"], False)]
)
def test_analyze_against_keeps_freed_memory_for_both(network, monkeypatch, more, kept):
    calls = []
    monkeypatch.setattr("dwsep.analysis.allocator.keep_freed_memory", lambda: calls.append(None))
    options = [option.format(network) for option in more]
    assert invoke(network, *options, "--input", "1,3,20,20", "--seconds", "0").exit_code == 0
    assert bool(calls) == kept


def test_analyze_against_shows_two_side_by_side(network, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    page, data = tmp_path / "both.html", tmp_path / "both.json"
    options = ["--no-latency", "--input", "1,3,20,20", "--json", str(data), "--html", str(page)]
    finished = invoke(network, "--against", network.replace(":tiny", ":wide"), *options)
    assert finished.exit_code == 0, finished.output
    macs = [18 * 18 * 8 * 27, 18 * 18 * 16 * 27]
    assert [entry["totals"]["macs"] for entry in json.loads(data.read_text())["networks"]] == macs
    assert "0.50" in finished.stdout
    text = page.read_text(encoding="utf-8")
    assert all(f'<table class="layers" id="layers-{number}">' in text for number in (1, 2))
    assert ">0.50</td>" in text
    assert text.count("<svg") == 3  # macs of both by kind, and each one's layers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mobilenet_v9", "--no-latency"], "network: unknown name 'mobilenet_v9'"),
        (["mobilenet_v1", "--input", "1,x"], "--input must be positive sizes"),
        (["missing.py:f"], "No such file"),
        (["network.py"], "which function of the file makes it? FILE.py:FUNCTION, got 'network.py'"),
        (["series_separable", "--no-latency", "--channels-last"], "--channels-last needs a network of images"),
        (["mobilenet_v9", "--no-latency", "--sort", "size"], "sort: unknown name 'size'"),
    ],
)
def test_analyze_says_what_is_wrong(arguments, message):
    finished = invoke(*arguments)
    assert finished.exit_code == 2
    assert message in finished.output


def test_analyze_names_close_names_of_a_library():
    pytest.importorskip("timm", reason="timm is an extra")
    finished = invoke("timm:mobilenetv2_10")
    assert finished.exit_code == 2
    assert "timm has no 'mobilenetv2_10'; close ones are" in finished.output


def test_analyze_names_the_library_that_has_the_network():
    pytest.importorskip("timm", reason="timm is an extra")
    finished = invoke("mobilenetv2_100", "--no-latency")
    assert finished.exit_code == 2
    assert "unknown name 'mobilenetv2_100'" in finished.output
    assert finished.output.rstrip().endswith("did you mean timm:mobilenetv2_100?")


def test_analyze_refuses_a_function_that_wants_arguments(network):
    finished = invoke(network.replace(":tiny", ":sized"))
    assert finished.exit_code == 2
    assert "sized of " in finished.output
    assert "must be callable without arguments: missing a required argument: 'channels'" in finished.output


def test_analyze_gives_a_network_an_input_of_its_dtype(network):
    finished = invoke(network.replace(":tiny", ":half"), "--no-latency", "--input", "1,3,20,20")
    assert finished.exit_code == 0, finished.output
    assert "inference in bfloat16" in finished.stdout


def test_analyze_says_what_failed_in_a_file(network, tmp_path):
    finished = invoke(network.replace(":tiny", ":raises"))
    assert finished.exit_code == 2
    assert "raises of " in finished.output
    assert "failed: KeyError: 'no such weights' (dwsep --debug shows where)" in finished.output
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    finished = invoke(f"{tmp_path / 'broken.py'}:tiny")
    assert finished.exit_code == 2
    assert "broken.py cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'" in finished.output


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_analyze_refuses_a_file_that_cannot_be_written_before_it_begins(option, tmp_path):
    finished = invoke("mobilenet_v9", option, str(tmp_path))
    assert finished.exit_code == 2
    assert f"{option}: {tmp_path} is a folder, name a file in it" in finished.output


def test_analyze_refuses_what_is_no_network(network):
    finished = invoke(network.replace("tiny", "nothing").replace("nothing.py", "tiny.py"))
    assert finished.exit_code == 2
    assert "must return a torch.nn.Module, got int" in finished.output


@pytest.mark.parametrize("name", ["series_separable", "text_separable", "text_light", "mobilenet_v2"])
def test_analyze_knows_what_its_own_networks_take(name):
    finished = invoke(name, "--no-latency", "--depth", "0")
    assert finished.exit_code == 0, finished.output
    assert "depthwise" in finished.stdout


def test_analyze_says_so_where_the_input_does_not_fit(network):
    finished = invoke(network, "--input", "1,4,20,20")
    assert finished.exit_code == 2
    assert "tiny cannot run on an input of shape 1,4,20,20 (--input sets another): RuntimeError" in finished.output


def test_accelerate_leaves_the_same_network_as_it_was_beside(monkeypatch, network):
    from dwsep.cli import _analyze_networks

    asked = []
    report = _analyze_networks.Loaded.report

    def noted(self, *, accelerated, **options):
        asked.append(accelerated)
        return report(self, accelerated=accelerated, **options)

    monkeypatch.setattr(_analyze_networks.Loaded, "report", noted)
    wide = network.replace(":tiny", ":wide")
    for against in (network, wide):
        options = ["--accelerate", "--against", against, "--no-latency", "--input", "1,3,20,20"]
        assert invoke(network, *options).exit_code == 0
    assert asked == [True, False, True, True]
