"""Fitted estimators in files: what is in them, and what comes back."""

import copy
import pickle

import joblib
import numpy as np
import pickled
import pytest
import torch
from pickled import (
    LAMBDAS,
    DataDependentNet,
    Hoarder,
    SmallNet,
    TiedNet,
    classifier,
    features,
    globals_in,
    make_head,
    make_random_buffer_net,
    make_small_net,
    make_two_graph_net,
    make_wider_head,
    n_bytes,
    reload,
    squared_error,
)
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback, EpochScoring, LRScheduler
from torch import nn
from torchvision.models import ResNet18_Weights

from sktl.backbones import load_backbone

pytestmark = pytest.mark.usefixtures("few_iterations_are_enough")


# The same predictions ---------------------------------------------------------------------

ROUND_TRIPS = {
    "frozen": lambda: classifier(),
    "last stage trains": lambda: classifier(freeze=-1),
    "all trains": lambda: classifier(freeze="none", quick=True),
    "hidden layer": lambda: classifier(head=(8,)),
    "dropout": lambda: classifier(head=(8, 4), dropout=0.2),
    "flatten": lambda: classifier(pooling="flatten"),
    "bfloat16": lambda: classifier(precision="bfloat16", quick=True),
    "random weights": lambda: classifier("shufflenet_v2_x0_5", weights=None, freeze=-1),
    "two graphs": lambda: classifier(make_two_graph_net, freeze=-1),
    "module": lambda: classifier(SmallNet()),
    "module, last stage trains": lambda: classifier(SmallNet(), freeze=-1),
    "module, all trains": lambda: classifier(SmallNet(), freeze="none"),
    "module in channels-last": lambda: classifier(
        SmallNet().to(memory_format=torch.channels_last), freeze="none"
    ),
    "module that can't be traced": lambda: classifier(DataDependentNet()),
    "module that can't be traced, all trains": lambda: classifier(
        DataDependentNet(), freeze="none"
    ),
    "tied weights": lambda: classifier(TiedNet(), freeze=1),
    "callable backbone": lambda: classifier(make_small_net, freeze=-1),
    "callable backbone with a random buffer": lambda: classifier(make_random_buffer_net, freeze=1),
    "callable head": lambda: classifier(head=make_head),
    "callable criterion": lambda: classifier(criterion=squared_error),
    "module as criterion": lambda: classifier(criterion=nn.CrossEntropyLoss(reduction="none")),
    "optimizer class": lambda: classifier(optimizer=torch.optim.RMSprop),
    "sgd": lambda: classifier(optimizer="sgd"),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_loaded_classifier_predicts_bitwise_the_same(name, X, y):
    fitted = ROUND_TRIPS[name]().fit(X, y)
    loaded = reload(fitted)
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    np.testing.assert_array_equal(loaded.transform(X), fitted.transform(X))


@pytest.mark.parametrize(
    "estimator",
    [
        features(),
        features(stage=1),
        features(stage=-1, pooling="flatten"),
        features(precision="bfloat16"),
        features("shufflenet_v2_x0_5", weights=None),
        features(SmallNet(), stage="block2"),
        features(DataDependentNet()),
        features(make_random_buffer_net),
    ],
    ids=[
        "embedded",
        "an inner stage",
        "flattened",
        "bfloat16",
        "by name",
        "module",
        "untraceable",
        "callable",
    ],
)
def test_loaded_features_are_bitwise_the_same(estimator, X):
    fitted = clone(estimator).fit(X)
    loaded = reload(fitted)
    np.testing.assert_array_equal(loaded.transform(X), fitted.transform(X))
    assert loaded.get_feature_names_out().tolist() == fitted.get_feature_names_out().tolist()


def test_batch_norm_that_trained_keeps_its_statistics(X, y):
    net = SmallNet()
    fitted = classifier(net, freeze=-1).fit(X, y)
    means = [
        {n: t for n, t in m.named_buffers() if n.endswith("running_mean")}
        for m in (fitted.net_.module_, reload(fitted).net_.module_)
    ]
    (trained,), (loaded,) = (m.values() for m in means)
    torch.testing.assert_close(loaded, trained, rtol=0, atol=0)
    assert not torch.equal(trained, net.block3[1].running_mean)


def test_tied_weights_stay_tied(X, y):
    loaded = reload(classifier(TiedNet(), freeze=1).fit(X, y)).net_.module_
    first, second = (
        p for n, p in loaded.named_parameters(remove_duplicate=False) if "3.weight" in n
    )
    assert first is second


def test_fitted_attributes_come_back(trained):
    loaded = reload(trained)
    for name in ("n_iter_", "freeze_", "stages_", "pixel_range_", "device_", "precision_"):
        assert getattr(loaded, name) == getattr(trained, name), name
    assert loaded.classes_.tolist() == trained.classes_.tolist()
    assert loaded.history_ == trained.history_
    assert loaded.get_params() == trained.get_params()
    assert set(vars(loaded)) == set(vars(trained))


def test_columns_of_rows_come_back(digits):
    X, y = digits
    loaded = reload(classifier().fit(X, y))
    assert loaded.n_features_in_ == 64
    with pytest.raises(ValueError, match="expecting 64 features"):
        loaded.predict(X[:, :49])


def test_the_net_comes_back(trained, X):
    net, loaded = trained.net_, reload(trained).net_
    prefix = load_backbone("efficientnet_lite0", image_size=32).prefix(trained.freeze_, "auto")
    frozen = prefix(torch.from_numpy(X[:3, :32, :32]).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(loaded.predict_proba(frozen), net.predict_proba(frozen))
    columns = ["epoch", "train_loss", "dur"]
    assert loaded.history[:, columns] == net.history[:, columns]
    assert len(loaded.history) == 2


def test_the_net_of_a_loaded_model_trains_on(fitted, X, y):
    loaded = reload(fitted)
    before = loaded.predict_proba(X)
    swapped = (y == loaded.classes_[0]).astype(int)
    loaded.net_.partial_fit(loaded.transform(X), swapped)
    assert not np.allclose(loaded.predict_proba(X), before)
    assert len(loaded.net_.history) == len(fitted.net_.history) + 1


def test_a_loaded_model_is_fitted_again(trained, X, y):
    again = reload(trained).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), trained.predict_proba(X))


