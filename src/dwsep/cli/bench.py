"""``dwsep bench``: how fast things are here, compared with what else could run them."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dwsep.bench.measuring import Settings
    from dwsep.bench.networks import AnyTask
    from dwsep.bench.run import Plan

bench = typer.Typer(no_args_is_help=True, help="Measure against PyTorch, torch.compile, ONNX Runtime and OpenVINO.")


# What every benchmark takes.
_Allocator = Annotated[
    str | None, typer.Option(help="glibc's thresholds: default, raised or both.", show_default="both")
]
_Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="PyTorch's choice")]
_Quick = Annotated[
    bool, typer.Option("--quick", help="Batch 1, default allocator, no torch.compile, few rounds: a rough look.")
]
_JsonFile = Annotated[Path | None, typer.Option("--json", help="Results, written after each comparison.")]
_Resume = Annotated[bool, typer.Option("--resume", help="Keep what the --json file has and measure the rest.")]
_Markdown = Annotated[Path | None, typer.Option(help="Results as a page.")]


@bench.command()
def layers(
    which: Annotated[str, typer.Option("--set", help="separable, depthwise, short or all.")] = "all",
    training: Annotated[
        bool, typer.Option("--training", help="Forward and backward instead of forward alone.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch sizes.", show_default="each case's own")] = None,
    case: Annotated[list[str] | None, typer.Option(help="Cases, by a part of their names.", show_default="all")] = None,
    peers: Annotated[str | None, typer.Option(help="Peers, separated by commas.", show_default="all")] = None,
    allocator: _Allocator = None,
    threads: _Threads = None,
    quick: _Quick = False,
    json_file: _JsonFile = None,
    resume: _Resume = False,
    markdown: _Markdown = None,
    plot: Annotated[Path | None, typer.Option(help="Results as a roofline, a PNG file.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda: training steps of depthwise layers on the GPU.")] = "cpu",
) -> None:
    """Time layers against every peer that runs here, each verified first.

    Peers take turns in one process; each setting of glibc's allocator has a process of its own. Ctrl-C keeps what is
    done. Exits with 1 if an output of dwsep's is wrong.
    """
    from dwsep.bench import registry, roofline
    from dwsep.errors import unknown_name

    if device not in ("cpu", "cuda"):
        raise unknown_name("device", device, ("cpu", "cuda"))
    if device == "cuda":
        from dwsep.cli._bench_cuda import measure_layers

        ignored = {
            "--allocator": allocator,
            "--threads": threads,
            "--quick": quick,
            "--json": json_file,
            "--resume": resume,
            "--plot": plot,
            "--set": which not in ("all", "depthwise"),
        }
        measure_layers(training, dtype, batch or [], case or [], peers, markdown, [k for k, v in ignored.items() if v])
        return
    _refuse_resume_of_nothing(resume, json_file)
    if plot is not None:
        roofline.require_matplotlib()
    batches = batch or ([1] if quick else [])
    tasks = registry.plan(which, training=training, dtype=dtype, batches=batches, names=case or [])
    settings = _settings(peers, threads, quick)
    _measure("layers", tasks, _allocators(allocator, quick), settings, json_file, resume, markdown, plot)


@bench.command()
def networks(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="timm's names, or torchvision/NAME.", show_default="a list of nine"),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="A training step, forward and backward, instead of inference.")
    ] = False,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch sizes.", show_default="1 and 8; 8 in training")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; in training, autocast to it.")] = "float32",
    size: Annotated[
        int | None, typer.Option(min=1, help="Height and width in pixels.", show_default="each network's own")
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="Peers, separated by commas.", show_default="all; in training without compile, which is slow"
        ),
    ] = None,
    allocator: _Allocator = None,
    threads: _Threads = None,
    quick: _Quick = False,
    json_file: _JsonFile = None,
    resume: _Resume = False,
    markdown: _Markdown = None,
) -> None:
    """Time whole networks, accelerated by dwsep, against every peer that runs here, each verified first.

    Peers take turns in one process; each setting of glibc's allocator has a process of its own. Ctrl-C keeps what is
    done. Exits with 1 if a result of dwsep's is wrong.
    """
    from dwsep.bench.networks import plan

    _refuse_resume_of_nothing(resume, json_file)
    tasks = plan(names or (), training=training, dtype=dtype, batches=batch or ([1] if quick else []), size=size)
    settings = _settings(peers, threads, quick, skip_compile=training)
    _measure("networks", tasks, _allocators(allocator, quick), settings, json_file, resume, markdown, None)


def _measure(
    subject: str,
    tasks: Sequence[AnyTask],
    allocators: tuple[str, ...],
    settings: Settings,
    json_file: Path | None,
    resume: bool,
    markdown: Path | None,
    plot: Path | None,
) -> None:
    """Runs a plan with a progress bar, then shows and writes what came out, also of an interrupted one."""
    from dwsep.bench.run import BenchInterrupted, Plan, run
    from dwsep.cli._bench_output import print_results, write_files
    from dwsep.cli._console import make_progress, output_console, progress_console

    plan = Plan(tasks, allocators, settings, _command(), subject)
    _warn_without_effect(plan)
    interrupted: BenchInterrupted | None = None
    with _termination_interrupts(), make_progress(progress_console(), refresh=False) as progress:
        bar = progress.add_task(subject, total=None, note="")

        def on_progress(done: int, total: int, note: str) -> None:
            # Drawn here alone: a thread that draws all the time would take its part of what is measured.
            progress.update(bar, completed=done, total=total, note=note, refresh=True)

        try:
            results = run(plan, path=json_file, resume=resume, on_progress=on_progress)
        except BenchInterrupted as interrupt:
            interrupted, results = interrupt, interrupt.results
    if results["records"]:
        print_results(results, output_console())
        write_files(results, markdown, plot, output_console())
    if interrupted is not None:
        raise interrupted
    if any(record["peers"].get("dwsep", {}).get("status") == "wrong" for record in results["records"]):
        raise typer.Exit(1)


def _refuse_resume_of_nothing(resume: bool, json_file: Path | None) -> None:
    if resume and json_file is None:
        raise ValueError("--resume needs --json with the file to continue")


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Lets SIGTERM, which ``timeout`` and batch systems send, end a run as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where Python delivers no signals
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _allocators(chosen: str | None, quick: bool) -> tuple[str, ...]:
    from dwsep.bench.allocator import ALLOCATORS
    from dwsep.errors import unknown_name

    if chosen is None:
        chosen = "default" if quick else "both"
    if chosen == "both":
        return ALLOCATORS
    if chosen not in ALLOCATORS:
        raise unknown_name("allocator", chosen, (*ALLOCATORS, "both"))
    return (chosen,)


def _settings(peers: str | None, threads: int | None, quick: bool, skip_compile: bool = False) -> Settings:
    from dwsep.bench.measuring import QUICK, Settings
    from dwsep.bench.peers import OURS, PEERS
    from dwsep.errors import unknown_name

    if peers is not None:
        chosen = [name.strip() for name in peers.split(",") if name.strip()]
        for name in chosen:
            if name not in PEERS:
                raise unknown_name("peers", name, tuple(PEERS))
    else:
        chosen = [name for name in PEERS if not ((quick or skip_compile) and name == "compile")]
    ordered = tuple(name for name in PEERS if name in chosen or name == OURS)
    return Settings(peers=ordered, threads=threads, **(QUICK if quick else {}))


def _command() -> str:
    return shlex.join(["dwsep", *sys.argv[1:]])


def _warn_without_effect(plan: Plan) -> None:
    import platform

    if "raised" in plan.allocators and platform.libc_ver()[0] != "glibc":
        print("warning: without glibc the allocator's settings have no effect", file=sys.stderr)
