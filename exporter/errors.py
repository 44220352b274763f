"""Everything that can go wrong on the training side, each with the exit code of the command it ends.

    ExporterError
      UsageError      2   an option or a name is wrong
      DataError       3   the data can't be used: missing, empty, too few rows of a class
      RunError        4   a run folder can't be resumed: it belongs to another configuration, or its data changed
      ExportError     5   the network can't be written as ONNX that the server reads
      VerifyError     6   ONNX Runtime and PyTorch disagree; nothing is published
      PublishError    7   the repository refuses the model, or can't be written

The message is for the person at the terminal: it names the file, the row or the option.
"""

from __future__ import annotations

from typing import ClassVar


class ExporterError(Exception):
    """The root; never raised itself."""

    exit_code: ClassVar[int] = 1


class UsageError(ExporterError):
    exit_code = 2


class DataError(ExporterError):
    exit_code = 3


class LabelsError(DataError):
    """There are no labels, or too few rows of one."""


class RunError(ExporterError):
    exit_code = 4


class ExportError(ExporterError):
    exit_code = 5


class VerifyError(ExporterError):
    exit_code = 6


class PublishError(ExporterError):
    exit_code = 7
