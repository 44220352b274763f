"""The model's own README.md: made from its manifest, the same each time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exporter.card import CARD_FILE, card, write_card
from server.errors import ModelLoadFailed
from server.repository.certificate import read_manifest, verify_files

REPOSITORY = Path(__file__).parents[2] / "model_repository"
CERTIFIED = sorted(path.parent for path in REPOSITORY.glob("*/manifest.json"))


@pytest.mark.parametrize("folder", CERTIFIED, ids=lambda folder: folder.name)
def test_the_shipped_cards_are_those_of_their_manifests(folder: Path) -> None:
    """`python -m exporter card FOLDER` changes nothing."""
    assert (folder / CARD_FILE).read_text() == card(folder)


def test_a_card_tells_what_matters() -> None:
    """What it does, how to ask, metrics beside the baseline, errors, and that data are synthetic."""
    text = card(REPOSITORY / "fraud")
    assert "The data are synthetic" in text
    assert "forwardpass predict fraud '{" in text
    assert "`fraud` is answered from a probability of" in text
    assert "| pr_auc | " in text
    assert "| `logits` | " in text
    assert "The data are synthetic" not in card(REPOSITORY / "digits")


def test_a_card_is_no_part_of_what_is_certified(tmp_path: Path) -> None:
    """A corrected card does not keep the model out."""
    folder = tmp_path / "digits"
    shutil.copytree(REPOSITORY / "digits", folder)
    write_card(folder).write_text("# other words\n")
    manifest = read_manifest(folder)
    assert manifest is not None
    verify_files(folder, manifest, "1")


def test_without_a_manifest_there_is_no_card(tmp_path: Path) -> None:
    """There is nothing to tell."""
    with pytest.raises(ModelLoadFailed, match="nothing to tell"):
        card(tmp_path)
