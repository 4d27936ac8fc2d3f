"""Pictures that have several labels, or none."""

import json
import warnings
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from finetuned import SmallNetwork
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils.class_weight import compute_sample_weight

import sktl
from sktl import PretrainedImageClassifier, UnreadableImageWarning
from sktl.training.targets import hold_out_of_each

N = 160


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:300], y[:300]


@pytest.fixture(scope="module")
def X(digits):
    return digits[0]


@pytest.fixture(scope="module")
def Y(digits):
    """Whether a digit is even, whether it is above four, and whether it has a loop."""
    y = digits[1]
    return np.stack([y % 2 == 0, y > 4, np.isin(y, [0, 6, 8, 9])], axis=1).astype(int)


def classifier(**parameters):
    return PretrainedImageClassifier(**{"image_size": 32, "random_state": 0} | parameters)


@pytest.fixture(scope="module")
def fitted(X, Y):
    return classifier().fit(X[:N], Y[:N])


def read_by_the_head(clf, X):
    """Roots of the features, with their signs."""
    features = clf.transform(X).astype(np.float64)
    return np.sign(features) * np.sqrt(np.abs(features))


# Fit and predict ----------------------------------------------------------------------


def test_methods_give_what_scikit_learns_multilabel_classifiers_give(fitted, X, Y):
    rest = X[N:]
    predicted, proba = fitted.predict(rest), fitted.predict_proba(rest)
    assert fitted.classes_.tolist() == [0, 1, 2]
    assert fitted.multilabel_
    assert predicted.dtype == np.int64
    assert predicted.shape == proba.shape == fitted.decision_function(rest).shape == Y[N:].shape
    assert ((proba > 0.5) == predicted).all()
    assert ((fitted.decision_function(rest) > 0) == predicted).all()
    assert np.exp(fitted.predict_log_proba(rest)) == pytest.approx(proba)
    assert fitted.score(rest, Y[N:]) == accuracy_score(Y[N:], predicted)
    assert fitted.score(rest, Y[N:]) > 0.5  # chance is below 0.25


def test_a_classifier_of_classes_is_not_of_several_labels(digits):
    X, y = digits
    assert not classifier().fit(X[:N], y[:N]).multilabel_


def test_frozen_labels_are_logistic_regressions_on_the_features(fitted, X, Y):
    features = read_by_the_head(fitted, X)
    for label in range(3):
        alone = LogisticRegression(C=1 / (N * 1e-3), tol=1e-8, max_iter=5000)
        alone.fit(features[:N], Y[:N, label])
        expected = alone.predict_proba(features[N:])[:, 1]
        assert fitted.predict_proba(X[N:])[:, label] == pytest.approx(expected, abs=0.02)


def test_a_label_is_learned_as_it_is_beside_others(fitted, X, Y):
    two = classifier().fit(X[:N], Y[:N, 1:])
    assert two.predict_proba(X)[:, 0] == pytest.approx(fitted.predict_proba(X)[:, 1], abs=1e-4)


@pytest.mark.parametrize(
    "form",
    [
        sparse.csr_matrix,
        sparse.coo_array,
        np.asfortranarray,
        lambda Y: Y.astype(bool),
        lambda Y: Y.astype(np.float32),
        lambda Y: Y.tolist(),
        lambda Y: pd.DataFrame(Y, columns=["even", "large", "loop"]),
        lambda Y: pd.DataFrame({"even": Y[:, 0] > 0, "large": Y[:, 1], "loop": Y[:, 2] * 1.0}),
    ],
)
def test_all_forms_of_indicators_are_one(fitted, X, Y, form):
    other = classifier().fit(X[:N], form(Y[:N]))
    assert (other.predict_proba(X[N:]) == fitted.predict_proba(X[N:])).all()
    assert other.score(X[N:], form(Y[N:])) == fitted.score(X[N:], Y[N:])


