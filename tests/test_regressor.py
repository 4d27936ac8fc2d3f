"""The regressor: numbers of images, in closed form and by steps."""

import json
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from finetuned import SmallNetwork
from PIL import Image
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.datasets import load_digits
from sklearn.ensemble import StackingRegressor
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

import sktl
from sktl import PretrainedImageFeatures, PretrainedImageRegressor
from sktl.training import targets

SIZE = 32
DATA = Path(__file__).parent / "data"

pytestmark = pytest.mark.usefixtures("one_thread")


def make(**params):
    settings = {"image_size": SIZE, "precision": "float32", "random_state": 0}
    return PretrainedImageRegressor(**(settings | params))


@pytest.fixture(scope="module")
def ink():
    """160 digits from 0 to 2, of each its number and how much ink it took, added up in odd units.

    And 60 others with theirs.
    """
    X, number = load_digits(n_class=3, return_X_y=True)
    y = 1000 + 100 * number + X.sum(1) / 10
    return X[:160], y[:160], X[160:220], y[160:220]


@pytest.fixture(scope="module")
def two(ink):
    """The same with a second number: the ink in the middle, of which a zero has none."""
    X, y, X_test, y_test = ink
    middle = [part.reshape(-1, 8, 8)[:, 2:6, 3:5].sum((1, 2)) / 1e4 for part in (X, X_test)]
    return X, np.c_[y, middle[0]], X_test, np.c_[y_test, middle[1]]


@pytest.fixture(scope="module")
def fitted(ink):
    return make().fit(*ink[:2])


def small_network():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


# A frozen backbone ----------------------------------------------------------------------


def test_it_learns(fitted, ink):
    _, _, X_test, y_test = ink
    assert fitted.score(X_test, y_test) > 0.8
    assert fitted.score(X_test, y_test) == r2_score(y_test, fitted.predict(X_test))
    assert fitted.predict(X_test).shape == (60,)
    assert fitted.predict(X_test).dtype == np.float64
    assert (fitted.n_outputs_, fitted.n_iter_) == (1, 1)


def test_it_is_ridge_regression_on_the_features(ink):
    X, y, X_test, _ = ink
    reg = make(head="linear", weight_decay=0.02, pooling="network").fit(X, y)
    features = PretrainedImageFeatures(image_size=SIZE, precision="float32").fit(X)
    ridge = Ridge(alpha=0.02 / 2 * len(X)).fit(features.transform(X), (y - y.mean()) / y.std())
    expected = y.mean() + y.std() * ridge.predict(features.transform(X_test))
    np.testing.assert_allclose(reg.predict(X_test), expected, rtol=1e-5)
    assert reg.weight_decay_ == 0.02


def test_the_penalty_that_is_chosen_is_told(fitted, ink):
    X, y, X_test, _ = ink
    given = make(weight_decay=fitted.weight_decay_).fit(X, y)
    np.testing.assert_allclose(given.predict(X_test), fitted.predict(X_test), rtol=1e-9)


def test_units_of_y_mean_nothing(fitted, ink):
    X, y, X_test, _ = ink
    other = make().fit(X, -1e-6 * y + 5)
    np.testing.assert_allclose(other.predict(X_test), -1e-6 * fitted.predict(X_test) + 5, rtol=1e-9)


@pytest.mark.parametrize("convert", [pd.Series, list, torch.as_tensor, np.float32, pd.array])
def test_kinds_of_y(fitted, ink, convert):
    X, y, X_test, _ = ink
    other = make().fit(X, convert(y))
    np.testing.assert_allclose(other.predict(X_test), fitted.predict(X_test), rtol=1e-5)


def test_integers_and_booleans_are_numbers(ink):
    X, y, X_test, _ = ink
    whole = y.astype(int)
    expected = make().fit(X, whole.astype(float)).predict(X_test)
    for given in (whole, whole.tolist(), whole.astype(object), whole.astype(np.uint16)):
        np.testing.assert_array_equal(make().fit(X, given).predict(X_test), expected)
    np.testing.assert_array_equal(
        make().fit(X, y > 1100).predict(X_test), make().fit(X, 1.0 * (y > 1100)).predict(X_test)
    )


