"""A whole run: the processes, the training, the report."""

from __future__ import annotations

from pathlib import Path

from . import checkpoint, report
from ._errors import TrainingError
from .config import Config
from .processes import joined
from .progress import Console
from .trainer import STATE, Outcome, Trainer


def train(config: Config, *, resume: bool = False, console: Console | None = None) -> Outcome:
    """Trains, validates, and writes checkpoints, metrics and the report to ``config.out``.

    In a process that ``torchrun`` started, the processes train one network together: gloo on the
    CPU, NCCL on CUDA. All of them need the folder ``config.out``.

    Args:
        config: what to do.
        resume: go on with the run in ``config.out``.
        console: where progress is shown; default standard error.

    Returns:
        Outcome: the same in every process.

    Raises:
        TrainingError: what is wrong, and whether something has to be done about it.
        DataError: what is wrong with the data.
    """
    with joined(config.device) as processes:
        if console is None or not processes.is_first:
            console = Console(silent=not processes.is_first)
        outcome = Trainer(config, processes, console, resume=resume).run()
        if outcome.interrupted:
            console.say(f"stopped; --resume --out {config.out} goes on")
        elif processes.is_first:
            console.say(report.write(config, outcome))
    return outcome


def config_of_run(out: str) -> Config:
    """The configuration of the run in a folder.

    Raises:
        TrainingError: there is none.
    """
    state = checkpoint.load_state(Path(out) / STATE)
    if "config" not in state:
        raise TrainingError(f"{Path(out) / STATE}: not the state of a run")
    return Config.from_dict(state["config"])
