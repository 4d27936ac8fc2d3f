"""What trains, by which steps, on which loss."""

import copy
import random

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.utils import compute_sample_weight
from skorch.callbacks import Callback
from torch import nn
from torchvision.models.resnet import BasicBlock

from sktl import PretrainedImageClassifier
from sktl.training.batches import FeatureRows, TensorBatches
from sktl.training.epochs import train
from sktl.training.heads import SquareRoot, make_head
from sktl.training.net import make_net
from sktl.training.optimization import quick_step
from sktl.training.targets import Classes

SIZE = 32


pytestmark = pytest.mark.usefixtures("one_thread")


STAGES = ["stem", "layer1", "layer2", "layer3"]


class SmallResNet(nn.Module):
    """A residual network of 18 thousand weights, with batch norm in each stage."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2, _shortcut(8, 16)), BasicBlock(16, 16))
        self.layer3 = nn.Sequential(BasicBlock(16, 24, 2, _shortcut(16, 24)), BasicBlock(24, 24))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


def _shortcut(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallResNet()


@pytest.fixture(scope="module")
def three_kinds(digits):
    """36 digits of three classes that aren't equally many, as rows."""
    X, y = digits
    kept = np.flatnonzero(y < 3)[:36]
    return X[kept], y[kept]


@pytest.fixture(scope="module")
def make(network):
    """Make a classifier on the small network."""

    def make(**params):
        settings = {"backbone": network, "image_size": SIZE, "random_state": 0}
        return PretrainedImageClassifier(**(settings | params))

    return make


@pytest.fixture(scope="module")
def embedded():
    """Make a classifier on the frozen embedded network."""

    def make(**params):
        settings = {"image_size": SIZE, "random_state": 0, "precision": "float32"}
        return PretrainedImageClassifier(**(settings | params))

    return make


# Freezing -----------------------------------------------------------------------------


def of_stages(state, stages):
    return {k: v for k, v in state.items() if k.split(".")[0] in stages}


def found_in(module, names):
    """The tensors that a part cut out of the network has under these names."""
    state = module.state_dict()
    found = {}
    for name in names:
        keys = [key for key in state if key == name or key.endswith("." + name)]
        # A network that runs another code in evaluation has its tensors under two names.
        assert len({state[key].data_ptr() for key in keys}) <= 1
        if keys:
            found[name] = state[keys[0]]
    return found


@pytest.mark.parametrize(
    ("freeze", "depth"),
    [
        ("none", 0),
        (0, 0),
        (-4, 0),
        (1, 1),
        ("stem", 1),
        (-2, 2),
        ("layer1", 2),
        (3, 3),
        (np.int64(-1), 3),
        (4, 4),
        ("layer3", 4),
        ("all", 4),
    ],
)
def test_what_is_frozen_stays_and_the_rest_trains(make, network, photographs, freeze, depth):
    before = copy.deepcopy(network.state_dict())
    clf = make(freeze=freeze, optimizer="adamw", lr=1e-2, max_epochs=3, batch_size=4)
    clf.fit(*photographs)

    assert clf.stages_ == STAGES
    assert clf.freeze_ == depth
    for name, tensor in network.state_dict().items():  # the user's own network
        assert torch.equal(tensor, before[name]), name
    assert not any(parameter.grad is not None for parameter in network.parameters())
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())

    frozen = of_stages(before, STAGES[:depth])
    prefix = clf._model.backbone.prefix(depth, "auto")
    kept = found_in(prefix, frozen)
    assert kept.keys() == frozen.keys()
    for name, tensor in kept.items():
        assert torch.equal(tensor, frozen[name]), name
    assert found_in(clf.net_.module_, frozen) == {}
    shared = clf._model.backbone.splitter.network.state_dict()  # by all fits of a search
    assert all(torch.equal(tensor, before[name]) for name, tensor in shared.items())

    trainable = of_stages(before, STAGES[depth:])
    trained = found_in(clf.net_.module_.suffix, trainable)
    assert trained.keys() == trainable.keys()
    for name, tensor in trained.items():  # weights, running means and variances, counts
        assert not torch.equal(tensor, trainable[name]), name
    steps = 3 * 3
    counts = [v for k, v in trained.items() if k.endswith("num_batches_tracked")]
    assert all(count == steps for count in counts)