def test_several_outputs(two):
    X, Y, X_test, Y_test = two
    reg = make().fit(X, Y)
    assert reg.predict(X_test).shape == (60, 2)
    assert reg.n_outputs_ == 2
    assert reg.score(X_test, Y_test) == pytest.approx(r2_score(Y_test, reg.predict(X_test)))
    assert reg.score(X_test, Y_test) > 0.8


def test_each_of_several_outputs_is_fitted_as_alone(two):
    X, Y, X_test, _ = two
    together = make(weight_decay=0.01).fit(X, Y).predict(X_test)
    for column in range(2):
        alone = make(weight_decay=0.01).fit(X, Y[:, column]).predict(X_test)
        np.testing.assert_allclose(together[:, column], alone, rtol=1e-8)


def test_a_column_stays_a_column(ink, fitted):
    X, y, X_test, _ = ink
    predicted = make().fit(X, y[:, None]).predict(X_test)
    assert predicted.shape == (60, 1)
    np.testing.assert_array_equal(predicted[:, 0], fitted.predict(X_test))


def test_numbers_that_are_all_the_same(ink):
    X, _, X_test, _ = ink
    for value in (0.0, 7.0, -1e300, 1e-300):
        reg = make().fit(X[:20], np.full(20, value))
        np.testing.assert_allclose(reg.predict(X_test), value)


def test_a_small_spread_about_a_large_mean_is_learned(ink, fitted):
    X, y, X_test, y_test = ink
    shifted = make().fit(X, 1e9 + y)
    assert shifted.score(X_test, 1e9 + y_test) == pytest.approx(fitted.score(X_test, y_test))


def test_one_image(ink):
    X, _, X_test, _ = ink
    assert make().fit(X[:1], [4.5]).predict(X_test[:2]).tolist() == [4.5, 4.5]


# Weights --------------------------------------------------------------------------------


def test_a_weight_is_the_image_so_many_times(ink):
    X, y, X_test, _ = ink
    weights = np.random.default_rng(0).integers(0, 3, len(y))
    repeated = np.repeat(np.arange(len(y)), weights)
    weighted = make().fit(X, y, weights)
    again = make().fit(X[repeated], y[repeated])
    assert weighted.weight_decay_ == pytest.approx(again.weight_decay_)
    np.testing.assert_allclose(weighted.predict(X_test), again.predict(X_test), rtol=1e-7)


def test_other_weights_count_by_their_proportions(ink):
    X, y, X_test, _ = ink
    weights = np.random.default_rng(0).uniform(0.1, 1, len(y))
    expected = make().fit(X, y, weights)
    small = make().fit(X, y, weights / weights.sum())
    assert small.weight_decay_ == pytest.approx(expected.weight_decay_)
    np.testing.assert_allclose(small.predict(X_test), expected.predict(X_test), rtol=1e-6)


def test_score_of_weights(fitted, ink):
    _, _, X_test, y_test = ink
    weights = np.arange(60.0)
    expected = r2_score(y_test, fitted.predict(X_test), sample_weight=weights)
    assert fitted.score(X_test, y_test, weights) == expected


# By steps -------------------------------------------------------------------------------


def loss(reg, X, y, criterion):
    """Of what it was fitted to, in the units of training."""
    errors = torch.as_tensor((reg.predict(X) - y) / np.std(y, axis=0))
    named = {"mse": nn.MSELoss(), "mae": nn.L1Loss(), "huber": nn.HuberLoss()}
    return float(named[criterion](errors, torch.zeros_like(errors)))


def test_stages_begin_where_the_head_was_solved(ink):
    """Without the network's dropout, which would move the numbers."""
    X, y = ink[:2]
    settings = {"head": "root", "unfreeze": "head_first", "lr": 1e-12, "max_epochs": 1}
    reg = make(freeze=-1, **settings).fit(X, y)
    fitted = make(pooling="network").fit(X, y)
    assert reg.weight_decay_ == fitted.weight_decay_  # by which the head began
    assert any(isinstance(layer, nn.Dropout) for layer in reg.net_.module_.suffix.modules())
    assert reg.history_[0]["train_loss"] == pytest.approx(loss(reg, X, y, "mse"), rel=1e-3)
    assert loss(reg, X, y, "mse") == pytest.approx(loss(fitted, X, y, "mse"), rel=1e-3)