def test_a_loaded_model_is_dumped_again(trained, X):
    twice = reload(reload(trained))
    np.testing.assert_array_equal(twice.predict_proba(X), trained.predict_proba(X))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_independent(copied, fitted, X, y):
    before = fitted.predict_proba(X)
    other = copied(fitted)
    np.testing.assert_array_equal(other.predict_proba(X), before)
    other.net_.partial_fit(other.transform(X), (y == other.classes_[0]).astype(int))
    np.testing.assert_array_equal(fitted.predict_proba(X), before)


def test_loading_leaves_torchs_random_numbers_alone(X, y):
    blob = pickle.dumps(classifier(make_random_buffer_net, head=make_head).fit(X, y))
    before = torch.get_rng_state()
    pickle.loads(blob)
    assert torch.equal(torch.get_rng_state(), before)


# Not fitted -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [classifier, features])
def test_an_unfitted_estimator_comes_back_unfitted(make, X):
    loaded = reload(make(pooling="avg"))
    assert loaded.pooling == "avg"
    with pytest.raises(NotFittedError):
        loaded.transform(X)


def test_a_failed_fit_leaves_nothing_to_store(X, y):
    failed = classifier()
    with pytest.raises(ValueError, match="one class"):
        failed.fit(X, ["one"] * len(X))
    with pytest.raises(NotFittedError):
        reload(failed).predict(X)
    assert len(pickle.dumps(failed)) < 2000


def test_after_a_failed_fit_the_one_before_is_stored(fitted, X):
    twice = copy.deepcopy(fitted)
    with pytest.raises(ValueError, match="one class"):
        twice.fit(X, ["one"] * len(X))
    np.testing.assert_array_equal(reload(twice).predict_proba(X), fitted.predict_proba(X))


# What is in a file ------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", ["all", -1, "none"])
def test_a_file_names_no_class_but_the_estimators_and_numpys(freeze, X, y):
    backbone, settings = "shufflenet_v2_x0_5", {"weights": None, "head": (4,)}
    found = globals_in(pickle.dumps(classifier(backbone, freeze=freeze, **settings).fit(X, y)))
    found = {name for name in found if not name.startswith("numpy.")}
    assert found == {"sktl.classifier.PretrainedImageClassifier"}


def test_a_file_of_features_names_no_class_but_the_estimators_and_numpys(X):
    found = globals_in(pickle.dumps(features().fit(X)))
    found = {name for name in found if not name.startswith("numpy.")}
    assert found == {"sktl.features.PretrainedImageFeatures"}


def test_what_torch_and_skorch_made_would_be_seen(trained):
    found = globals_in(pickle.dumps([trained.net_.history, trained.net_.optimizer_]))
    assert {name.split(".")[0] for name in found} >= {"skorch", "torch"}