@pytest.mark.parametrize("freeze", [-1, "none"])
def test_a_fit_starts_from_the_pretrained_weights(embedded, photographs, freeze):
    """Not from what the fit before made of them, though both share the network in memory."""
    X, y = photographs
    first, second = (
        embedded(freeze=freeze, lr=1e-2, max_epochs=1).fit(X, y).predict_proba(X) for _ in range(2)
    )
    assert np.array_equal(first, second)


@pytest.mark.parametrize(("freeze", "share"), [("none", 0.8), (2, 0.8), ("all", 0.98)])
def test_loss_goes_down(make, photographs, freeze, share):
    clf = make(freeze=freeze, optimizer="adamw", lr=1e-2, max_epochs=6, batch_size=4)
    clf.fit(*photographs)
    losses = [row["train_loss"] for row in clf.history_]
    assert losses[-1] < share * losses[0]


def test_training_deeper_changes_the_features(make, photographs):
    X, y = photographs
    frozen, trained = (
        make(freeze=freeze, pooling="network", lr=1e-2, max_epochs=2).fit(X, y).transform(X)
        for freeze in ("all", "none")
    )
    assert frozen.shape == trained.shape == (12, 24)
    assert not np.allclose(frozen, trained, atol=1e-3)


@pytest.mark.parametrize("freeze", ["none", 2])
def test_training_steps_are_those_of_plain_torch(make, network, photographs, freeze):
    """Two epochs of one batch each, against a loop written out here."""
    X, y = photographs
    clf = make(
        freeze=freeze, optimizer="sgd", lr=0.1, backbone_lr=0.05, weight_decay=0.01,
        max_epochs=2, batch_size=12, precision="float32", schedule="constant", unfreeze="at_once",
        head="linear",
    )  # fmt: skip
    clf.fit(X, y)

    own = copy.deepcopy(network)
    with torch.random.fork_rng():
        torch.manual_seed(clf.net_.seed)
        own.fc = nn.Linear(24, 2)
    frozen = own.stem, own.layer1
    for part in frozen if freeze == 2 else ():
        part.requires_grad_(False)
    groups = []
    for name, parameter in own.named_parameters():
        lr = 0.1 if name.startswith("fc.") else 0.05
        decay = 0.01 if parameter.ndim > 1 else 0
        if parameter.requires_grad:
            groups.append({"params": [parameter], "lr": lr, "weight_decay": decay})
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    recipe = clf._model.backbone.recipe
    images = recipe.apply(torch.from_numpy(X).permute(0, 3, 1, 2)) / 255
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (recipe.mean, recipe.std))
    images = (images - mean) / std
    losses = []
    for _ in range(2):
        own.train()
        for part in frozen if freeze == 2 else ():
            part.eval()
        loss = nn.functional.cross_entropy(own(images), torch.as_tensor(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert [row["train_loss"] for row in clf.history_] == pytest.approx(losses, rel=1e-4)
    with torch.no_grad():
        expected = own.eval()(images).softmax(1).numpy()
    assert clf.predict_proba(X) == pytest.approx(expected, abs=2e-3)


# The convex problem -------------------------------------------------------------------


def optimum(features, y, weight_decay, sample_weight=None):
    """What scikit-learn finds for the same problem."""
    total = len(y) if sample_weight is None else sum(sample_weight)
    # With two classes it penalises one difference of weights, where we penalise both halves.
    halves = 2 if len(np.unique(y)) == 2 else 1
    model = LogisticRegression(C=halves / (total * weight_decay), tol=1e-10, max_iter=10_000)
    return model.fit(features, y, sample_weight=sample_weight)


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("head", ["linear", "root"])
def test_auto_finds_the_optimum(embedded, three_kinds, weight_decay, n_classes, weighted, head):
    X, y = (part[three_kinds[1] < n_classes] for part in three_kinds)
    weights = np.random.RandomState(0).uniform(0, 3, len(y)) if weighted else None
    clf = embedded(weight_decay=weight_decay, head=head).fit(X, y, sample_weight=weights)
    features = clf.transform(X).astype(np.float64)
    if head == "root":
        features = features / np.sqrt(np.abs(features) + 1e-3)
    expected = optimum(features, y, weight_decay, weights)

    assert type(clf.net_.optimizer_) is torch.optim.LBFGS
    linear = clf.net_.module_.head[-1]
    assert linear.weight.dtype == torch.float64
    assert clf.predict_proba(X) == pytest.approx(expected.predict_proba(features), abs=2e-5)
    if n_classes == 3:
        coefficients = linear.weight.detach().numpy()
        assert coefficients == pytest.approx(expected.coef_, abs=1e-3 * abs(expected.coef_).max())
    assert clf.n_iter_ > 1
    assert len(clf.history_) == 1


def test_the_optimum_needs_no_seed(embedded, three_kinds):
    first, second = (
        embedded(random_state=seed).fit(*three_kinds).predict_proba(three_kinds[0])
        for seed in (0, 1)
    )
    assert np.array_equal(first, second)


def test_lbfgs_that_has_not_converged_warns(embedded, three_kinds):
    with pytest.warns(ConvergenceWarning, match="after 3 iterations .*max_epochs"):
        clf = embedded(optimizer="lbfgs", max_epochs=3).fit(*three_kinds)
    assert clf.n_iter_ == 3


@pytest.mark.parametrize(
    ("params", "optimizer", "dtype"),
    [
        ({}, "LBFGS", torch.float64),
        ({"label_smoothing": 0.1}, "LBFGS", torch.float64),
        ({"class_weight": "balanced"}, "LBFGS", torch.float64),
        ({"freeze": 4}, "LBFGS", torch.float64),
        ({"lr": 1e-3}, "LBFGS", torch.float64),
        ({"optimizer": "adamw", "lr": 1e-3}, "AdamW", torch.float32),
        ({"dropout": 0.1}, "AdamW", torch.float32),
        ({"head": (4,)}, "AdamW", torch.float32),
        ({"head": nn.Linear}, "AdamW", torch.float32),
        ({"freeze": -1}, "AdamW", torch.float32),
        ({"freeze": "none"}, "AdamW", torch.float32),
        ({"criterion": nn.CrossEntropyLoss(reduction="none")}, "AdamW", torch.float32),
        ({"optimizer": "lbfgs", "lr": 0.5}, "LBFGS", torch.float64),
        ({"optimizer": "lbfgs", "head": (4,)}, "LBFGS", torch.float64),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS", torch.float64),
        ({"optimizer": "sgd"}, "SGD", torch.float32),
        ({"optimizer": "adam"}, "Adam", torch.float32),
        ({"optimizer": torch.optim.RMSprop}, "RMSprop", torch.float32),
    ],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_which_optimizer(make, three_kinds, params, optimizer, dtype):
    clf = make(max_epochs=3, **params).fit(*three_kinds)
    assert type(clf.net_.optimizer_).__name__ == optimizer
    assert all(p.dtype == dtype for p in clf.net_.module_.head.parameters())
    if "optimizer" in params and "lr" in params:
        assert clf.net_.lr == params["lr"]


def test_the_class_means_the_same_as_the_name(make, three_kinds):
    X, y = three_kinds
    for name, kind in [("sgd", torch.optim.SGD), ("lbfgs", torch.optim.LBFGS)]:
        by_name, by_class = (make(optimizer=o).fit(X, y) for o in (name, kind))
        assert by_name.n_iter_ == by_class.n_iter_
        assert np.array_equal(by_name.predict_proba(X), by_class.predict_proba(X))


@pytest.mark.parametrize("head", ["linear", "root", (16,), (32, 16), nn.Linear])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_heads_and_optimizers_learn(embedded, three_kinds, head, optimizer):
    lr = 0.05 if optimizer == "sgd" else 3e-3
    clf = embedded(head=head, optimizer=optimizer, lr=lr, max_epochs=20, schedule="constant")
    clf.fit(*three_kinds)
    losses = [row["train_loss"] for row in clf.history_]
    assert losses[-1] < 0.7 * losses[0]
    assert clf.score(*three_kinds) > 0.8
    linears = [m for m in clf.net_.module_.head.modules() if isinstance(m, nn.Linear)]
    widths = head if isinstance(head, tuple) else ()
    assert [m.out_features for m in linears] == [*widths, 3]


# Loss ---------------------------------------------------------------------------------

STILL = {"optimizer": "sgd", "lr": 1e-20, "weight_decay": 0, "max_epochs": 1, "batch_size": 7}


def test_the_loss_is_weighted_over_the_fit(embedded, three_kinds):
    """The one an epoch reports, with steps too small to change it, and batches that differ."""
    X, y = three_kinds
    weights = np.random.RandomState(0).uniform(0, 3, len(y)) * np.where(y == 0, 100, 1)
    clf = embedded(**STILL).fit(X, y, sample_weight=weights)
    expected = log_loss(y, clf.predict_proba(X), sample_weight=weights)
    assert clf.history_[0]["train_loss"] == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(log_loss(y, clf.predict_proba(X)), rel=1e-2)


@pytest.mark.parametrize(
    "params", [{}, {"optimizer": "adamw", "lr": 1e-2, "batch_size": 100, "max_epochs": 5}]
)
def test_only_proportions_of_weights_count(embedded, three_kinds, params):
    X, y = three_kinds
    weights = 1.0 + y
    small, large = (
        embedded(**params).fit(X, y, sample_weight=weights * scale).predict_proba(X)
        for scale in (1, 1024)
    )
    assert small == pytest.approx(large, abs=1e-5)


def test_a_whole_weight_is_a_repetition_and_zero_an_omission(embedded, three_kinds):
    X, y = three_kinds
    weights = np.arange(len(y)) % 3
    weighted = embedded(weight_decay=0.01).fit(X, y, sample_weight=weights)
    repeated = embedded(weight_decay=0.01).fit(np.repeat(X, weights, 0), np.repeat(y, weights))
    assert weighted.predict_proba(X) == pytest.approx(repeated.predict_proba(X), abs=1e-5)


@pytest.mark.parametrize("params", [{}, {"optimizer": "adamw", "lr": 1e-2, "max_epochs": 3}])
@pytest.mark.parametrize("class_weight", ["balanced", {0: 5, 1: 0.5, 2: 1}, {2: 10.0}])
def test_class_weight_is_a_sample_weight(embedded, three_kinds, class_weight, params):
    X, y = three_kinds
    by_class = embedded(class_weight=class_weight, **params).fit(X, y).predict_proba(X)
    weights = compute_sample_weight(class_weight, y)
    by_sample = embedded(**params).fit(X, y, sample_weight=weights).predict_proba(X)
    plain = embedded(**params).fit(X, y).predict_proba(X)
    assert by_class == pytest.approx(by_sample, abs=1e-6)
    assert by_class != pytest.approx(plain, abs=1e-4)


def test_class_weight_and_sample_weight_multiply(embedded, three_kinds):
    X, y = three_kinds
    own = 1.0 + np.arange(len(y)) % 4
    both = embedded(class_weight={0: 3}).fit(X, y, sample_weight=own).predict_proba(X)
    product = embedded().fit(X, y, sample_weight=own * np.where(y == 0, 3, 1)).predict_proba(X)
    assert both == pytest.approx(product, abs=1e-6)


def test_class_weight_of_text_labels(embedded, three_kinds):
    X, y = three_kinds
    names = np.array(["nought", "one", "two"])
    text = embedded(class_weight={"one": 4}).fit(X, names[y]).predict_proba(X)
    numbers = embedded(class_weight={1: 4}).fit(X, y).predict_proba(X)
    assert np.array_equal(text, numbers)


def test_label_smoothing(embedded, three_kinds):
    X, y = three_kinds
    clf = embedded(label_smoothing=0.3, **STILL).fit(X, y)
    proba = clf.predict_proba(X)
    expected = 0.7 * log_loss(y, proba) - 0.3 * np.log(proba).mean()
    assert clf.history_[0]["train_loss"] == pytest.approx(expected, rel=1e-4)
    sure, unsure = (embedded(label_smoothing=s).fit(X, y).predict_proba(X) for s in (0, 0.3))
    assert unsure.max(1).mean() < sure.max(1).mean() - 0.05


def focal_loss(logits, labels):
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return (1 - torch.exp(-losses)) ** 2 * losses


def test_own_criterion(embedded, three_kinds):
    X, y = three_kinds
    clf = embedded(criterion=focal_loss, **STILL).fit(X, y)
    of_label = clf.predict_proba(X)[np.arange(len(y)), y]
    expected = np.mean((1 - of_label) ** 2 * -np.log(of_label))
    assert clf.history_[0]["train_loss"] == pytest.approx(expected, rel=1e-4)
    learned = embedded(criterion=focal_loss, lr=1e-2, max_epochs=10).fit(X, y)
    assert learned.history_[-1]["train_loss"] < 0.5 * learned.history_[0]["train_loss"]


def test_dropout_is_for_training_only(embedded, three_kinds):
    X, y = three_kinds
    with_dropout = embedded(dropout=0.9, **STILL).fit(X, y)
    without = embedded(**STILL).fit(X, y)
    first, second = with_dropout.predict_proba(X), with_dropout.predict_proba(X)
    assert np.array_equal(first, second)
    assert first == pytest.approx(without.predict_proba(X), abs=1e-6)
    assert without.history_[0]["train_loss"] == pytest.approx(log_loss(y, first), rel=1e-4)
    assert with_dropout.history_[0]["train_loss"] != pytest.approx(log_loss(y, first), rel=1e-3)


# Step sizes and decay -----------------------------------------------------------------


def settings_by_name(net):
    of = {id(p): g for g in net.optimizer_.param_groups for p in g["params"]}
    return {name: of[id(p)] for name, p in net.module_.named_parameters()}


@pytest.mark.parametrize(
    ("lr", "backbone_lr", "head_expected", "suffix_expected"),
    [(None, None, 3e-4, 3e-4), (1e-2, None, 1e-2, 1e-2), (1e-2, 1e-5, 1e-2, 1e-5)],
)
def test_step_sizes_and_decay(make, photographs, lr, backbone_lr, head_expected, suffix_expected):
    clf = make(freeze=2, head=(5,), lr=lr, backbone_lr=backbone_lr, weight_decay=0.02, max_epochs=1)
    settings = settings_by_name(clf.fit(*photographs).net_)
    kinds = set()
    for name, group in settings.items():
        of_suffix = name.startswith("suffix.")
        decays = name.endswith("weight") and "bn" not in name and "downsample.1" not in name
        kinds.add((of_suffix, decays))
        assert group["lr"] == pytest.approx(suffix_expected if of_suffix else head_expected), name
        # The head's is a part of its loss.
        assert group["weight_decay"] == (0.02 if decays and of_suffix else 0), name
    assert len(kinds) == 4


def test_backbone_lr_moves_the_suffix_only(make, network, photographs):
    clf = make(freeze=3, lr=1e-2, backbone_lr=1e-30, max_epochs=2).fit(*photographs)
    before = of_stages(dict(network.named_parameters()), ["layer3"])
    for name, tensor in found_in(clf.net_.module_.suffix, before).items():
        assert torch.allclose(tensor, before[name], rtol=0, atol=1e-20), name
    assert clf.history_[1]["train_loss"] < clf.history_[0]["train_loss"]


# What a fit tells ---------------------------------------------------------------------


class Count(Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, net, **kwargs):
        self.calls.append("begin")

    def on_batch_end(self, net, training, **kwargs):
        self.calls.append("batch")

    def on_epoch_end(self, net, **kwargs):
        self.calls.append("epoch")

    def on_train_end(self, net, **kwargs):
        self.calls.append("end")


def test_callbacks_are_called(make, three_kinds):
    count = Count()
    make(optimizer="adamw", max_epochs=2, batch_size=18, callbacks=[count]).fit(*three_kinds)
    epoch = ["batch", "batch", "epoch"]
    assert count.calls == ["begin", *epoch, *epoch, "end"]


def test_callbacks_of_lbfgs(make, three_kinds):
    count = Count()
    make(callbacks=[("count", count)]).fit(*three_kinds)
    assert count.calls == ["begin", "batch", "epoch", "end"]


def test_history(make, three_kinds):
    clf = make(optimizer="adamw", max_epochs=4).fit(*three_kinds)
    assert clf.n_iter_ == 4
    frame = pd.DataFrame(clf.history_)
    assert list(frame["epoch"]) == [1, 2, 3, 4]
    assert np.isfinite(frame["train_loss"]).all()
    assert (frame["seconds"] >= 0).all()
    assert all(type(value) in (int, float) for row in clf.history_ for value in row.values())


class Threads(Callback):
    """Notes in how many threads torch computes while training."""

    def __init__(self):
        self.seen = set()

    def on_epoch_end(self, net, **kwargs):
        self.seen.add(torch.get_num_threads())


@pytest.mark.parametrize(("image_size", "n_threads"), [(32, 1), (224, 2)])
def test_small_steps_of_stages_run_in_one_thread(photographs, image_size, n_threads):
    threads = Threads()
    clf = PretrainedImageClassifier(
        freeze=-2,
        unfreeze="at_once",
        image_size=image_size,
        max_epochs=1,
        callbacks=[("threads", threads)],
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        clf.fit(*photographs)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads.seen == {n_threads}


# Threads ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params", [{}, {"optimizer": "adamw", "max_epochs": 3}, {"head": (16,), "max_epochs": 3}]
)
def test_frozen_fits_do_not_depend_on_the_number_of_threads(digits, params):
    X, y = digits[0][:24], digits[1][:24]
    found = []
    before = torch.get_num_threads()
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        settings = {"image_size": SIZE, "random_state": 0, "cache": None} | params
        clf = PretrainedImageClassifier(precision="float32", **settings).fit(X, y)
        found.append(clf.predict_proba(X))
    torch.set_num_threads(before)
    np.testing.assert_allclose(*found, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(*(proba.argmax(1) for proba in found))


# Chance -------------------------------------------------------------------------------

RANDOM = [
    {"optimizer": "adamw", "lr": 1e-2},
    {"lr": 1e-2, "dropout": 0.5, "head": (8,)},
    {"freeze": -1, "dropout": 0.5},
    {"freeze": "none"},
    {"backbone": "squeezenet1_1", "weights": None},
]


@pytest.mark.parametrize("params", RANDOM)
def test_the_seed_decides_all(make, photographs, params):
    X, y = photographs
    params = {"max_epochs": 2, "batch_size": 5, "lr": 1e-2} | params
    proba = []
    for seed in (3, 3, 4, np.random.RandomState(3)):
        torch.manual_seed(len(proba))  # what others draw must not matter
        proba.append(make(random_state=seed, **params).fit(X, y).predict_proba(X))
    assert np.array_equal(proba[0], proba[1])
    assert not np.array_equal(proba[0], proba[2])
    assert np.array_equal(proba[0], proba[3])


def global_state():
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [name, keys.tolist(), *rest],
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("params", [{}, *RANDOM])
def test_global_state_is_untouched(make, photographs, params):
    X, y = photographs
    before = global_state()
    clf = make(max_epochs=1, **params).fit(X, y)
    assert global_state() == before
    clf.predict_proba(X)
    clf.transform(X)
    assert global_state() == before


def test_no_seed_means_numpy_s_own(make, photographs):
    """As everywhere in scikit-learn; torch's state stays as it is."""
    X, y = photographs
    before = global_state()
    clf = make(random_state=None, optimizer="adamw", lr=1e-2, max_epochs=1)
    proba = []
    for seed in (0, 0, 1):
        with_seed = np.random.get_state()
        np.random.seed(seed)
        proba.append(clf.fit(X, y).predict_proba(X))
        np.random.set_state(with_seed)
    assert np.array_equal(proba[0], proba[1])
    assert not np.array_equal(proba[0], proba[2])
    assert global_state() == before


# Batches ------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [
        (1, 1, [1]),
        (1, 4, [1]),
        (2, 1, [2]),
        (3, 1, [1, 2]),
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),
        (10, 4, [4, 4, 2]),
        (5, 4, [5]),
        (3, 100, [3]),
    ],
)
def test_batches_cover_every_row_once(n, size, expected, shuffled):
    rows = FeatureRows(torch.arange(n), torch.arange(n) + 100, torch.arange(n) + 0.5)
    generator = torch.Generator().manual_seed(0) if shuffled else None
    batches = TensorBatches(rows, size, generator)
    assert len(batches) == len(expected)
    orders = []
    for _ in range(2):
        seen = list(batches)
        assert [len(features) for features, _ in seen] == expected
        features = torch.cat([features for features, _ in seen])
        assert sorted(features.tolist()) == list(range(n))
        for part, (labels, weights) in seen:
            assert torch.equal(labels, part + 100)
            assert torch.equal(weights, part + 0.5)
        orders.append(features.tolist())
    if not shuffled:
        assert orders == [list(range(n))] * 2
    elif len(expected) > 1 and n > 4:
        assert orders[0] != orders[1]


@pytest.mark.parametrize("n", [9, 5])
def test_batch_norm_trains_with_one_left_over(make, photographs, n):
    X, y = (np.concatenate([part[:5], part[-4:]])[:n] for part in photographs)
    y = np.arange(n) % 2
    clf = make(freeze="none", batch_size=4, max_epochs=1).fit(X, y)
    sizes = [batch["train_batch_size"] for batch in clf.net_.history[-1, "batches"]]
    assert sizes == ([4, 5] if n == 9 else [5])


# Heads --------------------------------------------------------------------------------


def test_layers_of_a_head():
    kinds = [type(layer).__name__ for layer in make_head((8, 4), 16, 3, 0.0)]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    kinds = [type(layer).__name__ for layer in make_head((8,), 16, 3, 0.5)]
    assert kinds == ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [type(layer).__name__ for layer in make_head("linear", 16, 3, 0.0)] == ["Linear"]
    kinds = [type(layer).__name__ for layer in make_head("root", 16, 3, 0.5)]
    assert kinds == ["SquareRoot", "Dropout", "Linear"]


def test_what_is_random_before_a_linear_head_is_drawn_in_each_epoch():
    plan = PretrainedImageClassifier(optimizer="adamw", lr=1e-20, max_epochs=2)._plan(
        Classes(2), True, 0, False
    )
    head, device = make_head("linear", 16, 2, 0.0), torch.device("cpu")
    net = make_net(nn.Dropout(0.5), head, plan, "float32", device, target=Classes(2))
    train(net, FeatureRows(torch.rand(8, 16), torch.arange(8) % 2))
    first, second = (row["train_loss"] for row in net.history)
    assert first != second


def test_square_roots():
    features = torch.tensor([4.0, 0.25, -9.0, 0.0], requires_grad=True)
    roots = SquareRoot()(features)
    assert roots.tolist() == pytest.approx([2, 0.5, -3, 0], rel=1e-2)
    roots.sum().backward()
    slopes = features.grad.tolist()
    assert slopes[:3] == pytest.approx([1 / 4, 1, 1 / 6], rel=1e-2)
    assert 10 < slopes[3] < 100  # where the root's own is infinite


@pytest.mark.parametrize("freeze", ["all", -1, "none"])
@pytest.mark.parametrize(("last", "kind"), [(nn.ReLU, "root"), (nn.Tanh, "linear")])
def test_the_default_head_suits_the_features(photographs, freeze, last, kind):
    """The root is taken where no feature can be negative."""
    torch.manual_seed(0)
    stages = [nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), last()]
    network = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    clf = PretrainedImageClassifier(
        network, freeze=freeze, pooling="network", image_size=32, max_epochs=2, random_state=0
    )
    clf.fit(*photographs)
    assert clf._model.head.head == kind
    assert (clf.transform(photographs[0]) < 0).any() == (kind == "linear")
    named = clone(clf).set_params(head=kind).fit(*photographs)
    assert np.array_equal(named.predict_proba(photographs[0]), clf.predict_proba(photographs[0]))


