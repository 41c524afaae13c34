"""Pools of workers that die, dawdle or are slow, and what makes a real one die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, field
from typing import Any

from moe_weights.commands.parts import PartStore
from moe_weights.commands.work import UnitResult, WorkSettings, run_units
from moe_weights.extract.work_unit import WorkUnit


@dataclass(slots=True)
class MortalPool:
    """Measures at once, in this thread; some submissions find their worker dead.

    Attributes:
        dying: Asked with the number of a submission, from 0: does the worker die of it?
        refusing: Asked as well: is the pool broken already when it is submitted?
        n_renewed: How often new workers were made.
        submitted: Every batch that was handed over.
    """

    dying: Callable[[int], bool] = lambda _number: False
    refusing: Callable[[int], bool] = lambda _number: False
    n_workers: int = 2
    n_renewed: int = 0
    submitted: list[Sequence[WorkUnit]] = field(default_factory=list)
    died: tuple[type[BaseException], ...] = (BrokenExecutor,)

    def submit(self, batch: Sequence[WorkUnit], settings: WorkSettings) -> Future[UnitResult]:
        number = len(self.submitted)
        self.submitted.append(batch)
        if self.refusing(number):
            raise BrokenExecutor("the pool is broken")
        future: Future[UnitResult] = Future()
        if self.dying(number):
            future.set_exception(BrokenExecutor("a process ended abruptly"))
        else:
            future.set_result(run_units(batch, settings))
        return future

    def renew(self) -> None:
        self.n_renewed += 1

    def look_after(self) -> str | None:
        return None

    def stop(self) -> None:
        pass


class KillingStore(PartStore):
    """A store that calls `kill` once, when the first result has come."""

    kill: Callable[[], None] | None = None

    def commit(self, number: int, result: UnitResult) -> None:
        if self.kill is not None:
            kill, self.kill = self.kill, None
            kill()
        super().commit(number, result)


class Poison:
    """Kills whoever receives it."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return die, ()


def die() -> None:
    """End this process as the out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or dead and not yet buried."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stream:  # noqa: PTH123
            return stream.read().rsplit(")", 1)[-1].split()[0] == "Z"
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except OSError:
        return True
    return False


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    """Wait for something to come true; return whether it has."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.02)
    return is_so()