@pytest.mark.parametrize("freeze", [-1, "none"])
def test_stages_begin_under_a_head_that_answers_the_mean(two, freeze):
    """By default, and the head learns ten times as fast as they do."""
    X, Y = two[:2]
    rates = {"lr": 1e-12, "schedule": "constant", "warmup": 0.0}
    reg = make(freeze=freeze, max_epochs=1, **rates).fit(X, Y)
    assert reg.predict(X) == pytest.approx(np.tile(Y.mean(0), (len(X), 1)), rel=1e-6)
    assert reg.history_[0]["backbone_lr"] == pytest.approx(1e-13)
    assert [type(layer) for layer in reg.net_.module_.head] == [nn.Linear]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("criterion", [slow("mse"), slow("huber"), "mae"])
def test_stages_are_trained(two, criterion):
    X, Y, X_test, Y_test = two
    reg = make(criterion=criterion, freeze=-1, max_epochs=24).fit(X, Y)
    assert len(reg.history_) == 24
    assert reg.score(X_test, Y_test) > 0.8
    frozen = make(pooling="network").fit(X, Y)
    assert loss(reg, X, Y, criterion) < loss(frozen, X, Y, criterion)  # the best of that stage


@pytest.mark.parametrize(
    ("criterion", "head"),
    [
        ("mse", "linear"),
        ("huber", "root"),
        ("mae", (16,)),
        *(slow("mse", head) for head in ("root", (16,))),
        *(slow("huber", head) for head in ("linear", (16,))),
        *(slow("mae", head) for head in ("linear", "root")),
    ],
)
def test_all_of_a_network_is_trained(ink, criterion, head):
    X, y, *_ = ink
    reg = make(
        backbone=small_network, freeze="none", criterion=criterion, head=head, lr=1e-2,
        backbone_lr=1e-2, max_epochs=30,
    ).fit(X, y)  # fmt: skip
    frozen = make(backbone=small_network, weight_decay=1e-3).fit(X, y)
    assert loss(reg, X, y, criterion) < loss(frozen, X, y, criterion)  # the best of a head alone


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", torch.optim.RMSprop])
def test_steps_on_a_linear_head_keep_what_ridge_regression_finds(fitted, ink, optimizer):
    X, y, X_test, y_test = ink
    reg = make(optimizer=optimizer, lr=1e-4).fit(X, y)
    assert reg.n_iter_ == 20
    assert reg.weight_decay_ == fitted.weight_decay_
    assert reg.score(X_test, y_test) > fitted.score(X_test, y_test) - 0.05


def test_losses_that_forgive_do_not_follow_what_is_wrong(ink):
    X, y, X_test, y_test = ink
    wrong = np.where(np.arange(len(y)) % 16 == 0, y + 3000, y)
    errors = {
        criterion: np.median(
            np.abs(make(criterion=criterion).fit(X, wrong).predict(X_test) - y_test)
        )
        for criterion in ("mse", "huber", "mae")
    }
    assert errors["mae"] < errors["mse"]
    assert errors["huber"] < errors["mse"]


def test_the_gradient_of_each_loss_is_that_of_torch():
    torch.manual_seed(0)
    target = targets.Numbers((0.0, 0.0), (1.0, 1.0), flat=False)
    outputs = (3 * torch.randn(7, 2)).requires_grad_()
    y, shares = torch.randn(7, 2), torch.rand(7)
    for criterion in ("mse", "mae", "huber"):
        expected = (target.losses(outputs, y, criterion, 0.0) * shares).sum()
        (gradient,) = torch.autograd.grad(expected, outputs)
        wanted = target.wanted(y, shares, 0.0)
        with torch.no_grad():
            loss, error = target.loss_and_error(outputs.T, wanted, shares, criterion)
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(error.T, gradient)


