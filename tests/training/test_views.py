"""Augmented images: views that are computed once, and those of each epoch."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

import sktl.frozen.prefix
from sktl.images.augmentation import LightAugmentation, View, make_augmentation
from sktl.training.batches import FeatureRows, TensorBatches

pytestmark = pytest.mark.usefixtures("one_thread")


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
