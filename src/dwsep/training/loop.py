"""The training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from dwsep.training._run import CHECKPOINT_FILE, LOG_FILE, MODEL_FILE, Run
from dwsep.training.checkpoint import EpochRecord
from dwsep.training.config import Settings
from dwsep.training.data import Examples, Normalisation
from dwsep.training.distributed import Processes
from dwsep.training.evaluation import evaluate
from dwsep.training.interrupt import StopSignal, TrainingInterrupted
from dwsep.training.metrics import EvaluationResult
from dwsep.training.progress import TrainingProgress

__all__ = [
    "CHECKPOINT_FILE",
    "LOG_FILE",
    "MODEL_FILE",
    "EpochRecord",
    "EvaluationResult",
    "TrainResult",
    "TrainingInterrupted",
    "evaluate",
    "train",
]


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    Args:
        history: One record per epoch.
        final: Evaluation of the trained network on the test data.
        normalisation: Mean and standard deviation of the training images, which inputs must be normalised with.
    """

    history: list[EpochRecord]
    final: EvaluationResult
    normalisation: Normalisation


def train(
    model: nn.Module,
    train_data: Examples,
    test_data: Examples,
    config: Settings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    show_progress: bool = True,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    processes: Processes | None = None,
) -> TrainResult:
    """Train a network, and evaluate it on the test data after every epoch.

    In ``config.output_dir`` it leaves checkpoint.safetensors (to go on from), model.safetensors (the trained network,
    after the last epoch) and log.jsonl. Ctrl-C and SIGTERM stop it between two steps, after the checkpoint is written;
    a run that goes on from there ends with the same weights, bit for bit, on the same machine with the same number of
    threads and processes. The test data never influences the weights, but for choosing the epoch where
    ``config.early_stopping`` is set.

    Args:
        model: Takes what the data gives, such as float images of shape (N, C, H, W), and returns logits of shape
            (N, classes), or (N, classes, H, W) for masks. Trained in place, on the device where it is.
        train_data: Examples to train on.
        test_data: Examples to evaluate on, of the same classes.
        config: Settings; network and network_options only describe the model in the files written.
        resume: Whether to go on from the checkpoint in config.output_dir.
        overwrite: Whether a run that is already in config.output_dir may be replaced.
        show_progress: Whether to show progress on standard error.
        on_epoch: Called after every epoch.
        processes: This process among those that train together; each gets the same result, the first writes the files.

    Returns:
        The history and the final evaluation.

    Raises:
        FileExistsError: If config.output_dir holds a run and neither resume nor overwrite is set.
        FileNotFoundError: If resume is set and there is no checkpoint.
        ValueError: If data and settings do not fit together, or the checkpoint is damaged or of another run.
        RuntimeError: If the loss is no longer finite.
        TrainingInterrupted: (a KeyboardInterrupt) if a signal stopped the run.
    """
    processes = processes or Processes()
    run = Run(model, train_data, test_data, config, processes)
    run.open(resume=resume, overwrite=overwrite)
    steps = len(run.loader)
    done = run.state.epoch * steps + run.state.batch
    final: EvaluationResult | None = None
    with (
        StopSignal(patient=processes.size > 1) as stop,
        TrainingProgress(
            show_progress and processes.is_first,
            total_steps=steps * config.epochs,
            done_steps=done,
            epochs=config.epochs,
            batch_size=config.batch_size,
            unit=train_data.unit,
        ) as progress,
    ):
        progress.data(train_data, test_data)
        while not run.is_done:
            run.train_epoch(stop, progress)
            final = run.evaluate(stop)
            record = run.finish_epoch(final)
            progress.epoch(record)
            if on_epoch is not None:
                on_epoch(record)
        if run.settle() or final is None:  # another epoch's weights, or the checkpoint of a finished run
            run.average = None
            final = run.evaluate(stop)
        run.save_final_model()
    return TrainResult(run.state.history, final, run.normalisation)