def test_going_on_keeps_the_kind_of_head():
    """Whatever the first image of another batch looks like."""
    convolution = nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        convolution.weight.fill_(1)
    network = nn.Sequential(
        convolution, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    )
    dark_first = np.zeros((4, 32, 32, 3), np.uint8)
    dark_first[1::2] = 255
    clf = PretrainedImageClassifier(network, image_size=32)
    clf.partial_fit(dark_first, [0, 1, 0, 1], classes=[0, 1])
    assert clf._model.head.head == "linear"
    clf.partial_fit(dark_first[::-1].copy(), [1, 0, 1, 0])
    assert clf._model.head.head == "linear"


def test_a_head_that_is_always_the_same_module(make, three_kinds):
    """It is copied, so that fits don't train each other's head, nor the user's."""
    X, y = three_kinds
    own = nn.Linear(24, 3)
    before = copy.deepcopy(own.state_dict())
    first = make(head=lambda i, n: own, lr=1e-2, max_epochs=2).fit(X, y)
    proba = first.predict_proba(X)
    make(head=lambda i, n: own, lr=1e-1, max_epochs=2).fit(X, y)
    assert np.array_equal(first.predict_proba(X), proba)
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_quick_steps_are_the_optimizers_own(kind):
    def trained(steps_of):
        torch.manual_seed(0)
        head = torch.nn.Linear(8, 3)
        groups = [
            {"params": [head.weight], "weight_decay": 0.1},
            {"params": [head.bias], "weight_decay": 0.0},
        ]
        optimizer = kind(groups, lr=1e-2, fused=True)
        for epoch in range(2):
            step = steps_of(optimizer)
            for i in range(4):
                optimizer.param_groups[0]["lr"] = 1e-2 / (1 + epoch + i)
                optimizer.zero_grad()
                head(torch.randn(16, 8)).square().sum().backward()
                step()
        return head, optimizer.state_dict()["state"]

    (head, state), (ours, our_state) = trained(lambda o: o.step), trained(quick_step)
    torch.testing.assert_close(ours.state_dict(), head.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(our_state, state, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_watched_head_learns_the_same(optimizer, embedded, three_kinds):
    class Watcher(Callback):
        def on_batch_end(self, net, **kwargs):
            pass

    X, y = three_kinds
    weights = np.linspace(0.5, 2, len(y))
    settings = {"optimizer": optimizer, "max_epochs": 5, "batch_size": 8, "label_smoothing": 0.1}
    plain = embedded(**settings).fit(X, y, sample_weight=weights)
    watched = embedded(callbacks=[Watcher()], **settings).fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(watched.predict_proba(X), plain.predict_proba(X), atol=1e-5)
    for ours, theirs in zip(plain.history_, watched.history_, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-5)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adamw"])
def test_features_are_trained_on_as_the_prefix_gives_them(optimizer, embedded, three_kinds):
    """A copy of all in double precision would be four times as large."""

    class Look(Callback):
        def on_train_begin(self, net, X=None, y=None, **kwargs):
            seen.append(X.features.dtype)

    seen = []
    settings = {"precision": "bfloat16", "max_epochs": 5, "callbacks": [Look()]}
    embedded(optimizer=optimizer, **settings).fit(*three_kinds)
    assert seen == [torch.bfloat16]


def test_a_saved_fit_goes_on_after_an_upgrade(embedded, three_kinds, tmp_path, monkeypatch):
    X, y = three_kinds
    joblib.dump(embedded(optimizer="adamw", max_epochs=3).fit(X, y), tmp_path / "clf.joblib")
    expected = joblib.load(tmp_path / "clf.joblib").partial_fit(X, y)
    monkeypatch.setattr("sktl.backbones.loading._VERSIONS", ("99", "99"))
    loaded = joblib.load(tmp_path / "clf.joblib").partial_fit(X, y)
    np.testing.assert_array_equal(loaded.predict_proba(X), expected.predict_proba(X))
    with pytest.raises(ValueError, match="same backbone and weights"):
        loaded.set_params(image_size=48).partial_fit(X, y)
