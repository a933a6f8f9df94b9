"""One training run: its parts, its place, and its files."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep.networks._weights import ModelInfo, save_model
from dwsep.training import checkpoint
from dwsep.training.checkpoint import EpochRecord, TrainState
from dwsep.training.config import TrainConfig
from dwsep.training.data import BatchLoader, ImageDataset, Normalisation, channel_statistics
from dwsep.training.evaluation import autocast, check_logits, device_of, evaluate, memory_format_of
from dwsep.training.interrupt import StopSignal, TrainingInterrupted
from dwsep.training.log import RunLog, versions
from dwsep.training.metrics import EvaluationResult
from dwsep.training.optimisation import learning_rate_at, make_optimizer
from dwsep.training.progress import TrainingProgress
from dwsep.training.seeding import seed_everything

CHECKPOINT_FILE = "checkpoint.safetensors"
MODEL_FILE = "model.safetensors"
LOG_FILE = "log.jsonl"
# An epoch longer than this is saved on the way.
_CHECKPOINT_SECONDS = 120.0


class Run:
    """A training run under way; :func:`dwsep.training.loop.train` drives it."""

    def __init__(
        self, model: nn.Module, train_data: ImageDataset, test_data: ImageDataset, config: TrainConfig
    ) -> None:
        if train_data.class_names != test_data.class_names:
            raise ValueError(
                f"training and test data have different classes: {train_data.class_names} and {test_data.class_names}"
            )
        if train_data.images.shape[1:] != test_data.images.shape[1:]:
            raise ValueError(
                f"training images have shape {tuple(train_data.images.shape[1:])}, "
                f"test images {tuple(test_data.images.shape[1:])}"
            )
        self.memory_format = memory_format_of(config.memory_format)
        self.config = config
        self.test_data = test_data
        self.normalisation = Normalisation(*channel_statistics(train_data.images))
        self.loader = BatchLoader(
            train_data,
            config.batch_size,
            self.normalisation,
            seed=config.seed,
            augment=config.augment,
            memory_format=self.memory_format,
        )
        self.model = model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.device = device_of(model)
        self.optimizer = make_optimizer(model, config)
        self.state = TrainState(data_digest=_digest(train_data))
        self.folder = config.output_dir
        self.log: RunLog | None = None
        self.total_steps = len(self.loader) * config.epochs
        self.warmup_steps = round(len(self.loader) * config.warmup_epochs)

    @property
    def checkpoint_path(self) -> Path | None:
        return self.folder / CHECKPOINT_FILE if self.folder is not None else None

    def info(self) -> ModelInfo:
        data = self.loader.data
        return ModelInfo(
            network=self.config.network,
            options=dict(self.config.network_options),
            num_classes=data.num_classes,
            in_channels=data.in_channels,
            class_names=data.class_names,
            mean=self.normalisation.mean,
            std=self.normalisation.std,
            image_size=data.image_size,
            epochs=self.state.epoch,
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
        if self.folder is None:
            return
        if not resume:
            # Files of the run that is being replaced must not pass for this one's.
            for name in (CHECKPOINT_FILE, MODEL_FILE):
                (self.folder / name).unlink(missing_ok=True)
        self.log = RunLog(self.folder / LOG_FILE, [asdict(r) for r in self.state.history] if resume else None)
        self.log.write(
            "resume" if resume else "header",
            config=self.config.model_dump(mode="json"),
            versions=versions(),
            threads=torch.get_num_threads(),
            device=str(self.device),
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
        self.state = saved.state

    def train_epoch(self, stop: StopSignal, progress: TrainingProgress) -> None:
        state = self.state
        self.model.train()
        last_saved = time.perf_counter()
        started = time.perf_counter()
        for images, labels in self.loader.epoch(state.epoch, start=state.batch):
            loss = self._step(images, labels)
            seconds = time.perf_counter() - started
            state.batch += 1
            state.loss_sum += loss
            state.seconds += seconds
            progress.step(state.epoch + 1, loss, seconds)
            if stop.received is not None:
                self._interrupted(stop)
            if self.folder is not None and time.perf_counter() - last_saved > _CHECKPOINT_SECONDS:
                self.save_checkpoint()
                last_saved = time.perf_counter()
            started = time.perf_counter()

    def _step(self, images: Tensor, labels: Tensor) -> float:
        step = self.state.epoch * len(self.loader) + self.state.batch
        rate = self._rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with autocast(self.device, self.config.precision):
            logits = self.model(images.to(self.device))
        if step == 0:
            check_logits(logits, self.loader.data)
        loss = F.cross_entropy(logits.float(), labels.to(self.device), label_smoothing=self.config.label_smoothing)
        value = loss.item()
        if not -float("inf") < value < float("inf"):
            raise RuntimeError(
                f"the training loss became {value} in epoch {self.state.epoch + 1}, step {self.state.batch + 1}, at "
                f"learning rate {rate:.3g}; a lower learning rate or a longer warm-up may help"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return value

    def _rate(self, step: int) -> float:
        return learning_rate_at(step, self.total_steps, self.warmup_steps, self.config.learning_rate)

    def evaluate(self, stop: StopSignal) -> EvaluationResult:
        def check() -> None:
            if stop.received is not None:
                self._interrupted(stop)

        return evaluate(
            self.model,
            self.test_data,
            normalisation=self.normalisation,
            precision=self.config.precision,
            memory_format=self.config.memory_format,
            between_batches=check,
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
        )
        state.history.append(record)
        state.epoch += 1
        state.batch, state.loss_sum, state.seconds = 0, 0.0, 0.0
        self.save_checkpoint()
        if self.log is not None:
            self.log.write("epoch", **asdict(record))
        return record

    def save_checkpoint(self) -> None:
        if self.checkpoint_path is not None:
            checkpoint.save(self.checkpoint_path, self.model, self.optimizer, self.state, self.config, self.info())

    def save_final_model(self) -> None:
        if self.folder is not None:
            save_model(self.folder / MODEL_FILE, self.model, self.info())

    def _interrupted(self, stop: StopSignal) -> None:
        assert stop.received is not None
        self.save_checkpoint()
        if self.log is not None:
            self.log.write("interrupted", epoch=self.state.epoch, batch=self.state.batch)
        raise TrainingInterrupted(stop.received, self.checkpoint_path)


def _digest(data: ImageDataset) -> str:
    content = hashlib.sha256(repr(tuple(data.images.shape)).encode())
    content.update(data.images.contiguous().numpy().tobytes())
    content.update(data.labels.contiguous().numpy().tobytes())
    return content.hexdigest()
