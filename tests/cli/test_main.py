import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import dwsep
from dwsep.cli import main
from dwsep.cli.main import app


def run_module(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "dwsep.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False, **options)


def failing_app(error):
    failing = typer.Typer(cls=main._Group, pretty_exceptions_enable=False)
    failing.callback()(main._options)

    @failing.command()
    def fail():
        raise error

    return failing


def test_main_runs_as_a_module():
    finished = run_module("--version")
    assert finished.returncode == 0
    assert finished.stdout == f"dwsep {dwsep.__version__}\n"
    assert finished.stderr == ""


def test_main_lists_the_commands():
    finished = CliRunner().invoke(app, ["--help"])
    assert finished.exit_code == 0
    assert all(
        f" {command} " in finished.stdout for command in ("demo", "train", "evaluate", "separate", "doctor", "bench")
    )


@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "separate", "doctor", "bench"])
def test_main_explains_every_command(command):
    finished = CliRunner().invoke(app, [command, "--help"])
    assert finished.exit_code == 0
    assert "--help" in finished.stdout


def test_main_imports_nothing_heavy_by_itself():
    code = (
        "import sys, types; package = types.ModuleType('dwsep'); import importlib.util as u; "
        "package.__path__ = u.find_spec('dwsep').submodule_search_locations; sys.modules['dwsep'] = package; "
        "import dwsep.cli.main; print(sorted({'torch', 'numpy', 'matplotlib', 'pydantic', 'PIL'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert finished.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("epochs must be at least 1, got 0"), "error: epochs must be at least 1, got 0\n"),
        (TypeError("two\n  lines"), "error: two lines\n"),
        (RuntimeError("broken"), "error: broken\n"),
        (ImportError("needs matplotlib"), "error: needs matplotlib\n"),
        (FileNotFoundError(2, "No such file or directory", "data.gz"), "error: No such file or directory: data.gz\n"),
        (PermissionError("not allowed"), "error: not allowed\n"),
        (ValueError(), "error: ValueError\n"),
    ],
)
def test_main_shows_an_error_on_one_line(error, line):
    finished = CliRunner().invoke(failing_app(error), ["fail"])
    assert finished.exit_code == 2
    assert finished.stderr == line
    assert finished.stdout == ""


def test_main_names_every_field_that_a_configuration_gets_wrong():
    pydantic = pytest.importorskip("pydantic", reason="the extra train is not installed")

    class Config(pydantic.BaseModel):
        epochs: pydantic.PositiveInt
        batch_size: pydantic.PositiveInt

    with pytest.raises(pydantic.ValidationError) as caught:
        Config(epochs=0, batch_size=-2)
    finished = CliRunner().invoke(failing_app(caught.value), ["fail"])
    assert finished.stderr == (
        "error: epochs: Input should be greater than 0, got 0; batch_size: Input should be greater than 0, got -2\n"
    )


@pytest.mark.parametrize("debug", [{"args": ["--debug", "fail"]}, {"args": ["fail"], "env": {"DWSEP_DEBUG": "1"}}])
def test_main_shows_the_traceback_on_request(debug):
    finished = CliRunner().invoke(failing_app(ValueError("broken")), **debug)
    assert finished.exit_code == 2
    assert finished.stderr.startswith("Traceback")
    assert finished.stderr.endswith("ValueError: broken\n")


def test_main_lets_a_programming_error_through():
    finished = CliRunner().invoke(failing_app(AssertionError("impossible")), ["fail"])
    assert isinstance(finished.exception, AssertionError)


def test_main_keeps_the_exit_code_of_a_command():
    assert CliRunner().invoke(failing_app(typer.Exit(1)), ["fail"]).exit_code == 1


def test_main_exits_with_130_where_interrupted():
    finished = CliRunner().invoke(failing_app(KeyboardInterrupt()), ["fail"])
    assert finished.exit_code == 130
    assert finished.stderr == "interrupted\n"


def test_main_refuses_an_unknown_command():
    finished = CliRunner().invoke(app, ["dmeo"])
    assert finished.exit_code == 2
    assert "dmeo" in finished.stderr


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_main_names_what_to_install(package):
    code = f"import sys; sys.modules[{package!r}] = None; import dwsep.cli.main"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    last = finished.stderr.strip().splitlines()[-1]
    assert finished.returncode == 1
    assert last.startswith("ImportError: ")
    assert "pip install typer rich" in last
