"""``python -m exporter``."""

from __future__ import annotations

from exporter.cli import commands

commands(prog_name="python -m exporter")
