"""What is told of a fit while it runs: bars on a terminal, plain lines in a log."""

import multiprocessing.connection
import os
import pty
import re
import sys
import termios
import warnings

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sktl import PretrainedImageClassifier, PretrainedImageFeatures
from sktl.training import progress

X, Y = load_digits(n_class=2, return_X_y=True)
X, Y = X[:40], Y[:40]
FIT = """
import warnings
from sklearn.datasets import load_digits
from skorch.callbacks import Callback
from sktl import PretrainedImageClassifier

class Doubt(Callback):
    def on_epoch_end(self, net, **kwargs):
        warnings.warn(f"in doubt after epoch {len(net.history)}")

warnings.simplefilter("always")
X, y = load_digits(n_class=2, return_X_y=True)
clf = PretrainedImageClassifier(
    image_size=32, optimizer="adamw", max_epochs=3, verbose=1, callbacks=[("doubt", Doubt())]
)
clf.fit(X[:40], y[:40])
"""


def make(**params):
    return PretrainedImageClassifier(**{"image_size": 32, "random_state": 0} | params)


def fit_elsewhere(terminal, log, code, environment):
    """Run code with standard error on a terminal, and standard output in a log."""
    os.environ |= environment
    torch.set_num_threads(1)
    with open(terminal, "w") as sys.stderr, open(log, "w") as sys.stdout:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


@pytest.fixture
def fit_on_a_terminal(processes, tmp_path):
    """What a fit shows on a terminal of some shape, and what it prints elsewhere."""

    def fit(shape, **environment):
        main, terminal = pty.openpty()
        if shape is not None:
            termios.tcsetwinsize(main, shape)
        log = tmp_path / "log"
        process = processes.Process(
            target=fit_elsewhere, args=(os.ttyname(terminal), log, FIT, environment)
        )
        process.start()
        shown = read_until_end(main, process)
        process.join()
        os.close(terminal)
        os.close(main)
        assert process.exitcode == 0
        return shown, log.read_text()

    return fit


def read_until_end(terminal, process):
    """What a process writes to a terminal."""
    shown = b""
    while multiprocessing.connection.wait([terminal, process.sentinel]) != [process.sentinel]:
        shown += os.read(terminal, 10_000)
    return shown.decode()


@pytest.mark.parametrize("shape", [(24, 100), None])
def test_a_bar_on_a_terminal(fit_on_a_terminal, shape):
    shown, lines = fit_on_a_terminal(shape)
    assert lines == ""
    assert "features: " in shown
    assert "image/s" in shown
    assert "training: " in shown
    # What stands in one line of the screen, once it has been written over from its beginning.
    screen = [re.split("\r", line)[-1] for line in shown.replace("\r\n", "\n").split("\n")]
    warned = [line for line in screen if "UserWarning" in line]
    assert [line[-1] for line in warned] == ["1", "2", "3"]
    assert all(line.startswith("<string>:") for line in warned)


def test_lines_on_a_terminal_that_has_no_bars(fit_on_a_terminal):
    shown, lines = fit_on_a_terminal(None, TERM="dumb")
    assert "image/s" not in shown
    assert [line.split(":")[0] for line in lines.splitlines()] == [
        "features",
        *(f"epoch {number} of 3" for number in (1, 2, 3)),
    ]


def test_lines_in_a_log(processes, tmp_path):
    log, errors = tmp_path / "log", tmp_path / "errors"
    process = processes.Process(
        target=fit_elsewhere, args=(errors, log, FIT.replace("always", "ignore"), {})
    )
    process.start()
    process.join()
    assert (process.exitcode, errors.read_text()) == (0, "")
    first, *epochs = log.read_text().splitlines()
    assert re.fullmatch(r"features: 40 images in [\d.]+ s, [\d.,e+]+ images/s", first)
    assert len(epochs) == 3
    for number, line in enumerate(epochs, start=1):
        pattern = rf"epoch {number} of 3: train_loss 0\.\d{{3,}}, lr \d\.\d\de-\d\d, [\d.e-]+ s"
        assert re.fullmatch(pattern, line), line


def test_silence(capsys):
    make().fit(X, Y).predict(X)
    assert capsys.readouterr() == ("", "")


def test_a_solved_head_has_no_epochs(capsys):
    clf = make(verbose=1, cache=None).fit(X, Y)
    _, solved = capsys.readouterr().out.splitlines()
    beginning = (
        f"head solved in {clf.n_iter_} iterations: train_loss {clf.history_[0]['train_loss']:.5g}, "
    )
    assert solved.startswith(beginning)


def test_epochs_of_a_fit_that_goes_on(capsys):
    clf = make(verbose=1, freeze=-1, unfreeze="gradual", max_epochs=2, warm_start=True)
    clf.fit(X, Y).fit(X, Y)
    epochs = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    numbers = ["epoch 1 of 2", "epoch 2 of 2", "epoch 3 of 4", "epoch 4 of 4"]
    assert [line.split(":")[0] for line in epochs] == numbers
    assert all("backbone_lr " in line and "unfrozen_stages 1" in line for line in epochs)
    clf.partial_fit(X, Y)
    assert "epoch 5: train_loss" in capsys.readouterr().out


def test_lines_of_a_long_pass(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.0)
    with progress.progress_bar("features", 1200, "image", 1) as advance:
        advance(300)
        advance(900)
    begun, done = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"features: 300 of 1,200 images, [\d.,e+]+ images/s, [\d.e-]+ s left", begun
    )
    assert done.startswith("features: 1,200 images in ")
    monkeypatch.undo()
    with progress.progress_bar("features", 1200, "image", 1) as advance:
        advance(300)
    assert len(capsys.readouterr().out.splitlines()) == 1
    with pytest.raises(OSError), progress.progress_bar("features", 2, "image", 1):
        raise OSError
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (59.9, "59.9 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds, text):
    assert progress._duration(seconds) == text


def test_features_tell_how_far_they_are(capsys):
    features = PretrainedImageFeatures(image_size=32, verbose=1).fit(X[:8])
    assert "features: 8 images in " in capsys.readouterr().out
    features.transform(X[:1])
    assert "features: 1 image in " in capsys.readouterr().out
    features.set_params(verbose=0).transform(X)
    assert capsys.readouterr() == ("", "")


def test_a_search_says_which_fit_it_is_at(capsys):
    pytest.importorskip("sklearn.callback")
    pipeline = make_pipeline(FunctionTransformer(), make(verbose=1))
    grid = {"pretrainedimageclassifier__weight_decay": [1e-3, 1e-2]}
    GridSearchCV(pipeline, grid, cv=2).fit(X, Y)
    lines = capsys.readouterr().out.splitlines()
    fits = [f"fit {number} of 4, " for number in (1, 2, 3, 4)] + [""]  # the last is of the best
    assert len(lines) == 2 * len(fits)
    for fit, told, solved in zip(fits, lines[::2], lines[1::2], strict=True):
        assert told.startswith(f"{fit}features: ")
        assert solved.startswith(f"{fit}head solved in ")
    make(verbose=1).fit(X, Y)
    assert capsys.readouterr().out.startswith("features: ")


def test_warnings_beside_bars_are_still_recorded():
    before = warnings.showwarning
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        with progress._warnings_beside_bars(), progress._warnings_beside_bars():
            warnings.warn("look out", stacklevel=1)
    assert [str(warning.message) for warning in recorded] == ["look out"]
    assert warnings.showwarning is before
