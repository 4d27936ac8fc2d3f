"""Fine-tuning: rates, schedules, unfreezing, regularisation, stopping, going on."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from skorch.callbacks import Callback, EarlyStopping, GradientNormClipping
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import v2

import sktl.frozen.prefix
from sktl import PretrainedImageClassifier
from sktl.backbones import load_backbone
from sktl.images.augmentation import LightAugmentation, View, make_augmentation
from sktl.training.averaging import WeightAverage
from sktl.training.batches import FeatureRows, Mixer, TensorBatches
from sktl.training.optimization import StepSizes, parameter_groups
from sktl.training.targets import Classes

SIZE = 32


pytestmark = pytest.mark.usefixtures("one_thread")


class SmallNetwork(nn.Module):
    """Three blocks with batch norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


class SmallerNetwork(SmallNetwork):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(BasicBlock(8, 8))


@pytest.fixture(scope="module")
def network():
    """With statistics of batch norm that were learned."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallNetwork()
        for _ in range(30):
            network(torch.randn(16, 3, SIZE, SIZE))
    return network.eval()


@pytest.fixture(scope="module")
def make(network):
    def make(**params):
        settings = {
            "backbone": network, "image_size": SIZE, "random_state": 0, "precision": "float32",
            "freeze": "none", "max_epochs": 3, "batch_size": 8,
        }  # fmt: skip
        return PretrainedImageClassifier(**(settings | params))

    return make


@pytest.fixture(scope="module")
def data(digits):
    X, y = digits
    kept = np.flatnonzero(y < 3)[:36]
    return X[kept], y[kept]


def weights_of(clf):
    return {k: v.clone() for k, v in clf.net_.module_.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


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
    frozen = make(freeze="all", max_epochs=None).fit(*data)
    tiny = {"lr": 1e-12, "max_epochs": 1}
    begun = make(unfreeze="head_first", **tiny).fit(*data)
    assert begun.predict_proba(data[0]) == pytest.approx(frozen.predict_proba(data[0]), abs=2e-3)
    at_once = make(unfreeze="at_once", **tiny).fit(*data)
    assert np.abs(at_once.predict_proba(data[0]) - frozen.predict_proba(data[0])).max() > 0.05


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


# Augmentation -------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["light", "trivialaugment", "randaugment", v2.RandomInvert(1)])
def test_augmentations(augment, photographs):
    images = torch.from_numpy(photographs[0][:, :64, :64]).permute(0, 3, 1, 2).contiguous()
    transform = make_augmentation(augment)
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(transform(images))
    assert made[0].shape == images.shape
    assert made[0].dtype is torch.uint8
    assert not torch.equal(made[0], images)
    assert torch.equal(made[0], made[1])
    if not isinstance(augment, v2.Transform):
        assert not torch.equal(made[0], made[2])


def test_light_augmentation_keeps_the_picture(photographs):
    image = torch.from_numpy(photographs[0][:1, :128, :128]).permute(0, 3, 1, 2).float()
    torch.manual_seed(0)
    varied = LightAugmentation()(image.expand(40, -1, -1, -1).to(torch.uint8)).float()
    means = varied.mean((1, 2, 3)) / image.mean()
    assert 0.7 < means.min() < means.max() < 1.3
    assert varied.std((1, 2, 3)).min() > 0.4 * image.std()


def test_views_are_seeded_by_the_image(photographs):
    images = torch.from_numpy(photographs[0][:4, :32, :32]).permute(0, 3, 1, 2).contiguous()
    digests = [bytes([i]) * 16 for i in range(4)]
    first, second = View("light", 1), View("light", 2)
    marks = first.digests(digests)
    varied = first.apply(images, marks)
    assert torch.equal(varied.flip(0), first.apply(images.flip(0), marks[::-1]))
    assert not torch.equal(varied, second.apply(images, second.digests(digests)))
    assert set(marks).isdisjoint(second.digests(digests))


def invert(image):
    return 255 - image


def double(image):
    return 2 * image


def test_views_depend_on_the_transform():
    digests = [b"0" * 16]
    marks = [View(a, 1).digests(digests)[0] for a in ("light", invert, double, v2.RandomInvert())]
    assert len(set(marks)) == 4
    assert View(invert, 1).digests(digests) == View(invert, 1).digests(digests)


@pytest.fixture
def images_run(monkeypatch):
    counts = []
    run = sktl.frozen.prefix.FrozenPrefix._run

    def counting(*args):
        for batch, features in run(*args):
            counts.append(len(batch))
            yield batch, features

    monkeypatch.setattr(sktl.frozen.prefix.FrozenPrefix, "_run", counting)
    return counts


@pytest.mark.parametrize("freeze", ["all", -1])
def test_views_are_computed_once(make, photographs, tmp_path, images_run, freeze):
    X, y = photographs
    settings = {"freeze": freeze, "augment": "light", "n_views": 3, "cache": tmp_path}
    clf = make(unfreeze="at_once", **settings).fit(X, y)
    assert sum(images_run) == 3 * len(X)
    make(unfreeze="at_once", **settings).fit(X[::-1], y[::-1])
    assert sum(images_run) == 3 * len(X)
    assert clf.score(X, y) >= 0.5
    plain = make(freeze=freeze, unfreeze="at_once", cache=tmp_path).fit(X, y)
    assert np.abs(plain.predict_proba(X) - clf.predict_proba(X)).max() > 1e-6


def test_one_view_is_the_image_itself(make, data):
    settings = {"freeze": "all", "max_epochs": None}
    plain = make(**settings).fit(*data)
    one = make(augment="light", n_views=1, **settings).fit(*data)
    assert np.array_equal(plain.predict_proba(data[0]), one.predict_proba(data[0]))


@pytest.mark.parametrize("freeze", ["none", -1, "all"])
def test_new_views_each_epoch(make, photographs, freeze):
    X, y = photographs
    seen = []

    def look(image):
        seen.append(image.float().mean().item())
        return torch.roll(image, len(seen), -1)

    clf = make(freeze=freeze, augment=look, n_views=None, lr=1e-3).fit(X, y)
    assert len(seen) == 3 * len(X)
    assert clf.net_.prepare is None
    assert clf.score(X, y) >= 0.5


@pytest.mark.parametrize(
    ("augment", "message"),
    [(v2.Resize(8), "same shape"), (v2.ToDtype(torch.float32), "leave out ToDtype")],
)
def test_wrong_augmentations(make, photographs, augment, message):
    with pytest.raises(ValueError, match=message):
        make(augment=augment).fit(*photographs)


def test_an_image_comes_in_each_of_its_views():
    rows = FeatureRows(torch.arange(12).float()[:, None], torch.arange(4), torch.ones(4))
    assert rows.n_views == 3
    assert len(rows) == 4
    seen = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        for features, (labels, _) in TensorBatches(rows, 3, generator):
            assert torch.equal(features[:, 0] % 4, labels.float())
            seen.update(features[:, 0].tolist())
    assert len(seen) == 12
    part = rows.subset(torch.tensor([1, 3]))
    assert part.features[:, 0].tolist() == [1, 3, 5, 7, 9, 11]
    assert len(rows.all_views()) == 12


# Stopping -----------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_epoch(make, data):
    X, y = data
    clf = make(
        early_stopping=True, validation_fraction=0.25, n_iter_no_change=2, max_epochs=40, lr=0.02,
        freeze="all",
    ).fit(X, y)  # fmt: skip
    held = clf.validation_indices_
    assert len(held) == 9
    assert set(np.bincount(y[held])) == {3} or len(set(y[held])) == 3
    history = pd.DataFrame(clf.history_)
    best = history.sort_values(["valid_acc", "valid_loss"], ascending=[False, True]).iloc[0]
    assert clf.best_epoch_ == best["epoch"]
    assert clf.score(X[held], y[held]) == pytest.approx(best["valid_acc"])
    assert clf.n_iter_ == min(40, clf.best_epoch_ + 2)


def test_rows_held_back_do_not_train(make, data):
    X, y = data
    settings = {"early_stopping": True, "validation_fraction": 0.25, "max_epochs": 2}
    clf = make(**settings).fit(X, y)
    y_wrong = y.copy()
    held = clf.validation_indices_
    X_other = X.copy()
    X_other[held] = X_other[held][:, ::-1]
    other = make(n_iter_no_change=5, unfreeze="head_first", **settings).fit(X_other, y_wrong)
    assert np.array_equal(other.validation_indices_, held)
    losses = [[row["train_loss"] for row in c.history_] for c in (clf, other)]
    assert losses[0] == losses[1]
    assert clf.history_[0]["valid_loss"] != other.history_[0]["valid_loss"]


def test_early_stopping_needs_images_of_each_class(make, data):
    X, y = data
    few = np.concatenate([np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:1]])
    clf = make(early_stopping=True)
    with pytest.raises(ValueError, match="early_stopping=True sets aside"):
        clf.fit(X[few], y[few])
    assert not clf.__sklearn_is_fitted__()


def test_a_later_fit_without_stopping_forgets_the_split(make, data):
    clf = make(early_stopping=True, validation_fraction=0.25, max_epochs=1).fit(*data)
    assert hasattr(clf, "best_epoch_")
    clf.set_params(early_stopping=False).fit(*data)
    assert not hasattr(clf, "best_epoch_")
    assert not hasattr(clf, "validation_indices_")


@pytest.mark.parametrize(
    "params",
    [
        {"early_stopping": True},
        {"mixup": 0.1},
        {"augment": "light", "n_views": None},
        {"ema_decay": 0.9},
        {"max_grad_norm": 1.0},
        {"accumulation_steps": 2},
    ],
)
def test_what_happens_step_by_step_is_refused_by_lbfgs(make, data, params):
    with pytest.raises(ValueError, match="works on all rows at once"):
        make(freeze="all", optimizer="lbfgs", **params).fit(*data)


# Going on -----------------------------------------------------------------------------


def test_warm_start_goes_on(make, data):
    clf = make(warm_start=True, max_epochs=2, lr=1e-2).fit(*data)
    first = weights_of(clf)
    model = clf._model
    clf.fit(*data)
    assert not same(first, weights_of(clf))
    assert same(first, model.net.module_.state_dict())  # the earlier fit isn't changed
    assert [row["epoch"] for row in clf.history_] == [1, 2, 3, 4]
    assert clf.history_[2]["train_loss"] < clf.history_[0]["train_loss"]


def test_without_warm_start_a_fit_begins_anew(make, data):
    clf = make(max_epochs=2).fit(*data)
    first = weights_of(clf)
    assert same(first, weights_of(clf.fit(*data)))


def test_a_fitted_head_goes_on_to_deeper_training(make, data):
    clf = make(freeze="all", warm_start=True, max_epochs=None).fit(*data)
    frozen = clf.predict_proba(data[0])
    clf.set_params(freeze=-1, lr=1e-12, max_epochs=1).fit(*data)
    assert clf.predict_proba(data[0]) == pytest.approx(frozen, abs=2e-3)


@pytest.mark.parametrize(
    ("params", "message"),
    [({"freeze": -1}, "freeze depth"), ({"head": (4,)}, "another head")],
)
def test_warm_start_needs_the_same_model(make, data, params, message):
    clf = make(warm_start=True, max_epochs=1).fit(*data)
    before = clf.predict_proba(data[0])
    with pytest.raises(ValueError, match=message):
        clf.set_params(**params).fit(*data)
    assert np.array_equal(clf.predict_proba(data[0]), before)


def test_warm_start_needs_the_same_classes_and_backbone(make, data):
    X, y = data
    clf = make(warm_start=True, max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match="with the classes"):
        clf.fit(X, y + 1)
    for freeze, other in ((-1, SmallNetwork), ("none", SmallerNetwork)):
        clf = make(warm_start=True, max_epochs=1, freeze=freeze).fit(X, y)
        before = clf.predict_proba(X)
        with pytest.raises(ValueError, match="same backbone"):
            clf.set_params(backbone=other).fit(X, y)
        assert np.array_equal(clf.predict_proba(X), before)


class Interrupt(Callback):
    """What Ctrl-C does, in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == self.epoch and len(net.history[-1]["batches"]) == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("params", [{}, {"ema_decay": 0.8}])
