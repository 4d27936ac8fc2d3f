"""The estimators inside scikit-learn's meta-estimators, on real pictures."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import loguniform
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.datasets import load_digits, load_sample_images
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    BaggingClassifier,
    IsolationForest,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_val_predict,
    cross_validate,
    learning_curve,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils.validation import check_is_fitted

from sktl import PretrainedImageClassifier, PretrainedImageFeatures, load_image_folder

SIZE = 32  # one size for all, so that features computed once serve every test
SQUARE = 48


pytestmark = pytest.mark.usefixtures("one_thread")


def make(**params):
    return PretrainedImageClassifier(**({"image_size": SIZE, "random_state": 0} | params))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """72 squares of two photographs as files: of a temple's walls, of petals and of leaves."""
    china, flower = load_sample_images().images
    regions = {
        "temple": china[100:400, 70:350],
        "petals": flower[95:335, 180:420],
        "leaves": flower[:, :160],
    }
    root = tmp_path_factory.mktemp("squares")
    for name, region in regions.items():
        (root / name).mkdir()
        height, width = (n // SQUARE for n in region.shape[:2])
        for k in range(24):
            top, left = SQUARE * (k // width % height), SQUARE * (k % width)
            square = region[top : top + SQUARE, left : left + SQUARE]
            Image.fromarray(square).save(root / name / f"{k}.png")
    return load_image_folder(root)


@pytest.fixture(scope="module")
def paths(folder):
    """Paths in random order, of 48 to learn from and 24 to be tested on, and class names."""
    order = np.random.default_rng(0).permutation(len(folder.data))
    X, y = folder.data[order], folder.target_names[folder.target[order]]
    return X[:48], y[:48], X[48:], y[48:]


@pytest.fixture(scope="module")
def squares(paths):
    """The same as uint8 arrays."""
    X, y, X_test, y_test = paths
    read = [np.stack([np.asarray(Image.open(path)) for path in part]) for part in (X, X_test)]
    return read[0], y, read[1], y_test


@pytest.fixture(scope="module")
def rows():
    """Handwritten digits from 0 to 2: 90 rows to learn from, 60 to be tested on."""
    X, y = load_digits(n_class=3, return_X_y=True)
    return X[:90], y[:90], X[90:150], y[90:150]


@pytest.fixture(scope="module")
def grid(paths):
    X, y, _, _ = paths
    params = {"freeze": ["all", -1], "lr": [1e-2, 1e-7]}
    return GridSearchCV(
        make(max_epochs=3, unfreeze="at_once", optimizer="adamw"), params, cv=3
    ).fit(X, y)


# Clones and pipelines -------------------------------------------------------------------


def test_a_clone_has_the_parameters_and_is_not_fitted(paths):
    X, y, X_test, _ = paths
    fitted = make(weight_decay=0.5, head=(8,), max_epochs=1).fit(X, y)
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        check_is_fitted(copy)
    np.testing.assert_array_equal(
        copy.fit(X, y).predict_proba(X_test), fitted.predict_proba(X_test)
    )


def test_a_clone_of_the_features(paths):
    fitted = PretrainedImageFeatures(image_size=SIZE, pooling="avg").fit(paths[0])
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        check_is_fitted(copy)


def test_at_the_end_of_a_pipeline(rows):
    X, y, X_test, y_test = rows
    # Scaled digits are the same pictures in other numbers.
    pipeline = make_pipeline(StandardScaler(with_mean=False, with_std=False), make())
    pipeline.set_params(pretrainedimageclassifier__weight_decay=1e-2).fit(X, y)
    alone = make(weight_decay=1e-2).fit(X, y)
    assert pipeline[-1].weight_decay == 1e-2
    np.testing.assert_array_equal(pipeline.predict_proba(X_test), alone.predict_proba(X_test))
    assert pipeline.score(X_test, y_test) > 0.8


def test_at_the_start_of_a_pipeline(paths):
    X, y, X_test, y_test = paths
    pipeline = make_pipeline(make(), LogisticRegression()).fit(X, y)
    assert pipeline.score(X_test, y_test) > 0.8
    assert len(pipeline[:-1].get_feature_names_out()) == pipeline[-1].n_features_in_


# Searches -------------------------------------------------------------------------------


def test_grid_search_finds_what_predicts_well(grid, paths):
    _, _, X_test, y_test = paths
    assert grid.best_params_["lr"] == 1e-2  # the other hardly moves
    assert grid.best_score_ > 0.8
    assert grid.score(X_test, y_test) > 0.8
    scores = grid.cv_results_["mean_test_score"]
    assert scores[[p["lr"] == 1e-7 for p in grid.cv_results_["params"]]].max() < 0.7


def test_two_processes_give_what_one_gives(grid, paths):
    X, y, X_test, _ = paths
    parallel = clone(grid).set_params(n_jobs=2).fit(X, y)  # loky is joblib's default
    assert parallel.best_params_ == grid.best_params_
    for fold in range(3):
        name = f"split{fold}_test_score"
        np.testing.assert_array_equal(parallel.cv_results_[name], grid.cv_results_[name])
    np.testing.assert_array_equal(parallel.predict_proba(X_test), grid.predict_proba(X_test))


def test_randomized_search(squares):
    X, y, X_test, y_test = squares
    params = {"weight_decay": loguniform(1e-4, 1e4)}
    search = RandomizedSearchCV(make(), params, n_iter=4, cv=3, random_state=0).fit(X, y)
    assert search.best_params_["weight_decay"] == search.best_estimator_.weight_decay
    assert search.score(X_test, y_test) > 0.8


def test_halving_search_over_epochs(paths):
    X, y, X_test, y_test = paths
    search = HalvingGridSearchCV(
        make(optimizer="adamw"),  # which takes steps of this size, and so many
        {"lr": [1e-2, 1e-7]},
        resource="max_epochs",
        min_resources=2,
        max_resources=4,
        factor=2,
        cv=3,
        random_state=0,
    ).fit(X, y)
    assert search.n_resources_ == [2, 4]
    assert search.best_params_ == {"lr": 1e-2, "max_epochs": 4}
    assert search.best_estimator_.n_iter_ == 4
    assert search.score(X_test, y_test) > 0.8


def test_halving_search_over_samples(rows):
    X, y, X_test, y_test = rows
    search = HalvingGridSearchCV(
        make(), {"weight_decay": [1e-3, 1e6]}, min_resources=30, factor=2, cv=3, random_state=0
    ).fit(X, y)
    assert search.best_params_ == {"weight_decay": 1e-3}
    assert search.score(X_test, y_test) > 0.8


def test_cross_val_predict(paths):
    X, y, _, _ = paths
    probabilities = cross_val_predict(make(), X, y, cv=3, method="predict_proba")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert np.mean(np.unique(y)[probabilities.argmax(axis=1)] == y) > 0.8


def test_learning_curve(rows):
    X, y, _, _ = rows
    sizes, train_scores, test_scores = learning_curve(
        make(pooling="network"), X, y, train_sizes=[6, 60], cv=3
    )
    assert list(sizes) == [6, 60]
    assert test_scores[1].mean() > test_scores[0].mean()
    assert test_scores[1].mean() > 0.8
    assert train_scores.min() > 0.9


# Combinations of classifiers ------------------------------------------------------------


def two_classifiers():
    return [("linear", make()), ("hidden", make(head=(16,), lr=1e-2, max_epochs=5))]


@pytest.mark.parametrize(
    "combine",
    [
        lambda: CalibratedClassifierCV(make(), cv=2),
        lambda: VotingClassifier(two_classifiers(), voting="soft"),
        lambda: VotingClassifier(two_classifiers(), voting="hard"),
        lambda: StackingClassifier(two_classifiers(), cv=2),
        lambda: OneVsRestClassifier(make()),
    ],
    ids=["calibrated", "soft vote", "hard vote", "stacking", "one vs rest"],
)
@pytest.mark.parametrize("kind", ["paths", "squares"])
def test_combined_classifiers(request, kind, combine):
    X, y, X_test, y_test = request.getfixturevalue(kind)
    combined = combine().fit(X, y)
    assert list(combined.classes_) == ["leaves", "petals", "temple"]
    assert combined.score(X_test, y_test) > 0.8


def test_bagging_on_rows(rows):
    X, y, X_test, y_test = rows
    bagging = BaggingClassifier(make(), n_estimators=3, random_state=0).fit(X, y)
    assert bagging.score(X_test, y_test) > 0.8
    first, second, _ = (member.predict_proba(X_test) for member in bagging.estimators_)
    assert np.abs(first - second).max() > 0.01  # each has learned from other samples


def test_bagging_on_a_column_of_paths(paths):
    X, y, X_test, y_test = paths
    bagging = BaggingClassifier(make(), n_estimators=3, random_state=0)
    bagging.fit(X.reshape(-1, 1), y)
    assert bagging.score(X_test.reshape(-1, 1), y_test) > 0.8


def test_self_training_on_rows(rows):
    X, y, X_test, y_test = rows
    known = np.arange(len(y)) < 15
    training = SelfTrainingClassifier(make(), threshold=0.9).fit(X, np.where(known, y, -1))
    labelled = (training.labeled_iter_ > 0) & (training.transduction_ != -1)
    assert labelled.sum() > 10
    assert np.mean(training.transduction_[labelled] == y[labelled]) > 0.8
    assert training.score(X_test, y_test) > 0.8


# Labels and containers ------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        np.array(["zero", "more"]),
        np.array([-3, 40]),
        np.array([True, False]),
        np.array(["zero", "more"], dtype=object),
    ],
    ids=["string", "integer", "boolean", "object"],
)
def test_kinds_of_labels(rows, names):
    X, y, _, _ = rows
    labels = names[np.minimum(y, 1)]
    predicted = cross_val_predict(make(), X, labels, cv=3)
    assert predicted.dtype == labels.dtype
    assert np.mean(predicted == labels) > 0.8
    fitted = make().fit(X, labels)
    assert fitted.classes_.dtype == labels.dtype
    assert set(fitted.predict(X)) == set(names)


