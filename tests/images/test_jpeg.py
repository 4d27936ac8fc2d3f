"""Plain JPEG files: which they are, and that they come out as from Pillow."""

import io
import multiprocessing
import threading
import time
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile
from sklearn.datasets import load_sample_images

from sktl.images import decoding, jpeg
from sktl.images.decoding import decode_file, why_unreadable
from sktl.images.orientation import orientation_of

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(jpeg.decoder() == "Pillow", reason="simplejpeg isn't installed"),
]

WAYS = {
    "usual": {"quality": 90},
    "coarse": {"quality": 20},
    "progressive": {"progressive": True},
    "all colours": {"quality": 100, "subsampling": "4:4:4"},
    "half the colours": {"subsampling": "4:2:2"},
    "own tables": {"optimize": True, "subsampling": "4:2:0"},
    "restarts": {"restart_marker_blocks": 3},
    "profile and comment": {"icc_profile": b"profile" * 20_000, "comment": b"a comment"},
}


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(load_sample_images().images[1])


def written(picture, file_format="JPEG", **how):
    file = io.BytesIO()
    picture.save(file, file_format, **how)
    return file.getvalue()


def by_pillow(content, size=None):
    """What Pillow makes of a file, with the fraction that it chooses for a thumbnail."""
    with Image.open(io.BytesIO(content)) as image:
        if size is not None:
            fraction = max(1, min(image.size) // (2 * size))
            image.draft(None, (image.width // fraction, image.height // fraction))
        return np.array(image.convert("RGB"))


def assert_as_pillow(content, size=None):
    found = jpeg.decode_plain(content, size)
    expected = by_pillow(content, size)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


# Pixels ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("way", WAYS)
def test_pixels_are_those_of_pillow(photo, way, mode):
    for sides in ((640, 427), (101, 67), (16, 16), (7, 5), (1, 1)):
        content = written(photo.resize(sides).convert(mode), **WAYS[way])
        for size in (None, 2, 5, 16, 40, 100):
            assert_as_pillow(content, size)


def test_odd_samplings_are_those_of_pillow(photo):
    simplejpeg = pytest.importorskip("simplejpeg")
    pixels = np.array(photo.resize((201, 133)))
    for sampling in ("440", "411"):
        content = simplejpeg.encode_jpeg(pixels, 85, "RGB", sampling)
        for size in (None, 8, 20):
            assert_as_pillow(content, size)


def test_pixels_are_memory_of_their_own(photo):
    content = written(photo)
    first = jpeg.decode_plain(content)
    expected = first.copy()
    first[:] = 0
    assert first.flags.c_contiguous
    np.testing.assert_array_equal(jpeg.decode_plain(content), expected)


# Which way up ------------------------------------------------------------------------

XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:RDF><rdf:Description %b</x:xmpmeta>"
LYING = {  # how a picture is laid down that this orientation turns upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


def in_rgb(content):
    """The same file, but that its components call themselves RGB, and nothing else is told."""
    assert content[2:4] == b"\xff\xe0"
    content = bytearray(content[:2] + content[20:])
    frame, scan = content.index(b"\xff\xc0"), content.index(b"\xff\xda")
    content[frame + 10 : frame + 19 : 3] = b"RGB"
    content[scan + 5 : scan + 11 : 2] = b"RGB"
    return bytes(content)


def with_segment(content, marker, segment):
    length = (len(segment) + 2).to_bytes(2, "big")
    return content[:2] + bytes([0xFF, marker]) + length + segment + content[2:]


@pytest.mark.parametrize("size", [None, 100, 20])
@pytest.mark.parametrize("orientation", LYING)
@pytest.mark.parametrize("told_by", ["exif, little end first", "exif, big end first", "xmp"])
def test_lying_pictures_come_out_upright(photo, told_by, orientation, size):
    pixels = np.asarray(photo)
    lying = Image.fromarray(np.ascontiguousarray(LYING[orientation](pixels)))
    content = written(lying, quality=95)
    if told_by == "xmp":
        segment = XMP % f'tiff:Orientation="{orientation}"'.encode()
    else:
        exif = Image.Exif()
        exif.endian = "<" if "little" in told_by else ">"
        exif[0x0112] = orientation
        segment = exif.tobytes()
    content = with_segment(content, 0xE1, segment)
    assert jpeg.plain_header(content).may_be_turned
    with Image.open(io.BytesIO(content)) as image:
        if told_by == "xmp" and orientation_of(image) != orientation:
            pytest.skip("this version of Pillow doesn't read the metadata of Adobe's programs")
    found = jpeg.decode_plain(content, size)
    fraction = 1 if size is None else {100: 2, 20: 8}[size]
    assert found.shape == (-(-427 // fraction), 640 // fraction, 3)
    expected = np.asarray(photo.resize(found.shape[1::-1], Image.Resampling.BOX), dtype=int)
    assert np.abs(found - expected).mean() < 6
    np.testing.assert_array_equal(
        found, decoding._decode_by_pillow(io.BytesIO(content), size, None)
    )


def test_metadata_without_an_orientation_cost_no_second_look(photo, monkeypatch):
    exif = Image.Exif()
    exif[0x010F] = "maker"
    content = written(photo, exif=exif)
    monkeypatch.setattr(Image, "open", None)
    assert jpeg.decode_plain(content).shape == (427, 640, 3)


def test_metadata_in_two_segments_are_read_as_one(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    told = exif.tobytes()
    at = told.index(b"\x01\x12" if told[6:8] == b"MM" else b"\x12\x01") + 1
    content = with_segment(written(photo), 0xE1, b"Exif\0\0" + told[at:])
    content = with_segment(content, 0xE1, told[:at])
    expected = decoding._decode_by_pillow(io.BytesIO(content), None, None)  # not all versions do
    np.testing.assert_array_equal(jpeg.decode_plain(content), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense \x01\x12", b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12"]
)
def test_broken_metadata_does_not_spoil_a_file(photo, exif):
    content = with_segment(written(photo), 0xE1, exif)
    assert jpeg.decode_plain(content).shape == (427, 640, 3)
    assert decode_file(content).shape == (427, 640, 3)


# What is for Pillow -------------------------------------------------------------------


def test_other_files_are_for_pillow(photo):
    plain = written(photo)
    frame = plain.index(b"\xff\xc0")
    for content in (
        b"",
        plain[:3],
        plain[:frame],  # no pixels
        plain[:frame] + b"\xff\xd9",
        plain[:frame] + b"\xff" + plain[frame:],  # a byte to fill
        plain[: frame + 1] + b"\xc9" + plain[frame + 2 :],  # arithmetic codes
        plain[: frame + 1] + b"\xc3" + plain[frame + 2 :],  # lossless
        plain[: frame + 4] + b"\x0c" + plain[frame + 5 :],  # 12 bits
        plain[: frame + 5] + b"\0\0" + plain[frame + 7 :],  # a height that is told later
        plain[: frame + 9] + b"\2" + plain[frame + 10 :],  # two components
        plain[:frame] + plain[frame : frame + 19] * 2 + plain[frame + 19 :],  # two frames
        with_segment(plain, 0xEE, b"Adobe\0\x64\0\0\0\0\0"),  # RGB
        with_segment(plain, 0xEE, b"Adobe"),
        with_segment(plain, 0xF7, b"unknown"),
        written(photo.convert("CMYK")),
        in_rgb(plain),
        written(photo.resize((64, 64)), "PNG"),
    ):
        assert jpeg.plain_header(content) is None
        assert jpeg.decode_plain(content) is None
    assert jpeg.plain_header(with_segment(plain, 0xEE, b"Adobe\0\x64\0\0\0\0\1")) is not None


def test_files_of_cmyk_and_rgb_are_read_as_ever(photo):
    for content in (written(photo.convert("CMYK"), quality=95), in_rgb(written(photo))):
        np.testing.assert_array_equal(decode_file(content), by_pillow(content))


def test_the_limit_of_pixels_is_pillows(photo, monkeypatch):
    content = written(photo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 640 * 427 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        decode_file(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        decode_file(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_file(content).shape == (427, 640, 3)


def test_several_pictures_in_a_file_are_read_at_a_fraction_of_the_first(photo, monkeypatch):
    content = written(photo, "MPO", save_all=True, append_images=[photo.rotate(180)])
    expected = by_pillow(written(photo), 20)
    np.testing.assert_array_equal(decode_file(content, 20), expected)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    np.testing.assert_array_equal(decode_file(content, 20), expected)


def test_without_the_library_pillow_reads_all(photo, monkeypatch):
    content = written(
        photo, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    )
    expected = decode_file(content, 40)
    assert expected.shape == (160, 107, 3)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert jpeg.decoder() == "Pillow"
    np.testing.assert_array_equal(decode_file(content, 40), expected)


# Broken files ------------------------------------------------------------------------


def outcome(read, content, size):
    try:
        return read(content, size)
    except Exception as error:
        return why_unreadable(error)


def pillow_alone(content, size):
    return decoding._decode_by_pillow(io.BytesIO(content), size, None)


@pytest.mark.parametrize("way", ["usual", "progressive", "restarts"])
def test_truncated_files_are_refused_as_by_pillow(photo, way):
    content = written(photo.resize((64, 43)), **WAYS[way])
    refused = 0
    for end in range(0, len(content), 7):
        expected = outcome(pillow_alone, content[:end], 8)
        found = outcome(decode_file, content[:end], 8)
        np.testing.assert_array_equal(found, expected)
        refused += isinstance(found, str)
    assert refused > len(content) // 7 - 3


def test_truncated_files_are_read_where_pillow_is_told_to(photo, monkeypatch):
    content = written(photo)[:20_000]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert decode_file(content).shape == (427, 640, 3)


def damaged(content, rng):
    """A file with a few bytes changed, lost or put in, more of them in its header than behind."""
    content = bytearray(content)
    end = len(content) if rng.integers(2) else content.index(b"\xff\xda") + 12
    for at in rng.integers(2, end, rng.integers(1, 4)):
        match rng.integers(4):
            case 0:
                del content[at : at + rng.integers(1, 20)]
            case 1:
                content[at:at] = rng.bytes(rng.integers(1, 20))
            case _:
                content[at : at + 1] = rng.bytes(1)
    return bytes(content)


def compare_damaged(contents, seed, n, connection):
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(seed)
    n_plain = 0
    for _ in range(n):
        content = damaged(contents[rng.integers(len(contents))], rng)
        size = (None, 3, 16)[rng.integers(3)]
        found = jpeg.decode_plain(content, size)
        if found is None:
            continue
        n_plain += 1
        expected = outcome(pillow_alone, content, size)
        if isinstance(expected, str) or np.abs(found.astype(int) - expected).max() > 1:
            connection.send((content, size, str(expected)))
            return
    connection.send(n_plain)


def test_damaged_files_end_as_with_pillow(photo, processes):
    """In a process of its own, which a decoder could bring down."""
    contents = [
        written(photo.resize(sides).convert(mode), **how)
        for sides in ((64, 43), (9, 9))
        for mode in ("RGB", "L")
        for how in WAYS.values()
        if "comment" not in how
    ]
    ours, theirs = multiprocessing.Pipe()
    process = processes.Process(target=compare_damaged, args=(contents, 0, 4000, theirs))
    process.start()
    theirs.close()
    found = ours.recv()  # an EOFError if the process died
    process.join()
    assert process.exitcode == 0
    assert isinstance(found, int), found
    assert found > 400


# Threads -----------------------------------------------------------------------------


def test_other_threads_run_while_a_file_is_decoded(photo):
    content = written(photo.resize((4000, 2667)))
    ticks, stopped = [], threading.Event()

    def tick():
        while not stopped.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        for _ in range(50):
            start = time.perf_counter()
            jpeg.decode_plain(content)
            took = time.perf_counter() - start
            # Neither at its beginning nor at its end, where Python runs.
            if any(start + 0.3 * took < at < start + 0.7 * took for at in ticks):
                return
    finally:
        stopped.set()
        thread.join()
    pytest.fail("no other thread ran in the middle of decoding")
