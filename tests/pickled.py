"""Networks as users would write them, and what is in a pickle of an estimator."""

import io
import pickle
from pathlib import Path

import torch
from skorch.callbacks import Callback
from torch import nn

from sktl import PretrainedImageClassifier, PretrainedImageFeatures

DATA = Path(__file__).parent / "data"


class SmallNet(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.block1 = conv_norm(3, width)
        self.block2 = conv_norm(width, width)
        self.block3 = conv_norm(width, width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(self.block3(self.block2(self.block1(x))).mean((2, 3)))


def conv_norm(channels, width):
    layers = [nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 3, 1, 1))


class DataDependentNet(SmallNet):
    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


class TiedNet(SmallNet):
    def __init__(self):
        super().__init__()
        self.block3[3].weight = self.block2[3].weight
        self.block3[3].bias = self.block2[3].bias


class RandomBufferNet(SmallNet):
    def __init__(self):
        super().__init__()
        self.register_buffer("gains", torch.rand(8, 1, 1) + 1, persistent=False)
        self.register_buffer("zeros", torch.zeros(1).expand(8), persistent=False)

    def forward(self, x):
        x = self.block2(self.block1(x)) * self.gains
        return self.fc(self.block3(x).mean((2, 3)) + self.zeros)


class TwoGraphNet(SmallNet):
    """Traced once for training and once for evaluation."""

    def forward(self, x):
        x = self.block3(self.block2(self.block1(x))).mean((2, 3))
        return self.fc(nn.functional.dropout(x, 0.3, self.training))


def make_two_graph_net():
    return TwoGraphNet(width=96)


def make_small_net():
    return SmallNet()


def make_random_buffer_net():
    return RandomBufferNet()


def make_head(in_features, n_classes):
    return nn.Sequential(nn.Linear(in_features, 6), nn.Tanh(), nn.Linear(6, n_classes))


def make_wider_head(in_features, n_classes):
    return nn.Sequential(nn.Linear(in_features, 7), nn.Tanh(), nn.Linear(7, n_classes))


def squared_error(logits, labels):
    return (logits - nn.functional.one_hot(labels, logits.shape[1])).square().sum(1)


LAMBDAS = {
    "backbone": lambda: SmallNet(),
    "head": lambda in_features, n_classes: nn.Linear(in_features, n_classes),
    "criterion": lambda logits, labels: squared_error(logits, labels),
}


class Hoarder(Callback):
    """Keeps all it is given, which is legal, and not to be written."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.net, self.X = net, X


def classifier(backbone="efficientnet_lite0", **settings):
    """Of tiny images; with no cache, which would hide that weights are lost."""
    settings = {"image_size": 32, "cache": None, "random_state": 0, "max_epochs": 2} | settings
    if settings.pop("quick", False):
        settings["max_epochs"] = 1
    return PretrainedImageClassifier(backbone, **settings)


def features(backbone="efficientnet_lite0", **settings):
    return PretrainedImageFeatures(backbone, **{"image_size": 32, "cache": None} | settings)


def reload(estimator):
    return pickle.loads(pickle.dumps(estimator))


def n_bytes(*modules):
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    return sum(t.nbytes for t in tensors)


def globals_in(blob):
    """What a pickle asks to import."""
    found = set()

    class Listing(pickle.Unpickler):
        def find_class(self, module, name):
            found.add(f"{module}.{name}")
            return super().find_class(module, name)

    Listing(io.BytesIO(blob)).load()
    return found


def with_changed_state(estimator, change):
    """Load a file after a change, such as one that another machine would have written."""
    state = estimator.__getstate__()
    change(state)
    loaded = type(estimator).__new__(type(estimator))
    loaded.__setstate__(pickle.loads(pickle.dumps(state)))
    return loaded
