"""Which images calibrate, and which are left to judge on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vggdeploy import inputs, sources
from vggdeploy.dataset import scan
from vggdeploy.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path


def test_none_that_calibrates_judges(digits_folder: Path, tmp_path: Path) -> None:
    calibration = scan(digits_folder).choose(20, seed=0)
    source = sources.Source(None, tmp_path, "", None)  # type: ignore[arg-type]
    for data in (None, str(digits_folder), f"{digits_folder}/../{digits_folder.name}"):
        rest = inputs.held_out(source, data, calibration, None)  # type: ignore[arg-type]
        assert len(rest) == 28
        names = {sample.path.resolve() for sample in rest.samples}
        assert names.isdisjoint(sample.path for sample in calibration.samples)
    with pytest.raises(DatasetError, match="none is left"):
        inputs.held_out(source, None, scan(digits_folder), None)  # type: ignore[arg-type]
