"""Telling how far a fit has come: progress bars, and scikit-learn's callbacks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    "progress_bar",
    "with_callbacks",
]


@contextmanager
def progress_bar(
    what: str, total: int, unit: str, verbose: int
) -> Iterator[Callable[[int], object]]:
    """Show a bar while something goes on, where somebody may be looking.

    Parameters
    ----------
    what, unit : str
    total : int
    verbose : int
        0 shows nothing.

    Yields
    ------
    callable
        Takes the number of units that were done since the last call.
    """
    shown = verbose > 0 and _is_looked_at()
    with tqdm(desc=what, total=total, unit=unit, disable=not shown, leave=False) as bar:
        yield bar.update


def lines_wanted(verbose: int) -> int:
    """1 if epochs shall be printed by the line: where there is no bar, or with `verbose` of 2."""
    return int(verbose > 1 or (verbose > 0 and not _is_looked_at()))


def _is_looked_at() -> bool:
    return sys.stderr.isatty() or "ipykernel" in sys.modules


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
        """See :class:`sktl.training.Observer`."""
        if self._context is not None:
            self._epoch = self._context.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def epoch_ends(self, row: dict[str, Any]) -> bool:
        """See :class:`sktl.training.Observer`."""
        self._advance(1)
        if self._epoch is None:
            return False
        stop = self._epoch.call_on_fit_task_end(
            estimator=self._estimator, reconstruction_attributes=self._fitted, **self._data
        )
        return bool(stop)
