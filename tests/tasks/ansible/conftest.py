from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tasks.ansible.module_utils import host_lock, pending_actions


@pytest.fixture
def pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module utility under the name that Ansible gives it, with a folder of its own."""
    monkeypatch.setattr(pending_actions, "DIRECTORY", tmp_path / "pending")
    monkeypatch.setitem(sys.modules, "ansible.module_utils.pending_actions", pending_actions)
    monkeypatch.setattr(host_lock, "LOCK", tmp_path / "lock")
    monkeypatch.setitem(sys.modules, "ansible.module_utils.host_lock", host_lock)
    return pending_actions


@pytest.fixture
def host_configuration(pending: ModuleType) -> ModuleType:
    return importlib.import_module("tasks.ansible.library.host_configuration")


@pytest.fixture
def rke2_release(
    pending: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    module = importlib.import_module("tasks.ansible.library.rke2_release")
    monkeypatch.setattr(module, "STATE", tmp_path / "state" / "rke2-release")
    return module