def distances(outputs, y):
    """A loss of the user's own."""
    return (outputs - y).square().sum(1).sqrt()


def squared_distances(outputs, y):
    return (outputs - y).square().sum(1)


def test_a_loss_of_ones_own(two):
    X, Y, X_test, Y_test = two
    reg = make(criterion=distances, optimizer="lbfgs", weight_decay=0.1, max_epochs=300).fit(X, Y)
    assert reg.score(X_test, Y_test) > 0.7
    # Losses of each output are added up.
    each = make(criterion=nn.MSELoss(reduction="none"), max_epochs=2, random_state=0).fit(X, Y)
    summed = make(criterion=squared_distances, max_epochs=2, random_state=0).fit(X, Y)
    np.testing.assert_allclose(each.predict(X_test), summed.predict(X_test), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"one loss for each row, of shape \(32,\)"):
        make(criterion=nn.MSELoss()).fit(X, Y)


def test_early_stopping_watches_r2(two):
    X, Y, _, _ = two
    reg = make(freeze=-1, early_stopping=True, n_iter_no_change=2, max_epochs=30, lr=3e-3).fit(X, Y)
    rows = {row["epoch"]: row for row in reg.history_}
    best = min(rows.values(), key=lambda row: row["valid_loss"])
    assert reg.best_epoch_ == best["epoch"]
    watched = reg.validation_indices_
    assert len(watched) == 16
    expected = r2_score(Y[watched], reg.predict(X[watched]))
    assert best["valid_r2"] == pytest.approx(expected, abs=1e-4)


def test_early_stopping_of_too_few(ink):
    X, y, _, _ = ink
    with pytest.raises(ValueError, match="early_stopping=True sets aside some images, which can't"):
        make(early_stopping=True).fit(X[:1], y[:1])


def test_partial_fit_keeps_the_first_units(ink):
    X, y, X_test, y_test = ink
    reg = make(optimizer="adamw", lr=3e-3)
    for _ in range(15):
        for part in np.array_split(np.arange(len(y)), 4):
            reg.partial_fit(X[part], y[part])
    assert reg.score(X_test, y_test) > 0.5
    again = make().partial_fit(X[:40], y[:40])
    target = again._model.target
    again.partial_fit(X[40:80], y[40:80] * 100)
    assert again._model.target == target
    with pytest.raises(ValueError, match="had one dimension"):
        again.partial_fit(X[:2], [[1.0, 2.0], [3.0, 4.0]])


def test_warm_start_goes_on(ink):
    X, y, X_test, y_test = ink
    params = {"backbone": small_network, "freeze": "none", "lr": 1e-2, "max_epochs": 3}
    reg = make(warm_start=True, **params).fit(X, y)
    first = reg.score(X_test, y_test)
    for _ in range(5):
        reg.fit(X, y)
    assert len(reg.history_) == 18
    assert reg.score(X_test, y_test) > first
    with pytest.raises(ValueError, match="had one dimension"):
        reg.fit(X, np.c_[y, y])


# Searches -------------------------------------------------------------------------------


def test_a_search_solves_each_head_once(ink, monkeypatch):
    X, y, _, _ = ink
    solved = []
    solve = targets.ridge.solve

    def counting(*args, **kwargs):
        solved.append(kwargs["weight_decay"])
        return solve(*args, **kwargs)

    monkeypatch.setattr(targets.ridge, "solve", counting)
    noisy = y + np.random.default_rng(0).normal(size=len(y))  # heads that no other test has solved
    grid = {"freeze": ["all", -1], "lr": [1e-2, 1e-3, 1e-4]}
    folds = KFold(3, shuffle=True, random_state=0)
    reg = make(max_epochs=1, pooling="network")
    search = GridSearchCV(reg, grid, cv=folds, refit=False).fit(X, noisy)
    # With a frozen backbone "lr" isn't used, and where a stage trains the head begins from what is
    # solved for it: all six candidates share a head in each fold, of the same features.
    assert solved == ["auto"] * 3
    scores = search.cv_results_["mean_test_score"]
    assert len(set(scores[:3])) == 1
    assert len(set(scores[3:])) == 3


