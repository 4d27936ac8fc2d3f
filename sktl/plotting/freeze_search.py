"""Which freeze depth is best, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import clone, is_regressor
from sklearn.utils.validation import check_is_fitted

from ..messages import shown
from .drawing import (
    COLOURS,
    GREY,
    MARKERS,
    add_legend,
    axes_to_draw_on,
    check_matplotlib,
    shortened,
    size_in_inches,
    stage_name,
)
from .pictures import innermost

_LONGEST_LABEL = 60
_LONGEST_NAME = 20
_LETTERS_AN_INCH = 12  # of the labels of depths
_STYLES = ("-", "--", ":", "-.")
_SPREAD = 0.3  # how far lines are set apart at one depth, so that their bars don't overlap
_BUILDS = ("backbone", "weights", "image_size")  # parameters that decide which stages there are


class FreezeSearchDisplay:
    """Scores of a search by freeze depth, and the time that fits took.

    Make it with :meth:`from_estimator`. A line connects candidates that differ in `freeze` alone;
    bars show the standard deviation over the folds. The grey columns are mean fit times; where
    features came from the cache, these don't hold the time of computing them. Scores so far below
    the others that these would be squeezed together stand as numbers at the lower edge.

    Parameters
    ----------
    cv_results : dict of str to array
        The search's ``cv_results_``, or what has its `params`, `mean_fit_time`, and mean and
        standard deviation of the test score.
    depths : array-like of int of shape (n_candidates,)
        Number of stages that each candidate has frozen.
    param : str, default="freeze"
        Name of the searched parameter, such as "clf__freeze".
    metric : str, default="score"
        Which of several metrics to show: the columns are ``mean_test_<metric>`` and
        ``std_test_<metric>``.
    score_name : str, default="Mean test accuracy"
    stages : sequence of str, default=()
        Names of the network's stages in forward order, to say what trains at each depth. Empty
        where the search has tried several networks.

    Attributes
    ----------
    ax_ : matplotlib Axes
        With the scores.
    time_ax_ : matplotlib Axes
        With the fit times, in seconds.
    figure_ : matplotlib Figure
    errorbar_ : list of matplotlib ErrorbarContainer
        A line each.
    columns_ : matplotlib BarContainer
    below_ : list of int
        The candidates whose scores are written at the lower edge.

    See Also
    --------
    TrainingCurveDisplay : How one fit went.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sktl import PretrainedImageClassifier
    >>> from sktl.plotting import FreezeSearchDisplay
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> clf = PretrainedImageClassifier(image_size=32, lr=1e-3, max_epochs=1)
    >>> search = GridSearchCV(clf, {"freeze": ["all", -1]}, cv=2).fit(X[:20], y[:20])
    >>> FreezeSearchDisplay.from_estimator(search)
    <...>
    """

    ax_: Any
    time_ax_: Any
    figure_: Any

    def __init__(
        self,
        *,
        cv_results: Mapping[str, Any],
        depths: Sequence[int] | npt.NDArray[np.int64],
        param: str = "freeze",
        metric: str = "score",
        score_name: str = "Mean test accuracy",
        stages: Sequence[str] = (),
    ) -> None:
        self.cv_results = cv_results
        self.depths = depths
        self.param = param
        self.metric = metric
        self.score_name = score_name
        self.stages = stages

    @classmethod
    def from_estimator(cls, search: Any, *, metric: str | None = None, ax: Any = None) -> Self:
        """Draw a search over `freeze`.

        Parameters
        ----------
        search : GridSearchCV, RandomizedSearchCV or another search with ``cv_results_``
            Fitted; of a PretrainedImageClassifier, or a Pipeline that ends with one.
        metric : str or None, default=None
            Which of several metrics to show. None is the one that `refit` names.
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        FreezeSearchDisplay

        Raises
        ------
        NotFittedError
            If the search isn't fitted.
        ValueError
            If `freeze` wasn't searched, or there is no such metric.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        check_is_fitted(search, "cv_results_")
        results = search.cv_results_
        param = _searched_param(results["params"])
        metric = metric or _metric_of(search)
        if f"mean_test_{metric}" not in results:
            start = "mean_test_"
            known = sorted(name.removeprefix(start) for name in results if name.startswith(start))
            raise ValueError(f"metric={shown(metric)} is not one of those of the search, {known}.")
        depths, stages = _depths(search, param)
        display = cls(
            cv_results=results,
            depths=depths,
            param=param,
            metric=metric,
            score_name=f"Mean test {_score_name(search, metric)}",
            stages=stages,
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
        FreezeSearchDisplay
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        depths = np.asarray(self.depths)
        known = np.unique(depths)
        places = np.searchsorted(known, depths)
        names = self._names(places)
        width = min(12.0, max(6.4, 1.3 * len(known) + 1.6))
        self.ax_, own_figure = axes_to_draw_on(ax, (width, 4.8))
        self.figure_ = self.ax_.figure
        self._draw_times(places)
        self._draw_scores(places)
        room = _LETTERS_AN_INCH * size_in_inches(self.ax_)[0] / len(known)
        crowded = max(len(line) for name in names for line in name.split("\n")) > room
        turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        names = [name.replace("\n", ": ") if crowded else name for name in names]
        self.ax_.set_xticks(range(len(known)), names, **turned)
        label = "Value of freeze, and what trains" if self.stages else "Value of freeze"
        self.ax_.set(xlabel=label, ylabel=self.score_name, xlim=(-0.6, len(known) - 0.4))
        lines = self.errorbar_ if len(self.errorbar_) > 1 else []
        add_legend(self.ax_, [*lines, self.columns_], own_figure)
        return self

    def _draw_times(self, places: npt.NDArray[np.int64]) -> None:
        times = np.asarray(self.cv_results["mean_fit_time"])
        means = [np.nanmean(times[places == place]) for place in range(places.max() + 1)]
        self.time_ax_ = self.ax_.twinx()
        self.columns_ = self.time_ax_.bar(
            range(len(means)), means, width=0.7, color="#E4E4E4", label="fit time"
        )
        # Twice as high as the columns, so that most lines run above them.
        self.time_ax_.set_ylim(0, 2 * max(means) or 1)
        self.time_ax_.set_ylabel("Mean fit time (s)", color=GREY)
        self.time_ax_.tick_params(axis="y", colors=GREY)
        self.ax_.set_zorder(self.time_ax_.get_zorder() + 1)
        self.ax_.patch.set_visible(False)

    def _draw_scores(self, places: npt.NDArray[np.int64]) -> None:
        means = np.asarray(self.cv_results[f"mean_test_{self.metric}"])
        spreads = np.asarray(self.cv_results[f"std_test_{self.metric}"])
        labels = [_label(params, self.param) for params in self.cv_results["params"]]
        lines = list(dict.fromkeys(labels))
        shifts = np.linspace(-0.5, 0.5, len(lines)) * _SPREAD if len(lines) > 1 else [0.0]
        looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
        self.errorbar_ = []
        for i, (line, shift, (colour, marker)) in enumerate(
            zip(lines, shifts, looks, strict=False)
        ):
            rows = [k for k in np.argsort(places, kind="stable") if labels[k] == line]
            container = self.ax_.errorbar(
                places[rows] + shift,
                means[rows],
                spreads[rows],
                color=colour,
                marker=marker,
                linestyle=_STYLES[i // len(COLOURS) % len(_STYLES)],
                markersize=5,
                capsize=2.5,
                elinewidth=1,
                label=shortened(line, _LONGEST_LABEL) or "score",
            )
            self.errorbar_.append(container)
        self.below_ = _far_below(means, spreads)
        if self.below_:
            self._cut_axis(means, spreads)
            for k in self.below_:
                i = lines.index(labels[k])
                self._write_below(places[k] + shifts[i], means[k], COLOURS[i % len(COLOURS)])

    def _cut_axis(self, means: npt.NDArray[Any], spreads: npt.NDArray[Any]) -> None:
        """Leave the room to the scores that are near the best."""
        near = np.delete(np.arange(len(means)), self.below_)
        low = np.nanmin(means[near] - spreads[near])
        high = np.nanmax(means[near] + spreads[near])
        margin = 0.1 * (high - low) or 0.01
        self.ax_.set_ylim(low - 2 * margin, high + margin / 2)

    def _write_below(self, x: float, score: float, colour: str) -> None:
        bottom = {"transform": self.ax_.get_xaxis_transform(), "color": colour}
        self.ax_.plot([x], [0.015], marker="v", markersize=5, **bottom)
        self.ax_.text(
            x, 0.04, f"{score:.3g}", fontsize="x-small", ha="center", va="bottom", **bottom
        )

    def _names(self, places: npt.NDArray[np.int64]) -> list[str]:
        """The values of the parameter that mean each depth, and what trains at it."""
        depths = np.asarray(self.depths)
        values = [params[self.param] for params in self.cv_results["params"]]
        names = []
        for place in range(places.max() + 1):
            rows = np.flatnonzero(places == place)
            own = dict.fromkeys(stage_name(str(values[k]), _LONGEST_NAME) for k in rows)
            names.append(f"{' = '.join(own)}\n{self._what_trains(int(depths[rows[0]]))}")
        return names

    def _what_trains(self, depth: int) -> str:
        if not self.stages:
            return f"{depth} frozen"
        if depth == 0:
            return "everything"
        trained = [stage_name(stage, _LONGEST_NAME) for stage in self.stages[depth:]]
        if not trained:
            return "head"
        return f"{trained[0]} + head" if len(trained) == 1 else f"{trained[0]} to head"


def _far_below(means: npt.NDArray[Any], spreads: npt.NDArray[Any]) -> list[int]:
    """Candidates that would stretch the axis: the better half would take a quarter of it."""
    if not np.isfinite(means).any():
        return []
    best = np.nanmax(means)
    scale = max(best - np.nanmedian(means), np.nanmedian(spreads))
    return [int(k) for k in np.flatnonzero(means < best - 4 * scale)]


def _label(params: Mapping[str, Any], param: str) -> str:
    """What tells a candidate's line from others."""
    start = param.removesuffix("freeze")
    return ", ".join(
        f"{name.removeprefix(start)}={_short(value)}"
        for name, value in sorted(params.items())
        if name != param
    )


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(getattr(value, "__name__", value))


def _searched_param(candidates: Sequence[Mapping[str, Any]]) -> str:
    names = set.intersection(*map(set, candidates))
    found = sorted(name for name in names if name == "freeze" or name.endswith("__freeze"))
    if not found:
        raise ValueError(
            "The search has not tried values of `freeze` in all its candidates; it has searched "
            f"{sorted(set.union(*map(set, candidates)))}. Add such as "
            '{"freeze": ["all", -1, "none"]} to what is searched.'
        )
    return found[0]


def _metric_of(search: Any) -> str:
    several = isinstance(getattr(search, "scorer_", None), dict)
    if not several:
        return "score"
    if isinstance(search.refit, str):
        return str(search.refit)
    raise ValueError(
        f"The search has several metrics, {sorted(search.scorer_)}. Pass one of them as metric."
    )


def _score_name(search: Any, metric: str) -> str:
    if metric != "score":
        return metric
    scoring = getattr(search, "scoring", None)
    if scoring is None:
        return "R²" if is_regressor(search) else "accuracy"
    return scoring if isinstance(scoring, str) else str(getattr(scoring, "__name__", "score"))


def _depths(search: Any, param: str) -> tuple[list[int], list[str]]:
    """Number of frozen stages of each candidate, and the stages' names.

    One backbone tells for all, unless the search has tried several; then there are no names.
    """
    candidates = search.cv_results_["params"]
    start = param.removesuffix("freeze")
    networks: dict[str, Any] = {}
    best = innermost(search)
    if hasattr(best, "stages_") and not any(start + name in candidates[0] for name in _BUILDS):
        networks[_network_of(candidates[0], start)] = best.__sktl_backbone__()
    depths = []
    for params in candidates:
        network = _network_of(params, start)
        if network not in networks:
            candidate = clone(search.estimator).set_params(**params)
            networks[network] = innermost(candidate).__sktl_backbone__()
        depths.append(networks[network].freeze_depth(params[param]))
    (stages, *others) = {tuple(network.stages) for network in networks.values()}
    return depths, [] if others else list(stages)


def _network_of(params: Mapping[str, Any], start: str) -> str:
    return repr([params.get(start + name) for name in _BUILDS])
