"""Why a model is not in service, as its callers are told."""

from __future__ import annotations

import pytest

from server.errors import ModelNotReady, ServingError, UnknownModel
from server.served import absent
from server.types import IndexEntry

INDEX = [
    IndexEntry("broken", "1", "UNAVAILABLE", "its file is cut"),
    IndexEntry("broken", "2", "UNAVAILABLE", "its golden file differs"),
    IndexEntry("half", "1", "READY", ""),
    IndexEntry("half", "2", "UNAVAILABLE", "its file is cut"),
]


@pytest.mark.parametrize(
    ("name", "version", "others_serve", "kind", "said"),
    [
        ("nobody", "", False, UnknownModel, "unknown model: 'nobody' is not found"),
        ("broken", "", False, ModelNotReady, "its file is cut; its golden file differs"),
        ("broken", "2", False, ModelNotReady, "its golden file differs"),
        ("broken", "3", False, UnknownModel, "'broken' version 3 is not found"),
        ("half", "2", True, UnknownModel, "'half' version 2 is not found"),
        ("half", "3", True, UnknownModel, "'half' version 3 is not found"),
    ],
)
def test_a_model_that_is_not_in_service_is_unknown_or_not_ready(
    name: str, version: str, others_serve: bool, kind: type[ServingError], said: str
) -> None:
    """Not ready with the reasons where none of it serves; a version beside one that serves is not served at all."""
    error = absent(name, version, INDEX, others_serve=others_serve)

    assert type(error) is kind
    assert said in error.public_message
