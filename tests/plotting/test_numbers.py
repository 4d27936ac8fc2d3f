"""Predicted against true numbers: what is drawn, and of which images."""

import matplotlib as mpl
import numpy as np
import pytest

from sktl import PretrainedImageRegressor
from sktl.plotting import FreezeSearchDisplay, ImagePredictionErrorDisplay, TrainingCurveDisplay

pytestmark = pytest.mark.usefixtures("one_thread", "no_window")


@pytest.fixture
def no_window():
    """Figures are drawn in memory, and closed."""
    backend = mpl.get_backend()
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")
    mpl.use(backend)


@pytest.fixture(scope="module")
def fitted(digits):
    X, y = digits
    reg = PretrainedImageRegressor(
        image_size=32, freeze=-1, max_epochs=2, early_stopping=True, random_state=0
    )
    return reg.fit(X[:80], y[:80])


def test_points_and_pictures_are_those_of_the_predictions(fitted, digits):
    X, y = (part[80:] for part in digits)
    display = ImagePredictionErrorDisplay.from_estimator(fitted, X, y, n_images=3)
    predicted = fitted.predict(X)
    np.testing.assert_array_equal(display.scatter_.get_offsets(), np.c_[y, predicted])
    worst = np.argsort(-np.abs(predicted - y))[:3]
    assert display.indices_.tolist() == worst.tolist()
    assert len(display.images_) == 3
    boxes = np.array([image.get_extent() for image in display.images_])
    for i, (left, right, low, high) in enumerate(boxes):
        for other_left, other_right, other_low, other_high in boxes[:i]:
            apart = right <= other_left or other_right <= left
            assert apart or high <= other_low or other_high <= low
    assert f"{fitted.score(X, y):.3f}" in display.ax_.get_title()
    assert display.ax_.get_xlim() == display.ax_.get_ylim()
    again = display.plot()
    assert again.ax_ is not None


def test_one_of_several_outputs_without_those_that_have_no_prediction(digits):
    X, y = digits[0][:10].reshape(-1, 8, 8), np.arange(20.0).reshape(10, 2)
    predicted = y + 1.0
    predicted[3] = np.nan
    predicted[7, 1] += 5
    display = ImagePredictionErrorDisplay.from_predictions(X, y, predicted, output=1, n_images=1)
    kept = np.delete(np.arange(10), 3)
    np.testing.assert_array_equal(
        display.scatter_.get_offsets(), np.c_[y[kept, 1], predicted[kept, 1]]
    )
    assert display.indices_.tolist() == [7]
    with pytest.raises(ValueError, match="output=2 is none of 2"):
        ImagePredictionErrorDisplay.from_predictions(X, y, predicted, output=2)
    with pytest.raises(ValueError, match="NaN for all images"):
        ImagePredictionErrorDisplay.from_predictions(X, y[:, 0], np.full(10, np.nan))


def test_a_training_curve_has_r2(fitted):
    display = TrainingCurveDisplay.from_estimator(fitted)
    labels = [line.get_label() for line in display.lines_]
    assert labels[-1] == "validation R²"
    shown = display.lines_[-1].get_ydata()
    np.testing.assert_array_equal(shown, [row["valid_r2"] for row in fitted.history_])
    assert display.accuracy_ax_.get_ylabel() == "Validation R²"


def test_a_search_over_freeze_is_of_r2(digits):
    from sklearn.model_selection import GridSearchCV

    X, y = digits
    reg = PretrainedImageRegressor(image_size=32, max_epochs=1, random_state=0)
    search = GridSearchCV(reg, {"freeze": ["all", -1]}, cv=2).fit(X[:40], y[:40])
    display = FreezeSearchDisplay.from_estimator(search)
    assert "R²" in display.score_name
