import os

import numpy as np
import pytest
from PIL import Image

from sktl.datasets import load_image_folder


def write(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), colour).save(path)
    return str(path)


@pytest.fixture
def flowers(tmp_path):
    root = tmp_path / "flowers"
    write(root / "tulip" / "b.png")
    write(root / "tulip" / "a.JPG")
    write(root / "rose" / "deep" / "er" / "z.png")
    write(root / "rose" / "m.png")
    return root


def test_paths_and_codes_are_sorted_and_follow_scikit_learn(flowers):
    bunch = load_image_folder(flowers)

    assert list(bunch.data) == [
        str(flowers / "rose" / "deep" / "er" / "z.png"),
        str(flowers / "rose" / "m.png"),
        str(flowers / "tulip" / "a.JPG"),
        str(flowers / "tulip" / "b.png"),
    ]
    assert bunch.data.dtype == object
    np.testing.assert_array_equal(bunch.target, [0, 0, 1, 1])
    np.testing.assert_array_equal(bunch.target_names, ["rose", "tulip"])
    assert list(bunch.target_names[bunch.target]) == ["rose", "rose", "tulip", "tulip"]


def test_a_str_path_does_as_well(flowers):
    assert list(load_image_folder(str(flowers)).data) == list(load_image_folder(flowers).data)


def test_hidden_and_foreign_files_are_passed_over(flowers):
    expected = list(load_image_folder(flowers).data)
    write(flowers / "loose.png")
    write(flowers / "rose" / ".hidden.png")
    write(flowers / "rose" / ".cache" / "c.png")
    write(flowers / ".git" / "d.png")
    for name in ("notes.txt", "Thumbs.db", "film.mpg", "table.h5", "print.pdf", "noextension"):
        (flowers / "rose" / name).write_bytes(b"not an image")
    (flowers / "rose" / "folder.png").mkdir()

    bunch = load_image_folder(flowers)

    assert list(bunch.data) == expected
    assert list(bunch.target_names) == ["rose", "tulip"]


def test_empty_classes_are_left_out_with_a_warning(flowers):
    (flowers / "aster").mkdir()
    (flowers / "lily").mkdir()
    (flowers / "lily" / "readme.txt").write_text("soon")

    with pytest.warns(UserWarning, match="without images in .*: aster, lily"):
        bunch = load_image_folder(flowers)

    assert list(bunch.target_names) == ["rose", "tulip"]
    assert list(bunch.target) == [0, 0, 1, 1]


def test_links_are_followed_but_not_in_circles(flowers, tmp_path):
    expected = list(load_image_folder(flowers).data)
    os.symlink(flowers, flowers / "rose" / "deep" / "root")
    os.symlink(flowers / "rose", flowers / "rose" / "deep" / "up")
    os.symlink(tmp_path / "nowhere.png", flowers / "rose" / "broken.png")
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere / "x.png")
    os.symlink(elsewhere, flowers / "violet")

    bunch = load_image_folder(flowers)

    assert list(bunch.data) == [*expected, str(flowers / "violet" / "x.png")]
    assert list(bunch.target_names) == ["rose", "tulip", "violet"]


def test_a_folder_without_classes(tmp_path):
    write(tmp_path / "loose.png")
    with pytest.raises(ValueError, match="no sub-folders"):
        load_image_folder(tmp_path)


def test_classes_without_images(tmp_path):
    (tmp_path / "rose").mkdir()
    with pytest.raises(ValueError, match="hold no files with an image's extension"):
        load_image_folder(tmp_path)


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_image_folder(tmp_path / "nowhere")


def test_a_file(tmp_path):
    with pytest.raises(NotADirectoryError, match="one.png"):
        load_image_folder(write(tmp_path / "one.png"))


def test_the_order_is_not_that_of_the_file_system(tmp_path):
    expected = [
        write(tmp_path / label / f"{i:02}.png") for label in ("b", "a") for i in (3, 0, 9, 7, 1, 5)
    ]
    assert list(load_image_folder(tmp_path).data) == sorted(expected)
