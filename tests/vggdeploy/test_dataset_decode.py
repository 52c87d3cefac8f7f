"""Image files as 8-bit RGB: every kind of sample, and every kind of damage."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile

from vggdeploy import dataset
from vggdeploy.errors import DatasetError


def decoded(path):
    image = dataset.decode(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def pixels(values, mode):
    """A one-row image of these pixel values."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("1", [0, 255, 255], [[0] * 3, [255] * 3, [255] * 3]),
        ("L", [0, 77, 255], [[0] * 3, [77] * 3, [255] * 3]),
        ("LA", [(77, 255), (78, 0), (79, 9)], [[77] * 3, [78] * 3, [79] * 3]),
        ("RGB", [(1, 2, 3), (250, 0, 9)], [[1, 2, 3], [250, 0, 9]]),
        ("RGBA", [(1, 2, 3, 255), (200, 10, 20, 0)], [[1, 2, 3], [200, 10, 20]]),
    ],
)
def test_png_of_each_mode(tmp_path, mode, values, expected):
    assert decoded(saved(tmp_path / "x.png", pixels(values, mode)))[0].tolist() == expected


@pytest.mark.parametrize("transparency", [None, 1, b"\xff\x00\x80"])
def test_palettes_are_looked_up_and_transparency_dropped(tmp_path, transparency):
    image = pixels([0, 1, 2, 1], "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    options = {} if transparency is None else {"transparency": transparency}
    made = decoded(saved(tmp_path / "x.png", image, **options))
    assert made[0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90], [40, 50, 60]]


def test_a_transparent_gif_keeps_its_colours(tmp_path):
    image = pixels([0, 1], "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    path = saved(tmp_path / "x.gif", image, transparency=1)
    assert decoded(path)[0].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_cmyk_is_converted(tmp_path):
    inks = pixels([(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255)], "CMYK")
    made = decoded(saved(tmp_path / "x.tif", inks))
    assert made[0].tolist() == [[255, 255, 255], [0, 255, 255], [0, 0, 0]]
    made = decoded(saved(tmp_path / "x.jpg", Image.new("CMYK", (8, 8), (255, 0, 0, 0))))
    # JPEG is lossy: a few levels on a flat colour at the default quality.
    assert np.abs(made.astype(int) - [0, 255, 255]).max() <= 4


# 16-bit samples: 257 levels stand for one of 8 bits, so that white stays white.
WIDE = [0, 128, 129, 257, 300, 32896, 65406, 65407, 65535]
NARROW = [0, 0, 1, 1, 1, 128, 254, 255, 255]


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, name):
    image = Image.fromarray(np.array([WIDE], np.uint16))
    made = decoded(saved(tmp_path / name, image))
    assert made[0].tolist() == [[value] * 3 for value in NARROW]


def test_16_bit_pgm_is_scaled_by_its_own_maximum(tmp_path):
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 9 1 65535\n" + np.array(WIDE, ">u2").tobytes())
    assert decoded(path)[0, :, 0].tolist() == NARROW
    path.write_bytes(b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes())
    assert decoded(path)[0, :, 0].tolist() == [0, 128, 255]


def test_big_endian_tiff_is_scaled_too(tmp_path):
    image = Image.frombytes("I;16B", (9, 1), np.array(WIDE, ">u2").tobytes())
    assert decoded(saved(tmp_path / "x.tif", image))[0, :, 0].tolist() == NARROW


@pytest.mark.parametrize(("kind", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_samples_of_unknown_range_are_an_error(tmp_path, kind, mode):
    path = saved(tmp_path / "x.tif", Image.fromarray(np.array([[0, 1]], kind)))
    with pytest.raises(
        DatasetError, match=rf"x\.tif has samples of unknown range: got mode {mode}"
    ):
        dataset.decode(path)


def test_exif_rotation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    path = saved(tmp_path / "x.jpg", Image.new("RGB", (30, 20)), exif=exif)
    assert dataset.decode(path).size == (30, 20)


def encoded(suffix):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, suffix.replace("jpg", "jpeg").replace("tif", "tiff"))
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "ppm", "tif"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, suffix, share):
    path, whole = tmp_path / f"x.{suffix}", encoded(suffix)
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DatasetError, match=rf"image .*x\.{suffix}"):
        dataset.decode(path)


