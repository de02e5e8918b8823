"""Fixtures of the controller's tests."""

import importlib.util
import sys
from pathlib import Path

import pytest

# Tests are imported by path (importlib mode), so a module beside them is loaded by hand, once.
_spec = importlib.util.spec_from_file_location("machine_under_test", Path(__file__).with_name("machine_under_test.py"))
_module = importlib.util.module_from_spec(_spec)
sys.modules["machine_under_test"] = _module
_spec.loader.exec_module(_module)


@pytest.fixture
def machine(tmp_path):
    under_test = _module.Machine(tmp_path / "machine")
    yield under_test
    under_test.close()