@pytest.mark.parametrize(
    "parameters",
    [
        {"optimizer": "adamw", "lr": 1e-2, "max_epochs": 60},
        {"optimizer": "lbfgs", "head": (8,), "max_epochs": 50},
        {"dropout": 0.1, "mixup": 0.2, "lr": 1e-2, "max_epochs": 60},
        {"freeze": -1, "max_epochs": 3},
        {"augment": "light", "n_views": 2},
        {"ema_decay": 0.9, "lr": 1e-2, "max_epochs": 60},
    ],
    ids=str,
)
def test_all_ways_to_train_learn_labels(X, Y, parameters):
    trained = classifier(**parameters).fit(X[:N], Y[:N])
    hamming = (trained.predict(X[N:]) == Y[N:]).mean()
    assert hamming > 0.75  # the most frequent values of each label come to 0.57


def test_torchs_lbfgs_comes_to_the_optimum_that_is_solved_for(X, Y):
    solved = classifier(weight_decay=0.1).fit(X[:60], Y[:60])
    stepped = classifier(weight_decay=0.1, optimizer="lbfgs", lr=0.5).fit(X[:60], Y[:60])
    assert stepped.n_iter_ != solved.n_iter_
    assert stepped.predict_proba(X) == pytest.approx(solved.predict_proba(X), abs=1e-3)


def test_steps_with_and_without_backpropagation_are_the_same(X, Y):
    """A callback that watches batches needs the general way."""
    import skorch

    class Watches(skorch.callbacks.Callback):
        def on_batch_end(self, net, **kwargs):
            pass

    settings = {
        "optimizer": "sgd",
        "max_epochs": 3,
        "label_smoothing": 0.1,
        "class_weight": {0: 1, 1: 2},
    }
    plain = classifier(**settings).fit(X[:N], Y[:N])
    watched = classifier(**settings, callbacks=[Watches()]).fit(X[:N], Y[:N])
    assert watched.predict_proba(X) == pytest.approx(plain.predict_proba(X), abs=1e-5)


def test_partial_fit_goes_on_from_part_to_part(X, Y):
    clf = classifier(lr=1e-2)
    for _ in range(10):
        clf.partial_fit(X[:80], Y[:80]).partial_fit(X[80:N], Y[80:N], classes=[0, 1, 2])
    assert (clf.predict(X[N:]) == Y[N:]).mean() > 0.75
    with pytest.raises(ValueError, match="classes must be 0 to 2"):
        clf.partial_fit(X[:80], Y[:80], classes=["even", "large", "loop"])


def test_warm_start_goes_on_and_refuses_another_kind_of_y(digits, X, Y):
    clf = classifier(warm_start=True, optimizer="adamw", max_epochs=2)
    first = clf.fit(X[:N], Y[:N]).history_[-1]["train_loss"]
    assert clf.fit(X[:N], Y[:N]).history_[-1]["train_loss"] < first
    before = clf.predict_proba(X[:5])
    with pytest.raises(ValueError, match="was to 3 labels, and y has no columns"):
        clf.fit(X[:N], digits[1][:N])
    with pytest.raises(ValueError, match="was to 3 labels, and y has 2 columns"):
        clf.fit(X[:N], Y[:N, :2])
    assert (clf.predict_proba(X[:5]) == before).all()
    of_classes = classifier(warm_start=True).fit(X[:N], digits[1][:N] % 3)
    with pytest.raises(ValueError, match="was to 3 classes, and y has 3 columns"):
        of_classes.fit(X[:N], Y[:N])


# Weights and losses -------------------------------------------------------------------


def test_a_weight_of_two_is_a_row_given_twice(X, Y):
    weights = np.where(np.arange(N) < 20, 2, 1)
    weighted = classifier().fit(X[:N], Y[:N], sample_weight=weights)
    twice = classifier().fit(np.r_[X[:N], X[:20]], np.r_[Y[:N], Y[:20]])
    assert weighted.predict_proba(X) == pytest.approx(twice.predict_proba(X), abs=1e-3)