def test_other_estimators_take_it(two):
    X, Y, X_test, Y_test = two
    y, y_test = Y[:, 0], Y_test[:, 0]
    logs = TransformedTargetRegressor(make(), func=np.log, inverse_func=np.exp).fit(X, y)
    assert logs.score(X_test, y_test) > 0.8
    stack = StackingRegressor([("image", make()), ("pixels", Ridge())], cv=2).fit(X, y)
    assert stack.score(X_test, y_test) > 0.8
    pipe = make_pipeline(FunctionTransformer(), make()).fit(X, y)
    assert pipe.score(X_test, y_test) > 0.8


# Files ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["frozen", "fine-tuned", "several"])
def kept(request, two):
    """A fitted regressor of each kind."""
    X, Y, _, _ = two
    if request.param == "several":
        return make(head=(8,), max_epochs=1).fit(X, Y)
    tuned = {"freeze": -1, "max_epochs": 1, "criterion": "huber", "early_stopping": True}
    return make(**(tuned if request.param == "fine-tuned" else {})).fit(X, Y[:, 0])


def same(one, other, X):
    np.testing.assert_array_equal(one.predict(X), other.predict(X))
    for name in ("weight_decay_", "n_outputs_", "history_", "n_iter_", "freeze_", "stages_"):
        assert getattr(one, name) == getattr(other, name)
    assert one.get_params() == other.get_params()


@pytest.mark.parametrize("include_backbone", [True, False])
def test_save(kept, ink, tmp_path, include_backbone):
    path = tmp_path / "model.sktl"
    kept.save(path, include_backbone=include_backbone)
    loaded = sktl.load(path)
    assert type(loaded) is PretrainedImageRegressor
    same(kept, loaded, ink[2])
    loaded.save(path)
    same(kept, sktl.load(path), ink[2])


def test_joblib(kept, ink, tmp_path):
    joblib.dump(kept, tmp_path / "model.joblib")
    same(kept, joblib.load(tmp_path / "model.joblib"), ink[2])


def test_skops(kept, ink):
    content = skops.io.dumps(kept)
    trusted = ["sktl.regressor.PretrainedImageRegressor"]
    assert set(skops.io.get_untrusted_types(data=content)) <= set(trusted)
    same(kept, skops.io.loads(content, trusted=trusted), ink[2])


def test_what_a_file_says_of_y_is_checked(fitted, tmp_path):
    from sktl.files.container import read_sealed, write_sealed

    path = tmp_path / "model.sktl"
    for changed, message in [
        ({"mean": [0.0, 1.0]}, "does not go with a head of 1 outputs"),
        ({"scale": [0.0]}, "finite number above 0"),
        ({"mean": ["0"]}, "finite number"),
        ({"flat": 1}, "true or false"),
    ]:
        fitted.save(path)
        document, tensors = read_sealed(path)
        document["model"]["target"] |= changed
        write_sealed(path, document, tensors)
        with pytest.raises(sktl.FileFormatError, match=message):
            sktl.load(path)


# Exports and explanations ---------------------------------------------------------------


@pytest.fixture(scope="module")
def tensors(ink):
    """The images as uint8 tensors of three channels."""
    images = torch.as_tensor(ink[2]).reshape(-1, 1, 8, 8).expand(-1, 3, 8, 8)
    return (images * 15).to(torch.uint8).contiguous()


@pytest.fixture(scope="module")
def exported(tensors, two):
    """One of several outputs, fitted to 8-bit images."""
    images = tensors.permute(0, 2, 3, 1).numpy()
    return make(backbone=SmallNetwork()).fit(images, two[3])


