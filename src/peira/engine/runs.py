"""One cell and one seed under way: randomness, progress, checkpoints, curves, time and memory."""

from __future__ import annotations

import json
import os
import pickle
import random
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from peira.engine.errors import StudyError
from peira.engine.files import atomic_path, make_folder

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# Seconds of work that a kill may cost (large models want it rarer), and between lines of progress.
CHECKPOINT_EVERY = float(os.environ.get("PEIRA_CHECKPOINT_SECONDS", "10"))
PROGRESS_EVERY = 0.2


class Stateful(Protocol):
    """What PyTorch modules, optimisers and schedulers are: their state goes out and in."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


Progress = Callable[[str, int, int], None]


def silent(name: str, step: int, total: int) -> None:
    """Progress that nobody watches."""


class Run:
    """What `Study.measure` is handed beside the cell.

    Args:
        seed: pairs the cells: the same seed gives every method the same data and draws.
        folder: where checkpoints go; the same folder resumes. None keeps nothing.
        shared: where results that several cells need are kept. None computes them each time.
        max_steps: upper bound on the steps of every loop.
        progress: called as `progress(loop name, step, total)` a few times a second.
        revision: fingerprint of the code; shared results of other code are not used.
    """

    def __init__(
        self,
        seed: int,
        folder: Path | None = None,
        shared: Path | None = None,
        max_steps: int | None = None,
        progress: Progress = silent,
        revision: str = "",
    ) -> None:
        self.seed = seed
        self.curves: list[tuple[int, str, float]] = []
        self._folder, self._shared_folder = folder, shared
        self._max_steps, self._progress, self._revision = max_steps, progress, revision
        self._began, self._spent_before = time.perf_counter(), 0.0
        self._loops: set[str] = set()
        self._batch: Sequence[Run] = [self]
        seed_everything(seed)

    def lead(self, batch: Sequence[Run], folder: Path | None, progress: Progress) -> None:
        """Make this run the one whose `steps` keeps the checkpoints of a whole batch."""
        self._batch, self._folder, self._progress = batch, folder, progress

    @cached_property
    def rng(self) -> np.random.Generator:
        """NumPy generator of this run."""
        return np.random.default_rng(self.seed)

    @cached_property
    def generator(self) -> torch.Generator:
        """PyTorch generator of this run, on the CPU so that every device draws the same."""
        import torch

        return torch.Generator().manual_seed(self.seed)

    @cached_property
    def device(self) -> torch.device:
        """The accelerator where there is one, else the CPU."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def seconds(self) -> float:
        """Time spent on this cell, in all the sessions it took."""
        return self._spent_before + time.perf_counter() - self._began

    def budget(self, steps: int) -> int:
        """`steps`, or the bound that the person set if that is lower."""
        return steps if self._max_steps is None else min(steps, self._max_steps)

    def log(self, step: int, **values: float) -> None:
        """Record one point of each named curve."""
        self.curves += [(step, name, float(value)) for name, value in values.items()]

    def steps(
        self,
        total: int,
        save: Sequence[Stateful | MutableMapping[str, Any]] = (),
        name: str = "train",
    ) -> Iterator[int]:
        """Yield 1, 2, ..., `budget(total)`, with progress, checkpoints and resume.

        Args:
            total: number of steps of this loop.
            save: what the loop changes: objects with `state_dict` (modules, optimisers) and plain
                dicts. A resumed loop finds them as they were; random state, curves and time are
                kept as well.
            name: names the loop where one cell has several.
        """
        if name in self._loops:
            raise StudyError(f"two loops named {name!r} in one cell: give each its own name")
        self._loops.add(name)
        total = self.budget(total)
        start = self._restore(name, save)
        saved = shown = time.perf_counter()
        for step in range(start + 1, total + 1):
            yield step
            now = time.perf_counter()
            if now - shown > PROGRESS_EVERY:
                self._progress(name, step, total)
                shown = now
            if now - saved > CHECKPOINT_EVERY or step == total:
                self._store(name, step, save)
                saved = time.perf_counter()

    def shared(self, name: str, make: Callable[..., T], **settings: Any) -> T:
        """What several cells of one seed need, computed once: `make(run, **settings)`.

        Keyed by name, seed, settings and code. `make` gets a run of its own with the same seed, so
        its result does not depend on who asks first, and the asker's random state is untouched.
        A second worker that asks meanwhile waits. The result must be picklable.

        Raises `StudyError` for a setting that is no plain data (numbers, text, lists, dicts).
        """
        with _untouched_random_state():
            if self._shared_folder is None:
                return make(Run(self.seed, max_steps=self._max_steps), **settings)
            identity = [name, self.seed, self._max_steps, self._revision, settings]
            try:
                text = json.dumps(identity, sort_keys=True)
            except TypeError as error:
                raise StudyError(
                    f"settings of shared {name!r} must be plain data: {error}"
                ) from error
            key = sha256(text.encode()).hexdigest()[:16]
            folder = self._shared_folder / f"{name}-{key}"
            return self._shared_once(folder, make, settings)

    def _shared_once(self, folder: Path, make: Callable[..., T], settings: dict[str, Any]) -> T:
        from filelock import FileLock

        make_folder(folder)
        result = folder / "result.pickle"
        with FileLock(folder / "lock"):
            if not result.exists():
                run = Run(
                    self.seed, folder, self._shared_folder, self._max_steps, self._progress,
                    self._revision,
                )  # fmt: skip
                value = make(run, **settings)
                _dump(result, value)
            loaded: T = _load(result)
        return loaded

    def _store(self, name: str, step: int, save: Sequence[Any]) -> None:
        if self._folder is None:
            return
        state = {
            "step": step,
            "objects": [_state(item) for item in save],
            "random": [random_state(run) for run in self._batch],
            "curves": [run.curves for run in self._batch],
            "seconds": self.seconds,
        }
        _dump(self._folder / f"{name}.checkpoint", state)

    def _restore(self, name: str, save: Sequence[Any]) -> int:
        if self._folder is None or not (self._folder / f"{name}.checkpoint").exists():
            return 0
        state = _load(self._folder / f"{name}.checkpoint")
        for item, value in zip(save, state["objects"], strict=True):
            _set_state(item, value)
        for run, randomness, curves in zip(
            self._batch, state["random"], state["curves"], strict=True
        ):
            set_random_state(run, randomness)
            run.curves = curves
            run._spent_before, run._began = state["seconds"], time.perf_counter()
        return int(state["step"])


def _state(item: Any) -> Any:
    return dict(item) if isinstance(item, MutableMapping) else item.state_dict()


def _set_state(item: Any, value: Any) -> None:
    if isinstance(item, MutableMapping):
        item.clear()
        item.update(value)
    else:
        item.load_state_dict(value)


def _dump(path: Path, value: Any) -> None:
    # Pickle is enough here: these files are this program's own scratch, never somebody else's.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        pickle.dump(value, file, protocol=5)


def _load(path: Path) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and (if it is loaded) PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def random_state(run: Run | None = None) -> dict[str, Any]:
    """State of the global generators and of those that `run` has handed out."""
    torch = sys.modules.get("torch")
    state: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state()}
    if torch is not None:
        state["torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
    if run is not None:
        state["rng"] = run.rng.bit_generator.state
        if "generator" in vars(run):
            state["generator"] = run.generator.get_state()
    return state


def set_random_state(run: Run | None, state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    if "torch" in state:
        import torch

        torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state_all(state["cuda"])
    if run is not None:
        run.rng.bit_generator.state = state["rng"]
        if "generator" in state:
            run.generator.set_state(state["generator"])


@contextmanager
def _untouched_random_state() -> Iterator[None]:
    before = random_state()
    try:
        yield
    finally:
        set_random_state(None, before)
