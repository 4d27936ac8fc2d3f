"""Displays: their data with real fits."""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import freeze_search, history, pictures
from scipy.sparse import csr_array
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC

from sktl import PretrainedImageClassifier, PretrainedImageFeatures
from sktl.plotting import (
    ExplanationDisplay,
    FeatureMapDisplay,
    FreezeSearchDisplay,
    ImageConfusionMatrixDisplay,
    ImagePredictionsDisplay,
    TrainingCurveDisplay,
)

pytestmark = pytest.mark.usefixtures("one_thread", "plain_matplotlib")


@pytest.fixture(scope="module")
def fine_tuned(digits):
    X, y = digits
    clf = PretrainedImageClassifier(
        image_size=32, freeze=-2, unfreeze="gradual", early_stopping=True, validation_fraction=0.2,
        max_epochs=2, random_state=0,
    )  # fmt: skip
    return clf.fit(X[:60], y[:60])


@pytest.fixture(scope="module")
def frozen(digits):
    X, y = digits
    return PretrainedImageClassifier(image_size=32).fit(X[:60], y[:60])


# Training curves ------------------------------------------------------------------------


def test_training_curve_of_a_fit(fine_tuned):
    display = TrainingCurveDisplay.from_estimator(Pipeline([("clf", fine_tuned)]))
    names = ["train_loss", "valid_loss", "valid_acc"]
    for line, name in zip(display.lines_, names, strict=True):
        x, y = line.get_data()
        assert list(x) == [1, 2]
        assert list(y) == [row[name] for row in fine_tuned.history_]
    assert [row["unfrozen_stages"] for row in fine_tuned.history_] == [1, 2]
    assert display.unfreezing_ == [(1, "features.7"), (2, "features.6")]
    assert display.best_epoch == fine_tuned.best_epoch_
    assert display.accuracy_ax_ is not display.ax_


def test_training_curve_of_a_solved_head_says_so(frozen):
    display = TrainingCurveDisplay.from_estimator(frozen)
    (text,) = [text.get_text() for text in display.ax_.texts]
    loss = frozen.history_[0]["train_loss"]
    assert f"solved with all images at once:\n{frozen.n_iter_} iterations, " in text
    assert f"training loss {loss:.3g}." in text
    assert display.lines_ == display.unfreezing_ == []
    assert display.accuracy_ax_ is None
    assert not display.ax_.axison


def test_unfreezing_after_a_warm_start(digits):
    X, y = digits
    clf = PretrainedImageClassifier(image_size=32, max_epochs=1, warm_start=True)
    clf.fit(X[:20], y[:20])
    clf.set_params(freeze=-2).fit(X[:20], y[:20])
    display = TrainingCurveDisplay.from_estimator(clf)
    assert display.unfreezing_ == [(2, "features.6 to features.7")]


def test_training_curve_needs_a_classifier():
    with pytest.raises(TypeError, match="LinearSVC has no history_"):
        TrainingCurveDisplay.from_estimator(LinearSVC())


# Searches -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def search(digits):
    X, y = digits
    clf = PretrainedImageClassifier(image_size=32, max_epochs=1, random_state=0)
    grid = {"clf__freeze": ["all", "features.5", -1], "clf__lr": [1e-3, 1e-2]}
    found = GridSearchCV(Pipeline([("clf", clf)]), grid, cv=2)
    return found.fit(X[:24], np.arange(24) % 2)


def test_freeze_search_of_a_pipeline(search):
    display = FreezeSearchDisplay.from_estimator(search)
    assert display.depths == [8, 8, 6, 6, 7, 7]
    labels = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert labels == ["features.5\nfeatures.6 to head", "-1\nfeatures.7 + head", "all\nhead"]
    results = search.cv_results_
    assert [line.get_label() for line in display.errorbar_] == ["lr=0.001", "lr=0.01"]
    for number, container in enumerate(display.errorbar_):
        rows = [2 + number, 4 + number, number]
        np.testing.assert_array_equal(
            container.lines[0].get_ydata(), results["mean_test_score"][rows]
        )
    times = [column.get_height() for column in display.columns_]
    by_depth = results["mean_fit_time"].reshape(3, 2).mean(1)
    assert times == pytest.approx(by_depth[[1, 2, 0]])
    assert display.ax_.get_ylabel() == "Mean test accuracy"