@pytest.mark.parametrize("freeze", ["all", "none"])
def test_no_image_is_in_a_file_and_no_feature_but_of_the_sample(freeze, X, y):
    callbacks = [Hoarder(), ("epochs", Hoarder()), LRScheduler("StepLR", step_size=1)]
    settings = {"callbacks": callbacks, "lr": 1e-3, "cache": "memory"}
    noise = np.random.default_rng(0).integers(0, 255, X.shape, dtype=np.uint8)
    fitted = classifier("shufflenet_v2_x0_5", weights=None, freeze=freeze, **settings)
    fitted.fit(noise, y)
    seen_by_net = fitted.net_.callbacks_[2][1].X.features[0].contiguous()
    seen_by_net = seen_by_net.view(torch.uint8).numpy()
    rows = [noise[0], seen_by_net, fitted.transform(noise)[0]]
    snippets = [row.tobytes()[1000:1032] for row in rows]
    assert all(snippet in pickle.dumps(rows) for snippet in snippets)
    whole = pickle.dumps(fitted)
    assert snippets[0] not in whole
    sample, fitted._sample = fitted._sample, None
    blob = pickle.dumps(fitted)
    assert not any(snippet in blob for snippet in snippets)
    assert len(whole) - len(blob) < sample.features.nbytes + 16 * len(y) + 2000
    of_torch = {name for name in globals_in(blob) if name.startswith("torch.")}
    assert of_torch == {"torch.optim.lr_scheduler.StepLR"}  # the class, which the user named


@pytest.mark.parametrize(
    ("backbone", "freeze"),
    [("efficientnet_lite0", "all"), ("efficientnet_lite0", -1), ("shufflenet_v2_x0_5", -2)],
)
def test_a_file_is_no_larger_than_the_weights_and_a_tenth(backbone, freeze, X, y, tmp_path):
    fitted = classifier(backbone, weights=None, freeze=freeze).fit(X, y)
    joblib.dump(fitted, tmp_path / "file")
    network = load_backbone(backbone, None).splitter.network
    network = nn.ModuleList(m for n, m in network.named_children() if n not in ("fc", "classifier"))
    weights = n_bytes(network, fitted.net_.module_.head)
    assert (tmp_path / "file").stat().st_size < 1.1 * weights


def test_a_file_does_not_grow_with_the_number_of_batches(X, y):
    sizes = [
        len(pickle.dumps(classifier(optimizer="adamw", batch_size=n, max_epochs=10).fit(X, y)))
        for n in (3, 12)
    ]
    assert sizes[0] == pytest.approx(sizes[1], abs=600)