def test_an_interrupted_fit_keeps_the_last_whole_epoch(make, data, params):
    settings = {"warm_start": True, "schedule": "constant", "lr": 1e-2} | params
    clf = make(callbacks=[Interrupt(3)], max_epochs=5, **settings)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(*data)
    whole = make(max_epochs=2, **settings).fit(*data)
    assert same(weights_of(clf), weights_of(whole))
    assert len(clf.history_) == 2
    assert np.array_equal(clf.predict_proba(data[0]), whole.predict_proba(data[0]))


@pytest.mark.parametrize(("warm_start", "epoch"), [(False, 3), (True, 1)])
def test_an_interrupted_fit_with_nothing_to_keep_stays_unfitted(make, data, warm_start, epoch):
    clf = make(callbacks=[Interrupt(epoch)], max_epochs=5, warm_start=warm_start)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(*data)
    assert not clf.__sklearn_is_fitted__()
    assert not hasattr(clf, "classes_")


@pytest.mark.parametrize(
    ("freeze", "settings"), [("all", {"head": "linear", "lr": 0.1}), (-1, {"lr": 1e-3})]
)
def test_partial_fit(make, data, freeze, settings):
    X, y = data
    clf = make(freeze=freeze, **settings)
    halves = np.flatnonzero(y < 2), np.arange(len(y))
    clf.partial_fit(X[halves[0]], y[halves[0]], classes=[0, 1, 2])
    assert clf.classes_.tolist() == [0, 1, 2]
    assert clf.predict_proba(X).shape == (36, 3)
    for _ in range(15):
        clf.partial_fit(X[halves[1]], y[halves[1]])
    assert clf.n_iter_ == 16
    losses = [row["train_loss"] for row in clf.history_]
    assert losses[-1] < 0.8 * losses[1]
    assert clf.score(X, y) > 0.6


