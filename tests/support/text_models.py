"""Small models that read text."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

WORDS = ("the", "film", "was", "good", "bad", "very", "and", "long", "##er", "##ly", "anna", "lives", "in", "oslo", ".")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
IDS = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}


def tokenizer() -> Tokenizer:
    """WordPiece over `WORDS`, with [CLS] and [SEP] around a text; what truncates and pads is to be overruled."""
    made = Tokenizer(WordPiece(IDS, unk_token="[UNK]"))
    made.normalizer = BertNormalizer(lowercase=True)
    made.pre_tokenizer = BertPreTokenizer()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, IDS[name]) for name in ("[CLS]", "[SEP]")]
    )
    made.enable_truncation(3)
    made.enable_padding(length=128)
    return made


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder
