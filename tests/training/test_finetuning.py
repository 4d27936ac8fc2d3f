"""Fine-tuning: rates, schedules, unfreezing, regularisation, and what it tells."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from finetuned import SIZE, SmallNetwork, same, weights_of
from sklearn.metrics import log_loss
from skorch.callbacks import Callback, EarlyStopping, GradientNormClipping
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from sktl import PretrainedImageClassifier
from sktl.backbones import load_backbone
from sktl.training.averaging import WeightAverage
from sktl.training.batches import Mixer
from sktl.training.optimization import StepSizes, parameter_groups
from sktl.training.targets import Classes

pytestmark = pytest.mark.usefixtures("one_thread")


# Learning rates -----------------------------------------------------------------------


def plan_of(make, data, **params):
    return make(max_epochs=1, **params).fit(*data)._model.plan


def test_rates_fall_from_stage_to_stage(make, data):
    settings = {"lr": 1e-2, "backbone_lr": 1e-3, "layer_decay": 0.5, "weight_decay": 0.1}
    clf = make(max_epochs=1, schedule="constant", **settings).fit(*data)
    rates = {}
    for group in clf.net_.optimizer_.param_groups:
        for name, parameter in clf.net_.module_.named_parameters():
            if any(parameter is p for p in group["params"]):
                rates[name.partition("body.")[2] or name] = group["lr"], group["weight_decay"]
    assert [clf.history_[0][name] for name in ("lr", "backbone_lr")] == [1e-2, 1e-3]
    assert rates["head.1.weight"] == (1e-2, 0)  # its penalty is a part of the loss
    assert rates["head.1.bias"] == (1e-2, 0)
    assert rates["layer2.1.conv2.weight"] == (1e-3, 0.1)
    assert rates["layer2.1.bn2.weight"] == (1e-3, 0)
    stages = clf.stages_
    for i, stage in enumerate(reversed(stages)):
        of_stage = [rate for name, (rate, _) in rates.items() if name.startswith(stage + ".")]
        assert len(of_stage) > 2
        assert of_stage == pytest.approx([1e-3 * 0.5**i] * len(of_stage))


def test_no_decay_of_what_is_no_matrix():
    backbone = load_backbone("vit_b_32", weights=None, image_size=32, seed=0)
    suffix = backbone.suffix(0, "auto")
    stages = backbone.suffix_stages(0, suffix)
    plan = PretrainedImageClassifier(weight_decay=0.1)._plan(Classes(2), False, 0, False)
    named = list(suffix.named_parameters())
    groups = parameter_groups(named, lambda name: stages[name], len(backbone.stages), plan)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name.rpartition("body.")[2] for name, p in named if id(p) in decayed}
    assert any(name.endswith("in_proj_weight") for name in names)
    assert not {n for n in names if "class_token" in n or "embedding" in n or "bias" in n}


def rates(make, schedule, n_steps=20, **params):
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    plan = make(schedule=schedule, **params)._plan(Classes(2), False, 0, False)
    sizes = StepSizes(optimizer, plan, n_steps)
    found = []
    for _ in range(n_steps):
        sizes.before_step()
        found.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(2)
        optimizer.step()
        sizes.after_step()
    during = dict(optimizer.param_groups[0])
    sizes.finish()
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.5, 0.9)
    return np.array(found), during


def test_schedules(make):
    constant, _ = rates(make, "constant")
    assert np.all(constant == 0.5)
    warm, _ = rates(make, "constant", warmup=0.25)
    assert np.all(np.diff(warm[:6]) > 0)
    assert np.all(warm[5:] == 0.5)
    cosine, _ = rates(make, "cosine", warmup=0.0)
    expected = 0.25 * (1 + np.cos(np.pi * np.arange(20) / 20))
    assert cosine == pytest.approx(expected)
    default, _ = rates(make, "cosine")
    assert default.argmax() == 2
    assert default[0] == pytest.approx(0.25)
    one_cycle, during = rates(make, "one_cycle")
    assert one_cycle[0] == pytest.approx(0.5 / 25)
    assert one_cycle.argmax() == 6
    assert one_cycle[-1] < 0.01
    assert during["momentum"] == pytest.approx(0.95, abs=0.01)


def test_rates_are_in_the_history(make, data):
    clf = make(lr=1e-2, backbone_lr=1e-3, max_epochs=4).fit(*data)
    rates = [row["lr"] for row in clf.history_]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 1e-2
    assert [row["backbone_lr"] / row["lr"] for row in clf.history_] == pytest.approx([0.1] * 4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (partial(StepLR, step_size=1, gamma=0.1), [1e-2, 1e-3, 1e-4]),
        (partial(OneCycleLR, max_lr=1e-2, total_steps=15), None),
        (partial(ReduceLROnPlateau, patience=0, threshold=0.99, factor=0.1), [1e-2, 1e-2, 1e-3]),
    ],
)
def test_schedulers_of_torch(make, data, schedule, expected):
    clf = make(freeze="all", optimizer="adamw", lr=1e-2, schedule=schedule).fit(*data)
    rates = [row["lr"] for row in clf.history_]
    if expected is None:  # its rate goes to zero over the 3 x 5 steps
        assert rates[-1] < 1e-3
    else:
        assert rates == pytest.approx(expected)


# Unfreezing ---------------------------------------------------------------------------


def test_head_first_begins_with_the_fitted_head(make, data):
    frozen = make(
        freeze="all", pooling="network", weight_decay="auto", max_epochs=None
    ).fit(*data)  # fmt: skip
    tiny = {"lr": 1e-12, "max_epochs": 1}
    begun = make(unfreeze="head_first", **tiny).fit(*data)
    assert begun.predict_proba(data[0]) == pytest.approx(frozen.predict_proba(data[0]), abs=2e-3)
    at_once = make(unfreeze="at_once", **tiny).fit(*data)
    assert np.abs(at_once.predict_proba(data[0]) - frozen.predict_proba(data[0])).max() > 0.05


@pytest.mark.parametrize("weight_decay", [1e-5, 1e-1, "auto"])
def test_heads_begin_the_same_with_any_weight_decay(make, data, weight_decay):
    """A head that is sure of the images it knows would leave stages little to learn."""
    settings = {"lr": 1e-12, "max_epochs": 1, "weight_decay": weight_decay}
    begun = make(unfreeze="head_first", **settings).fit(*data)
    usual = make(unfreeze="head_first", **settings | {"weight_decay": 1e-3}).fit(*data)
    assert begun.predict_proba(data[0]) == pytest.approx(usual.predict_proba(data[0]), abs=1e-6)
    if weight_decay != "auto":
        assert begun.weight_decay_ == weight_decay


def test_dropout_of_the_network_is_left_out(digits):
    X, y = digits[0][:60], digits[1][:60]
    settings = {"image_size": 32, "precision": "float32", "random_state": 0}
    clf = PretrainedImageClassifier(freeze=-1, lr=1e-12, max_epochs=1, **settings).fit(X, y)
    assert any(isinstance(layer, nn.Dropout) for layer in clf.net_.module_.suffix.modules())
    expected = log_loss(y, clf.predict_proba(X))
    assert clf.history_[0]["train_loss"] == pytest.approx(expected, rel=1e-4)


class Changes(Callback):
    """Stages whose weights an epoch has changed."""

    def __init__(self):
        self.changed = []

    def on_epoch_begin(self, net, **kwargs):
        self.before = {k: v.clone() for k, v in net.module_.named_parameters()}

    def on_epoch_end(self, net, **kwargs):
        changed = {
            (name.partition("body.")[2] or name).partition(".")[0]
            for name, value in net.module_.named_parameters()
            if not torch.equal(value, self.before[name])
        }
        self.changed.append(changed)


def test_gradual_unfreezing_goes_from_the_last_stage_to_the_first(make, data):
    n = len(make(max_epochs=1).fit(*data).stages_)
    changes = Changes()
    make(unfreeze="gradual", max_epochs=n, callbacks=[changes], lr=1e-2).fit(*data)
    assert changes.changed[0] >= {"head"}
    sizes = [len(changed) for changed in changes.changed]
    assert sizes == sorted(sizes)
    assert "stem" not in changes.changed[0]
    assert "stem" in changes.changed[-1]
    assert "layer2" in changes.changed[0]


def test_learned_statistics_of_batch_norm_stay(make, data):
    clf = make(lr=1e-2).fit(*data)
    names = [k for k in weights_of(clf) if k.endswith("running_mean")]
    kept = clf._model.backbone.splitter.network.state_dict()
    after = weights_of(clf)
    assert len(names) == 9
    for name in names:
        assert torch.equal(after[name], kept[name.partition("body.")[2]])


def test_statistics_that_were_never_learned_are_learned(data):
    clf = PretrainedImageClassifier(
        SmallNetwork, image_size=SIZE, freeze="none", max_epochs=1, random_state=0
    ).fit(*data)
    means = [v for k, v in weights_of(clf).items() if k.endswith("running_mean")]
    assert all(mean.any() for mean in means)


# Regularisation -----------------------------------------------------------------------


def test_mixup_blends_pairs():
    torch.manual_seed(0)
    features = torch.arange(8, dtype=torch.float32).reshape(8, 1) * 10
    mixed, partner, share = Mixer(0.4, 0.0)(features)
    assert 0 < share < 1
    assert torch.allclose(mixed, share * features + (1 - share) * features[partner])
    images = torch.randint(0, 255, (4, 3, 5, 5), dtype=torch.uint8)
    mixed, partner, share = Mixer(0.4, 0.0)(images)
    assert mixed.dtype is torch.uint8
    assert torch.equal(mixed, torch.lerp(images[partner].float(), images.float(), share).round())


def test_cutmix_pastes_a_rectangle():
    torch.manual_seed(0)
    images = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 3, 8, 8).contiguous()
    for _ in range(20):
        mixed, partner, share = Mixer(0.0, 1.0)(images)
        foreign = (mixed != images)[partner != torch.arange(6)]
        assert foreign.float().mean((1, 2, 3)) == pytest.approx(1 - share)
        assert torch.equal(torch.where(mixed == images, images, images[partner]), mixed)


def test_cutmix_finds_the_positions_of_any_map():
    torch.manual_seed(0)
    maps = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 6, 6, 16)  # channels last
    for _ in range(10):
        mixed, _, share = Mixer(0.0, 1.0)(maps)
        assert torch.equal(mixed, mixed[..., :1].expand(-1, -1, -1, 16))
        assert 0 <= share <= 1


@pytest.mark.parametrize("params", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 1, "cutmix": 1}])
def test_mixing_trains(make, data, params):
    plain, mixed = make().fit(*data), make(**params).fit(*data)
    assert not same(weights_of(plain), weights_of(mixed))
    assert same(weights_of(mixed), weights_of(make(**params).fit(*data)))


def test_mixup_of_frozen_features_takes_steps(make, data):
    clf = make(freeze="all", mixup=0.2, max_epochs=60, lr=0.05).fit(*data)
    assert type(clf.net_.optimizer_) is torch.optim.AdamW
    assert clf.score(*data) > 0.6


def test_cutmix_needs_maps(make, data):
    with pytest.raises(ValueError, match="cutmix=1 pastes a part"):
        make(freeze="all", cutmix=1.0).fit(*data)


def test_moving_average():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average = WeightAverage(layer, 0.5)
    expected = 0.0
    for n in range(1, 6):
        with torch.no_grad():
            layer.weight.fill_(n)
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    with average.in_place():
        assert layer.weight.item() == pytest.approx(expected)
    assert layer.weight.item() == 5
    average.keep()
    assert layer.weight.item() == pytest.approx(expected)


def test_a_fit_keeps_the_average(make, data):
    steps = {"lr": 1e-2, "schedule": "constant"}
    plain, averaged = make(**steps).fit(*data), make(ema_decay=0.9, **steps).fit(*data)
    far = [
        (a - b).norm()
        for a, b in zip(
            plain.net_.module_.parameters(), averaged.net_.module_.parameters(), strict=True
        )
    ]
    assert max(far) > 1e-3


def test_gradients_are_clipped(make, data):
    settings = {
        "optimizer": "sgd", "lr": 1.0, "backbone_lr": 1.0, "weight_decay": 0.0, "max_epochs": 1,
        "batch_size": 100, "unfreeze": "at_once", "schedule": "constant", "max_grad_norm": 1e-3,
    }  # fmt: skip
    begun = make(**settings | {"lr": 1e-30, "backbone_lr": 1e-30}).fit(*data)
    clf = make(**settings).fit(*data)
    pairs = zip(begun.net_.module_.parameters(), clf.net_.module_.parameters(), strict=True)
    step = sum(float((a - b).detach().square().sum()) for a, b in pairs) ** 0.5
    assert step == pytest.approx(1e-3, rel=1e-2)
    settings |= {"max_grad_norm": None, "callbacks": [GradientNormClipping(1e-3)]}
    by_skorch = make(**settings).fit(*data)
    assert same(weights_of(clf), weights_of(by_skorch))


def test_batches_that_accumulate_are_one_large_batch(make, data):
    settings = {"optimizer": "sgd", "lr": 0.1, "max_epochs": 2, "schedule": "constant"}
    parts = make(batch_size=9, accumulation_steps=4, **settings).fit(*data)
    whole = make(batch_size=36, **settings).fit(*data)
    for a, b in zip(parts.net_.module_.parameters(), whole.net_.module_.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    frozen = [make(freeze="all", batch_size=b, accumulation_steps=a, **settings).fit(*data)
              for a, b in ((4, 9), (1, 36))]  # fmt: skip
    assert frozen[0].predict_proba(data[0]) == pytest.approx(
        frozen[1].predict_proba(data[0]), abs=1e-5
    )


# Telling ------------------------------------------------------------------------------


def test_history_is_a_table(make, data):
    clf = make(early_stopping=True, validation_fraction=0.25, max_epochs=2).fit(*data)
    table = pd.DataFrame(clf.history_)
    columns = {"epoch", "train_loss", "valid_loss", "valid_acc", "lr", "backbone_lr"}
    columns |= {"unfrozen_stages"}
    assert columns | {"seconds"} == set(table.columns)
    assert not table.isna().any().any()


callback = pytest.importorskip("sklearn.callback")


class Recorder:
    """A callback of scikit-learn's protocol."""

    def __init__(self, stop_after=None):
        self.tasks = []
        self.scores = []
        self.stop_after = stop_after
        self.is_set_up = False

    def setup(self, estimator, context):
        self.is_set_up = True

    def teardown(self, estimator, context):
        self.is_set_up = False

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
        assert self.is_set_up
        self.tasks.append(context.task_name)
        if context.task_name == "epoch":
            self.scores.append(fitted_estimator.score(X, y))
            return len(self.scores) == self.stop_after
        return False


