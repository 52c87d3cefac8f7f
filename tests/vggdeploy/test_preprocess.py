"""Preprocessing: geometry and arithmetic against independent computations, and TOML files."""

import numpy as np
import pytest
from PIL import Image

from vggdeploy import preprocess
from vggdeploy.errors import ConfigError
from vggdeploy.preprocess import PRESETS, Preprocess


def photograph(width, height, seed=0):
    """Blurred noise: neighbouring pixels are related and no two are alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (13, 11, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def torchvision_rule(image, resize_to, crop):
    """torchvision's Resize(int) and CenterCrop, as its source has them."""
    width, height = image.size
    if width <= height:
        size = (resize_to, int(resize_to * height / width))
    else:
        size = (int(resize_to * width / height), resize_to)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    top = round((pixels.shape[0] - crop[0]) / 2.0)
    left = round((pixels.shape[1] - crop[1]) / 2.0)
    return pixels[top : top + crop[0], left : left + crop[1]]


SIZES = [
    (500, 375),
    (375, 500),
    (256, 256),
    (300, 300),
    (257, 256),
    (100, 91),
    (90, 700),
    (333, 257),
]


@pytest.mark.parametrize("size", SIZES)
def test_shortest_is_torchvisions_rule(size):
    image = photograph(*size)
    made = PRESETS["imagenet"].geometry(image)
    assert made.shape == (224, 224, 3)
    assert made.dtype == np.uint8
    assert np.array_equal(made, torchvision_rule(image, 256, (224, 224)))


@pytest.mark.parametrize("size", SIZES)
def test_size_is_height_and_width(size):
    recipe = Preprocess(size=(64, 96), resize_to=100)
    image = photograph(*size)
    assert np.array_equal(recipe.geometry(image), torchvision_rule(image, 100, (64, 96)))
    stretched = Preprocess(size=(64, 96), resize="stretch").geometry(image)
    assert np.array_equal(stretched, np.asarray(image.resize((96, 64), Image.Resampling.BILINEAR)))


def test_the_crop_is_the_centre():
    image = Image.new("RGB", (512, 512))
    image.paste((255, 0, 0), (128, 128, 384, 384))  # a square in the middle, half as wide
    made = PRESETS["imagenet"].geometry(image)
    # 256 pixels stand for 512, so the square fills 64 to 192, and 48 to 176 of the crop.
    red = np.argwhere(made[..., 0] > 127)
    assert red.min(0).tolist() == [48, 48]
    assert red.max(0).tolist() == [175, 175]


def test_shrinking_is_antialiased():
    checkers = np.indices((512, 512)).sum(0) % 2 * 255
    image = Image.fromarray(checkers.astype(np.uint8)).convert("RGB")
    made = PRESETS["imagenet"].geometry(image)
    # Every other pixel dropped would leave black or white; averaged they are all grey.
    assert np.abs(made.astype(int) - 127.5).max() < 2


@pytest.mark.parametrize("name", PRESETS)
def test_arithmetic_against_float64(name):
    recipe = PRESETS[name]
    values = np.arange(256, dtype=np.uint8)
    pixels = np.stack([values, values[::-1], np.roll(values, 77)], -1).reshape(1, 16, 16, 3)
    ordered = pixels[..., ::-1] if recipe.channels == "bgr" else pixels
    mean, std = np.array(recipe.mean), np.array(recipe.std)
    exact = ((ordered * recipe.scale - mean) / std).transpose(0, 3, 1, 2)
    made = recipe.arithmetic(pixels)
    assert made.dtype == np.float32
    assert made.flags.c_contiguous
    # Five float32 roundings (scale, std, their quotient, product, difference) of terms no larger
    # than these; a sixth for the second order.
    bound = 6 * 2.0**-24 * ((255 * recipe.scale + mean) / std).max()
    assert np.abs(made - exact).max() <= bound


def test_presets_are_the_published_ones():
    white = np.full((1, 1, 1, 3), 255, np.uint8)
    made = {name: recipe.arithmetic(white).ravel() for name, recipe in PRESETS.items()}
    assert made["unit"] == pytest.approx([1, 1, 1])
    assert made["imagenet"] == pytest.approx([2.24891, 2.42857, 2.64], abs=1e-5)
    assert made["demo"] == pytest.approx(made["imagenet"])
    # Blue first: Caffe's mean image has blue at 103.939.
    assert made["caffe"] == pytest.approx([151.061, 138.221, 131.32], abs=1e-4)
    blue = np.array([[[[0, 0, 255]]]], np.uint8)
    assert PRESETS["caffe"].arithmetic(blue).ravel()[0] == pytest.approx(151.061, abs=1e-4)


