"""Decoding processes start quickly: the modules that they import do not import torch."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["container", "decode", "integrity", "remote", "views"])
def test_modules_for_decoding_do_not_import_torch(module: str) -> None:
    code = f"import sys, crosspair.video.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
