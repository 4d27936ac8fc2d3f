"""How a network was trained, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from .drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    add_legend,
    axes_to_draw_on,
    check_matplotlib,
    stage_name,
)
from .pictures import fitted_classifier

_LONGEST_NAME = 24
_MOST_MARKED = 30  # epochs; beyond, lines have no markers
_LOSSES = {
    "train_loss": {"label": "training loss", "color": BLUE, "marker": "o"},
    "valid_loss": {"label": "validation loss", "color": ORANGE, "marker": "s", "linestyle": "--"},
}
_SCORE = {"color": GREEN, "marker": "^", "linestyle": "-."}
_SCORES = {
    "valid_acc": ("Validation accuracy", {"label": "validation accuracy"} | _SCORE),
    "valid_r2": ("Validation R²", {"label": "validation R²"} | _SCORE),
}


class TrainingCurveDisplay:
    """Losses and validation accuracy or R2 by epoch.

    Make it with :meth:`from_estimator`. A head that was solved with all images at once has no
    epochs; in place of curves, the display says so.

    Parameters
    ----------
    history : list of dict
        A row an epoch, as ``PretrainedImageClassifier.history_``: `epoch`, `train_loss`, and where
        known `valid_loss`, `valid_acc` or `valid_r2`, and `unfrozen_stages`.
    best_epoch : int or None, default=None
        The epoch whose weights were kept.
    stages : list of str, default=()
        Names of the stages that aren't frozen, in forward order.
    head_first : bool, default=False
        Whether the head had been fitted before the first epoch.
    n_iterations : int or None, default=None
        Of the solver, where the head was solved with all images at once and nothing was trained
        by steps.

    Attributes
    ----------
    ax_ : matplotlib Axes
        With the losses.
    accuracy_ax_ : matplotlib Axes or None
        With the accuracy or R2, if there is one.
    figure_ : matplotlib Figure
    lines_ : list of matplotlib Line2D
        Losses, then the accuracy; none of a solved head.
    unfreezing_ : list of (int, str)
        The epochs in which more stages begin to train, and their names.

    See Also
    --------
    FreezeSearchDisplay : Which freeze depth is best.

    Examples
    --------
    >>> from sktl.plotting import TrainingCurveDisplay
    >>> rows = [{"epoch": 1, "train_loss": 0.9}, {"epoch": 2, "train_loss": 0.4}]
    >>> TrainingCurveDisplay(history=rows).plot()
    <...>
    """

    ax_: Any
    accuracy_ax_: Any
    figure_: Any
    lines_: list[Any]
    unfreezing_: list[tuple[int, str]]

    def __init__(
        self,
        *,
        history: Sequence[Mapping[str, Any]],
        best_epoch: int | None = None,
        stages: Sequence[str] = (),
        head_first: bool = False,
        n_iterations: int | None = None,
    ) -> None:
        self.history = history
        self.best_epoch = best_epoch
        self.stages = stages
        self.head_first = head_first
        self.n_iterations = n_iterations

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> Self:
        """Draw the training of a fitted classifier.

        Parameters
        ----------
        estimator : PretrainedImageClassifier
            Fitted; or a Pipeline that ends with it, or a search whose best estimator is one.
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        TrainingCurveDisplay

        Raises
        ------
        TypeError
            If there is no fitted classifier.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        clf = fitted_classifier(estimator, cls.__name__, "history_")
        display = cls(
            history=clf.history_,
            best_epoch=getattr(clf, "best_epoch_", None),
            stages=clf.stages_[clf.freeze_ :],
            head_first=clf.net_.plan.unfreeze != "at_once",
            n_iterations=clf.n_iter_ if clf.net_.full_batch else None,
        )
        return display.plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        TrainingCurveDisplay
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        solved = self.n_iterations is not None
        self.ax_, own_figure = axes_to_draw_on(ax, (6.4, 1.6 if solved else 4.2))
        self.figure_ = self.ax_.figure
        self.accuracy_ax_ = None
        if solved:
            self.lines_, self.unfreezing_ = [], []
            self._say_solved()
            return self
        self.lines_ = [self._line(self.ax_, name, style) for name, style in _LOSSES.items()]
        for name, (label, style) in _SCORES.items():
            if any(name in row for row in self.history):
                self.accuracy_ax_ = self.ax_.twinx()
                self.accuracy_ax_.set_ylabel(label, color=GREEN)
                self.lines_.append(self._line(self.accuracy_ax_, name, style))
        self.lines_ = [line for line in self.lines_ if line is not None]
        self._label_axes()
        handles = [*self.lines_, *self._mark_best(), *self._mark_unfreezing()]
        # Losses fall and accuracy rises, which leaves room at half height.
        add_legend(self.accuracy_ax_ or self.ax_, handles, own_figure, "center right")
        return self

    def _line(self, ax: Any, name: str, style: Mapping[str, str]) -> Any:
        rows = [row for row in self.history if name in row]
        if not rows:
            return None
        marker = style["marker"] if len(self.history) <= _MOST_MARKED else None
        (line,) = ax.plot(
            [row["epoch"] for row in rows],
            [row[name] for row in rows],
            **{**style, "marker": marker},
            markersize=4,
        )
        return line

    def _say_solved(self) -> None:
        """Tell in words what one dot would not."""
        loss = self.history[-1]["train_loss"]
        lines = [
            "The head was solved with all images at once:",
            f"{_counted(self.n_iterations, 'iteration')}, training loss {loss:.3g}.",
            "Nothing was trained by steps, so there are no epochs to draw.",
        ]
        self.ax_.set_axis_off()
        self.ax_.text(
            0.5, 0.5, "\n".join(lines), ha="center", va="center", linespacing=1.6,
            transform=self.ax_.transAxes, wrap=True,
        )  # fmt: skip

    def _label_axes(self) -> None:
        from matplotlib.ticker import MaxNLocator

        epochs = [row["epoch"] for row in self.history]
        self.ax_.set(xlabel="Epoch", ylabel="Loss", xlim=(min(epochs) - 0.5, max(epochs) + 0.5))
        self.ax_.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))

    def _mark_best(self) -> list[Any]:
        if self.best_epoch is None:
            return []
        label = f"best epoch, {self.best_epoch}"
        return [self.ax_.axvline(self.best_epoch, color=BLACK, lw=1, ls="--", label=label)]

    def _mark_unfreezing(self) -> list[Any]:
        self.unfreezing_ = self._unfreezing()
        if not self.unfreezing_:
            return []
        for epoch, _ in self.unfreezing_:
            line = self.ax_.axvline(epoch - 0.5, color=GREY, lw=1.2, ls=":")
        line.set_label("stages begin to train")
        top = self.ax_.secondary_xaxis("top")
        names = [name for _, name in self.unfreezing_]
        crowded = sum(map(len, names)) > 50
        turned = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if crowded else {}
        places = [epoch - 0.5 for epoch, _ in self.unfreezing_]
        top.set_xticks(places, names, fontsize="small", color=GREY, **turned)
        top.tick_params(color=GREY)
        return [line]

    def _unfreezing(self) -> list[tuple[int, str]]:
        """The epochs in which stages that didn't train before begin to."""
        found = []
        before = None if not self.head_first else 0
        for row in self.history:
            n = row.get("unfrozen_stages", 0)
            if before is not None and n > before:
                stages = self.stages[len(self.stages) - n : len(self.stages) - before]
                names = [stage_name(stage, _LONGEST_NAME) for stage in stages]
                name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
                found.append((int(row["epoch"]), name))
            before = n
        return found


def _counted(n: int | None, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
