"""Files that are refused, and what damage does."""

import copy
import math
import os
import pickle
import subprocess
import sys
import warnings
import zipfile

import joblib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from saved import (
    DIGITS,
    close,
    features,
    open_up,
    retensor,
    rewrite,
    seal,
)

import sktl
from sktl import (
    FileFormatError,
)

pytestmark = pytest.mark.usefixtures("few_iterations_are_enough")


# Files that are bad ------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return print, ("code of the file was run",)


def no_file_of_ours(tmp_path):
    """Files of all kinds, by what they are."""
    joblib.dump(Payload(), tmp_path / "joblib")
    joblib.dump(Payload(), tmp_path / "compressed", compress=3)
    torch.save({"a": torch.zeros(2)}, tmp_path / "torch")
    save_file({"a": torch.zeros(2)}, tmp_path / "safetensors")
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("zeros", bytes(2**26))
    start = b'{"__metadata__":{"checksum":"sha256:'
    return {
        "empty": b"",
        "one byte": b"\x00",
        "noise": np.random.default_rng(0).bytes(1000),
        "text": b"PretrainedImageClassifier()\n",
        "pickle": pickle.dumps(Payload()),
        **{n: (tmp_path / n).read_bytes() for n in ("joblib", "compressed", "torch", "bomb")},
        "safetensors": (tmp_path / "safetensors").read_bytes(),
        "two gigabytes": (2**31).to_bytes(8, "little") + start + b"0" * 100,
        "all there is": b"\xff" * 8 + start + b"0" * 100,
        "beginning alone": (100).to_bytes(8, "little") + start,
    }


def test_other_files_are_refused(tmp_path, capsys):
    for kind, content in no_file_of_ours(tmp_path).items():
        bad = tmp_path / "bad.sktl"
        bad.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"bad\.sktl"):
            sktl.load(bad)
            pytest.fail(kind)
    assert "code" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (pickle.dumps(Payload()), "a pickle or joblib file, which runs code"),
        (b"PK\x03\x04", "a zip archive"),
        (b"hello", "not a file of sktl's save"),
    ],
)
def test_errors_say_what_a_file_is(content, message, path):
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        sktl.load(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        sktl.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        sktl.load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FileFormatError, match="not a regular file"):
            sktl.load(tmp_path / "pipe")
    if os.path.exists("/dev/zero"):
        with pytest.raises(FileFormatError, match="not a regular file"):
            sktl.load("/dev/zero")


