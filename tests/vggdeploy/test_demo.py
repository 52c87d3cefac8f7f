"""The demo: its digits, its checkpoint, and widening that keeps the function."""

import numpy as np
import pytest
import torch

from vggdeploy import checkpoints, dataset, demo, preprocess, reference, topology
from vggdeploy.demo import digits, widen
from vggdeploy.errors import WeightsError


@pytest.fixture(scope="module")
def slim():
    """The shipped network as it was trained, an eighth as wide."""
    return reference.load(reference.locate(str(demo.CHECKPOINT)), channels_last=True)


def inputs(pixels):
    """Digits ``[N, 8, 8]`` through the demo's own preprocessing."""
    from PIL import Image

    recipe = preprocess.PRESETS["demo"]
    made = [recipe.geometry(Image.fromarray(image).convert("RGB")) for image in pixels]
    return recipe.arithmetic(np.stack(made))


def slim_arrays():
    return {key: v.float().numpy() for key, v in checkpoints.read(demo.CHECKPOINT).items()}


def test_splits_are_disjoint_and_whole():
    from sklearn.datasets import load_digits

    training, heldout = (digits.split(name)[0] for name in digits.SPLITS)
    assert (len(training), len(heldout)) == (1397, 400)
    together = np.concatenate([training, heldout]).reshape(1797, -1)
    every = np.round(load_digits().images * (255 / 16)).astype(np.uint8).reshape(1797, -1)
    # No two of the digits are alike, so sorted rows tell both: all are there, and none twice.
    assert len(np.unique(every, axis=0)) == 1797
    assert np.array_equal(np.unique(together, axis=0), np.unique(every, axis=0))


def test_splits_are_the_same_every_time():
    first, second = digits.split("heldout"), digits.split("heldout")
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    # The shuffle itself is fixed: another would leak training digits into the held-out ones.
    assert first[1][:10].tolist() == [8, 7, 3, 7, 3, 2, 6, 3, 7, 6]
    assert np.bincount(first[1]).min() >= 25, "every digit is held out often enough"


def test_digits_written_as_files_are_the_digits(tmp_path):
    digits.write("heldout", tmp_path)
    found = dataset.scan(tmp_path)
    pixels, labels = digits.split("heldout")
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(i) for i in range(10)]
    assert len(found) == 400
    for sample in found.samples[::7]:
        index = int(sample.path.stem)
        assert sample.label == labels[index]
        grey = np.asarray(dataset.decode(sample.path))
        assert np.array_equal(grey, np.repeat(pixels[index][..., None], 3, axis=2))


def test_the_checkpoint_is_small_and_half_precision():
    assert demo.CHECKPOINT.stat().st_size <= 5_500_000
    state = checkpoints.read(demo.CHECKPOINT)
    assert {value.dtype for value in state.values()} == {torch.float16}
    network = topology.vgg("vgg16", width_divisor=demo.WIDTH_DIVISOR)
    assert sum(value.numel() for value in state.values()) == topology.total_params(network)
    assert reference.locate(str(demo.CHECKPOINT)).network == network
    assert all(torch.isfinite(value).all() for value in state.values())


def test_the_checkpoint_reads_digits_it_has_not_seen(slim):
    pixels, labels = digits.split("heldout")
    right = 0
    for start in range(0, len(pixels), 50):
        scores = reference.outputs(slim, inputs(pixels[start : start + 50]))
        right += int((scores.argmax(1) == labels[start : start + 50]).sum())
    assert right / len(pixels) >= 0.97


def test_widening_keeps_the_function(slim):
    pixels, _ = digits.split("heldout")
    batch = inputs(pixels[:4])
    twice = topology.vgg("vgg16", width_divisor=4)
    module = reference.build(twice)
    wide = widen.widen(slim_arrays(), twice)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in wide.items()}, assign=True)
    expected = reference.outputs(slim, batch)
    # Halving weights is exact; only the order of float32 sums differs.
    assert np.allclose(reference.outputs(module.eval(), batch), expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 1


def test_the_full_network_computes_what_the_slim_one_does(slim):
    pixels, _ = digits.split("heldout")
    image = inputs(pixels[:1])
    full = reference.load(reference.locate("demo"), channels_last=True)
    assert sum(parameter.numel() for parameter in full.parameters()) == 138_357_544
    scores, expected = (reference.outputs(module, image) for module in (full, slim))
    assert scores.shape == (1, 1000)
    assert np.allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_copies_lie_side_by_side_as_groups():
    slim = slim_arrays()
    wide = widen.widen(slim, topology.vgg("vgg16", width_divisor=4))
    first = "features.0.weight"
    assert np.array_equal(wide[first], np.concatenate([slim[first]] * 2))
    second = "features.2.weight"
    row = np.concatenate([slim[second] / 2] * 2, axis=1)
    assert np.array_equal(wide[second], np.concatenate([row, row]))
    assert not np.array_equal(wide[first][0], wide[first][1])


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(WeightsError, match=r"features\.0 cannot be widened: got 8 channels"):
        widen.widen(slim_arrays(), topology.vgg("vgg16", width_divisor=3))
