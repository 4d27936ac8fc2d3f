"""What trains, and by which steps."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


STAGES = ["stem", "layer1", "layer2", "layer3"]


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
