"""Where a network comes from: our weights or a foreign graph; and its reference outputs.

A build resolves a source from its options, a verification from a bundle's manifest. Either way
the reference's scores for a set of images are computed once and kept in the cache.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import dataset, digests, export, graphs, parity, targets
from vggdeploy import preprocess as preprocessing
from vggdeploy import reference as references
from vggdeploy.contracts import GraphTarget, RunOptions, Target
from vggdeploy.demo import digits
from vggdeploy.errors import ConfigError, MissingError, ModelError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from vggdeploy.cache import Cache, Entry
    from vggdeploy.contracts import Reporter
    from vggdeploy.dataset import Dataset
    from vggdeploy.preprocess import Preprocess
    from vggdeploy.reference import Weights
    from vggdeploy.topology import Network

DEMO = "demo"
"""Names the demo's images where a folder is asked for."""

SCORES = "scores.npy"
_BATCH = 8


@dataclass(frozen=True)
class Source:
    """A network before it is exported.

    Attributes:
        weights: ours; None for a foreign graph.
        model: a foreign FP32 ONNX file; None for weights of ours.
        sha256: of the checkpoint, or of the graph and its data.
        preprocess: what its images go through.
    """

    weights: Weights | None
    model: Path | None
    sha256: str
    preprocess: Preprocess

    @property
    def network(self) -> Network | None:
        """The topology; None for a foreign graph."""
        return self.weights.network if self.weights else None

    @property
    def name(self) -> str:
        """The architecture's name, or the file's."""
        if self.weights:
            return self.weights.network.arch
        assert self.model is not None
        return self.model.stem

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it, enough for `from_manifest` to find it again."""
        if self.weights is None:
            return {"name": self.name, "onnx": str(self.model), "sha256": self.sha256}
        network = self.weights.network
        return {
            "name": network.arch,
            "arch": network.arch,
            "num_classes": network.num_classes,
            "input_size": list(network.input[1:]),
            "width_divisor": network.width_divisor,
            "weights": self.weights.source,
            "sha256": self.sha256,
        }

    def identity(self) -> dict[str, Any]:
        """`facts` without where the file lies: what a result depends on."""
        return {k: v for k, v in self.facts().items() if k not in ("weights", "onnx", "name")}


def from_weights(
    weights: str,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    preprocess: str | None = None,
) -> Source:
    """A source from ``--weights`` and its companions.

    Raises:
        WeightsError, ConfigError, MissingError: as the parts do.
    """
    chosen = preprocessing.load(preprocess) if preprocess else None
    found = references.locate(
        weights,
        arch=arch,
        num_classes=num_classes,
        input_size=chosen.size if chosen else (224, 224),
    )
    made = chosen or preprocessing.load(found.preprocess)
    if made.layout != "nchw":
        raise ConfigError(
            "the reference network takes NCHW images",
            got=f"layout {made.layout}",
            expected="nchw",
            fix="mend the preprocessing file",
        )
    return Source(found, None, found.sha256, made)


def from_onnx(model: Path, preprocess: Preprocess) -> Source:
    """A source from ``--model``, whose images go through `preprocess`.

    Raises:
        ModelError: when the file is no image classifier.
        ConfigError: when the preprocessing does not fit its input.
    """
    path = model.expanduser().resolve()
    signature = export.inspect(path)
    if signature.input.shape[1:] != preprocess.input_shape:
        raise ConfigError(
            f"the preprocessing does not fit {path.name}",
            got=f"images {list(preprocess.input_shape)} ({preprocess.layout})",
            expected=str(list(signature.input.shape[1:])),
            fix="give --preprocess a TOML file with the network's size and layout",
        )
    files = [path, *graphs.data_files(path, graphs.read(path))]
    sha256 = digests.sha256_json([digests.sha256_file(file) for file in files])
    return Source(None, path, sha256, preprocess)


def from_manifest(manifest: Mapping[str, Any]) -> Source:
    """The source that a bundle was built from, if it is still there.

    Raises:
        WeightsError, ModelError, MissingError: when it is gone or another one.
    """
    said = manifest["model"]
    made = preprocessing.from_mapping(manifest["preprocess"], where="manifest")
    kinds = _FOREIGN if "onnx" in said else _OURS
    wrong = [key for key, kind in kinds.items() if not isinstance(said.get(key), kind)]
    if wrong:
        raise ModelError(
            "the manifest does not say which network the bundle was built from",
            got=f"{wrong[0]} {said.get(wrong[0])!r}"[:80],
            expected=", ".join(kinds),
            fix="build the bundle again",
        )
    try:
        source = _named(said, made)
    except (OSError, ValueError, RuntimeError) as error:  # a path that cannot be one
        raise ModelError(
            "the network that the bundle was built from cannot be looked for",
            got=error,
            expected="the path that it was built from",
            fix="give --reference the original file",
        ) from error
    require_same(source, manifest)
    return source


_FOREIGN: Mapping[str, type] = {"onnx": str, "sha256": str}
_OURS: Mapping[str, type] = {
    "weights": str, "arch": str, "num_classes": int, "input_size": list, "sha256": str,
}  # fmt: skip
"""What a manifest says of a network, see `Source.facts`."""


def _named(said: Mapping[str, Any], made: Preprocess) -> Source:
    """The network that a manifest names, whose images go through `made`."""
    if "onnx" in said:
        return from_onnx(Path(said["onnx"]), made)
    weights = references.locate(
        said["weights"],
        arch=said["arch"],
        num_classes=said["num_classes"],
        input_size=made.size,
    )
    return Source(weights, None, weights.sha256, made)


def from_file(path: Path, manifest: Mapping[str, Any]) -> Source:
    """The source that ``--reference`` names, for a bundle: its weights or graph, moved elsewhere.

    Raises:
        WeightsError: when it is not there, or not what the bundle was built from.
    """
    said, path = manifest["model"], path.expanduser()
    key, endings = ("onnx", (".onnx",)) if "onnx" in said else ("weights", references.ENDINGS)
    expected = f"the file that the bundle was built from, {' or '.join(endings)}"
    if not path.is_file():
        raise WeightsError(
            f"--reference {path} {'is no file' if path.exists() else 'does not exist'}",
            got="a folder" if path.is_dir() else "nothing there",
            expected=expected,
            fix="give --reference the path where it lies now",
        )
    if path.suffix not in endings:
        raise WeightsError(
            f"--reference {path} cannot be the reference of {said.get('name', 'this network')}",
            got=f"a file of the ending {path.suffix!r}",
            expected=expected,
            fix="give --reference that file",
        )
    return from_manifest({**manifest, "model": {**said, key: str(path)}})


def require_same(source: Source, manifest: Mapping[str, Any]) -> None:
    """Make sure that a source is the one that a bundle was built from.

    Raises:
        WeightsError: when its digest differs.
    """
    if source.sha256 != manifest["model"]["sha256"]:
        raise WeightsError(
            f"{source.model or (source.weights and source.weights.path)} is not what the bundle "
            "was built from",
            got=f"SHA-256 {source.sha256[:16]}...",
            expected=f"{manifest['model']['sha256'][:16]}...",
            fix="give --reference the original file",
        )


def scores(source: Source, images: Dataset, store: Cache, reporter: Reporter) -> Entry:
    """The reference's scores ``[N, classes]`` for `images`, in ``SCORES`` of a cache entry.

    Our networks run in torch, foreign graphs in OpenVINO, both in FP32.

    Raises:
        MissingError: when the package that runs it is not installed.
        DatasetError: naming an image that cannot be decoded.
        ModelError: when a score is NaN or infinite, naming the image.
    """

    def make(work: Path) -> None:
        run = _torch_scores if source.weights else _onnx_scores
        batches = dataset.batches(images.pixels(source.preprocess), _BATCH if source.weights else 1)
        total = -(-len(images) // (_BATCH if source.weights else 1))
        found = list(
            reporter.track(
                run(source, (source.preprocess.arithmetic(batch) for batch in batches)),
                total,
                "running the reference",
            )
        )
        scores = np.concatenate(found)
        wrong = parity.not_finite(scores)
        if len(wrong):
            raise ModelError(
                f"the reference of {source.name} gives NaN or infinity",
                got=f"{len(wrong)} of {len(images)} images, the first {images.samples[wrong[0]].path}",
                expected="finite scores",
                fix="check the weights and --preprocess",
            )
        # Into a file, numpy's own writing does not notice that the disk is full.
        content = io.BytesIO()
        np.save(content, scores)
        (work / SCORES).write_bytes(content.getvalue())

    # scores depend on the images' contents and order, not on the folder's name.
    return store.stage(
        "reference",
        {
            "source": source.identity(),
            "images": images.digest(),
            "preprocess": source.preprocess.to_json(),
        },
        make,
    )


def _torch_scores(
    source: Source, batches: Iterator[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    assert source.weights is not None
    module = references.load(source.weights, channels_last=True)
    for batch in batches:
        yield references.outputs(module, batch)


def _onnx_scores(
    source: Source, batches: Iterator[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    assert source.model is not None
    with float_target().open_graph(source.model, (), RunOptions(goal="throughput")) as runner:
        for outputs in runner.infer_many(batches):
            yield outputs[runner.outputs[0].name].copy()


def float_target() -> GraphTarget:
    """The target that runs FP32 graphs, for calibration and for foreign references.

    Raises:
        MissingError: when it is not installed.
    """
    target = available("ov-fp32")
    assert isinstance(target, GraphTarget)
    return target


def available(name: str) -> Target:
    """The target called `name`, once it is known to work here.

    Raises:
        ConfigError: for an unknown name.
        MissingError: with what to install.
    """
    target = targets.get(name)
    here = target.availability()
    if not here.ok:
        raise MissingError(
            f"target {name} does not work here",
            got=here.reason,
            expected=f"what {name} is built with",
            fix=here.fix,
        )
    return target


def buildable(name: str, *, portable: bool) -> Target:
    """The target called `name`, once it is known that a bundle for it can be built here.

    Args:
        name: the target's.
        portable: whether compiling is left to the device, which takes nothing of the target here.

    Raises:
        ConfigError: for an unknown name, or where nothing can be left to the device.
        MissingError: with what to install.
    """
    if not portable:
        return available(name)
    target = targets.get(name)
    if not target.keeps_graph:
        leaves = [other for other in targets.REGISTRY if targets.get(other).keeps_graph]
        raise ConfigError(
            "--portable leaves compiling to the device",
            got=f"{name}, which is compiled there anyway",
            expected="one of " + ", ".join(leaves),
            fix="drop it",
        )
    return target


def runnable(name: str, device: str) -> Target:
    """The target called `name`, once it is known that its bundles run on this machine's `device`.

    Raises:
        ConfigError: for an unknown name.
        MissingError: with what is missing, before any long work.
    """
    target = available(name)
    here = target.runs_on(device)
    if not here.ok:
        raise MissingError(
            f"{name} does not run here",
            got=here.reason,
            expected=f"all that {name} runs with",
            fix=here.fix,
        )
    return target


def demo_images(split: str, store: Cache) -> Dataset:
    """The demo's images of a split, written once into the cache as a folder of class folders."""
    entry = store.stage("digits", {"split": split}, lambda work: digits.write(split, work / split))
    return dataset.scan(entry.path / split)
