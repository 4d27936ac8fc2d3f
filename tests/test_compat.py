"""Private names of other packages are used in two modules only, which can do without them."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch
from skorch.callbacks import EarlyStopping

import sktl
from sktl import compat

pytestmark = pytest.mark.core
PACKAGE = Path(sktl.__file__).parent
PLACES = {"compat.py", "frozen/onednn.py"}
# Methods of scikit-learn and skorch that sktl's classes replace. Where they are called otherwise, a
# notebook shows no summary, and what skorch records by itself is recorded.
REPLACED = {
    "_default_callbacks",
    "_get_params_html",
    "_init_callback_context",
    "_parameter_constraints",
    "_validate_params",
}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def own_names(trees):
    """Private names that sktl itself defines."""
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("self._"):
                yield from [node.attr] if isinstance(node.ctx, ast.Store) else []


def foreign_names(tree, own):
    """Private names that a module takes from other packages, with their lines."""
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {a.asname or a.name.partition(".")[0]: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module != "__future__":
            imported |= {a.asname or a.name: a.name for a in node.names}
            for path in [node.module, *(alias.name for alias in node.names)]:
                if any(map(is_private, path.split("."))):
                    yield node.lineno, path
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from ((node.lineno, n) for n in names if any(map(is_private, n.split("."))))
        elif isinstance(node, ast.Attribute):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            foreign = isinstance(root, ast.Name) and root.id in imported
            dunder = foreign and root.id == "copyreg" and node.attr.startswith("__")
            if (is_private(node.attr) and (foreign or node.attr not in own)) or dunder:
                yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith(("_sklearn", "_skorch", "_torch")):
                yield node.lineno, node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args[1:]:
            name = node.args[1]
            text = name.value if isinstance(name, ast.Constant) else ""
            asks = node.func.id in ("getattr", "hasattr", "setattr")
            if asks and is_private(str(text)) and text not in own:
                yield node.lineno, text


def parsed():
    return {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def test_private_names_are_in_their_places():
    trees = parsed()
    own = set(own_names(trees.values()))
    found = {
        name: list(foreign_names(tree, own)) for name, tree in trees.items() if name not in PLACES
    }
    assert {name: uses for name, uses in found.items() if uses} == {}


@pytest.mark.parametrize(
    "code",
    [
        "from sklearn.utils import _safe_indexing",
        "from sklearn.utils._param_validation import Interval",
        "import torch._dynamo",
        "import torch\ntorch._fused_adamw_",
        "import torch\ntorch.ops.mkldnn._convolution_pointwise.binary",
        "import torch\ngetattr(torch.cpu, '_is_amx_tile_supported')",
        "from torch import nn\nnn.modules.batchnorm._BatchNorm",
        "import copyreg\ncopyreg.__newobj__",
        "layer._conv_forward = None",
        "state['_sklearn_output_config']",
    ],
)
def test_private_names_are_found(code):
    assert len(list(foreign_names(ast.parse(code), set()))) >= 1


def classes():
    for module in pkgutil.walk_packages(sktl.__path__, "sktl."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__.startswith("sktl."):
                yield cls


def test_private_methods_of_other_packages_are_known():
    replaced = set()
    for cls in classes():
        foreign = [c for c in cls.__mro__[1:] if not c.__module__.startswith(("sktl", "builtins"))]
        names = {n for n in vars(cls) if is_private(n) and not n.startswith("_abc")}
        replaced |= {n for n in names if any(n in vars(c) for c in foreign)}
    of_metaclasses = {"_backward_cls", "_is_protocol", "_sklearn_auto_wrap_output_keys"}
    assert replaced - of_metaclasses <= REPLACED


# What happens where they are missing ---------------------------------------------------


def test_units_that_torch_does_not_name_are_not_there(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not compat.has_bfloat16_units()


def test_a_table_that_is_drawn_otherwise_is_left_alone():
    class Table:
        pass

    table = Table()
    assert compat.html_above(table, lambda: "above") is table
    assert not vars(table)


def interruption(function):
    with pytest.raises(KeyboardInterrupt) as caught:
        function()
    return caught.value


def test_early_stopping_is_told_from_the_user():
    class Net:
        history = {(-1, "valid_loss"): 1.0, (-1, "epoch"): 1}
        verbose = 0

    stopper = EarlyStopping(patience=1, sink=None)
    stopper.on_train_begin(Net())

    def lose_patience():
        for _ in range(3):
            stopper.on_epoch_end(Net())

    def interrupt():
        raise KeyboardInterrupt

    assert compat.is_early_stopping(interruption(lose_patience))
    assert not compat.is_early_stopping(interruption(interrupt))
