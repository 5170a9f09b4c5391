"""The loop: steps, epochs, checkpoints."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..models import ScaleMixtureResNet, SegmentationNet
from . import checkpoint
from ._errors import TrainingError, require
from .config import Config
from .data import IGNORED, Data, open_data, training_batches, validation_batches
from .metrics import Confusion
from .networks import build_network, normalized
from .processes import Processes
from .progress import Console, scalars_to_tensorboard

STATE, LAST, BEST = "state.pt", "last.safetensors", "best.safetensors"
_LAYOUT = 1  # of the state's entries
_MOMENTUM = 0.9

Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        history: a row of metrics for each epoch.
        confusion: of the last epoch, over the images for validation; None before the first.
        interrupted: stopped by a signal; it can be resumed.
        parameters: of the network.
        seconds: that this process trained.
        classes: their names.
    """

    history: list[dict[str, float]]
    confusion: Confusion | None
    interrupted: bool
    parameters: int
    seconds: float
    classes: list[str]


class Trainer:
    """Trains the network of a configuration.

    With the same configuration, number of processes and threads, a run on the CPU gives the same
    bits, also if it was stopped and resumed: what is random depends on the seed and on the number
    of the step, and nothing on what ran before.

    Args:
        config: what to do.
        processes: this one and the others, see :func:`msr_cuda.train.processes.joined`.
        console: where progress is shown.
        resume: go on from the state in ``config.out``.

    Raises:
        TrainingError: the configuration or the data cannot be; a run is already there.
    """

    def __init__(
        self, config: Config, processes: Processes, console: Console, *, resume: bool = False
    ) -> None:
        require("safetensors")
        if config.batch_size % processes.size:
            raise TrainingError(
                f"batch_size: expected a multiple of the {processes.size} processes, got "
                f"{config.batch_size}"
            )
        if config.fsdp and processes.size == 1:
            raise TrainingError("fsdp: expected several processes, started by torchrun, got one")
        self.config = config
        self.processes = processes
        self.console = console
        self.out = Path(config.out)
        state = checkpoint.load_state(self.out / STATE) if resume else None
        if state is None and (self.out / STATE).exists():
            raise TrainingError(
                f"{self.out}: there is a run already; --resume goes on with it, --out takes "
                "another folder"
            )
        processes.wait()  # until all have looked, before the first makes files
        self.data: Data = open_data(config)

        torch.manual_seed(config.seed)
        network = build_network(config, len(self.data.classes))
        if config.init and state is None:
            console.say(checkpoint.load_initial(network, config.init))
        self.network = network.to(processes.device)
        if config.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average: AveragedModel | None = None
        if config.ema:
            self.average = AveragedModel(
                self.network, multi_avg_fn=self._average_step, use_buffers=True
            )
        if state is not None:
            self._restore_weights(state)
        if config.fsdp:
            from .sharding import share_out

            share_out(self.network, processes)
            if self.average is not None:
                share_out(self.average.module, processes)
        self.optimizer = _optimizer(self.network, config)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.amp == "float16")
        _, self.steps_per_epoch = training_batches(
            self.data, config, 0, 0, processes.rank, processes.size
        )
        self.schedule = _schedule(self.optimizer, config, self.steps_per_epoch)

        self.step = 0  # steps done
        self.loss_sum = 0.0  # of the steps of this epoch
        self.history: list[dict[str, float]] = []
        self.confusion: Confusion | None = None
        self.best = -math.inf
        self._pending: list[Tensor] = []  # losses not yet looked at
        self._asked_to_stop = False  # this process, by a signal
        self._stopping = False  # all processes, which have agreed on it
        if state is not None:
            self._restore(state)
        self.wrapped: nn.Module = self.network
        if config.compile:
            self.network.compile()
        if processes.size > 1 and not config.fsdp:
            self.wrapped = DistributedDataParallel(self.network)

    # The loop

    def run(self) -> Outcome:
        """Trains to the end, or until a signal asks to stop.

        Raises:
            TrainingError: the loss is not finite; a file cannot be written; bad data.
        """
        begun = time.monotonic()
        if self.processes.is_first:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(f"{self.out}: {error.strerror}") from error
            text = self.config.to_toml()
            checkpoint.write_atomically(self.out / "config.toml", text.encode())
        with self._stoppable(), _deterministic(self.config.deterministic):
            while len(self.history) < self.config.epochs and not self._stopping:
                self._epoch()
        return Outcome(
            self.history, self.confusion, len(self.history) < self.config.epochs,
            sum(p.numel() for p in self.network.parameters()), time.monotonic() - begun,
            self.data.classes,
        )  # fmt: skip

    def _epoch(self) -> None:
        epoch = len(self.history)
        done = self.step - epoch * self.steps_per_epoch
        batches, count = training_batches(
            self.data, self.config, epoch, done, self.processes.rank, self.processes.size
        )
        self.wrapped.train()
        begun = time.monotonic()
        bar = self.console.bar(f"epoch {epoch + 1}/{self.config.epochs}", count, done)
        with bar:
            for images, targets in batches:
                self._train_step(images, targets)
                save = self.config.save_steps and self.step % self.config.save_steps == 0
                at_end = self.step == (epoch + 1) * self.steps_per_epoch
                # Several processes can only stop together, where they exchange their losses.
                alone = self.processes.size == 1 and self._asked_to_stop
                if self.step % self.config.log_steps == 0 or save or at_end or alone:
                    self._look_at_losses()
                    bar.show(loss=self.loss_sum / (self.step - epoch * self.steps_per_epoch))
                    if (save or self._stopping) and not at_end:
                        self._save_state()
                    if self._stopping and not at_end:
                        return
                bar.advance()
        loss, self.confusion = self._validate()
        row = {
            "epoch": epoch + 1.0,
            "train_loss": self.loss_sum / count,
            "val_loss": loss,
            "accuracy": self.confusion.accuracy,
            "mean_iou": self.confusion.mean_iou,
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        self.history.append(row)
        self.loss_sum = 0.0
        score = self.score(row)
        improved = score > self.best
        self.best = max(self.best, score)
        self._save_epoch(improved)
        seconds = time.monotonic() - begun
        self.console.epoch(row, seconds)

    def score(self, row: dict[str, float]) -> float:
        """What the best checkpoint is best in."""
        return row["mean_iou" if self.config.task == "segmentation" else "accuracy"]

    def _train_step(self, images: Tensor, targets: Tensor) -> None:
        # So that dropout's masks depend on the number of the step, and not on the steps before.
        torch.manual_seed(_mixed(self.config.seed, self.step, self.processes.rank))
        labelled = bool((targets != IGNORED).any())  # while they are on the host
        images, targets = self._to_device(images, targets)
        with self._autocast():
            logits = self.wrapped(images)
            if labelled:
                loss = self._loss(logits, targets, self.config.label_smoothing)
            else:  # the mean over no pixel would be NaN; all parameters still have gradients
                loss = 0 * logits.float().sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self._pending.append(loss.detach())
        self.step += 1

    def _look_at_losses(self) -> None:
        """Adds up the losses since the last time, over all processes; stops at NaN."""
        if not self._pending:
            return
        first = self.step - len(self._pending) + 1
        stop = self._pending[0].new_tensor([float(self._asked_to_stop)])
        shared = self.processes.total(torch.cat([torch.stack(self._pending), stop]).double())
        *losses, stops = shared.tolist()
        self._pending.clear()
        self._stopping = stops > 0
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                advice = "a smaller --lr, a longer --warmup or a smaller --clip-norm may help"
                if self.config.amp == "float16":
                    advice = f"--amp bfloat16 has a larger range; {advice}"
                raise TrainingError(
                    f"the loss is {loss} at step {first + i} (epoch {len(self.history) + 1}): "
                    f"training stops, and the checkpoints from before are kept; {advice}"
                )
            self.loss_sum += loss / self.processes.size

    @torch.no_grad()
    def _validate(self) -> tuple[float, Confusion]:
        network: nn.Module = self.network if self.average is None else self.average.module
        network.eval()
        for buffer in network.buffers():
            # Each has statistics of its own images; those of the first are what is saved.
            self.processes.spread(buffer)
        classes = len(self.data.classes)
        sums = torch.zeros(classes**2 + 1, dtype=torch.float64)  # counts are exact to 2^53
        for images, targets in validation_batches(
            self.data, self.config, self.processes.rank, self.processes.size
        ):
            images, targets = self._to_device(images, targets)
            with self._autocast():
                logits = network(images)
                loss = self._loss(logits, targets)
                predicted = self._decide(network, logits, targets)
            counts = Confusion.of(predicted, targets, classes).counts.flatten().double().cpu()
            # The mean is over what has a class; NaN where nothing has.
            total = loss.double().cpu() * counts.sum() if counts.any() else torch.zeros(())
            sums += torch.cat([counts, total.double().view(1)])
        sums = self.processes.total(sums).cpu()
        matrix = sums[:-1].long().view(classes, classes)
        return float(sums[-1] / sums[:-1].sum()), Confusion(matrix)

    def _loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        if isinstance(self.network, SegmentationNet):
            return self.network.loss(
                logits, targets, ignore_index=IGNORED, label_smoothing=smoothing
            )
        if isinstance(self.network, ScaleMixtureResNet):
            return self.network.loss(logits, targets, label_smoothing=smoothing)
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)

    def _decide(self, network: nn.Module, logits: Tensor, targets: Tensor) -> Tensor:
        if isinstance(network, SegmentationNet):
            return network.decide(logits, targets.shape[1:])
        return logits.argmax(1)

    def _to_device(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        device = self.processes.device
        images = normalized(images.to(device, non_blocking=True))
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, targets.to(device, non_blocking=True)

    def _autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.config.amp == "float16" else torch.bfloat16
        return torch.autocast(self.processes.device.type, dtype, enabled=self.config.amp != "off")

    def _average_step(self, averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        """The moving average of weights, over fewer steps at the beginning."""
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        if self.config.fsdp:  # parameters are shared out, buffers are not
            from .sharding import own_part

            averaged, current = ([own_part(x) for x in tensors] for tensors in (averaged, current))
        get_ema_multi_avg_fn(decay)(averaged, current, count)

    # Files

    def _whole(self, values: dict[str, Any]) -> dict[str, Any]:
        """With whole tensors, for which all processes are needed."""
        if not self.config.fsdp:
            return values
        from .sharding import whole

        found: dict[str, Any] = whole(values)
        return found

    def _state(self) -> dict[str, Any]:
        state = {
            "layout": _LAYOUT,
            "config": self.config.to_dict(),
            "classes": self.data.classes,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "loss_sum": self.loss_sum,
            "history": self.history,
            "confusion": None if self.confusion is None else self.confusion.counts,
            "best": self.best,
        }
        return self._whole(state)

    def _check_weights(self, weights: Mapping[str, Tensor]) -> None:
        """The last step's loss was finite, but what it made of the weights may not be."""
        for name, value in weights.items():
            if not value.isfinite().all():
                raise TrainingError(
                    f"{name} is not finite after step {self.step}: training stops, and the "
                    "checkpoints from before are kept; a smaller --lr may help"
                )

    def _save_state(self) -> None:
        state = self._state()
        if self.processes.is_first:
            self._check_weights(state["network"])
            checkpoint.save_state(self.out / STATE, state)

    def _save_epoch(self, improved: bool) -> None:
        """Weights before the state: a state never claims more than there is."""
        state = self._state()
        if not self.processes.is_first:
            return
        self._check_weights(state["network"])
        weights = state["network"]
        if self.average is not None:
            prefix = "module."
            averages = [(n, v) for n, v in state["average"].items() if n.startswith(prefix)]
            weights = {name.removeprefix(prefix): value for name, value in averages}
        for name in (LAST, BEST) if improved else (LAST,):
            checkpoint.save_weights(self.out / name, weights, self.config, self.data.classes)
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, list(self.history[0]))
        writer.writeheader()
        writer.writerows(self.history)
        checkpoint.write_atomically(self.out / "metrics.csv", table.getvalue().encode())
        checkpoint.save_state(self.out / STATE, state)
        scalars_to_tensorboard(self.out, self.history[-1])

    def _restore_weights(self, state: dict[str, Any]) -> None:
        """Before parameters are shared out over processes."""
        if state.get("layout") != _LAYOUT:
            raise TrainingError(f"{self.out / STATE}: of another version of this program")
        if state["classes"] != self.data.classes:
            raise TrainingError(
                f"{self.config.data}: expected the classes {state['classes']} of the run, got "
                f"{self.data.classes}"
            )
        source = str(self.out / STATE)
        checkpoint.load_exactly(self.network, state["network"], source)
        if self.average is not None:
            checkpoint.load_exactly(self.average, state["average"], source)

    def _restore(self, state: dict[str, Any]) -> None:
        """What :meth:`_restore_weights` does not."""
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise TrainingError(
                f"{self.config.data}: expected the {state['steps_per_epoch']} steps an epoch of "
                f"the run, got {self.steps_per_epoch}: the images or the processes are not as many"
            )
        if self.config.fsdp:
            from .sharding import load_optimizer

            load_optimizer(self.optimizer, state["optimizer"])
        else:
            self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.loss_sum = state["loss_sum"]
        self.history = state["history"]
        self.best = state["best"]
        if state["confusion"] is not None:
            self.confusion = Confusion(state["confusion"])

    # Signals

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop after the step, with the state saved; a second one at once."""

        def ask(number: int, frame: Any) -> None:
            self._asked_to_stop = True
            signal.signal(number, before[number])
            self.console.say("stopping after this step; once more stops at once, unsaved")

        before: dict[int, Any] = {
            number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            for number in before:
                signal.signal(number, ask)
        except ValueError:  # not in the main thread: signals go elsewhere
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """PyTorch's deterministic algorithms; set back afterwards."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    before = torch.are_deterministic_algorithms_enabled()
    with contextlib.ExitStack() as stack:
        cudnn = torch.backends.cudnn
        if cudnn.benchmark:  # it would choose among them by their speed, which is not repeatable
            stack.enter_context(
                cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=cudnn.allow_tf32)
            )
        stack.callback(torch.use_deterministic_algorithms, before)
        torch.use_deterministic_algorithms(True)
        yield


def _mixed(*numbers: int) -> int:
    """A seed from several numbers; different ones for different numbers, but for chance."""
    mixed = 0
    for number in numbers:
        # The step of SplitMix64 (Steele et al. 2014).
        mixed = (mixed + number + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63


def _optimizer(network: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Weights decay; biases, batch norms and the weights of scales do not."""
    weights = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups, config.lr, momentum=_MOMENTUM, weight_decay=config.weight_decay, nesterov=True
    )


def _schedule(
    optimizer: torch.optim.Optimizer, config: Config, steps_per_epoch: int
) -> LRScheduler:
    """The learning rate rises linearly, then falls with a cosine to zero."""
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup * steps_per_epoch), total - 1)
    cosine = CosineAnnealingLR(optimizer, total - warmup)
    if warmup <= 0:
        return cosine
    rise = LinearLR(optimizer, 0.01, total_iters=warmup)
    return SequentialLR(optimizer, [rise, cosine], [warmup])
