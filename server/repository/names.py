"""What names of models and files may look like: what requests and remote repositories call them becomes a path here."""

from __future__ import annotations

LONGEST_NAME = 255
"""Bytes of a name, as file systems have it."""


def is_model_name(name: str) -> bool:
    """Whether a folder can be called so, and be a model's: no slash, no dot in front."""
    return _is_name(name) and not name.startswith(".")


def is_path_below(path: str) -> bool:
    """Whether a path with slashes leads to something below the folder that it is taken from, whatever is there."""
    return all(_is_name(part) for part in path.split("/"))


def _is_name(text: str) -> bool:
    if text in ("", ".", "..") or any(character in text for character in "/\\\0"):
        return False
    return len(text.encode(errors="surrogatepass")) <= LONGEST_NAME