@pytest.mark.parametrize("class_weight", ["balanced", {0: 1, 1: 5}, {1: 0.2}], ids=str)
def test_class_weight_is_that_of_each_label_alone(X, Y, class_weight):
    clf = classifier(class_weight=class_weight).fit(X[:N], Y[:N])
    features = read_by_the_head(clf, X)
    for label in range(3):
        y = Y[:N, label]
        full = class_weight if isinstance(class_weight, str) else {0: 1.0, 1: 1.0} | class_weight
        weights = compute_sample_weight(full, y)
        alone = LogisticRegression(C=1 / (weights.sum() * 1e-3), tol=1e-8, max_iter=5000)
        alone.fit(features[:N], y, sample_weight=weights)
        expected = alone.predict_proba(features[N:])[:, 1]
        assert clf.predict_proba(X[N:])[:, label] == pytest.approx(expected, abs=0.02)


def test_class_weight_changes_a_kept_solution(X, Y):
    plain = classifier(cache="memory").fit(X[:N], Y[:N])
    heavy = classifier(cache="memory", class_weight={1: 20}).fit(X[:N], Y[:N])
    assert heavy.predict(X).sum() > plain.predict(X).sum()


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({0: 1, 2: 1}, "weights for \\[2\\]"),
        ({"even": 2}, "weights of 0 and 1"),
        ({1: -1}, "finite number of at least 0"),
    ],
)
def test_class_weights_of_anything_but_0_and_1_are_refused(X, Y, class_weight, message):
    with pytest.raises(ValueError, match=message):
        classifier(class_weight=class_weight).fit(X[:N], Y[:N])


def test_balanced_weights_of_a_part_are_refused(X, Y):
    with pytest.raises(ValueError, match="weights of 0 and 1 to use partial_fit"):
        classifier(class_weight="balanced").partial_fit(X[:N], Y[:N])


def test_a_criterion_takes_logits_and_indicators(X, Y):
    settings = {"optimizer": "adamw", "max_epochs": 3}
    own = classifier(criterion=torch.nn.BCEWithLogitsLoss(reduction="none"), **settings)
    named = classifier(**settings)
    for clf in (own, named):
        clf.fit(X[:N], Y[:N])
    assert own.predict_proba(X) == pytest.approx(named.predict_proba(X), abs=1e-4)
    with pytest.raises(ValueError, match="weigh in the criterion"):
        clone(own).set_params(class_weight={1: 2}).fit(X[:N], Y[:N])


def test_smoothing_keeps_probabilities_from_zero_and_one(X, Y):
    smooth = classifier(label_smoothing=0.4, weight_decay=1e-6).fit(X[:N], Y[:N])
    assert smooth.predict_proba(X[:N]).min() > 0.15
    assert smooth.predict_proba(X[:N]).max() < 0.85


# Early stopping -----------------------------------------------------------------------


def test_early_stopping_watches_subset_accuracy(X, Y):
    clf = classifier(early_stopping=True, lr=1e-2, max_epochs=30, validation_fraction=0.2)
    clf.fit(X[:N], Y[:N])
    watched = clf.validation_indices_
    best = clf.history_[clf.best_epoch_ - 1]
    assert clf.score(X[watched], Y[watched]) == pytest.approx(best["valid_acc"])
    assert best["valid_acc"] == max(row["valid_acc"] for row in clf.history_)


def test_rows_set_aside_have_their_share_of_each_label():
    rng = np.random.default_rng(0)
    Y = rng.random((500, 6)) < [0.5, 0.3, 0.1, 0.04, 0.02, 0.01]
    chosen = hold_out_of_each(Y, 0.2, seed=0)
    assert len(chosen) == pytest.approx(100, abs=3)
    assert Y[chosen].sum(0) == pytest.approx(0.2 * Y.sum(0), abs=1.01)
    assert (hold_out_of_each(Y, 0.2, seed=0) == chosen).all()
    assert (hold_out_of_each(Y, 0.2, seed=1) != chosen).any()


def test_the_only_image_of_a_label_trains():
    Y = np.zeros((50, 2), dtype=int)
    Y[7, 1] = Y[:25, 0] = 1
    assert all(7 not in hold_out_of_each(Y, 0.1, seed) for seed in range(20))


def test_too_few_images_to_set_any_aside_are_an_error(X, Y):
    with pytest.raises(ValueError, match="sets aside some images"):
        classifier(early_stopping=True).fit(X[:3], Y[:3])


# Bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda Y: Y + 1, "must be 0 or 1; it holds \\[2\\].*MultiOutputClassifier"),
        (lambda Y: 2 * Y - 1, "it holds \\[-1\\]"),
        (lambda Y: Y * 0.5, "it holds \\[0.5\\]"),
        (lambda Y: np.where(Y, np.nan, 0), "Input y contains NaN"),
        (lambda Y: np.where(Y, np.inf, 0), "Input y contains infinity"),
        (lambda Y: np.where(Y, "yes", "no"), "it holds '(yes|no)'.*MultiLabelBinarizer"),
        (lambda Y: np.where(Y, None, 0), "must be 0 or 1; it holds"),
        (lambda Y: sparse.csr_matrix(3 * Y), "it holds \\[3\\]"),
        (lambda Y: Y[:, :, None], "one or two dimensions"),
        (lambda Y: [np.flatnonzero(row).tolist() for row in Y], "MultiLabelBinarizer"),
        (lambda Y: [set(np.flatnonzero(row)) for row in Y], "MultiLabelBinarizer"),
        (lambda Y: pd.Series([list(np.flatnonzero(row)) for row in Y]), "MultiLabelBinarizer"),
        (lambda Y: Y[:-1], "inconsistent numbers of samples"),
    ],
)
def test_what_are_no_indicators_is_refused_and_nothing_is_fitted(X, Y, change, message):
    clf = classifier()
    with pytest.raises(ValueError, match=message):
        clf.fit(X[:N], change(Y[:N]))
    assert not hasattr(clf, "classes_")


def test_no_rows_are_an_error(X, Y):
    with pytest.raises(ValueError, match="0 sample"):
        classifier().fit(X[:0], Y[:0])


def test_rows_without_any_label_are_fine(fitted, X, Y):
    Y = Y.copy()
    Y[:20] = 0
    clf = classifier().fit(X[:N], Y[:N])
    assert clf.predict_proba(X[:20]).mean() < fitted.predict_proba(X[:20]).mean()


@pytest.mark.parametrize("parameters", [{}, {"optimizer": "adamw", "lr": 0.03}], ids=str)
def test_a_label_that_nobody_has_warns_and_is_predicted_for_nobody(X, Y, parameters):
    Y = Y.copy()
    Y[:, 1] = 0
    with pytest.warns(UserWarning, match="No image has the labels \\[1\\]"):
        clf = classifier(**parameters).fit(X[:N], Y[:N])
    assert not clf.predict(X)[:, 1].any()
    assert clf.predict_proba(X)[:, 1].max() < 0.1
    assert (clf.predict(X[N:])[:, 0] == Y[N:, 0]).mean() > 0.65


def test_a_label_that_all_have_warns_and_is_predicted_for_all(X, Y):
    Y = Y.copy()
    Y[:N, 2] = 1
    with pytest.warns(UserWarning, match="All images have the labels \\[2\\]"):
        clf = classifier().fit(X[:N], Y[:N])
    assert clf.predict(X)[:, 2].all()


def test_balanced_weights_of_a_label_that_nobody_has(X, Y):
    Y = Y.copy()
    Y[:, 0] = 0
    with pytest.warns(UserWarning, match="No image"):
        clf = classifier(class_weight="balanced").fit(X[:N], Y[:N])
    assert not clf.predict(X)[:, 0].any()


def test_one_column_is_one_label_of_two_classes(X, Y):
    with pytest.warns(sktl_conversion_warning()):
        column = classifier().fit(X[:N], Y[:N, :1])
    assert not column.multilabel_
    assert column.predict(X[N:]).shape == (len(X) - N,)


def sktl_conversion_warning():
    from sklearn.exceptions import DataConversionWarning

    return DataConversionWarning


def test_weights_that_are_all_zero_are_an_error(X, Y):
    with pytest.raises(ValueError, match="zero for every image"):
        classifier().fit(X[:N], Y[:N], sample_weight=np.zeros(N))