def test_partial_fit_goes_on_with_the_steps_of_the_optimizer(make, data):
    """Two calls are two epochs of one fit."""
    settings = {"schedule": "constant", "lr": 1e-2, "unfreeze": "at_once", "batch_size": 36}
    whole = make(max_epochs=2, **settings).fit(*data)
    parts = make(**settings).partial_fit(*data, classes=[0, 1, 2]).partial_fit(*data)
    assert parts.predict_proba(data[0]) == pytest.approx(whole.predict_proba(data[0]), abs=1e-5)


def test_partial_fit_after_fit(make, data):
    clf = make(freeze="all", max_epochs=None).fit(*data)
    before = clf.predict_proba(data[0])
    clf.set_params(lr=1e-9).partial_fit(*data)
    assert clf.predict_proba(data[0]) == pytest.approx(before, abs=1e-4)


def test_partial_fit_refuses(make, data):
    X, y = data
    with pytest.raises(ValueError, match="can't be known from a part"):
        make(class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2])
    clf = make()
    with pytest.raises(ValueError, match="needs classes"):
        clf.partial_fit(X, y)
    with pytest.raises(ValueError, match=r"y holds \[2\]"):
        clf.partial_fit(X, y, classes=[0, 1])
    assert not clf.__sklearn_is_fitted__()
    clf.partial_fit(X, y, classes=[0, 1, 2])
    before = clf.predict_proba(X)
    with pytest.raises(ValueError, match="differ from those"):
        clf.partial_fit(X, y, classes=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="diverged"):
        clf.set_params(lr=1e30).partial_fit(X, y)
    assert np.array_equal(clf.predict_proba(X), before)


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