def test_freeze_search_without_a_best_estimator(digits):
    X, y = digits
    clf = PretrainedImageClassifier(image_size=32)
    grid = [
        {"freeze": ["all", 8]},
        {"freeze": ["all"], "backbone": ["resnet18"], "weights": [None]},
    ]
    found = GridSearchCV(clf, grid, cv=2, refit=False, scoring=["accuracy", "f1_macro"])
    found.fit(X[:12], np.arange(12) % 2)
    with pytest.raises(ValueError, match=r"Pass one of them as metric"):
        FreezeSearchDisplay.from_estimator(found)
    with pytest.raises(ValueError, match=r"metric='f1' is not one of .*'f1_macro'"):
        FreezeSearchDisplay.from_estimator(found, metric="f1")
    display = FreezeSearchDisplay.from_estimator(found, metric="f1_macro")
    assert display.depths == [8, 8, 5]
    assert display.ax_.get_ylabel() == "Mean test f1_macro"
    labels = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert labels == ["all\n5 frozen", "all = 8\n8 frozen"]


def test_one_bad_score_does_not_stretch_the_axis():
    display = freeze_search(worst=0.1)
    assert display.below_ == [1]
    lowest, highest = display.ax_.get_ylim()
    assert 0.55 < lowest < 0.7 - 0.03
    assert 0.9 + 0.03 < highest < 1
    assert [text.get_text() for text in display.ax_.texts] == ["0.1"]
    even = freeze_search()
    assert even.below_ == []
    assert even.ax_.get_ylim()[0] < 0.6 - 0.03


def test_what_trains_at_each_depth():
    display = freeze_search()
    labels = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert labels == [
        "none\neverything", "2\nlayer2 to head", "-1\nlayer4 + head", "all\nhead"
    ]  # fmt: skip


def test_freeze_search_needs_a_search_over_freeze(frozen):
    with pytest.raises(NotFittedError):
        FreezeSearchDisplay.from_estimator(GridSearchCV(frozen, {"freeze": ["all"]}))
    other = GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2)
    other.fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"has not tried values of `freeze`.*\['C'\]"):
        FreezeSearchDisplay.from_estimator(other)


# Predictions ----------------------------------------------------------------------------