@pytest.mark.parametrize(
    "wrap",
    [
        list,
        lambda X: pd.Series(X, index=range(100, 100 + len(X))),
        lambda X: pd.DataFrame({"file": X}),
        lambda X: pd.DataFrame({"file": X, "camera": "none"})[["file"]],
    ],
    ids=["list", "Series", "DataFrame", "column of a DataFrame"],
)
def test_containers_of_paths(paths, wrap):
    X, y, X_test, _ = paths
    expected = make().fit(X, y).predict(X_test)
    np.testing.assert_array_equal(make().fit(wrap(X), pd.Series(y)).predict(wrap(X_test)), expected)
    in_folds = cross_val_predict(make(), wrap(X), pd.Series(y), cv=3)
    np.testing.assert_array_equal(in_folds, cross_val_predict(make(), X, y, cv=3))


@pytest.mark.parametrize("width", [1, 2, 17, 31, 64])
def test_rows_of_any_small_width(rows, width):
    X, y, _, _ = rows
    columns = X[:, 64 - width - 10 * (width < 54) :][:, :width]
    assert make().fit(columns, y).predict(columns).shape == y.shape


def test_rows_of_faces_need_their_shape(squares):
    X, y, _, _ = squares
    # As wide as those of fetch_lfw_people, which are 62 by 47.
    grey = [Image.fromarray(image).convert("L").resize((47, 62)) for image in X]
    flat = np.stack([np.asarray(image).ravel() for image in grey])
    assert flat.shape[1] == 2914
    for estimator in (make(), PretrainedImageFeatures(image_size=SIZE)):
        with pytest.raises(ValueError, match=r"2914 .*image_shape"):
            estimator.fit(flat, y)
    assert make(image_shape=(62, 47)).fit(flat, y).score(flat, y) > 0.8


