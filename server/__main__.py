"""`python -m server` is the command line `forwardpass`."""

from __future__ import annotations

from server import process


def main() -> None:
    """The entry point. Ends the process with the exit code."""
    with process.importing():
        from server.cli import main as run
    run()


if __name__ == "__main__":
    main()
