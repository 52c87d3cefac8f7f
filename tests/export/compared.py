"""What a foreign graph computes, held against what it computes once taken in."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

SHORT = (4, "M", 8, "M")
"""Two convolutions and two pools, where one operator is all that a test is about."""


def run(model: Any, batch: int = 3) -> np.ndarray:
    """The scores of `batch` random images, in onnxruntime without its own optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = str(model) if not hasattr(model, "graph") else model.SerializeToString()
    session = ort.InferenceSession(content, options)
    image = session.get_inputs()[0]
    sides = [batch, *image.shape[1:]]
    images = np.random.default_rng(0).standard_normal((batch, *sides[1:]))
    kind = {"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(image.type, np.float32)
    (scores,) = session.run(None, {image.name: images.astype(kind)})
    return scores


def assert_same(model: Any, adopted: Path, batch: int = 3, within: float = 1e-4) -> None:
    """float32 rounds once more where weights are folded: 2^-24 of each, a few hundred of these a
    score; 1e-4 is generous, and a wrong axis or a lost bias is far beyond it."""
    expected, found = run(model, batch), run(adopted, batch)
    assert found.dtype == np.float32
    assert batch == 1 or expected.std(0).max() > 1e-5 * np.abs(expected).max()  # images matter
    np.testing.assert_allclose(found, expected, rtol=0, atol=within * np.abs(expected).max())


def kinds(path: Path) -> Counter[str]:
    import onnx

    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def nodes_of(model: Any, operator: str) -> list[Any]:
    return [node for node in model.graph.node if node.op_type == operator]