def test_a_file_that_is_cut_off_or_goes_on_is_refused(saved):
    content = saved.read_bytes()
    cuts = [*range(0, 120, 7), len(content) // 2, len(content) - 1]
    for changed in [content[:n] for n in cuts] + [content + b"\0", content + content]:
        saved.write_bytes(changed)
        with pytest.raises(FileFormatError):
            sktl.load(saved)


def test_each_bit_counts(saved):
    content = saved.read_bytes()
    rng = np.random.default_rng(0)
    places = [*range(120), *rng.integers(0, len(content), 300)]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        saved.write_bytes(changed)
        with pytest.raises(FileFormatError):
            sktl.load(saved)


def set_at(*path_to):
    *parents, last, value = path_to

    def change(document):
        for name in parents:
            document = document[name]
        document[last] = value

    return change


def lose(*path_to):
    *parents, last = path_to

    def change(document):
        for name in parents:
            document = document[name]
        del document[last]

    return change


CHANGES = {
    "later format": (set_at("format", 2), "later version of sktl.*Upgrade"),
    "format as text": (set_at("format", "1"), "format must be an integer"),
    "no format": (lose("format"), "format must be"),
    "format zero": (set_at("format", 0), "format must be"),
    "no document": (lambda _: [], "format must be"),
    "other class": (set_at("estimator", "LogisticRegression"), "estimator must be one of"),
    "class as number": (set_at("estimator", 7), "estimator must be text"),
    "unknown name": (set_at("extra", 1), "unknown names"),
    "unknown parameter": (set_at("parameters", "eval", "1"), "unknown names"),
    "no model": (lose("model"), "lacks"),
    "number for text": (set_at("parameters", "backbone", 3), "parameters.backbone must be"),
    "unknown backbone": (set_at("model", "backbone", "name", "os.system"), "backbone.name must"),
    "list for text": (set_at("model", "backbone", "name", ["resnet18"]), "backbone.name must"),
    "parameter out of range": (set_at("parameters", "dropout", 2), "dropout"),
    "parameter of a wrong type": (set_at("parameters", "max_epochs", "many"), "max_epochs"),
    "parameter as an object": (set_at("parameters", "lr", {"a": 1}), "lr must be a plain value"),
    "many threads": (set_at("parameters", "n_jobs", 10**9), "n_jobs must be"),
    "another folder": (set_at("parameters", "cache", "/tmp/x"), "cache must be"),
    "unknown device": (set_at("model", "device", "abacus"), "device must be"),
    "huge integer": (set_at("parameters", "max_epochs", 10**30), "max_epochs must be"),
    "bool for an integer": (set_at("model", "depth", True), "depth must be an integer"),
    "huge image": (set_at("model", "backbone", "image_size", 10**6), "image_size must be"),
    "other image": (set_at("model", "recipe", "crop", 31), "images of different sizes"),
    "infinite recipe": (set_at("model", "recipe", "std", [0, 1, 1]), r"std\[0\] must be"),
    "deep": (set_at("model", "depth", 999), "depth=999 does not go"),
    "huge head": (set_at("model", "head", "head", [10**9]), "head should have weights"),
    "narrow head": (set_at("model", "head", "in_features", 12), "head should have weights"),
    "more classes": (set_at("attributes", "classes_", "values", [0, 1, 2]), "for 2 classes, not 3"),
    "one class": (set_at("attributes", "classes_", "values", [0]), "list of at least 2"),
    "classes out of order": (set_at("attributes", "classes_", "values", [1, 0]), "sorted"),
    "classes of two kinds": (set_at("attributes", "classes_", "values", [0, "1"]), "an integer"),
    "pickled classes": (set_at("attributes", "classes_", "dtype", "|V8"), "dtype of labels"),
    "wide classes": (
        set_at("attributes", "classes_", {"dtype": "<U999999", "values": list("ab") * 50}),
        "dtype that suits",
    ),
    "wrong shape of image": (set_at("images", "image_shape", [8, 9]), "does not go with"),
    "range upside down": (set_at("images", "pixel_range", [16, 0]), "pixel_range must be"),
    "other hash": (set_at("model", "frozen_sha256", "0" * 64), "not the ones"),
    "weights not there": (set_at("model", "frozen_sha256", None), "do not fit|differ"),
    "no such weights": (set_at("parameters", "weights", "V9"), "not to be had"),
    "zero rate": (set_at("model", "plan", "lr", 0), "plan.lr must be"),
    "no plan": (lose("model", "plan", "seed"), "lacks"),
    "other stages": (set_at("attributes", "stages_", 0, "other"), "other stages"),
    "same as nothing": (set_at("model", "same", "trained", {"a": "b"}), "same.trained"),
    "one too many": (set_at("model", "same", "trained", {"a": "head.1.bias"}), "do not fit"),
    "names for nothing": (set_at("attributes", "feature_names_in_", ["a"]), "1 feature_names_in_"),
    "half of early stopping": (set_at("attributes", "best_epoch_", 1), "belong together"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_document_is_checked_before_it_is_believed(kind, saved):
    change, message = CHANGES[kind]
    rewrite(saved, change)
    with pytest.raises(FileFormatError, match=message) as caught:
        sktl.load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"format": NaN}',
        '{"format": 1, "format": 1}',
        '{"format": ' + "1" * 100_000 + "}",
        '{"format": 1e999}',
        "",
        "\ud800",
        "\x00",
    ],
    ids=["open", "nested", "objects", "NaN", "twice", "long", "inf", "none", "surrogate", "zero"],
)
def test_json_that_is_hard_to_read(text, saved):
    rewrite(saved, lambda _: text)
    with pytest.raises(FileFormatError):
        sktl.load(saved)


