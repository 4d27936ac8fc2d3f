import os
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sktl import load_image_folder, load_image_table


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
    assert bunch.skipped == {}


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
    (flowers / "README").write_text("about")

    with pytest.warns(UserWarning, match="1 .h5, 1 .mpg, 1 .png, 1 without an ext") as caught:
        bunch = load_image_folder(flowers)

    (warning,) = caught
    assert warning.filename == __file__
    assert bunch.skipped == {
        **{"hidden": 3, ".txt": 1, ".db": 1, ".mpg": 1, ".h5": 1, ".pdf": 1},
        **{".png": 1, "": 2},
    }
    assert list(bunch.data) == expected
    assert list(bunch.target_names) == ["rose", "tulip"]


LEFT_BY_SYSTEMS = [
    *("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "#recycle"),
    *(".ipynb_checkpoints", ".AppleDouble", ".thumbnails", ".@__thumb", "__pycache__"),
]


@pytest.mark.parametrize("name", LEFT_BY_SYSTEMS)
def test_what_systems_leave_behind_is_no_class(flowers, name):
    expected = load_image_folder(flowers)
    for folder in (flowers, flowers / "rose"):
        write(folder / name / "._m.png")
        write(folder / name / "m.png")
    write(flowers / "rose" / "._m.png")
    bunch = load_image_folder(flowers)
    assert list(bunch.data) == list(expected.data)
    assert list(bunch.target_names) == ["rose", "tulip"]
    assert bunch.skipped == {"hidden": 3}


def test_companions_of_pictures_are_passed_over_in_silence(flowers):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "README", "README.md", "labels.csv"):
        (flowers / name).write_text("")
        (flowers / "rose" / name).write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bunch = load_image_folder(flowers)
    assert bunch.skipped == {"hidden": 2, ".db": 2, ".ini": 2, "": 2, ".md": 2, ".csv": 2}
    assert len(bunch.data) == 4


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

    with pytest.warns(UserWarning, match="Passed over files in .*: 1 .png"):  # the broken one
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


# Labels from names --------------------------------------------------------------------


@pytest.fixture
def named(tmp_path):
    root = tmp_path / "named"
    for name in ("cat.1.jpg", "sub/dog.12.jpg", "dog.3.JPG", "deep/er/cat.2.png"):
        write(root / name)
    return root


@pytest.mark.parametrize("pattern", [r"^(\w+)\.", r"(.+)\.\d+\.", r"(?P<kind>[a-z]+)\.\d+"])
def test_labels_from_names(named, pattern):
    (named / "notes.txt").write_text("")
    bunch = load_image_folder(named, pattern=pattern)
    assert [os.path.relpath(file, named) for file in bunch.data] == [
        *("cat.1.jpg", os.path.join("deep", "er", "cat.2.png")),
        *("dog.3.JPG", os.path.join("sub", "dog.12.jpg")),
    ]
    assert bunch.target.tolist() == [0, 0, 1, 1]
    assert bunch.target_names.tolist() == ["cat", "dog"]
    assert bunch.skipped == {".txt": 1}


def test_names_that_do_not_fit_are_listed(named):
    write(named / "bird.png")
    write(named / ".." / "named" / "7.7.png")
    with pytest.raises(ValueError, match="in the names of 2 of 6 files:\n") as caught:
        load_image_folder(named, pattern=r"([a-z]+)\.\d+|7")  # of the latter the group is empty
    assert "bird.png" in str(caught.value)
    assert "7.7.png" in str(caught.value)
    assert "cat" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"\d+", "must have one group.* has 0"),
        (r"(a)(b)", "has 2"),
        (r"(", "no regular expression"),
    ],
)
def test_bad_patterns(named, pattern, words):
    with pytest.raises(ValueError, match=words):
        load_image_folder(named, pattern=pattern)


def test_a_pattern_for_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no files with an image's extension"):
        load_image_folder(tmp_path, pattern="(.)")


