"""The four severities, their order and the priority each maps to."""

from __future__ import annotations

from typing import Literal

Severity = Literal["info", "warning", "error", "critical"]

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error", "critical")
RANK: dict[str, int] = {name: rank for rank, name in enumerate(SEVERITIES)}
PRIORITY: dict[str, str] = {"info": "P4", "warning": "P3", "error": "P2", "critical": "P1"}