def test_nan_where_a_number_belongs(saved):
    rewrite(saved, set_at("parameters", "lr", math.nan))
    with pytest.raises(FileFormatError, match="NaN is not JSON"):
        sktl.load(saved)


def test_a_deep_header_and_other_metadata(saved):
    header, document, data = open_up(saved.read_bytes())
    header["a"] = "DEEP"
    content = close(header, document, data)
    n = int.from_bytes(content[:8], "little")
    deep = content[8 : 8 + n].replace(b'"DEEP"', b"[" * 100_000 + b"]" * 100_000)
    saved.write_bytes(seal(len(deep).to_bytes(8, "little") + deep + data))
    with pytest.raises(FileFormatError):
        sktl.load(saved)
    del header["a"]
    header["__metadata__"]["more"] = "1"
    saved.write_bytes(close(header, document, data))
    with pytest.raises(FileFormatError, match="metadata"):
        sktl.load(saved)


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


TENSORS = {
    "missing": (drop("trained/head.1.bias"), "head.1.bias"),
    "no head": (drop("trained/head.1.weight"), "head should have weights"),
    "misshapen": (put("trained/head.1.bias", torch.zeros(3).double()), "head.1.bias"),
    "turned": (put("trained/head.1.weight", torch.zeros(1664, 2).double()), "head should have"),
    "other dtype": (put("trained/head.1.weight", torch.zeros(2, 1664)), "head.1.weight"),
    "not a number": (
        put("trained/head.1.bias", torch.tensor([0, torch.nan]).double()),
        "not finite",
    ),
    "one too many": (put("trained/other", torch.zeros(3)), "other"),
    "of no part": (put("evil", torch.zeros(3)), "no place for the tensor"),
    "half a sample": (put("sample/labels", torch.zeros(3)), "sample lacks"),
    "indices alone": (put("validation_indices_", torch.zeros(3).long()), "belong together"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_are_checked(kind, saved):
    change, message = TENSORS[kind]
    retensor(saved, change)
    with pytest.raises(FileFormatError, match=message):
        sktl.load(saved)


def test_a_missing_weight_of_the_network_is_named(fitted, path):
    fitted.save(path)
    retensor(path, drop("frozen/1.0.features.3.0.block.0.0.weight"))
    with pytest.raises(FileFormatError, match=r"1\.0\.features\.3\.0\.block\.0\.0\.weight"):
        sktl.load(path)


def test_a_sample_that_does_not_fit_is_refused(fitted, path):
    fitted.save(path)
    retensor(path, lambda tensors: tensors["sample/labels"].add_(5))
    with pytest.raises(FileFormatError, match="sample"):
        sktl.load(path)


def test_features_of_another_width_are_refused(X, path):
    features().fit(X).save(path, include_backbone=False)
    rewrite(path, set_at("model", "n_features_out", 7))
    with pytest.raises(FileFormatError, match="1280 features, and 7 are expected"):
        sktl.load(path)


@pytest.mark.parametrize("stage", [99, [0, 0], [], [99], -1, "stem", [[0]]], ids=repr)
def test_stages_that_are_not_there_are_refused(stage, X, path):
    features(stage=0).fit(X).save(path)
    rewrite(path, set_at("model", "stage", stage))
    with pytest.raises(FileFormatError, match="stage"):
        sktl.load(path)


def test_a_head_for_another_network_is_refused(saved):
    def narrow(tensors):
        tensors["trained/head.1.weight"] = tensors["trained/head.1.weight"][:, :12]

    retensor(saved, narrow)
    rewrite(saved, set_at("model", "head", "in_features", 12))
    with pytest.raises(FileFormatError, match="1664 features, and 12 are expected"):
        sktl.load(saved)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_bad_files_take_little_memory(saved, tmp_path):
    """Each is refused by a process that may take half a gigabyte more than it has."""
    files = []
    for kind, content in no_file_of_ours(tmp_path).items():
        files.append(tmp_path / f"{kind}.sktl")
        files[-1].write_bytes(content)
    for kind in ("huge head", "huge image", "wide classes"):
        files.append(tmp_path / f"{kind}.sktl")
        files[-1].write_bytes(saved.read_bytes())
        rewrite(files[-1], CHANGES[kind][0])
    script = """
import resource, sys, sktl, torch
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2)
for path in sys.argv[1:]:
    try:
        sktl.load(path)
    except sktl.FileFormatError:
        continue
    raise AssertionError(path)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, files)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


# Fuzz --------------------------------------------------------------------------------

JUNK = [
    None, True, False, 0, -1, 1, 2, 7, 10**6, 2**31, 2**63, -(2**63), 10**40, 0.0, -0.5, 0.5, 1e-9,
    1e308, "", "a", "all", "linear", "auto", "cuda:7", "efficientnet_lite0", "../../x.pth", "\x00",
    "float32", "pandas", "é" * 5000, [], [0], [1, 2], [1, 2, 3], [[]], [None], {}, {"a": 1},
    {"float": "nan"}, [0.1] * 5000,
]  # fmt: skip


def damaged(rng, content):
    """Content with bytes changed, lost or put in; the checksum doesn't know."""
    changed = bytearray(content)
    place = int(rng.integers(len(content)) if rng.random() < 0.5 else rng.integers(3000))
    kind = rng.integers(4)
    if kind == 0:
        for _ in range(rng.integers(1, 4)):
            changed[min(place, len(changed) - 1)] ^= int(rng.integers(1, 256))
            place = int(rng.integers(len(content)))
    elif kind == 1:
        del changed[place:]
    elif kind == 2:
        changed[place:place] = rng.bytes(int(rng.integers(1, 20)))
    else:
        del changed[place : place + int(rng.integers(1, 20))]
    return bytes(changed)


def resealed(rng, content):
    """Content whose header or document was changed by somebody who knows the format."""
    header, document, data = open_up(content)
    kind = rng.integers(4)
    if kind == 0:
        changed = damaged(rng, content)
        return seal(changed) if len(changed) > DIGITS.stop else changed
    if kind == 1:
        header = mutated(rng, {k: v for k, v in header.items() if k != "__metadata__"})
        header = {"__metadata__": open_up(content)[0]["__metadata__"], **header}
        return close(header, document, data)
    for _ in range(rng.integers(1, 3)):
        document = mutated(rng, document)
    return close(header, document, data)


def mutated(rng, value):
    """Replace, remove or repeat a random value inside."""
    value = copy.deepcopy(value)
    place = value
    while True:
        names = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not names:
            return value
        name = names[int(rng.integers(len(names)))]
        nested = isinstance(place[name], dict | list) and place[name]
        if nested and rng.random() < 0.85:
            place = place[name]
            continue
        break
    action = rng.random()
    if action < 0.15:
        del place[name]
    elif action < 0.25 and isinstance(place, dict):
        place[str(rng.integers(100))] = place[name]
    elif action < 0.5 and isinstance(place[name], int | float):
        place[name] = place[name] * float(rng.choice([-1, 0, 1.5, 1e300])) + int(rng.integers(3))
    else:
        place[name] = JUNK[int(rng.integers(len(JUNK)))]
    return value


def fuzz(content, path, X, expected, seed, n):
    """Count what became of n bad files; anything but a FileFormatError is a finding."""
    rng = np.random.default_rng(seed)
    counts = {"refused": 0, "the same": 0, "another model": 0}
    for _ in range(n):
        sealed_again = rng.random() < 0.6
        changed = (resealed if sealed_again else damaged)(rng, content)
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                loaded = sktl.load(path)
            except FileFormatError:
                counts["refused"] += 1
                continue
            assert sealed_again or changed == content, "damage went unnoticed"
            try:
                proba = loaded.predict_proba(X)
            except ValueError:  # such as X not being what it says
                counts["another model"] += 1
                continue
        # Weights that were changed on purpose may well overflow.
        assert proba.shape == expected.shape
        counts["the same" if np.array_equal(proba, expected) else "another model"] += 1
    return counts


@pytest.mark.parametrize("n", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_fuzz(saved, fitted, X, n):
    content = saved.read_bytes()
    counts = fuzz(content, saved, X[:3], fitted.predict_proba(X[:3]), seed=0, n=n)
    assert counts["refused"] > n // 2
