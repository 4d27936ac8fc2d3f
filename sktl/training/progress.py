"""Telling how far a fit has come: bars, lines in a log, and scikit-learn's callbacks."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm.auto import tqdm

try:
    from sklearn import callback as _protocol
except ImportError:  # before scikit-learn 1.9
    _protocol = None

_Method = TypeVar("_Method", bound=Callable[..., Any])


class _WithoutCallbacks:
    def _init_callback_context(self, **settings: Any) -> None:
        return None


CallbackSupportMixin: type[Any] = (
    _WithoutCallbacks if _protocol is None else _protocol.CallbackSupportMixin
)


def with_callbacks(method: _Method) -> _Method:
    """Have scikit-learn tear callbacks down after a method that sets them up."""
    if _protocol is None:
        return method
    managed: _Method = _protocol.with_callbacks(method)
    return managed


__all__ = [
    "CallbackSupportMixin",
    "EpochObserver",
    "lines_wanted",
    "naming_fit",
    "print_line",
    "progress_bar",
    "with_callbacks",
]

SECONDS_A_LINE = 30.0  # in a log, between two lines on one thing
_UNKNOWN_SHAPE = {"ncols": 80, "nrows": 24}  # of a terminal that doesn't tell
_EVALUATION = "candidate-split-evaluation"  # scikit-learn's name of one fit of a search

_fit: ContextVar[str] = ContextVar("_fit", default="")
_bars_lock = threading.Lock()
_n_bars = 0


@contextmanager
def naming_fit(context: Any) -> Iterator[None]:
    """Within, bars and lines say which fit of a search this is, where that is known.

    scikit-learn tells it from version 1.9 on, and only its searches do: `cross_validate` hands no
    context on.

    Parameters
    ----------
    context : sklearn.callback.CallbackContext or None
        Of the fit.
    """
    token = _fit.set(_place_in_search(context))
    try:
        yield
    finally:
        _fit.reset(token)


def _place_in_search(context: Any) -> str:
    while context is not None:  # between the search and this fit there may be a pipeline
        parent = context.parent
        if getattr(context, "source_task_name", None) == _EVALUATION and parent is not None:
            return f"fit {context.task_id + 1} of {parent.max_subtasks}, "
        context = parent
    return ""


@contextmanager
def progress_bar(
    what: str, total: int, unit: str, verbose: int, *, lines: bool = True
) -> Iterator[Callable[[int], object]]:
    """Tell how far something has come: by a bar where somebody may be looking, else by lines.

    Parameters
    ----------
    what, unit : str
    total : int
    verbose : int
        0 shows nothing.
    lines : bool, default=True
        Whether to print a line now and then, and at the end, where there is no bar.

    Yields
    ------
    callable
        Takes the number of units that were done since the last call.
    """
    what = f"{_fit.get()}{what}"
    if verbose > 0 and _is_looked_at():
        settings = _UNKNOWN_SHAPE if _has_no_shape() else {}
        with (
            _warnings_beside_bars(),
            tqdm(desc=what, total=total, unit=f" {unit}", leave=False, **settings) as bar,
        ):
            yield bar.update
    elif verbose > 0 and lines:
        log = _Log(what, total, unit)
        yield log.advance
        log.finish()
    else:
        yield _ignore


def print_line(text: str) -> None:
    """Print a line, above a bar where there is one."""
    tqdm.write(f"{_fit.get()}{text}", file=sys.stdout)
    sys.stdout.flush()  # a log is read while it grows


def lines_wanted(verbose: int) -> int:
    """1 if epochs shall be printed by the line: where there is no bar, or with `verbose` of 2."""
    return int(verbose > 1 or (verbose > 0 and not _is_looked_at()))


def _is_looked_at() -> bool:
    if "ipykernel" in sys.modules:
        return True
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _has_no_shape() -> bool:
    """Whether a terminal doesn't tell how large it is, which tqdm takes for no room at all."""
    try:
        return 0 in os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):  # no terminal, or nothing that has a file
        return False


def _ignore(n: int) -> None:
    return None


class _Log:
    """Lines on how far something has come, one every so many seconds."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._n = 0
        self._start = self._last = time.monotonic()

    def advance(self, n: int) -> None:
        """Count what was done, and print a line if it is time."""
        self._n += n
        now = time.monotonic()
        if now - self._last < SECONDS_A_LINE or self._n >= self._total:
            return
        self._last = now
        left = (self._total - self._n) * (now - self._start) / max(1, self._n)
        done = f"{self._n:,} of {_counted(self._total, self._unit)}"
        self._print(f"{done}, {self._rate(now)}, {_duration(left)} left")

    def finish(self) -> None:
        """Say what it took."""
        now = time.monotonic()
        took = _duration(now - self._start)
        self._print(f"{_counted(self._n, self._unit)} in {took}, {self._rate(now)}")

    def _rate(self, now: float) -> str:
        return f"{self._n / max(1e-9, now - self._start):,.3g} {self._unit}s/s"

    def _print(self, text: str) -> None:
        print(f"{self._what}: {text}", flush=True)


def _counted(n: int, unit: str) -> str:
    return f"{n:,} {unit}{'s' * (n != 1)}"


def _duration(seconds: float) -> str:
    """A time for people to read."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


@contextmanager
def _warnings_beside_bars() -> Iterator[None]:
    """Show warnings on lines of their own while there are bars; who records them still does."""
    global _n_bars
    with _bars_lock:
        _n_bars += 1
        if _n_bars == 1:
            _hook.show = warnings.showwarning
            warnings.showwarning = _hook
    try:
        yield
    finally:
        with _bars_lock:
            _n_bars -= 1
            if _n_bars == 0 and warnings.showwarning is _hook:
                warnings.showwarning = _hook.show


class _Hook:
    """Stands before :func:`warnings.showwarning`, and has bars make room."""

    def __init__(self) -> None:
        self.show = warnings.showwarning

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            self.show(*args, **kwargs)


_hook = _Hook()


class EpochObserver:
    """Tell a bar and scikit-learn's callbacks of each epoch.

    Parameters
    ----------
    estimator : estimator
    context : sklearn.callback.CallbackContext or None
        Of the fit.
    data : dict
        What callbacks may ask for: X, y and metadata.
    fitted : callable
        Gives the fitted attributes as they would be if training stopped now.
    advance : callable
        Moves the bar on.
    """

    def __init__(
        self,
        estimator: Any,
        context: Any,
        data: dict[str, Any],
        fitted: Callable[[], dict[str, Any]],
        advance: Callable[[int], object],
    ) -> None:
        self._estimator = estimator
        self._context = context
        self._data = data
        self._fitted = fitted
        self._advance = advance
        self._epoch: Any = None

    def epoch_begins(self) -> None:
        """See :class:`sktl.training.epochs.Observer`."""
        if self._context is not None:
            self._epoch = self._context.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def epoch_ends(self, row: dict[str, Any]) -> bool:
        """See :class:`sktl.training.epochs.Observer`."""
        self._advance(1)
        if self._epoch is None:
            return False
        stop = self._epoch.call_on_fit_task_end(
            estimator=self._estimator, reconstruction_attributes=self._fitted, **self._data
        )
        return bool(stop)