def test_callbacks_of_scikit_learn(make, data):
    recorder = Recorder()
    clf = make(lr=1e-2).set_callbacks(recorder).fit(*data)
    assert recorder.tasks == ["epoch"] * 3 + ["fit"]
    assert not recorder.is_set_up
    assert recorder.scores[-1] == clf.score(*data)
    plain = make(lr=1e-2).fit(*data)
    assert np.array_equal(plain.predict_proba(data[0]), clf.predict_proba(data[0]))


def test_callbacks_see_the_averaged_weights(make, data):
    class Probabilities(Recorder):
        def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
            self.scores.append(fitted_estimator.predict_proba(X))

    settings = {"lr": 1e-2, "ema_decay": 0.9, "max_epochs": 2}
    recorder = Probabilities()
    clf = make(**settings).set_callbacks(recorder).fit(*data)
    assert np.array_equal(recorder.scores[-2], clf.predict_proba(data[0]))  # of the last epoch
    plain = make(**settings).fit(*data)
    assert np.array_equal(plain.predict_proba(data[0]), clf.predict_proba(data[0]))


def test_a_callback_stops_training(make, data):
    clf = make(max_epochs=9).set_callbacks(Recorder(stop_after=2)).fit(*data)
    assert clf.n_iter_ == 2


def test_skorchs_early_stopping_ends_the_last_epoch_for_all(make, data):
    recorder = Recorder()
    stopping = EarlyStopping(monitor="train_loss", patience=1, threshold=10.0)
    clf = make(max_epochs=9, callbacks=[stopping]).set_callbacks(recorder).fit(*data)
    assert clf.n_iter_ == 2
    assert recorder.tasks == ["epoch", "epoch", "fit"]


def test_callbacks_are_torn_down_when_a_fit_fails(make, data):
    recorder = Recorder()
    clf = make(lr=1e30).set_callbacks(recorder)
    with pytest.raises(ValueError, match="diverged"):
        clf.fit(*data)
    assert not recorder.is_set_up
    assert not clf.__sklearn_is_fitted__()


def test_progress_bar_of_scikit_learn_through_search_and_pipeline(make, data, capsys, monkeypatch):
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "300")
    pipeline = make_pipeline(make(max_epochs=2))
    grid = {"pretrainedimageclassifier__freeze": ["all", -1]}
    search = GridSearchCV(pipeline, grid, cv=2).set_callbacks(
        callback.ProgressBar(max_propagation_depth=None)
    )
    search.fit(*data)
    assert search.best_estimator_.score(*data) > 0.3
    shown = capsys.readouterr().out
    assert "PretrainedImageClassifier" in shown
