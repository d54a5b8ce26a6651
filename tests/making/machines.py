"""Machines of other sizes than this one."""

import os

import pytest

PAGE_BYTES = 4096


def with_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let this machine seem to have so many bytes of memory."""
    facts = {"SC_PAGE_SIZE": PAGE_BYTES, "SC_PHYS_PAGES": size // PAGE_BYTES}
    monkeypatch.setattr(os, "sysconf", facts.__getitem__)