def test_several_classes_an_image_work_by_multi_output_classifier(digits):
    X, y = digits
    targets = np.stack([y % 3, y // 5], axis=1)
    with pytest.raises(ValueError, match="MultiOutputClassifier"):
        classifier().fit(X[:N], targets[:N])
    both = MultiOutputClassifier(classifier()).fit(X[:N], targets[:N])
    assert (both.predict(X[N:]) == targets[N:]).mean() > 0.6


def test_a_chain_of_classifiers_says_why_it_cannot_be(X, Y):
    with pytest.raises(ValueError, match="ClassifierChain"):
        ClassifierChain(classifier()).fit(X[:N], Y[:N])


def test_unreadable_images_are_left_out(tmp_path, X, Y):
    from PIL import Image

    paths = [str(tmp_path / f"{i}.png") for i in range(40)]
    for path, row in zip(paths, X[:40], strict=True):
        Image.fromarray((row * 15).astype(np.uint8).reshape(8, 8)).save(path)
    (tmp_path / "3.png").write_bytes(b"no picture")
    for form in (np.asarray, sparse.coo_matrix):
        clf = classifier(on_error="skip")
        with pytest.warns(UnreadableImageWarning, match="1 of 40"):
            clf.fit(paths, form(Y[:40]))
        assert clf.skipped_.tolist() == [3]
    with pytest.warns(UnreadableImageWarning):
        predicted = clf.predict(paths)
    assert predicted[3].tolist() == [None, None, None]
    with pytest.warns(UnreadableImageWarning):
        score = clf.score(paths, Y[:40])
    kept = np.delete(np.arange(40), 3)
    assert score == accuracy_score(Y[kept], predicted[kept].astype(int))


@pytest.mark.parametrize("freeze", [-1, "none"])
def test_stages_begin_under_a_head_that_tells_nothing(X, Y, freeze):
    """By default, and the head learns ten times as fast as they do."""
    rates = {"lr": 1e-12, "schedule": "constant", "max_epochs": 1}
    clf = classifier(freeze=freeze, **rates).fit(X[:N], Y[:N])
    assert clf.predict_proba(X[N:]) == pytest.approx(np.full((len(X) - N, 3), 0.5), abs=1e-6)
    assert clf.history_[0]["backbone_lr"] == pytest.approx(1e-13)
    first = classifier(freeze=freeze, head="root", unfreeze="head_first", **rates)
    frozen = classifier(pooling="network").fit(X[:N], Y[:N])
    assert first.fit(X[:N], Y[:N]).predict_proba(X[N:]) == pytest.approx(
        frozen.predict_proba(X[N:]), abs=1e-3
    )


# Around it ----------------------------------------------------------------------------


def test_files_hold_labels(fitted, X, Y, tmp_path):
    skops_io = pytest.importorskip("skops.io")
    weighted = classifier(class_weight="balanced", freeze=-1, max_epochs=1).fit(X[:N], Y[:N])
    for clf in (fitted, weighted):
        expected = clf.predict_proba(X[N:])
        joblib.dump(clf, tmp_path / "clf.joblib")
        clf.save(tmp_path / "clf.sktl")
        skops_io.dump(clf, tmp_path / "clf.skops")
        trusted = ["sktl.classifier.PretrainedImageClassifier"]
        for loaded in (
            joblib.load(tmp_path / "clf.joblib"),
            sktl.load(tmp_path / "clf.sktl"),
            skops_io.load(tmp_path / "clf.skops", trusted=trusted),
        ):
            assert loaded.multilabel_
            assert (loaded.predict_proba(X[N:]) == expected).all()
            assert loaded.classes_.tolist() == [0, 1, 2]
    again = sktl.load(tmp_path / "clf.sktl").fit(X[:N], Y[:N])
    assert again.predict_proba(X[N:]) == pytest.approx(expected, abs=1e-4)


def test_a_torch_module_gives_independent_probabilities(fitted, X):
    images = torch.tensor(X[N : N + 4]).reshape(4, 1, 8, 8).expand(4, 3, 8, 8)
    found = fitted.to_torch()(images).numpy()
    assert found == pytest.approx(fitted.predict_proba(X[N : N + 4]), abs=0.01)


def test_an_onnx_file_gives_independent_probabilities(X, Y, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pictures = (X * 15).astype(np.uint8).reshape(-1, 8, 8)
    clf = classifier(backbone=SmallNetwork(), precision="float32").fit(pictures[:N], Y[:N])
    path = tmp_path / "clf.onnx"
    clf.to_onnx(path)
    images = np.repeat(pictures[N : N + 3, None], 3, axis=1)
    (found,) = runtime.InferenceSession(path).run(None, {"images": images})
    assert found == pytest.approx(clf.predict_proba(pictures[N : N + 3]), abs=1e-4)
    about = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert about["classes"] == "[0, 1, 2]"
    assert "(n, n_labels)" in about["output"]


def test_explain_takes_the_number_of_a_label(fitted, X):
    pytest.importorskip("captum")
    each = [fitted.explain(X[N : N + 2], target=label) for label in range(3)]
    surest = fitted.predict_proba(X[N : N + 2]).argmax(axis=1)
    found = fitted.explain(X[N : N + 2])
    assert found == pytest.approx(np.stack([each[k][i] for i, k in enumerate(surest)]))
    with pytest.raises(ValueError, match="target holds"):
        fitted.explain(X[N : N + 2], target=3)


def test_adapt_says_that_it_cannot(fitted, X):
    with pytest.raises(ValueError, match="fitted to several labels"):
        fitted.adapt(X[:20])


def test_a_search_over_freeze_and_lr_solves_each_frozen_head_once(X, Y, monkeypatch):
    from sktl.training import binary

    solved = []
    solve = binary.solve

    def counted(*args, **kwargs):
        solved.append(args)
        return solve(*args, **kwargs)

    monkeypatch.setattr(binary, "solve", counted)
    grid = {"freeze": ["all"], "lr": [1e-3, 1e-2, 1e-1]}
    # Images and labels of this test alone, so that no other has solved their heads.
    search = GridSearchCV(classifier(), grid, cv=KFold(2), refit=False)
    search.fit(X[:101] * 0.9, Y[:101])
    assert len(solved) == 2  # a fold each
    scores = search.cv_results_["mean_test_score"]
    assert scores.min() == scores.max() > 0.25


def test_cross_validated_predictions_are_indicators(X, Y):
    predicted = cross_val_predict(classifier(), X[:120], Y[:120], cv=KFold(3))
    assert predicted.shape == (120, 3)
    assert (predicted == Y[:120]).mean() > 0.7
    proba = cross_val_predict(classifier(), X[:120], Y[:120], cv=KFold(3), method="predict_proba")
    assert ((proba > 0.5) == predicted).all()


def test_lists_of_labels_become_indicators(X, Y):
    names = np.array(["even", "large", "loop"])
    lists = [names[row > 0].tolist() for row in Y]
    binarizer = MultiLabelBinarizer()
    clf = classifier().fit(X[:N], binarizer.fit_transform(lists[:N]))
    found = binarizer.inverse_transform(clf.predict(X[N:]))
    assert {name for row in found for name in row} <= set(names)


def test_a_summary_speaks_of_labels(fitted):
    assert "Labels" in fitted._repr_html_()


def test_all_indicators_are_learned_without_warnings(X, Y):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier().fit(X[:N], Y[:N]).predict(X[N:])


# The file that is loaded forever ------------------------------------------------------


def test_a_file_of_the_first_format_loads(X):
    """Of head="linear", weight_decay=0.1, class_weight="balanced", without its backbone."""
    data = Path(__file__).parent / "data"
    loaded = sktl.load(data / "labels-v1.sktl")
    expected = json.loads((data / "labels-v1.json").read_text())
    assert loaded.multilabel_
    assert loaded.predict(X[:10]).tolist() == expected["labels"]
    # Features differ in their last digits from processor to processor, the file's numbers nowhere.
    head = loaded.net_.module_.head[-1]
    assert [bias.hex() for bias in head.bias.tolist()] == expected["bias"]
    assert [weight.hex() for weight in head.weight[:, 0].tolist()] == expected["first_weights"]
    assert loaded.predict_proba(X[:10]) == pytest.approx(np.array(expected["proba"]), abs=1e-4)
