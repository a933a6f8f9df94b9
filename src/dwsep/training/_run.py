"""One training run: its parts, its place, and its files."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.networks._weights import ModelInfo, save_model
from dwsep.nn._separated import structure_of
from dwsep.training import checkpoint
from dwsep.training.averaging import MovingAverage
from dwsep.training.checkpoint import EpochRecord, TrainState
from dwsep.training.config import Settings
from dwsep.training.data import BatchLoader, Examples
from dwsep.training.data.batches import mix
from dwsep.training.distillation import load_teacher
from dwsep.training.distributed import Processes
from dwsep.training.evaluation import autocast, check_logits, device_of, evaluate, memory_format_of
from dwsep.training.interrupt import StopSignal, TrainingInterrupted
from dwsep.training.log import RunLog, Scalars, versions
from dwsep.training.losses import Loss
from dwsep.training.metrics import EvaluationResult
from dwsep.training.optimisation import learning_rate_at, make_optimizer
from dwsep.training.progress import TrainingProgress
from dwsep.training.seeding import seed_everything, seed_step

CHECKPOINT_FILE = "checkpoint.safetensors"
MODEL_FILE = "model.safetensors"
LOG_FILE = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Run:
    """A training run under way; :func:`dwsep.training.loop.train` drives it."""

    def __init__(
        self,
        model: nn.Module,
        train_data: Examples,
        test_data: Examples,
        config: Settings,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes()
        _check_data(train_data, test_data)
        self.memory_format = memory_format_of(config.memory_format)
        self.config = config
        self.test_data = test_data
        self.normalisation = train_data.statistics()
        self.loader = BatchLoader(
            train_data,
            config.batch_size,
            self.normalisation,
            seed=config.seed,
            augment=config.augment,
            memory_format=self.memory_format,
            rank=self.processes.rank,
            parts=self.processes.size,
        )
        share = config.batch_size // self.processes.size
        if share % config.accumulate:
            raise ValueError(f"accumulate must divide the {share} {train_data.unit} of a step, got {config.accumulate}")
        self.model = model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.device = device_of(model)
        self.optimizer = make_optimizer(model, config)
        self.state = TrainState(data_digest=train_data.digest())
        teacher = None if config.teacher is None else load_teacher(config.teacher, self.info())
        self.loss = Loss(config, train_data, self.device, teacher)
        self.average = None if config.ema_decay is None else MovingAverage(model, config.ema_decay)
        self.best: dict[str, Tensor] = {}
        self.called = self.processes.wrap(model)
        self.folder = config.output_dir
        self.log: RunLog | None = None
        self.scalars: Scalars | None = None
        self.total_steps = len(self.loader) * config.epochs
        self.warmup_steps = round(len(self.loader) * config.warmup_epochs)

    @property
    def checkpoint_path(self) -> Path | None:
        return self.folder / CHECKPOINT_FILE if self.folder is not None else None

    def info(self) -> ModelInfo:
        data = self.loader.data
        values: dict[str, Any] = {"in_channels": 0, **data.describe()}  # networks for text have no channels
        return ModelInfo(
            network=self.config.network,
            options=dict(self.config.network_options),
            num_classes=data.num_classes,
            class_names=data.class_names,
            mean=self.normalisation.mean,
            std=self.normalisation.std,
            epochs=self.state.epoch,
            task=self.config.task,
            structure=structure_of(self.model),
            **values,
        )

    def open(self, *, resume: bool, overwrite: bool) -> None:
        path = self.checkpoint_path
        if resume:
            if path is None:
                raise ValueError("resume needs config.output_dir, the folder that holds the checkpoint")
            self._restore(checkpoint.load(path))
        else:
            if path is not None and path.exists() and not overwrite:
                raise FileExistsError(
                    f"{path.parent} holds the checkpoint of an earlier run: resume it, choose another output folder, "
                    "or allow overwriting it"
                )
            seed_everything(self.config.seed)
        self.processes.wait()  # all have looked before the first one writes
        if self.folder is None or not self.processes.is_first:
            return
        for name in (CHECKPOINT_FILE, MODEL_FILE):
            if not resume:
                # Files of the run that is being replaced must not pass for this one's.
                (self.folder / name).unlink(missing_ok=True)
            for part in self.folder.glob(f".{name}.*.part"):
                part.unlink(missing_ok=True)  # left where a process was killed while it saved
        self.log = RunLog(self.folder / LOG_FILE, [asdict(r) for r in self.state.history] if resume else None)
        if self.config.tensorboard:
            self.scalars = Scalars(self.folder / TENSORBOARD_FOLDER)
        self.log.write(
            "resume" if resume else "header",
            config=self.config.model_dump(mode="json"),
            versions=versions(),
            threads=torch.get_num_threads(),
            device=str(self.device),
            processes=self.processes.size,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            train_images=len(self.loader.data),
            test_images=len(self.test_data),
            finished_epochs=self.state.epoch,
        )

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        differences = saved.config.differences(self.config)
        if differences:
            raise ValueError(f"{saved.path} was made with other settings: {'; '.join(differences)}")
        if saved.state.data_digest != self.state.data_digest:
            raise ValueError(f"{saved.path} was made with other training data than {self.loader.data.name}")
        saved.restore(self.model, self.optimizer)
        if self.average is not None:
            for name, tensor in saved.copy_of("average").items():
                self.average.tensors[name].copy_(tensor)
        self.best = saved.copy_of("best")
        self.state = saved.state

    def train_epoch(self, stop: StopSignal, progress: TrainingProgress) -> None:
        state = self.state
        self.called.train()
        last_saved = time.perf_counter()
        started = time.perf_counter()
        for images, labels in self.loader.epoch(state.epoch, start=state.batch):
            loss, stopped = self._step(images, labels, stop)
            seconds = time.perf_counter() - started
            state.batch += 1
            state.loss_sum += loss
            state.seconds += seconds
            progress.step(state.epoch + 1, loss, seconds)
            if stopped:
                self._interrupted(stop)
            if self.folder is not None and time.perf_counter() - last_saved > self.config.checkpoint_seconds:
                self.save_checkpoint()
                last_saved = time.perf_counter()
            started = time.perf_counter()

    def _step(self, inputs: Tensor, targets: Tensor, stop: StopSignal) -> tuple[float, bool]:
        """One step; returns the mean loss over all processes, and whether any of them was told to stop."""
        step = self.state.epoch * len(self.loader) + self.state.batch
        rate = self._rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # What dropout draws depends on the step alone, so that a run goes on with the numbers it would have had.
        seed_step(mix(self.config.seed, step, self.processes.rank), self.device)
        parts = self.config.accumulate
        total = 0.0
        for index, (x, y) in enumerate(zip(inputs.chunk(parts), targets.chunk(parts), strict=True)):
            x, y = x.to(self.device), y.to(self.device)
            waits = isinstance(self.called, nn.parallel.DistributedDataParallel) and index < parts - 1
            with self.called.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                with autocast(self.device, self.config.precision):
                    logits = self.called(x)
                if step == 0:
                    check_logits(logits, self.loader.data)
                loss = self.loss(logits, y, x) / parts
                value = loss.item()
                if not -float("inf") < value < float("inf"):
                    raise RuntimeError(
                        f"the training loss became {value} in epoch {self.state.epoch + 1}, step "
                        f"{self.state.batch + 1}, at learning rate {rate:.3g}; a lower learning rate or a longer "
                        "warm-up may help"
                    )
                if index == 0:
                    self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
            total += value
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(step)
        if self.processes.size == 1:
            return total, stop.received is not None
        told = self.processes.sum(torch.tensor([total, float(stop.received is not None)], dtype=torch.float64))
        return float(told[0]) / self.processes.size, bool(told[1] > 0)

    def _rate(self, step: int) -> float:
        return learning_rate_at(step, self.total_steps, self.warmup_steps, self.config.learning_rate)

    def evaluate(self, stop: StopSignal) -> EvaluationResult:
        def check() -> None:
            # Processes that stopped at different batches would wait for each other's sums.
            if stop.received is not None and self.processes.size == 1:
                self._interrupted(stop)

        with contextlib.nullcontext() if self.average is None else self.average.applied():
            self.processes.share_buffers(self.model)
            return evaluate(
                self.model,
                self.test_data,
                normalisation=self.normalisation,
                batch_size=min(250, 4 * self.config.batch_size) if self.config.task == "segment" else 250,
                precision=self.config.precision,
                memory_format=self.config.memory_format,
                between_batches=check,
                processes=self.processes,
            )

    def finish_epoch(self, result: EvaluationResult) -> EpochRecord:
        state, steps = self.state, len(self.loader)
        record = EpochRecord(
            epoch=state.epoch + 1,
            train_loss=state.loss_sum / steps,
            learning_rate=self._rate((state.epoch + 1) * steps - 1),
            test_loss=result.loss,
            test_accuracy=result.accuracy,
            seconds=state.seconds,
            images_per_second=steps * self.config.batch_size / state.seconds,
            metrics=self._metrics(result),
        )
        if self.config.early_stopping is not None and all(record.score > past.score for past in state.history):
            source = self.model.state_dict() if self.average is None else self.average.tensors
            self.best = {name: value.detach().clone() for name, value in source.items()}
        state.history.append(record)
        state.epoch += 1
        state.batch, state.loss_sum, state.seconds = 0, 0.0, 0.0
        self.save_checkpoint()
        if self.log is not None:
            self.log.write("epoch", **asdict(record))
        if self.scalars is not None:
            self.scalars.write(record.epoch, asdict(record))
        return record

    def _metrics(self, result: EvaluationResult) -> dict[str, Any]:
        if self.config.task != "segment":
            return {"macro_f1": result.macro_f1}
        iou = dict(zip(self.test_data.class_names, result.class_iou, strict=True))
        return {"mean_iou": result.mean_iou, "class_iou": {k: v if v == v else None for k, v in iou.items()}}

    @property
    def is_done(self) -> bool:
        """Whether all epochs are finished, or the last ones brought nothing better."""
        history, patience = self.state.history, self.config.early_stopping
        if self.state.epoch >= self.config.epochs:
            return True
        if patience is None or len(history) <= patience:
            return False
        scores = [record.score for record in history]
        return max(scores[-patience:]) <= max(scores[:-patience])

    def settle(self) -> bool:
        """Give the network the weights that the run ends with; returns whether they are not the last epoch's."""
        weights = self.best or ({} if self.average is None else self.average.tensors)
        if weights:
            self.model.load_state_dict(weights)
        return bool(self.best)

    def save_checkpoint(self) -> None:
        if self.checkpoint_path is None or not self.processes.is_first:
            return
        copies = {"average": self.average.tensors if self.average is not None else {}, "best": self.best}
        checkpoint.save(self.checkpoint_path, self.model, self.optimizer, self.state, self.config, self.info(), copies)

    def save_final_model(self) -> None:
        if self.folder is not None and self.processes.is_first:
            save_model(self.folder / MODEL_FILE, self.model, self.info())
        if self.scalars is not None:
            self.scalars.close()

    def _interrupted(self, stop: StopSignal) -> None:
        self.save_checkpoint()
        if self.log is not None:
            self.log.write("interrupted", epoch=self.state.epoch, batch=self.state.batch)
        raise TrainingInterrupted(stop.received or signal.SIGTERM, self.checkpoint_path)


def _check_data(train_data: Examples, test_data: Examples) -> None:
    if train_data.num_classes < 2:
        raise ValueError(f"{train_data.name} has one class, {train_data.class_names[0]!r}; training needs two")
    if train_data.class_names != test_data.class_names:
        raise ValueError(
            f"training and test data have different classes: {train_data.class_names} and {test_data.class_names}"
        )
    ours, theirs = (data.describe() for data in (train_data, test_data))
    if ours.get("in_channels") != theirs.get("in_channels"):
        raise ValueError(
            f"training {train_data.unit} have {ours['in_channels']} channels, test {train_data.unit} "
            f"{theirs['in_channels']}"
        )
    if train_data.targets.dim() == 1 and ours.get("image_size") != theirs.get("image_size"):
        raise ValueError(
            f"training {train_data.unit} have size {ours['image_size']}, test {train_data.unit} {theirs['image_size']}"
        )