# Tables -------------------------------------------------------------------------------


@pytest.fixture
def table(flowers):
    """Frame of relative paths below the folder, in no order, and labels."""
    paths = [os.path.join("tulip", "b.png"), os.path.join("rose", "m.png")]
    paths.append(os.path.join("tulip", "a.JPG"))
    return pd.DataFrame({"file_name": paths, "taken": [3, 1, 2], "label": ["t", "r", "t"]})


def save_table(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    return path


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet", ".CSV", "frame"])
def test_a_table(flowers, table, kind):
    if kind == "frame":
        bunch = load_image_table(table, root=flowers)
    else:
        bunch = load_image_table(save_table(table, flowers / f"labels{kind}"))
    assert bunch.data.tolist() == [str(flowers / path) for path in table["file_name"]]
    assert bunch.data.dtype == object
    assert bunch.target.tolist() == [1, 0, 1]
    assert bunch.target_names.tolist() == ["r", "t"]
    assert bunch.target_names.dtype.kind == "U"


def test_relative_and_absolute_paths(flowers, table, tmp_path, monkeypatch):
    elsewhere = save_table(table, tmp_path / "labels.csv")
    with pytest.raises(FileNotFoundError, match="3 of the 3 files in the column 'file_name'"):
        load_image_table(elsewhere)
    assert load_image_table(elsewhere, root=flowers).data[1] == str(flowers / "rose" / "m.png")
    monkeypatch.chdir(flowers)
    assert load_image_table(table).data.tolist() == table["file_name"].tolist()
    table["file_name"] = [str(flowers / path) for path in table["file_name"]]
    assert load_image_table(table, root="nowhere").data.tolist() == table["file_name"].tolist()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5, 2, 5], [2, 5]),
        (pd.array([5, 2, 5], dtype="Int64"), [2, 5]),
        (pd.Categorical(["b", "a", "b"]), ["a", "b"]),
        ([True, False, True], [False, True]),
    ],
)
def test_labels_keep_their_kind(flowers, table, values, expected):
    names = load_image_table(table.assign(label=values), root=flowers).target_names
    assert names.tolist() == expected
    assert names.dtype != object


@pytest.mark.parametrize(
    ("columns", "path", "label"),
    [
        (["Image Path", "Class_Name", "x"], "Image Path", "Class_Name"),
        (["filename", "species"], "filename", "species"),
        (["what", "target"], "what", "target"),
    ],
)
def test_usual_names_of_columns(flowers, table, columns, path, label):
    frame = pd.DataFrame(dict.fromkeys(columns, table["taken"]))
    frame[path], frame[label] = table["file_name"], table["label"]
    bunch = load_image_table(frame[columns], root=flowers)
    assert bunch.target_names.tolist() == ["r", "t"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["image", "path", "label"], "path_column can't be told.*'image', 'path', 'label'"),
        (["image", "label", "class"], "label_column can't be told.*'image', 'label', 'class'"),
        (["a", "b"], "path_column can't be told"),
        (["path", "a", "b"], "label_column can't be told"),
    ],
)
def test_columns_that_can_not_be_told(table, columns, words):
    frame = pd.DataFrame(dict.fromkeys(columns, table["file_name"]))
    with pytest.raises(ValueError, match=words):
        load_image_table(frame)


def test_columns_that_are_given(flowers, table):
    frame = table.rename(columns={"file_name": "a", "label": "b"})
    bunch = load_image_table(frame, path_column="a", label_column="b", root=flowers)
    assert bunch.target.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"0 columns 'c'.*\['a', 'taken', 'b'\]"):
        load_image_table(frame, path_column="a", label_column="c")
    with pytest.raises(ValueError, match="both 'a'"):
        load_image_table(frame, path_column="a", label_column="a")
    with pytest.raises(TypeError, match="'taken' doesn't hold paths, but 3"):
        load_image_table(frame, path_column="taken", label_column="b")