def test_nhwc_is_the_same_numbers_in_another_order():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    first, last = (Preprocess(size=(5, 7), layout=layout) for layout in ("nchw", "nhwc"))
    assert (first.input_shape, last.input_shape) == ((3, 5, 7), (5, 7, 3))
    made = last.arithmetic(pixels)
    assert made.shape == (2, 5, 7, 3)
    assert np.array_equal(made.transpose(0, 3, 1, 2), first.arithmetic(pixels))


@pytest.mark.parametrize("name", PRESETS)
def test_json_gives_it_back(name):
    assert preprocess.load(name) is PRESETS[name]
    table = PRESETS[name].to_json()
    assert preprocess.from_mapping(table, where="here") == PRESETS[name]


def toml(tmp_path, text):
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_a_toml_file_is_read(tmp_path):
    file = toml(
        tmp_path,
        """
        size = [160, 192]
        resize = "stretch"
        interpolation = "bicubic"
        channels = "bgr"
        scale = 1
        mean = [1, 2.5, 3]
        std = [0.5, 1, 2]
        layout = "nhwc"
        """,
    )
    assert preprocess.load(file) == Preprocess(
        size=(160, 192),
        resize="stretch",
        interpolation="bicubic",
        channels="bgr",
        scale=1.0,
        mean=(1.0, 2.5, 3.0),
        std=(0.5, 1.0, 2.0),
        layout="nhwc",
    )
    assert preprocess.load(toml(tmp_path, "")) == Preprocess()
    assert preprocess.load(toml(tmp_path, "\ufeffscale = 2")).scale == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sizes = [224, 224]", "unknown key: got 'sizes'"),
        ("size = 224", "size is wrong: got 224"),
        ("size = [224]", "size is wrong"),
        ("size = [224, 224, 3]", "size is wrong"),
        ("size = [224.0, 224]", "size is wrong"),
        ("size = [0, 224]", "size is wrong"),
        ("size = [60000, 60000]", "size is wrong: got (60000, 60000), expected 16,777,216 pixels"),
        ("size = [true, true]", "size is wrong"),
        ('resize = "crop"', "resize is wrong: got 'crop', expected one of shortest, stretch"),
        ("resize = 256", "resize is wrong"),
        ("resize = []", "resize is wrong"),
        ("resize_to = 256.5", "resize_to is wrong"),
        ("resize_to = true", "resize_to is wrong"),
        ("resize_to = 100", "the crop is larger than the resized image"),
        ('interpolation = "lanczos"', "interpolation is wrong"),
        ('channels = "RGB"', "channels is wrong"),
        ('scale = "1/255"', "scale is wrong"),
        ("scale = 0", "std and scale"),
        ("scale = -1.0", "std and scale"),
        ("scale = nan", "scale is wrong"),
        ("scale = inf", "scale is wrong"),
        ("scale = 1" + "0" * 400, "got a whole number of more than 64 bits"),
        ("scale = 0x" + "f" * 40_000, "got a whole number of more than 64 bits"),
        ("mean = [0.5, 0.5]", "mean is wrong"),
        ("mean = 0.5", "mean is wrong"),
        ('mean = ["a", "b", "c"]', "mean is wrong"),
        ("mean = [0.5, nan, 0.5]", "mean is wrong"),
        ("std = [1, 0, 1]", "std and scale"),
        ("std = [1e-60, 1, 1]", "std"),
        ("std = [1, 1, true]", "std is wrong"),
        ('layout = "chw"', "layout is wrong"),
        ("size = [224, 224", "cannot be read"),
        ("[preprocess]\nscale = 1", "unknown key: got 'preprocess'"),
    ],
)
def test_a_bad_toml_file_is_an_error_that_names_it(tmp_path, text, said):
    file = toml(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        preprocess.load(file)
    assert said in str(caught.value)
    assert file in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown preprocessing: got 'vgg'.*imagenet"):
        preprocess.load("vgg")
    with pytest.raises(ConfigError, match=r"none\.toml does not exist"):
        preprocess.load(str(tmp_path / "none.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.toml cannot be read"):
        preprocess.load(str(tmp_path / "folder.toml"))
    (tmp_path / "latin.toml").write_bytes('resize = "\xe9"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.toml cannot be read"):
        preprocess.load(str(tmp_path / "latin.toml"))
