"""The torch module and its weights: names, files good and bad, and BatchNorm folding."""

import urllib.error

import numpy as np
import pytest
import torch

from vggdeploy import checkpoints, digests, reference, topology
from vggdeploy.errors import ConfigError, MissingError, WeightsError

SLIM = topology.vgg("vgg11", num_classes=10, input_size=(32, 32), width_divisor=32)


def random_state(network, seed=0):
    """A state dict with torchvision's names and values that differ everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(value.shape, generator=generator) - 0.5 if value.ndim else torch.tensor(1)
        for key, value in reference.build(network).state_dict().items()
    }


def light_state(arch, num_classes=1000):
    """A full-size state dict in a few bytes: each tensor is one zero, seen many times."""
    module = reference.build(topology.vgg(arch, num_classes=num_classes))
    return {key: torch.zeros(()).expand(v.shape) for key, v in module.state_dict().items()}


def weights(path, network=SLIM):
    return reference.Weights(str(path), path, digests.sha256_file(path), network, "unit")


def saved(path, state, **options):
    torch.save(state, path, **options)
    return path


def test_names_are_torchvisions():
    convolutions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    layers = [f"features.{i}" for i in convolutions] + [f"classifier.{i}" for i in (0, 3, 6)]
    names = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    assert list(reference.build(topology.vgg("vgg16")).state_dict()) == names


def test_names_with_batchnorm_are_torchvisions():
    pairs = ((0, 1), (3, 4), (7, 8), (10, 11), (14, 15), (17, 18), (20, 21), (24, 25))
    pairs += ((27, 28), (30, 31), (34, 35), (37, 38), (40, 41))
    names = []
    for conv, norm in pairs:
        names += [f"features.{conv}.weight", f"features.{conv}.bias"]
        parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        names += [f"features.{norm}.{part}" for part in parts]
    names += [f"classifier.{i}.{part}" for i in (0, 3, 6) for part in ("weight", "bias")]
    assert list(reference.build(topology.vgg("vgg16_bn")).state_dict()) == names


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_a_pth_file_round_trips(tmp_path, zipped):
    # The second form is what torch wrote before 1.6, and what torchvision's VGG files are in.
    state = random_state(SLIM)
    file = saved(tmp_path / "w.pth", state, _use_new_zipfile_serialization=zipped)
    module = reference.load(weights(file))
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    loaded = module.state_dict()
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_a_safetensors_file_says_its_network(tmp_path):
    file = tmp_path / "w.safetensors"
    state = {key: value.numpy().astype(np.float16) for key, value in random_state(SLIM).items()}
    checkpoints.save(file, state, SLIM, "caffe")
    found = reference.locate(str(file), input_size=(32, 32))
    assert (found.network, found.preprocess, found.demo) == (SLIM, "caffe", False)
    assert (found.source, found.sha256) == (str(file), digests.sha256_file(file))
    loaded = reference.load(found).state_dict()
    assert all(value.dtype == torch.float32 for value in loaded.values())
    assert all(np.array_equal(loaded[key].numpy(), value) for key, value in state.items())


def test_a_checkpoint_without_batch_counters_loads(tmp_path):
    network = topology.vgg("vgg11_bn", num_classes=10, width_divisor=32)
    state = {k: v for k, v in random_state(network).items() if "num_batches" not in k}
    module = reference.load(weights(saved(tmp_path / "w.pth", state), network))
    assert torch.equal(module.state_dict()["features.1.weight"], state["features.1.weight"])


def test_channels_last_changes_the_layout_and_not_the_scores(tmp_path):
    file = saved(tmp_path / "w.pth", random_state(SLIM))
    image = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    plain, last = (reference.load(weights(file), channels_last=choice) for choice in (False, True))
    assert last.features[3].weight.is_contiguous(memory_format=torch.channels_last)
    scores = reference.outputs(plain, image)
    assert scores.shape == (2, 10)
    assert scores.dtype == np.float32
    # Sums of up to 784 float32 products in another order, eleven layers deep.
    assert np.allclose(scores, reference.outputs(last, image), rtol=1e-4, atol=1e-5)


def test_the_first_key_that_differs_is_named(tmp_path):
    state = random_state(SLIM)
    del state["features.3.bias"]
    with pytest.raises(WeightsError, match=r"w\.pth does not fit vgg11: got no key 'features.3.b"):
        reference.load(weights(saved(tmp_path / "w.pth", state)))
    state = {**random_state(SLIM), "features.1.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"got an unknown key 'features\.1\.weight'"):
        reference.load(weights(saved(tmp_path / "w.pth", state)))
    state = {**random_state(SLIM), "features.3.weight": torch.zeros(4, 2, 5, 5)}
    with pytest.raises(WeightsError, match=r"features\.3\.weight of shape \[4, 2, 5, 5\]"):
        reference.load(weights(saved(tmp_path / "w.pth", state)))


@pytest.mark.parametrize("arch", topology.ARCHITECTURES)
def test_the_arch_that_a_file_fits_is_suggested(tmp_path, arch):
    file = saved(tmp_path / "w.pth", light_state(arch))
    other = "vgg16" if arch != "vgg16" else "vgg19"
    with pytest.raises(WeightsError) as caught:
        reference.load(reference.locate(str(file), arch=other))
    assert caught.value.fix.endswith(f"give --arch {arch}")
    loaded = reference.load(reference.locate(str(file), arch=arch))
    assert loaded.classifier[6].weight.shape == (1000, 4096)


def test_the_number_of_classes_that_a_file_has_is_suggested(tmp_path):
    file = saved(tmp_path / "w.pth", light_state("vgg16", num_classes=17))
    with pytest.raises(WeightsError, match=r"give --num-classes 17$"):
        reference.load(reference.locate(str(file)))
    module = reference.load(reference.locate(str(file), num_classes=17))
    assert module.classifier[6].weight.shape == (17, 4096)


def test_a_source_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(WeightsError, match="unknown weights: got 'imagenet1k'"):
        reference.locate("imagenet1k")
    with pytest.raises(WeightsError, match=r"w\.pth does not exist"):
        reference.locate(str(tmp_path / "w.pth"))
    with pytest.raises(WeightsError, match="demo weights fit --arch vgg16 alone: got vgg19"):
        reference.locate("demo", arch="vgg19")
    with pytest.raises(WeightsError, match="demo weights fit --num-classes 1000 alone: got 10"):
        reference.locate("demo", num_classes=10)
    with pytest.raises(ConfigError, match="unknown architecture: got 'vgg17'"):
        reference.locate(str(saved(tmp_path / "w.pth", {})), arch="vgg17")
    with pytest.raises(ConfigError, match="cannot have so many classes"):
        reference.locate(str(tmp_path / "w.pth"), num_classes=0)


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), RuntimeError("invalid hash value"), TimeoutError()]
)
def test_offline_the_published_checkpoint_is_missing(tmp_path, monkeypatch, error):
    asked = []

    def fail(url, path, hash_prefix):
        asked.append((url, hash_prefix))
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(MissingError, match=r"vgg16-397923af\.pth cannot be fetched") as caught:
        reference.locate("imagenet")
    assert caught.value.exit_code == 3
    assert caught.value.__cause__ is error
    assert "--weights demo" in caught.value.fix
    assert asked == [("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af")]


def test_a_published_checkpoint_is_fetched_once(tmp_path, monkeypatch):
    def fetch(url, path, hash_prefix):
        fetched.append(url.rsplit("/", 1)[1])
        torch.save(light_state("vgg19_bn"), path, _use_new_zipfile_serialization=False)

    fetched = []
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for _ in range(2):
        found = reference.locate("imagenet", arch="vgg19_bn")
    assert fetched == ["vgg19_bn-c79401a0.pth"]
    assert (found.source, found.preprocess, found.network.arch) == ("imagenet",) * 2 + ("vgg19_bn",)


def test_folding_batchnorm_keeps_the_function(tmp_path):
    network = topology.vgg("vgg16_bn", num_classes=10, width_divisor=16)
    state = random_state(network)
    for key, value in state.items():
        if key.endswith("running_var"):
            state[key] = value + 1.0  # a variance, 0.5 to 1.5
    module = reference.load(weights(saved(tmp_path / "w.pth", state), network)).double()
    image = torch.rand(
        2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    before = module(image)
    folded = reference.fold_batchnorm(module)
    assert not any(isinstance(at, torch.nn.BatchNorm2d) for at in folded.modules())
    assert list(dict(folded.features.named_children())) == [str(i) for i in range(44)]
    assert before.abs().max() > 0.01
    # float64 throughout: only rounding, of some 4,000 operations deep, may differ.
    assert torch.allclose(folded(image), before, rtol=1e-11, atol=1e-13)
