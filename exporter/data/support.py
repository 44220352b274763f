"""SYNTHETIC messages to a shop's support, from a seeded generator: what does the writer want?

Most messages name two wishes and take one of them back ("not about my refund, I only ask where the parcel is"), before
or after the one that counts. The same words stand in both, so that which words there are says little, and their order
says all: a bag of words is no match for it.
"""

from __future__ import annotations

import numpy as np

from exporter.data.texts import LabelledText, TextSet

SOURCE = "synthetic support messages from a seeded generator (exporter/data/support.py)"
ROWS = 3_000
_SEED = 20_240_501

WISHES: dict[str, tuple[str, ...]] = {
    "delivery": ("where my parcel is", "when the delivery comes", "why the shipment is late", "to track my package"),
    "refund": ("my money back", "a refund for the order", "to return the shoes", "the payment sent back to me"),
    "account": ("to change my password", "to log in again", "a new e-mail for my account", "to delete my profile"),
    "billing": ("a copy of the invoice", "why I was charged twice", "the receipt for tax", "to pay by card"),
    "advice": ("which size fits me", "a gift for my mother", "to know if it is waterproof", "help to pick a colour"),
}
_OPENINGS = ("", "", "hello, ", "hi there, ", "good morning, ", "dear team, ", "quick question: ")
_WANTED = ("I want", "I need", "please tell me", "I ask for", "what I am after is", "could I get")
_NOT_WANTED = ("I do not want", "this is not about", "no need for", "I am not asking for", "forget", "never mind")
_JOINS = (", ", "; ", ". ", " - ", ", only ", ", just ")
_ENDINGS = ("", "", ".", " thanks", ", thank you!", " please", " as soon as you can")


def support_messages() -> TextSet:
    """The same messages each time."""
    generator = np.random.default_rng(_SEED)
    labels = list(WISHES)

    def one_of(texts: tuple[str, ...]) -> str:
        return texts[int(generator.integers(len(texts)))]

    found = []
    for number in range(1, ROWS + 1):
        label, other = (labels[int(index)] for index in generator.permutation(len(labels))[:2])
        wanted = f"{one_of(_WANTED)} {one_of(WISHES[label])}"
        parts = [wanted]
        if generator.random() < 0.85:
            parts.insert(int(generator.integers(2)), f"{one_of(_NOT_WANTED)} {one_of(WISHES[other])}")
        text = one_of(_OPENINGS) + one_of(_JOINS).join(parts) + one_of(_ENDINGS)
        found.append(LabelledText(f"row {number}", _typo(text, generator), label))
    return TextSet(SOURCE, tuple(found), synthetic=True)


def _typo(text: str, generator: np.random.Generator) -> str:
    """One message in three has two letters swapped."""
    if generator.random() > 1 / 3:
        return text
    place = int(generator.integers(len(text) - 1))
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
