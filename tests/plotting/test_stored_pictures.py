"""Pictures of displays are compared with stored ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from drawn import freeze_search, history, pictures
from matplotlib.legend import Legend
from matplotlib.testing.compare import compare_images
from matplotlib.text import Text

from sktl.plotting import (
    ExplanationDisplay,
    FeatureMapDisplay,
    ImageConfusionMatrixDisplay,
    ImagePredictionErrorDisplay,
    ImagePredictionsDisplay,
    TrainingCurveDisplay,
)
from sktl.plotting.drawing import shortened, stage_name

REFERENCES = Path(__file__).parents[1] / "data" / "plots"
TOLERANCE = 6.0  # root mean square, of 255; lines are smoothed a little differently, too

pytestmark = pytest.mark.usefixtures("one_thread", "plain_matplotlib")


def training_curve(best_epoch=5):
    stages = ["layer2", "layer3", "layer4"]
    return TrainingCurveDisplay(
        history=history(), best_epoch=best_epoch, stages=stages, head_first=True
    ).plot()


def one_epoch(**others):
    return TrainingCurveDisplay(history=[{"epoch": 1, "train_loss": 0.5} | others]).plot()


def solved(**others):
    row = {"epoch": 1, "train_loss": 0.5}
    return TrainingCurveDisplay(history=[row], n_iterations=7, **others).plot()


def predictions(first=0.95):
    names = [f"a_long_name_of_kind_{i}" for i in range(3)]
    sure = np.array([first, 0.8, 0.7, 0.6, 0.5, 0.9])
    proba = np.empty((6, 3))
    proba[...] = (1 - sure[:, None]) / 2
    proba[np.arange(6), [0, 1, 2, 0, 1, 2]] = sure
    y_true = np.array(names)[[0, 2, 2, 1, 1, 2]]
    return ImagePredictionsDisplay.from_predictions(pictures(6), y_true, proba)


def confusion(first="a"):
    y_true, y_pred = list("aaabbbccc"), list("aaabcbcab")
    y_pred[0] = first
    sure = np.linspace(0.5, 0.9, 9)
    return ImageConfusionMatrixDisplay.from_predictions(
        pictures(9), y_true, y_pred, probabilities=sure
    )


def explanation(method="grad_cam", strongest=0):
    places = np.mgrid[:24, :24]
    found = [np.exp(-((places - 8 * i - 4) ** 2).sum(0) / 20) for i in (strongest, 1, 2)]
    found = np.array(found) - (0.3 if method == "integrated_gradients" else 0)
    return ExplanationDisplay(
        pictures=pictures(3), attributions=found, targets=["cat", "dog", "cat"],
        probabilities=[0.9, 0.8, 0.55], method=method, y_true=["cat", "cat", "cat"],
    ).plot()  # fmt: skip


def feature_map(n_classes=3, turn=0.0):
    angles = np.linspace(0, 2 * np.pi, 41)[:40] + turn
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    shown = dict(zip((0, 10, 20, 30), pictures(4), strict=True))
    return FeatureMapDisplay(
        points=points, pictures=shown, labels=np.arange(40) * n_classes // 40,
        axis_names=("First component", "Second component"),
    ).plot()  # fmt: skip


def prediction_error(first=90.0, output=1):
    """Of the second of two outputs, with an image that has no prediction."""
    true = np.linspace(0, 100, 12)
    predicted = true + 8 * np.sin(np.arange(12))
    predicted[[0, 4]] = first, np.nan
    both = np.c_[np.zeros(12), true], np.c_[np.ones(12), predicted]
    return ImagePredictionErrorDisplay.from_predictions(
        pictures(12), *both, output=output, n_images=3
    )


DRAWN = {
    "prediction_error": (prediction_error, {"first": 70.0}),
    "training_curve": (training_curve, {"best_epoch": 4}),
    "one_epoch": (one_epoch, {"valid_loss": 0.8, "valid_acc": 0.6, "unfrozen_stages": 1}),
    "freeze_search": (freeze_search, {"best": 0.8}),
    "low_score": (lambda **kwargs: freeze_search(worst=0.1, **kwargs), {"best": 0.8}),
    "confusion": (confusion, {"first": "c"}),
    "predictions": (predictions, {"first": 0.55}),
    "explanation": (explanation, {"strongest": 1}),
    "feature_map": (feature_map, {"turn": 0.2}),
    "many_classes": (lambda **kwargs: feature_map(12, **kwargs), {"turn": 0.2}),
    "signed_explanation": (
        lambda **kwargs: explanation("integrated_gradients", **kwargs),
        {"strongest": 1},
    ),
}


def save(display, file):
    """Save at a fixed layout and without letters, which each release sets differently.

    Gives the texts.
    """
    figure = display.figure_
    figure.set_layout_engine(None)
    has_frame = display.ax_.axison
    figure.subplots_adjust(*(0.12, 0.32, 0.87, 0.88) if has_frame else (0, 0, 1, 0.87))
    figure.canvas.draw()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    for text in texts:
        text.set_alpha(0)
    for legend in figure.findobj(Legend):  # whose place depends on the letters
        legend.set_visible(False)
    figure.savefig(file, metadata={"Software": None})
    return sorted(text.get_text() for text in texts)


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_as_stored(name, tmp_path):
    draw, other = DRAWN[name]
    stored = REFERENCES / f"{name}.png"
    drawn, changed = tmp_path / "drawn.png", tmp_path / "changed.png"
    texts = save(draw(), drawn)
    assert texts == json.loads((REFERENCES / "texts.json").read_text())[name]
    assert compare_images(str(stored), str(drawn), TOLERANCE) is None
    save(draw(**other), changed)
    assert "did not match" in compare_images(str(stored), str(changed), TOLERANCE)


def test_stored_pictures_are_small():
    files = list(REFERENCES.glob("*.png"))
    assert {file.stem for file in files} == set(DRAWN)
    assert sum(file.stat().st_size for file in files) < 600_000


@pytest.mark.parametrize("name", DRAWN)
def test_displays_draw_on_given_axes(name):
    import matplotlib.pyplot as plt

    display = DRAWN[name][0]()
    figure, axes = plt.subplots(1, 2)
    assert display.plot(ax=axes[1]) is display
    assert display.ax_ is axes[1]
    assert display.figure_ is figure
    assert not axes[0].has_data()


def test_long_names_lose_their_middle():
    assert shortened("short", 9) == "short"
    assert shortened("a long name, 12", 9) == "a lo…, 12"
    assert stage_name("encoder.layers.encoder_layer_11", 20) == "encoder_layer_11"
    assert stage_name("features.7", 20) == "features.7"
