"""Checkpoints that are truncated, hold code, or are something else altogether."""

import os
import pickle
import zipfile

import pytest
import torch

from vggdeploy import checkpoints, digests, reference, topology
from vggdeploy.errors import VggdeployError, WeightsError

SLIM = topology.vgg("vgg11", num_classes=10, input_size=(32, 32), width_divisor=32)


def state():
    return {key: torch.ones(v.shape) for key, v in reference.build(SLIM).state_dict().items()}


def weights(path):
    return reference.Weights(str(path), path, digests.sha256_file(path), SLIM, "unit")


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_a_truncated_pth_file_is_said_to_be(tmp_path, zipped):
    file = saved(tmp_path / "w.pth", state(), _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    # Closer together at the start, where the pickle is; then the tensors.
    for length in [*range(0, 2000, 91), *range(2000, len(whole), len(whole) // 20)]:
        file.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"w\.pth") as caught:
            reference.load(weights(file))
        assert "mmap" not in str(caught.value), "the user has nothing to do with how it is read"


def test_a_truncated_safetensors_file_is_said_to_be(tmp_path):
    file = tmp_path / "w.safetensors"
    checkpoints.save(file, {k: v.numpy() for k, v in state().items()}, SLIM, "unit")
    whole = file.read_bytes()
    for length in [0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"w\.safetensors cannot be read"):
            reference.load(reference.locate(str(file)))


class Code:
    """A pickle of it runs a command when it is loaded by a careless reader."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["zip", "before-1.6", "pickle"])
def test_code_in_a_pickle_does_not_run(tmp_path, form):
    marker, file = tmp_path / "ran", tmp_path / "w.pth"
    if form == "pickle":
        # Protocol 2 is the one that torch writes; of others it warns.
        file.write_bytes(pickle.dumps(Code(marker), protocol=2))
    else:
        torch.save({"a": Code(marker)}, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match=r"w\.pth"):
        reference.load(weights(file))
    assert not marker.exists()
    if form == "pickle":
        pickle.loads(file.read_bytes())
        assert marker.exists(), "the same bytes do run elsewhere"


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(1)], {"state_dict": {"a": torch.zeros(1)}}, {"epoch": 3}, {3: torch.zeros(1)}, 7],
)
def test_a_file_of_something_else_is_no_state_dict(tmp_path, content):
    with pytest.raises(WeightsError, match=r"w\.pth is not a state dict"):
        reference.load(weights(saved(tmp_path / "w.pth", content)))


@pytest.mark.parametrize("content", [b"", b"hello\n", b"<html>404</html>", b"PK\3\4", bytes(100)])
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
def test_a_file_of_another_format_is_an_error(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        reference.load(reference.locate(str(file)))


@pytest.mark.parametrize(
    "said",
    [
        "5",
        '"arch"',
        "{",
        '{"arch": 3}',
        '{"num_classes": "ten"}',
        '{"num_classes": true}',
        '{"num_classes": -1}',
        '{"width_divisor": -1}',
        '{"width_divisor": 1000}',
    ],
)
def test_wrong_metadata_is_an_error(tmp_path, said):
    from safetensors.torch import save_file

    file = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, file, metadata={checkpoints.METADATA_KEY: said})
    with pytest.raises(VggdeployError):
        reference.load(reference.locate(str(file)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    spoiled = state()
    spoiled["classifier.3.weight"][1, 2] = value
    file = saved(tmp_path / "w.pth", spoiled)
    with pytest.raises(WeightsError, match=r"classifier\.3\.weight holds NaN or infinity"):
        reference.load(weights(file))


def test_integer_weights_are_no_float_weights(tmp_path):
    file = saved(tmp_path / "w.pth", {k: v.to(torch.int8) for k, v in state().items()})
    with pytest.raises(WeightsError, match=r"features\.0\.weight holds no floating-point"):
        reference.load(weights(file))


def test_a_state_dict_inside_of_a_checkpoint_is_pointed_at(tmp_path):
    file = saved(tmp_path / "w.pth", {"state_dict": state(), "epoch": 3})
    with pytest.raises(WeightsError, match=r"a dict of state_dict, epoch, .* the state dict that"):
        reference.load(weights(file))


def test_the_prefix_of_data_parallel_is_pointed_at(tmp_path):
    file = saved(tmp_path / "w.pth", {f"module.{k}": v for k, v in state().items()})
    with pytest.raises(WeightsError, match=r"strip the prefix 'module\.'"):
        reference.load(weights(file))


@pytest.mark.filterwarnings("ignore")  # of tensors of these kinds, as torch makes and reads them
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (lambda v: v.to_sparse(), "is no dense tensor: got sparse_coo"),
        (lambda v: v.flatten(1).to_sparse_csr(), "is no dense tensor: got sparse_csr"),
        (lambda v: v.to("meta"), "is no dense tensor: got one on the device meta"),
        (
            lambda v: torch.nested.nested_tensor([v[0], v[0]]),
            "is no dense tensor: got nested|cannot be",
        ),
        (
            lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
            "floating-point numbers: got qint8",
        ),
        (lambda v: v.to(torch.complex64), "floating-point numbers: got complex64"),
        # More than there is memory for, had anybody looked at it.
        (lambda v: torch.ones(1).expand(1 << 20, 1 << 22), r"of shape \[1048576, 4194304\]"),
    ],
)
def test_tensors_of_other_kinds_are_refused(tmp_path, zipped, odd, words):
    key = "features.0.weight"
    content = {**state(), key: odd(state()[key])}
    file = saved(tmp_path / "w.pth", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=rf"w\.pth.*({words})"):
        reference.load(weights(file))


def test_eight_bits_are_no_float_weights(tmp_path):
    """Of safetensors too, which know two such formats."""
    from safetensors.torch import save_file

    content = {**state(), "features.0.bias": state()["features.0.bias"].to(torch.float8_e4m3fn)}
    save_file(content, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"features\.0\.bias holds no .* got float8_e4m3fn"):
        reference.load(weights(tmp_path / "w.safetensors"))


NAME = b"a" * 3000


@pytest.mark.parametrize("form", ["zip", "before-1.6"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pickle.GLOBAL + NAME + b"\n" + NAME + b"\n", "more than 1,024 bytes of a name"),
        (pickle.GLOBAL + b"\xff" * 3000, "more than 1,024 bytes of a name"),
        (pickle.BINUNICODE + b"\xff\xff\xff\x7f" + NAME, "2,147,483,647 bytes where a name may be"),
        (pickle.BINUNICODE8 + b"\xff" * 7 + b"\x7f", "bytes where a name may be"),
    ],
)
def test_a_name_without_end_is_refused_before_torch_reads_it(
    tmp_path, monkeypatch, form, code, words
):
    """Of a global that it does not know it speaks for a time that is the cube of its length."""
    path = saved(tmp_path / "w.pth", {}, _use_new_zipfile_serialization=form == "zip")
    code = pickle.PROTO + b"\x02" + code + pickle.STOP
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", code)
    else:
        magic = path.read_bytes().split(pickle.STOP)[0] + pickle.STOP
        path.write_bytes(magic + code)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))
    with pytest.raises(WeightsError, match=rf"w\.pth cannot be read: got .*{words}"):
        reference.load(weights(path))


def test_a_pickle_that_does_not_inflate_is_said_to_be(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", os.urandom(4) * 100)
        archive.writestr("w/data/0", bytes(10_000), zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF
    content[41] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pth"):
        reference.load(weights(path))
