"""The training loop: restore, step through the epochs, validate, checkpoint, stop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retina_ray.data.loader import Loader
from retina_ray.training.clock import Clock
from retina_ray.training.optim import enter_epoch, learning_rate
from retina_ray.training.policy import Schedule, training_ends
from retina_ray.training.reporter import Reporter
from retina_ray.training.restore import restore
from retina_ray.training.saver import Saver
from retina_ray.training.state import TrainState
from retina_ray.training.step import train_step


class Loop:
    """Trains a state to its end.

    Args:
        state: what is trained; restored from the newest verified checkpoint first.
        loader: of the training images.
        validate: returns the validation measures; ``criterion`` among them, lower is better. Between its batches it
            calls `heed`.
        schedule: epochs, stopping, learning rate, checkpoints.
        reporter: receives progress and checkpoints.
        clock: is told where the time goes.
    """

    def __init__(
        self,
        state: TrainState,
        *,
        loader: Loader,
        validate: Callable[[], dict[str, float]],
        schedule: Schedule,
        reporter: Reporter,
        clock: Clock,
    ) -> None:
        self._state = state
        self._loader = loader
        self._validate = validate
        self._schedule = schedule
        self._reporter = reporter
        self._clock = clock
        clock.time_forward(state.engine.network)
        self._world = state.engine.world
        self._saver = Saver(state, policy=schedule.checkpoint, reporter=reporter, clock=clock)
        self._sums: dict[str, Tensor] = {}

    def run(self) -> None:
        """Train until all epochs are done or validation stops improving.

        Raises:
            NonFiniteLossError: a loss term or gradient is not finite; nothing was updated with it.
            StoppedError: a rank was told to leave; a checkpoint holds all that was done.
        """
        with self._clock.phase("restore"):
            self._restore()
        progress = self._state.progress
        while not progress.finished:
            if progress.step < (len(progress.history) + 1) * self._loader.steps_per_epoch:
                self._train_epoch()
            self._finish_epoch()

    def heed(self) -> None:
        """Leave with a checkpoint if any rank was told to; all ranks call it equally often."""
        _, leaving = self._saver.look()
        if leaving:
            self._report(self._position(), with_checkpoint=True, leave=True)

    def _train_epoch(self) -> None:
        progress, per_epoch = self._state.progress, self._loader.steps_per_epoch
        epoch, start = divmod(progress.step, per_epoch)
        optim, total_steps = self._schedule.optim, self._schedule.epochs * per_epoch
        enter_epoch(self._state.engine.optimizer, epoch)
        for micro_batches in self._clock.waiting(self._loader.epoch(epoch, start)):
            with self._clock.phase("compute"):
                rate = learning_rate(optim, step=progress.step, steps_per_epoch=per_epoch, total_steps=total_steps)
                terms = train_step(self._state.engine, micro_batches, step=progress.step, lr=rate)
                self._sums = {name: self._sums.get(name, 0.0) + term.double() for name, term in terms.items()}
                self._clock.images += sum(len(batch.rows) for batch in micro_batches) * self._world.size
            progress.step += 1
            if progress.step % per_epoch:  # the end of an epoch is the business of _finish_epoch
                self._between_steps(terms)

    def _between_steps(self, terms: dict[str, Tensor]) -> None:
        """Log and check at every ``log_every``-th step, checkpoint when due."""
        looking = self._state.progress.step % self._schedule.log_every == 0
        with self._clock.phase("compute"):  # a GPU's queued work is waited for here
            if looking or self._world.device.type == "cpu":  # only on a GPU does looking cost anything
                self._state.engine.guard.check()
            losses = {f"train_{name}": float(term) for name, term in terms.items()} if looking else {}
        if looking:
            self._reporter.progress({"kind": "step", **self._position(), **losses, **self._clock.summary()})
        due, leaving = self._saver.look()
        if due or leaving:
            self._report(self._position(), with_checkpoint=True, leave=leaving)

    def _finish_epoch(self) -> None:
        """Validate, record, and decide whether the training ends."""
        state, progress, schedule = self._state, self._state.progress, self._schedule
        with self._clock.phase("compute"):
            state.engine.guard.check()
        with self._clock.phase("validation"):
            measures = self._validate()
        per_epoch = self._loader.steps_per_epoch
        losses = {f"train_{name}": float(value) / per_epoch for name, value in self._sums.items()}
        validation = {f"validation_{name}": value for name, value in measures.items()}
        rate = state.engine.optimizer.param_groups[0]["lr"]
        record: dict[str, Any] = {"kind": "epoch", **self._position(), "lr": rate, **losses, **validation}
        self._sums = {}
        progress.history.append(record)
        if measures["criterion"] < progress.best_criterion:
            progress.best_criterion, progress.best_epoch = measures["criterion"], len(progress.history)
            state.keep_best()
        progress.finished = training_ends(
            epochs_done=len(progress.history),
            epochs=schedule.epochs,
            best_epoch=progress.best_epoch,
            patience=schedule.patience,
        )
        self._reporter.progress({**record, **self._clock.summary(), "best_epoch": progress.best_epoch})
        due, leaving = self._saver.look()
        leave = leaving and not progress.finished
        self._report(record, with_checkpoint=progress.finished or due or leaving, leave=leave)

    def _position(self) -> dict[str, Any]:
        step = self._state.progress.step
        return {"step": step, "epoch": step / self._loader.steps_per_epoch, "epochs": self._schedule.epochs}

    def _report(self, metrics: dict[str, Any], *, with_checkpoint: bool, leave: bool = False) -> None:
        if with_checkpoint:
            self._state.engine.guard.check()  # never save what a skipped update left behind
            self._state.progress.sums = {name: float(value) for name, value in self._sums.items()}
        self._saver.report(metrics, with_checkpoint=with_checkpoint, leave=leave)

    def _restore(self) -> None:
        restored, progress = restore(self._state, self._reporter), self._state.progress
        if restored.found:
            device = self._world.device
            self._sums = {k: torch.tensor(v, dtype=torch.float64, device=device) for k, v in progress.sums.items()}
            self._saver.restored()
        if restored.found or restored.damaged:
            found = {"damaged": list(restored.damaged), "history": list(progress.history)}
            self._reporter.progress({"kind": "restored", **self._position(), **found})
