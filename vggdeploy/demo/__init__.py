"""The demo: a slim VGG16 trained on handwritten digits, its images, and how it is widened.

It makes the default job work offline with real accuracy and the full 15.47 GMAC graph. It is a
demo: its accuracy says nothing about ImageNet.
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).with_name("vgg16_digits.safetensors")
"""The trained slim network: one eighth the width, BatchNorm folded, float16."""

WIDTH_DIVISOR = 8
"""How much slimmer the trained network is than VGG16."""