def test_what_callbacks_record_is_stored_as_numbers(X, y):
    class Recorder(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("norm", torch.ones(()))
            net.history.record("norms", torch.ones(2))

    fitted = classifier(optimizer="adamw").fit(X, y)
    fitted.net_.callbacks_.append(("recorder", Recorder()))
    fitted.net_.partial_fit(fitted.transform(X), np.arange(len(X)) % 2)
    assert not any(name.startswith("torch") for name in globals_in(pickle.dumps(fitted)))
    assert reload(fitted).net_.history[-1, "norm"] == 1


# What the user gave -----------------------------------------------------------------------


def test_a_modules_weights_are_stored_once(X, y):
    net = SmallNet(width=96)
    fitted = classifier(net).fit(X, y)
    assert len(pickle.dumps(fitted)) < 1.1 * n_bytes(net, fitted.net_.module_)


def test_weights_that_two_graphs_share_are_stored_once(X, y):
    fitted = classifier(make_two_graph_net, freeze=-1).fit(X, y)
    assert fitted.net_.module_.suffix[0].eval_body is not None
    assert len(pickle.dumps(fitted)) < 1.1 * n_bytes(make_two_graph_net(), fitted.net_.module_.head)


def test_of_a_module_that_trained_only_what_changed_is_stored_again(X, y):
    net = SmallNet(width=96)
    fitted = classifier(net, freeze=-1).fit(X, y)
    assert len(pickle.dumps(fitted)) < 1.1 * n_bytes(net, fitted.net_.module_)


def test_a_module_that_fit_copied_comes_back_as_the_parameter(X, y):
    net = SmallNet()
    loaded = reload(classifier(net, freeze="none").fit(X, y)).backbone
    assert type(loaded) is SmallNet
    for name, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def replace_parameter(fitted):
    fitted.set_params(backbone="resnet18", head=(3,), criterion="cross_entropy")


def change_weights(fitted):
    with torch.no_grad():
        for weight in fitted.backbone.parameters():
            weight.zero_()


def change_layers(fitted):
    fitted.backbone.block2 = nn.MaxPool2d(2)


@pytest.mark.parametrize("change", [replace_parameter, change_weights, change_layers])
@pytest.mark.parametrize("freeze", ["all", -1, "none"])
def test_a_parameter_that_changed_after_fit_does_not_change_predictions(change, freeze, X, y):
    fitted = classifier(SmallNet(), freeze=freeze, head=make_head, criterion=squared_error)
    before = fitted.fit(X, y).predict_proba(X)
    change(fitted)
    loaded = reload(fitted)
    np.testing.assert_array_equal(loaded.predict_proba(X), before)
    assert repr(loaded.backbone) == repr(fitted.backbone)


def test_parameters_come_back(X, y):
    settings = {"weights": ResNet18_Weights.IMAGENET1K_V1, "device": torch.device("cpu")}
    loaded = reload(classifier(make_small_net).fit(X, y).set_params(**settings))
    assert loaded.backbone is make_small_net
    assert loaded.weights is settings["weights"]
    assert loaded.device == torch.device("cpu")


def test_columns_of_older_histories_have_todays_names(X, y):
    clf = classifier(lr=1e-3, early_stopping=True, validation_fraction=0.5).fit(X, y)
    state = clf.__getstate__()
    for history in (state["history_"], state["_model"]["history"]):
        for row in history:
            row["valid_accuracy"] = row.pop("valid_acc")
    older = object.__new__(type(clf))
    older.__setstate__(state)
    assert [row["valid_acc"] for row in older.history_] == older.net_.history[:, "valid_acc"]
    assert not any("valid_accuracy" in row for row in [*older.history_, *older.net_.history])


def test_callbacks_come_back_as_given(X, y):
    callbacks = [LRScheduler("StepLR", step_size=3), ("mine", Hoarder()), Hoarder]
    loaded = reload(classifier(optimizer="adamw", callbacks=callbacks).fit(X, y))
    scheduler, (name, mine), kind = loaded.callbacks
    assert scheduler.kwargs == {"step_size": 3}
    assert name == "mine" and not hasattr(mine, "net") and kind is Hoarder
    loaded.fit(X, y)


def test_a_callable_that_makes_another_network_is_found_out(X, y, monkeypatch):
    blob = pickle.dumps(classifier(head=make_head).fit(X, y))
    monkeypatch.setattr(pickled, "make_head", make_wider_head)
    with pytest.raises(ValueError, match=r"do not fit.*head\.0\.bias"):
        pickle.loads(blob)


@pytest.mark.parametrize("name", LAMBDAS)
def test_a_lambda_is_refused_by_name(name, X, y, tmp_path):
    fitted = classifier(**{name: LAMBDAS[name]}).fit(X, y)
    told = rf"{name}=<lambda> \(define it at the top of a module"
    with pytest.raises(pickle.PicklingError, match=told):
        pickle.dumps(fitted)
    with pytest.raises(pickle.PicklingError, match=told):
        joblib.dump(fitted, tmp_path / "file")
    fitted.set_params(**{name: clone(classifier()).get_params()[name]})
    with pytest.raises(pickle.PicklingError, match=told):  # the model needs it all the same
        pickle.dumps(fitted)


def test_a_lambda_for_features_is_refused_by_name(X):
    fitted = features(LAMBDAS["backbone"]).fit(X)
    with pytest.raises(pickle.PicklingError, match="backbone=<lambda>"):
        pickle.dumps(fitted)


def test_a_function_inside_another_is_refused_by_name():
    def local_head(in_features, n_classes):
        return nn.Linear(in_features, n_classes)

    with pytest.raises(pickle.PicklingError, match="head=local_head"):
        pickle.dumps(classifier(head=local_head))


def test_a_lambda_in_a_list_is_refused(X, y):
    scoring = EpochScoring(lambda net, X, y: 0.0, name="zero", on_train=True)
    with pytest.raises((pickle.PicklingError, AttributeError), match="<lambda>"):
        pickle.dumps(classifier(callbacks=[scoring]).fit(X, y))


def test_a_lambda_is_copied_in_memory(X, y):
    fitted = classifier(head=LAMBDAS["head"]).fit(X, y)
    copied = copy.deepcopy(fitted)
    assert copied.head is fitted.head
    np.testing.assert_array_equal(copied.predict_proba(X), fitted.predict_proba(X))