@pytest.mark.parametrize("content", [b"", b"an image, surely\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8"])
def test_a_file_that_only_claims_to_be_an_image_is_an_error(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"x\.png"):
        dataset.decode(path)
    with pytest.raises(DatasetError, match=r"x\.png"):
        dataset.Dataset(tmp_path, (dataset.Sample(path, None),)).digest()


def test_a_wrong_suffix_is_no_error(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(encoded("jpg"))
    assert dataset.decode(path).size == (50, 40)


def test_what_another_program_would_decode_is_not_opened(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with Image.open(path) as image:
        assert image.format == "EPS"
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given: ran.append(given))
    with pytest.raises(DatasetError, match=r"x\.png is of no known format"):
        dataset.decode(path)
    with pytest.raises(DatasetError, match=r"x\.png is of no known format"):
        dataset.Dataset(tmp_path, (dataset.Sample(path, None),)).digest()
    assert not ran


def bomb(path, side):
    """A PNG of a hundred bytes whose header claims `side` pixels each way."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = (
        chunk(b"IHDR", header),
        chunk(b"IDAT", zlib.compress(b"\0" * 100)),
        chunk(b"IEND", b""),
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


# Pillow refuses the one by itself, and only warns of the other.
@pytest.mark.parametrize("side", [60_000, 10_000])
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_a_decompression_bomb_is_refused_unopened(tmp_path, side, action, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    path = bomb(tmp_path / "x.png", side)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(DatasetError, match=r"x\.png is too large.*89,478,485 pixels or fewer"):
            dataset.decode(path)


def test_many_pixels_for_few_bytes_are_refused_unopened(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.webp", Image.new("RGB", (4000, 3000), (9, 9, 9)), lossless=True)
    held = path.stat().st_size
    with (
        monkeypatch.context() as patch,
        pytest.raises(
            DatasetError,
            match=rf"x\.webp is too large: got 4000x3000 pixels in {held} bytes.* 1,000 for a byte",
        ),
    ):
        patch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
        dataset.decode(path)
    # What has as many bytes for its pixels as a photograph is read; so is what is small.
    with path.open("ab") as file:
        file.write(bytes(12_000))
    assert dataset.decode(path).size == (4000, 3000)
    plain = saved(tmp_path / "y.webp", Image.new("RGB", (3000, 2000)), lossless=True)
    assert dataset.decode(plain).size == (3000, 2000)


def test_a_field_of_another_kind_than_its_number_is_an_error(tmp_path):
    """A TIFF that says with a fraction where its pixels are."""
    path = saved(tmp_path / "x.tif", Image.new("RGB", (16, 16)))
    offsets = struct.pack("<HHL", 273, 4, 1)
    assert path.read_bytes().count(offsets) == 1
    path.write_bytes(path.read_bytes().replace(offsets, struct.pack("<HHL", 273, 5, 1)))
    with pytest.raises(DatasetError, match=r"x\.tif cannot be read"):
        dataset.decode(path)


def test_what_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match=r"gone\.png does not exist"):
        dataset.decode(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DatasetError, match=r"folder\.png cannot be read"):
        dataset.decode(tmp_path / "folder.png")

    def refuse(path, formats):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(dataset.Image, "open", refuse)
    with pytest.raises(DatasetError, match=r"x\.png cannot be read.*Permission denied"):
        dataset.decode(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "webp", "ppm"])
def test_damaged_bytes_are_an_image_or_an_error_and_nothing_else(tmp_path, suffix):
    whole, path = encoded(suffix), tmp_path / f"x.{suffix}"
    rng = np.random.default_rng(1)
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, min(len(content), 120), 3):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            assert dataset.decode(path).mode == "RGB"
        except DatasetError as error:
            assert path.name in str(error)