# Metadata routing -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def half_wrong(rows):
    """Rows, labels half of which are wrong, weights that are zero for those, true labels."""
    X, y, _, _ = rows
    right = np.random.default_rng(0).random(len(y)) < 0.5
    return X, np.where(right, y, (y + 1) % 3), right.astype(float), y


@pytest.fixture
def routing():
    with config_context(enable_metadata_routing=True):
        yield


def weighted():
    return make().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)


def test_weights_are_routed_through_a_pipeline(routing, half_wrong):
    X, given, weights, y = half_wrong
    features = PretrainedImageFeatures(image_size=SIZE)
    scaler = StandardScaler().set_fit_request(sample_weight=False)
    identity = StandardScaler(with_mean=False, with_std=False).set_fit_request(sample_weight=False)
    for pipeline in (
        make_pipeline(identity, weighted()),
        make_pipeline(features, scaler, LogisticRegression().set_fit_request(sample_weight=True)),
    ):
        assert pipeline.fit(X, given, sample_weight=weights).score(X, y) > 0.9
        assert pipeline.fit(X, given).score(X, y) < 0.8


def test_weights_are_routed_into_folds(routing, half_wrong):
    X, given, weights, y = half_wrong

    def accuracy(params):
        return np.mean(cross_val_predict(weighted(), X, given, cv=3, params=params) == y)

    assert accuracy({"sample_weight": weights}) > 0.8
    assert accuracy({}) < 0.7


