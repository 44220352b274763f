"""Forwardpass: a low-latency inference server. Start reading at `app.py`; the floors stand in README.md."""

__version__ = "0.1.0"