def test_to_torch_answers_in_the_units_of_y(exported, tensors, tmp_path):
    module = exported.to_torch()
    expected = exported.predict(tensors.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(module(tensors).numpy(), expected, rtol=1e-4, atol=1e-7)
    program = torch.export.export(module, (tensors[:2],))
    np.testing.assert_allclose(
        program.module()(tensors[:2]).numpy(), expected[:2], rtol=1e-4, atol=1e-7
    )
    traced = torch.jit.trace(module, (tensors[:2],))
    np.testing.assert_allclose(traced(tensors[:2]).numpy(), expected[:2], rtol=1e-4, atol=1e-7)


def test_to_torch_of_one_number(tensors, ink):
    images = tensors.permute(0, 2, 3, 1).numpy()
    reg = make().fit(images, ink[3])
    answers = reg.to_torch()(tensors)
    assert answers.shape == (60,)
    np.testing.assert_allclose(answers.numpy(), reg.predict(images), rtol=1e-4)


def test_to_onnx_answers_in_the_units_of_y(exported, tensors, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    exported.to_onnx(path)
    session = onnxruntime.InferenceSession(path)
    (answers,) = session.run(["numbers"], {"images": tensors.numpy()})
    expected = exported.predict(tensors.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-7)
    about = session.get_modelmeta().custom_metadata_map
    assert about["output"] == "numbers: float32 (n, 2)"
    assert "classes" not in about


def test_explanations_add_up_to_the_number(ink, tensors):
    pytest.importorskip("captum")
    images = tensors.permute(0, 2, 3, 1).numpy()
    reg = make(backbone=small_network).fit(images, ink[3])
    found = reg.explain(images[:3], method="integrated_gradients").sum((1, 2))
    mean_colour = np.array(reg._model.backbone.recipe.mean) * 255
    from_mean = reg.predict(np.tile(mean_colour.round().astype(np.uint8), (1, 8, 8, 1)))
    np.testing.assert_allclose(found, reg.predict(images[:3]) - from_mean, rtol=0.1)


def test_which_output_is_explained(two):
    pytest.importorskip("captum")
    X, Y, X_test, _ = two
    reg = make().fit(X, Y)
    first, second = (reg.explain(X_test[:2], target) for target in (0, 1))
    assert first.shape == (2, SIZE, SIZE)
    assert not np.allclose(first, second)
    for target in (None, 2, -1, "ink", True, [0, 1]):
        with pytest.raises(ValueError, match="not the number of an output: the images have 2"):
            reg.explain(X_test[:2], target)
    with pytest.raises(ValueError, match="method='cam' is not one of"):
        reg.explain(X_test[:2], 0, method="cam")


def test_it_says_that_it_can_not_adapt(fitted, ink):
    for reg in (fitted, make()):
        assert not hasattr(reg, "adapt")
        with pytest.raises(AttributeError, match="has no adapt.*numbers have no classes"):
            reg.adapt(ink[2])


def test_its_summary_counts_outputs(fitted):
    assert "Outputs" in fitted._repr_html_()


# Beside columns -------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["picture", ["picture"]])
def test_features_are_a_step_of_a_column_transformer(tmp_path, photographs, column):
    table = pd.DataFrame({"picture": [str(tmp_path / f"{i}.png") for i in range(12)]})
    for path, photograph in zip(table["picture"], photographs[0], strict=True):
        Image.fromarray(photograph).save(path)
    table["width"] = np.arange(12) % 5
    features = PretrainedImageFeatures(image_size=SIZE, precision="float32")
    both = make_column_transformer((features, column), ("passthrough", ["width"]))
    made = both.fit_transform(table)
    assert made.shape == (12, 1281)
    np.testing.assert_array_equal(made[:, -1], table["width"])
    alone = features.fit_transform(photographs[0])
    np.testing.assert_allclose(made[:, :-1], alone, atol=1e-5)


# The file that is loaded forever --------------------------------------------------------


def test_a_file_of_the_first_format_loads(digits):
    """Of make(head="linear", weight_decay=0.1): 30 digits, and half of each and a hundred."""
    loaded = sktl.load(DATA / "regressor-v1.sktl")
    expected = json.loads((DATA / "regressor-v1.json").read_text())
    np.testing.assert_allclose(loaded.predict(digits[0][:10]), expected["numbers"], atol=1e-3)
    assert (loaded.weight_decay_, loaded.n_outputs_) == (0.1, 2)