def test_worst_mistakes_come_first(frozen, digits):
    X, y = digits
    y = y.copy()
    y[60:64] = (y[60:64] + 1) % 10  # there are mistakes to find
    display = ImagePredictionsDisplay.from_estimator(frozen, X[60:], y[60:], n_images=12)
    proba, predicted = frozen.predict_proba(X[60:]).max(1), frozen.predict(X[60:])
    shown = display.indices_
    wrong = (predicted != y[60:])[shown]
    n_wrong = int((predicted != y[60:]).sum())
    assert n_wrong >= 4
    assert wrong[:n_wrong].all()
    assert (np.diff(proba[shown][wrong]) <= 0).all()
    assert (np.diff(proba[shown][~wrong]) >= 0).all()
    assert display.ax_.get_title() == f"{n_wrong} mistakes in 60 pictures"
    texts = [text.get_text() for text in display.ax_.texts]
    first = shown[0]
    assert texts[:2] == [f"✗ {predicted[first]} {proba[first]:.2f}", f"is {y[60 + first]}"]
    grey = np.round(X[60 + first].reshape(8, 8) * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(display.images_[0].get_array()[..., 0], grey)


def test_predictions_of_a_pipeline_of_files(save_photographs, tmp_path):
    folder = save_photographs(tmp_path)
    files = sorted(map(str, folder.glob("*/*.jpg")))
    y = [Path(file).parent.name for file in files]
    pipeline = make_pipeline(PretrainedImageFeatures(image_size=32), LogisticRegression())
    display = ImagePredictionsDisplay.from_estimator(pipeline.fit(files, y), files, y, n_images=5)
    assert len(display.images_) == 5
    assert display.images_[0].get_array().shape == (200, 200, 3)
    assert display.file_names == [Path(files[i]).name for i in display.indices_]
    texts = [text.get_text() for text in display.ax_.texts]
    assert [text for text in texts if text.endswith(".jpg")] == display.file_names
    for X in (pictures(2), [Path(file).read_bytes() for file in files[:2]]):
        nameless = ImagePredictionsDisplay.from_predictions(X, [0, 1], np.eye(2))
        assert nameless.file_names == []


def test_predictions_must_fit(frozen):
    with pytest.raises(TypeError, match="LinearSVC has no predict_proba"):
        ImagePredictionsDisplay.from_estimator(LinearSVC(), pictures(2), [0, 1])
    with pytest.raises(ValueError, match=r"shape \(2, 3\).* each of the 2 classes"):
        ImagePredictionsDisplay.from_predictions(pictures(2), [0, 1], np.ones((2, 3)) / 3)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ImagePredictionsDisplay.from_predictions(pictures(3), [0, 1], np.ones((2, 2)) / 2)


def test_confusion_matrix_has_pictures_in_its_cells(frozen, digits):
    X, y = digits
    y = np.append(y[60:], 3)
    X = np.concatenate([X[60:], X[60:61]])
    y[-1] = (y[0] + 1) % 10  # a mistake, whatever the classifier takes it for
    display = ImageConfusionMatrixDisplay.from_estimator(frozen, X, y)
    predicted, proba = frozen.predict(X), frozen.predict_proba(X).max(1)
    np.testing.assert_array_equal(display.confusion_matrix, confusion_matrix(y, predicted))
    filled = {(int(i), int(j)) for i, j in np.argwhere(display.confusion_matrix)}
    assert set(display.pictures) == set(display.images_) == set(display.text_) == filled
    for (i, j), k in display.indices_.items():
        inside = (y == display.display_labels[i]) & (predicted == display.display_labels[j])
        assert display.text_[i, j].get_text() == str(inside.sum())
        assert inside[k]
        assert proba[k] == proba[inside].max()
        grey = np.round(X[k].reshape(8, 8) * 255 / 16).astype(np.uint8)
        np.testing.assert_array_equal(display.images_[i, j].get_array()[..., 0], grey)


def test_confusion_matrix_of_some_labels():
    y_true, y_pred = ["a", "b", "a", "c"], ["a", "a", "a", "c"]
    display = ImageConfusionMatrixDisplay.from_predictions(
        pictures(4), y_true, y_pred, labels=["b", "a"]
    )
    assert display.confusion_matrix.tolist() == [[0, 1], [0, 2]]
    assert display.indices_ == {(1, 1): 0, (0, 1): 1}
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ImageConfusionMatrixDisplay.from_predictions(pictures(3), y_true, y_pred)
    features = make_pipeline(PretrainedImageFeatures(image_size=32), LinearSVC())
    features.fit(pictures(4), y_true)
    shown = ImageConfusionMatrixDisplay.from_estimator(features, pictures(4), y_true)
    assert list(shown.display_labels) == ["a", "b", "c"]


# Explanations ---------------------------------------------------------------------------


def test_explanations_of_a_fit(frozen, digits):
    X, y = digits
    display = ExplanationDisplay.from_estimator(frozen, X[:3])
    predicted, proba = frozen.predict(X[:3]), frozen.predict_proba(X[:3]).max(1)
    texts = [text.get_text() for text in display.ax_.texts]
    assert texts == [f"{k}? {p:.2f}" for k, p in zip(predicted, proba, strict=True)]
    np.testing.assert_array_equal(display.attributions, frozen.explain(X[:3]))
    np.testing.assert_array_equal(display.images_[2].get_array(), display.pictures[1])
    told = ExplanationDisplay.from_estimator(frozen, X[:3], y=y[:3])
    assert [text.get_text() for text in told.ax_.texts][::2] == [f"is {label}" for label in y[:3]]
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ExplanationDisplay.from_estimator(frozen, X[:3], y=y[:2])
    other = ExplanationDisplay.from_estimator(frozen, X[:3], 7)
    assert list(other.targets) == [7, 7, 7]
    assert other.probabilities == pytest.approx(frozen.predict_proba(X[:3])[:, 7])


# Maps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [3, 12, 60])
def test_classes_of_a_map_look_different_and_are_named(n_classes):
    angles = np.linspace(0, 7, 2 * n_classes)
    display = FeatureMapDisplay(
        points=np.stack([np.cos(angles), np.sin(angles)], axis=1), pictures={},
        labels=np.arange(2 * n_classes) // 2,
    ).plot()  # fmt: skip
    looks = {
        (*scatter.get_facecolor()[0], scatter.get_paths()[0].vertices.tobytes())
        for scatter in display.scatters_
    }
    assert len(looks) == n_classes
    (legend,) = display.figure_.legends
    names = [text.get_text() for text in legend.get_texts()]
    named = [str(k) for k in range(min(n_classes, 40))]
    assert names == (named if n_classes <= 40 else [*named, "… of 60 classes"])
    assert len(display.ax_.texts) == 0


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_map_of_features(frozen, photographs, method):
    X, y = photographs
    features = PretrainedImageFeatures(image_size=32).fit(X)
    display = FeatureMapDisplay.from_estimator(features, X, y, method=method)
    if method == "pca":
        centred = features.transform(X).astype(float)
        centred -= centred.mean(0)
        _, scales, _ = np.linalg.svd(centred, full_matrices=False)
        np.testing.assert_allclose(np.linalg.norm(display.points, axis=0), scales[:2], rtol=1e-4)
        share = 100 * scales[0] ** 2 / (scales**2).sum()
        assert display.ax_.get_xlabel() == f"First component, {share:.0f} % of variance"
    for label, scatter in enumerate(display.scatters_):
        np.testing.assert_array_equal(scatter.get_offsets(), display.points[y == label])
    shown = list(display.pictures)
    assert shown[0] == 0
    gaps = np.abs(display.points[shown][:, None] - display.points[shown]).max(2)
    side = 0.075 * np.ptp(display.points, axis=0).max()
    assert (gaps[~np.eye(len(shown), dtype=bool)] >= side).all()


def test_map_of_several_labels_has_a_class_for_each_combination(frozen, digits):
    X, y = digits
    Y = np.stack([y % 2 == 0, y > 4], axis=1).astype(int)
    table = pd.DataFrame(Y, columns=["even", "large"])
    named = FeatureMapDisplay.from_estimator(frozen, X, table)
    names = [scatter.get_label() for scatter in named.scatters_]
    assert names == ["even", "even + large", "large", "none"]
    both = np.flatnonzero((Y == 1).all(1))
    np.testing.assert_array_equal(named.scatters_[1].get_offsets(), named.points[both])
    for form in (Y, csr_array(Y), Y.tolist()):
        numbered = FeatureMapDisplay.from_estimator(frozen, X, form)
        names = [scatter.get_label() for scatter in numbered.scatters_]
        assert names == ["0", "0 + 1", "1", "none"]
    with pytest.raises(ValueError, match="must be 0 or 1; it holds"):
        FeatureMapDisplay.from_estimator(frozen, X, Y + 1)


def test_map_needs_features(frozen, digits):
    X, y = digits
    with pytest.raises(ValueError, match="at least 3 images, got 2"):
        FeatureMapDisplay.from_estimator(frozen, X[:2])
    with pytest.raises(ValueError, match="method='umap' is not one of"):
        FeatureMapDisplay.from_estimator(frozen, X, method="umap")
    with pytest.raises(TypeError, match="LinearSVC has no transform"):
        FeatureMapDisplay.from_estimator(LinearSVC(), X)


# Without matplotlib ---------------------------------------------------------------------


def test_missing_matplotlib_is_named(monkeypatch):
    display = TrainingCurveDisplay(history=history())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = "TrainingCurveDisplay.plot requires matplotlib"
    with pytest.raises(ImportError, match=re.escape(message)) as caught:
        display.plot()
    assert "sktl[plot]" in str(caught.value)


# Several labels a picture ---------------------------------------------------------------


@pytest.fixture(scope="module")
def of_labels():
    X, y = load_digits(return_X_y=True)
    Y = np.stack([y % 2 == 0, y > 4], axis=1).astype(int)
    return PretrainedImageClassifier(image_size=32).fit(X[:60], Y[:60]), X[60:90], Y[60:90]


def test_predictions_of_several_labels(of_labels):
    clf, X, Y = of_labels
    names = ["even", "large"]
    display = ImagePredictionsDisplay.from_estimator(clf, X, Y, display_labels=names)
    predicted, proba = clf.predict(X), clf.predict_proba(X)
    wrong = (predicted != Y).any(axis=1)
    n_wrong = min(16, int(wrong.sum()))
    assert wrong[display.indices_[:n_wrong]].all()
    assert f"{wrong.sum()} mistake" in display.title
    for place, index in enumerate(display.indices_):
        has = [name for name, value in zip(names, predicted[index], strict=True) if value]
        assert display.y_pred[place] == (", ".join(has) or "no label")
        together = np.where(predicted[index], proba[index], 1 - proba[index]).prod()
        assert display.probabilities[place] == pytest.approx(together)
    numbers = ImagePredictionsDisplay.from_predictions(X, Y, proba)
    assert (numbers.indices_ == display.indices_).all()
    assert set(numbers.y_pred) <= {"0", "1", "0, 1", "no label"}
    with pytest.raises(ValueError, match="2 columns, but there are 3 labels"):
        ImagePredictionsDisplay.from_predictions(X, Y, np.full((30, 3), 0.5))


def test_explanations_name_several_labels(of_labels):
    pytest.importorskip("captum")
    clf, X, Y = of_labels
    display = ExplanationDisplay.from_estimator(clf, X[:3], 1, y=Y[:3])
    assert list(display.targets) == [1, 1, 1]
    assert set(display.y_true) <= {"0", "1", "0, 1", "no label"}


def test_a_confusion_matrix_of_several_labels_is_refused(of_labels):
    clf, X, Y = of_labels
    with pytest.raises(ValueError, match="multilabel_confusion_matrix"):
        ImageConfusionMatrixDisplay.from_estimator(clf, X, Y)