def test_weights_are_routed_through_a_search_to_fit_and_score(routing, half_wrong):
    X, given, weights, y = half_wrong
    search = GridSearchCV(weighted(), {"weight_decay": [1e-3, 1e-2]}, cv=3)
    search.fit(X, given, sample_weight=weights)
    assert search.score(X, given, sample_weight=weights) > 0.9  # of the right labels alone
    assert np.mean(search.predict(X) == y) > 0.9
    assert search.best_score_ > 0.8


def test_weights_that_nobody_asked_for_are_an_error(routing, half_wrong):
    X, given, weights, _ = half_wrong
    with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
        cross_validate(make(), X, given, params={"sample_weight": weights})


# The features in front of other estimators ----------------------------------------------


def test_features_before_logistic_regression(paths):
    X, y, X_test, y_test = paths
    pipeline = make_pipeline(PretrainedImageFeatures(image_size=SIZE), LogisticRegression())
    assert pipeline.fit(X, y).score(X_test, y_test) > 0.8


def test_features_before_k_means(paths):
    X, y, X_test, y_test = paths
    # At 32 pixels some leaves and walls fall into one cluster.
    pipeline = make_pipeline(
        PretrainedImageFeatures(image_size=2 * SIZE),
        KMeans(n_clusters=3, n_init=5, random_state=0),
    )
    assert adjusted_rand_score(y, pipeline.fit_predict(X)) > 0.5
    assert adjusted_rand_score(y_test, pipeline.predict(X_test)) > 0.5


def test_features_before_pca_with_pandas_output(paths):
    X, y, X_test, y_test = paths
    frame = pd.DataFrame({"file": X}, index=range(100, 100 + len(X)))
    pipeline = make_pipeline(PretrainedImageFeatures(image_size=SIZE), PCA(4, random_state=0))
    pipeline.set_output(transform="pandas")
    components = pipeline.fit_transform(frame)
    assert list(components.columns) == [f"pca{i}" for i in range(4)]
    assert list(components.index) == list(frame.index)
    features = pipeline[0].transform(frame)
    names = list(pipeline[0].get_feature_names_out())
    assert list(features.columns) == names == list(pipeline[-1].feature_names_in_)
    assert names[:2] == ["penultimate_0", "penultimate_1"]
    assert features.shape == (len(X), 1280)
    np.testing.assert_allclose(
        features, clone(pipeline[0]).set_output(transform="default").fit_transform(X)
    )
    test_components = pipeline.transform(pd.DataFrame({"file": X_test}))
    assert LogisticRegression().fit(components, y).score(test_components, y_test) > 0.8


@pytest.fixture(params=["float32", "float16"])
def features(request):
    return PretrainedImageFeatures(image_size=2 * SIZE, stage=[-1, None], dtype=request.param)


def test_features_before_hdbscan(features, paths):
    X, y, _, _ = paths
    clusters = make_pipeline(features, PCA(3), HDBSCAN(min_cluster_size=5, copy=True))
    found = clusters.fit_predict(X)
    assert np.mean(found >= 0) > 0.8
    assert adjusted_rand_score(y[found >= 0], found[found >= 0]) > 0.8


@pytest.mark.parametrize("to_two", [PCA(2), TSNE(perplexity=5, random_state=0)])
def test_features_before_a_map(features, paths, to_two):
    X, y, _, _ = paths
    places = make_pipeline(features, to_two).fit_transform(X)
    nearest = NearestNeighbors(n_neighbors=1).fit(places).kneighbors(return_distance=False)[:, 0]
    assert places.shape == (48, 2)
    assert np.mean(y[nearest] == y) > 0.9


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_features_before_nearest_neighbors(features, paths, metric):
    X, y, X_test, y_test = paths
    index = NearestNeighbors(n_neighbors=3, metric=metric).fit(features.fit_transform(X))
    nearest = index.kneighbors(features.transform(X_test), return_distance=False)
    assert np.mean(y[nearest] == y_test[:, np.newaxis]) > 0.9


def test_features_before_an_isolation_forest(features, paths):
    X, y, X_test, y_test = paths
    forest = make_pipeline(features, IsolationForest(random_state=0)).fit(X[y == "leaves"])
    scores = forest.score_samples(X_test)
    assert scores[y_test == "leaves"].min() > scores[y_test != "leaves"].max()
