"""Running fixed networks: batches, threads, precision."""

import pytest
import torch
from torch import nn

from sktl.frozen.module import FrozenModule

pytestmark = pytest.mark.core

CPU = torch.device("cpu")


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def test_the_given_module_is_not_changed(module):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.train()
    FrozenModule(module, "bfloat16", CPU)(torch.rand(2, 3, 8, 8))
    assert module.training
    assert all(p.requires_grad and p.dtype is torch.float32 for p in module.parameters())
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


def test_a_sequence_with_a_forward_of_its_own_keeps_it(module):
    class Doubled(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * 2

    images = torch.rand(2, 3, 8, 8)
    expected = 2 * FrozenModule(module, "float32", CPU)(images)
    found = FrozenModule(nn.Sequential(Doubled(*module)).eval(), "float32", CPU)(images)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_outputs_have_the_precision(module, precision):
    output = FrozenModule(module, precision, CPU)(torch.rand(2, 3, 8, 8))
    assert output.dtype is {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


@pytest.mark.parametrize("n", [0, 1, 2, 7, 16, 17, 100])
@pytest.mark.parametrize("n_jobs", [1, 5])
def test_map_runs_every_input_once_and_in_order(n, n_jobs):
    frozen = FrozenModule(nn.Flatten(), "float32", CPU)
    seen, sizes = [], []
    indices = list(range(1000, 1000 + n))
    for batch, output in frozen.map(lambda b: torch.tensor(b).float()[:, None], indices, n_jobs):
        assert output[:, 0].tolist() == list(batch)
        seen += list(batch)
        sizes.append(len(batch))
    assert seen == indices
    assert not sizes or max(sizes) <= max(frozen.batch_size, 1)


def test_an_error_while_loading_comes_through():
    frozen = FrozenModule(nn.Flatten(), "float32", CPU)

    def load(batch):
        if 33 in batch:
            raise ValueError("picture 33")
        return torch.zeros(len(batch), 1)

    with pytest.raises(ValueError, match="picture 33"):
        list(frozen.map(load, range(64)))


@pytest.mark.gpu
def test_a_gpu_without_the_memory_gets_half_a_batch():
    class Hungry(nn.Module):
        def forward(self, x):
            if len(x) > 3:
                raise torch.OutOfMemoryError("too many")
            return x * 2

    frozen = FrozenModule(Hungry(), "float32", torch.device("cuda"))
    batch = torch.arange(10.0)[:, None]
    assert torch.equal(frozen(batch), batch * 2)
    assert frozen.batch_size <= 5
