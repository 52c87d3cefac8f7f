"""VGG networks from torch to a verified, measured INT8 engine on a device."""

from __future__ import annotations

__version__ = "0.1.0"