@pytest.mark.parametrize("column", ["file_name", "label"])
def test_gaps_are_named(flowers, table, column):
    table.loc[[0, 2], column] = None
    path = save_table(table, flowers / "labels.csv")
    with pytest.raises(ValueError, match=rf"'{column}' is empty in 2 of 3 rows: 0, 2 \(counted"):
        load_image_table(path)


def test_missing_files_are_counted_and_named(flowers, table):
    frame = pd.DataFrame({"path": [f"{i:02}.png" for i in range(13)], "label": "x"})
    frame.loc[5, "path"] = table["file_name"][0]
    with pytest.raises(FileNotFoundError, match="12 of the 13 files") as caught:
        load_image_table(frame, root=flowers)
    assert str(flowers / "10.png") in str(caught.value)
    assert str(flowers / "11.png") not in str(caught.value)
    assert "and 2 more" in str(caught.value)


def test_what_is_no_table(flowers, table, monkeypatch):
    with pytest.raises(TypeError, match="DataFrame or the path of a table, got dict"):
        load_image_table({"path": []})
    with pytest.raises(ValueError, match=r"not a .csv, .tsv or .parquet file"):
        load_image_table("labels.xlsx")
    with pytest.raises(ValueError, match="no rows"):
        load_image_table(table.iloc[:0])
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        load_image_table("nowhere.csv")
    with pytest.raises(TypeError, match="mixes text"):
        load_image_table(table.assign(label=["a", 1, "b"]), root=flowers)
    monkeypatch.setitem(sys.modules, "pandas", None)  # as if it weren't installed
    with pytest.raises(ImportError, match=r"pip install sktl\[pandas\]"):
        load_image_table("labels.csv")
    assert load_image_table(table, root=flowers).target.tolist() == [1, 0, 1]


# Several labels an image ----------------------------------------------------------------


def test_columns_of_several_labels(flowers, table):
    frame = table.assign(red=[1, 0, 1], tall=[True, False, False]).drop(columns="label")
    bunch = load_image_table(frame, label_column=["tall", "red"], root=flowers)
    assert bunch.target.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert bunch.target_names.tolist() == ["tall", "red"]
    assert bunch.data.tolist() == load_image_table(table, root=flowers).data.tolist()


@pytest.mark.parametrize("kind", [list, tuple, set, np.array])
def test_a_column_of_lists_of_labels(flowers, table, kind):
    frame = table.assign(label=[kind(["a", "b"]), kind([]), kind(["b"])])
    bunch = load_image_table(frame, root=flowers)
    assert bunch.target.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert bunch.target_names.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("columns", "choice", "error", "words"),
    [
        ({"a": [0, 1, 2], "b": 1}, ["a", "b"], ValueError, "'a' must tell by 0 and 1.*holds 2"),
        ({"a": ["x", "y", "z"], "b": 1}, ["a", "b"], ValueError, "holds 'x'"),
        ({"a": [0, None, 1], "b": 1}, ["a", "b"], ValueError, "'a' is empty in 1 of 3 rows"),
        ({"a": 1, "b": 1}, ["a", "a"], ValueError, "must name several columns, each once"),
        ({"a": 1, "b": 1}, ["a"], ValueError, "must name several columns"),
        ({"a": 1, "b": 1}, ["a", "c"], ValueError, "0 columns 'c'"),
        ({"a": 1, "b": 1}, ["a", "file_name"], ValueError, "path_column can't be told"),
        ({"a": [["x"], "y", ["z"]]}, "a", TypeError, "holds lists of labels and 'y'"),
        ({"a": [["x"], [1], ["z"]]}, "a", TypeError, "mixes text with other labels"),
    ],
)
def test_columns_that_are_no_labels(flowers, table, columns, choice, error, words):
    frame = table.assign(**columns)
    with pytest.raises(error, match=words):
        load_image_table(frame, label_column=choice, root=flowers)
