"""The examples that put a saved model to work: a server, and a folder's pictures in one table."""

import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

import sktl

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.usefixtures("one_thread", "few_iterations_are_enough")


@pytest.fixture(scope="module")
def clf(photographs):
    X, y = photographs
    clf = sktl.PretrainedImageClassifier(image_size=64, cache=None, n_jobs=1)
    return clf.fit(X, np.array(["temple", "flower"])[y])


@pytest.fixture(scope="module")
def model(clf, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.sktl"
    clf.save(path, include_backbone=False)
    return path


def encoded(pixels, kind="PNG"):
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def server(model):
    """Address of a server that runs in a process of its own."""
    app = str(EXAMPLES / "serve" / "app.py")
    process = subprocess.Popen(
        [sys.executable, app, str(model), "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    told = ""
    while "running on" not in told:
        line = process.stderr.readline()
        assert line, told
        told += line
    yield re.search(r"http://\S+", told).group()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert "Traceback" not in rest.partition("Shutting down")[0], rest


def send(server, content, name="picture"):
    return httpx.post(f"{server}/predict", files={name: ("a.jpg", content)}, timeout=60)


def test_the_page(server):
    response = httpx.get(server)
    assert response.status_code == 200
    assert 'type="file"' in response.text
    assert "//" not in re.sub(r" // .*|  // .*", "", response.text)  # nothing from elsewhere


def test_a_picture_is_classified_as_here(server, clf):
    """A photograph of a cat, which is neither; and turned by its EXIF data."""
    picture = Image.fromarray(data.chelsea())
    for orientation in (1, 6):
        file = BytesIO()
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.save(file, "JPEG", exif=exif)
        answer = send(server, file.getvalue()).json()
        expected = clf.predict_proba([Image.open(file)])[0]
        assert answer["label"] == clf.classes_[expected.argmax()]
        ranked = {p["label"]: p["probability"] for p in answer["probabilities"]}
        assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
        np.testing.assert_allclose([ranked[c] for c in clf.classes_], expected, atol=0.01)


def test_pictures_sent_at_once_are_not_mixed_up(server, photographs):
    files = [encoded(picture) for picture in photographs[0]]
    alone = [send(server, file).json() for file in files]
    assert len({answer["probabilities"][0]["probability"] for answer in alone}) == len(files)
    assert [a["label"] for a in alone] == ["temple"] * 6 + ["flower"] * 6
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda file: send(server, file).json(), files * 4))
    assert together == alone * 4


@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (b"", 400, "empty"),
        (encoded(data.coffee(), "JPEG")[:9000], 400, "damaged"),
        (b"no picture", 415, "JPEG or PNG or WEBP"),
        (encoded(data.coffee()[:9, :9], "GIF"), 415, "JPEG or PNG or WEBP"),
        (encoded(np.zeros((6500, 6500), np.uint8)), 413, "40,000,000 pixels"),
        (encoded(np.zeros((20_000, 20_000), bool)), 413, "40,000,000 pixels"),
        (bytes(11 * 2**20), 413, "10,485,760 bytes"),
    ],
    ids=["empty", "cut off", "text", "GIF", "many pixels", "a bomb", "many bytes"],
)
def test_bad_uploads_are_refused(content, status, told, server):
    response = send(server, content)
    assert (response.status_code, told in response.json()["detail"]) == (status, True)


def test_bad_requests_are_refused(server):
    assert send(server, b"a", name="other").status_code == 400
    assert httpx.post(f"{server}/predict", json={}).status_code == 400
    assert httpx.post(f"{server}/predict", data={"picture": "text"}).status_code == 400
    endless = httpx.post(f"{server}/predict", content=iter([b"a"] * 9))
    assert endless.status_code == 411


@pytest.mark.parametrize("freeze", ["all", -1])
def test_threads_share_an_estimator_that_has_just_been_loaded(freeze, photographs, tmp_path):
    X, y = photographs
    settings = {"image_size": 32, "freeze": freeze, "max_epochs": 1, "cache": None}
    sktl.PretrainedImageClassifier(**settings).fit(X, y).save(tmp_path / "model.sktl")
    alone, shared = (sktl.load(tmp_path / "model.sktl") for _ in range(2))
    expected = [alone.predict_proba(X[i : i + 1]) for i in range(len(X))]
    barrier = threading.Barrier(6)

    def predict(i):
        if i < 6:
            barrier.wait()  # so that several find the network not yet made ready
        return shared.predict_proba(X[i : i + 1])

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(predict, range(len(X))))
    np.testing.assert_array_equal(together, expected)


# A folder ----------------------------------------------------------------------------


@pytest.fixture
def score(monkeypatch, capsys):
    """Function that runs the example, and gives what it prints."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["score_folder.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / "score_folder.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_scores_of_a_folder(score, model, clf, save_photographs, tmp_path):
    pictures = save_photographs(tmp_path / "pictures")
    (pictures / "kind0" / "bad.jpg").write_bytes(b"no picture")
    (pictures / "kind1" / "notes.txt").write_text("no picture, and not called one")
    output = tmp_path / "scores.parquet"
    output.write_text("old")
    printed = score(model, pictures, output, "--block", 5)
    assert "has 13 rows, 1 of them with an error" in printed
    assert pq.ParquetFile(output).num_row_groups == 3
    table = pq.read_table(output).to_pandas()
    columns = ["path", "label", "probability_flower", "probability_temple", "error"]
    assert table.columns.tolist() == columns
    assert table.path.tolist() == sorted(map(str, pictures.rglob("*.jpg")))
    bad = table[table.path.str.endswith("bad.jpg")]
    assert bad.error.tolist() == ["not an image that Pillow can read"]
    assert bad.iloc[0, 1:4].isna().all()
    good = table.drop(bad.index)
    assert good.error.isna().all()
    assert good.label.tolist() == clf.predict(good.path).tolist()
    expected = clf.predict_proba(good.path)
    np.testing.assert_allclose(good[columns[2:4]], expected, atol=0.01)
    assert sorted(os.listdir(tmp_path)) == ["pictures", "scores.parquet"]


def test_a_folder_of_bad_pictures(score, model, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    output = tmp_path / "scores.parquet"
    score(model, tmp_path, output)
    assert pq.read_table(output).to_pandas().label.isna().tolist() == [True]


def test_a_run_that_stops_leaves_the_old_table(score, model, save_photographs, tmp_path):
    """Here by Ctrl-C in the second of two blocks."""
    pictures = save_photographs(tmp_path / "pictures")
    output = tmp_path / "scores.parquet"
    output.write_text("old")
    written = pq.ParquetWriter.write_table
    blocks = []

    def stop(writer, table):
        if blocks:
            raise KeyboardInterrupt
        blocks.append(written(writer, table))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pq.ParquetWriter, "write_table", stop)
        score(model, pictures, output, "--block", 6)
    assert len(blocks) == 1
    assert output.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["pictures", "scores.parquet"]


def test_a_folder_without_pictures(score, model, tmp_path):
    with pytest.raises(SystemExit, match="there are no pictures"):
        score(model, tmp_path, tmp_path / "scores.parquet")
    assert os.listdir(tmp_path) == []
