"""SYNTHETIC card transactions, a few of them fraudulent. No row describes a real person, card or payment.

The data come from the seeded generator below and from nowhere else; a metric measured on them says how well a
model recovers this generator's rules and nothing about fraud in the world. They exist to exercise what real
fraud data have: columns of several kinds, missing values, a rare positive class, and classes that overlap.

Each row is drawn on its own. Its story is chosen first, with these shares:

    honest (99 % of all rows)                          fraudulent (1 %)
      everyday     85 %   at home, small amounts         testing    30 %  tiny online payments in quick succession
      spree         6 %   many payments in a day         takeover   30 %  large online orders, at night, from elsewhere
      journey       6 %   abroad, far from home          stolen     25 %  cash and shopping far away, many in an hour
      large buy     3 %   far over the usual amount      quiet      15 %  drawn like everyday: can't be told apart

The stories share their columns' ranges: a spree looks like testing, a journey like a stolen card, a large buy
like a takeover. So no single column decides, and no model can find everything. No country is riskier than
another: only being away from the home country (NL, an arbitrary choice) tells something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SOURCE = "fraud: SYNTHETIC card transactions drawn by exporter.data.fraud, not real payments"
NOTE = "SYNTHETIC data: the rows come from a seeded generator, and metrics say nothing about fraud in the world"
TARGET = "class"
HONEST, FRAUD = "honest", "fraud"
DEFAULT_ROWS = 60_000
DEFAULT_SEED = 20_240
FRAUD_RATE = 0.01

_HOME = "NL"
_COUNTRIES = ("NL", "BE", "DE", "FR", "ES", "IT", "GB", "US", "TR", "TH")
_MERCHANTS = (
    "groceries", "restaurant", "fuel", "transport", "clothing", "electronics", "travel", "games", "cash", "other",
)  # fmt: skip
_CHANNELS = ("contactless", "chip", "online", "swipe")


@dataclass(frozen=True, slots=True)
class _Story:
    """How the transactions of one kind are drawn."""

    fraudulent: bool
    share: float
    """Of the rows of its class."""
    log_amount: tuple[float, float]
    """Mean and standard deviation of the amount's natural logarithm, in euros."""
    log_ratio: tuple[float, float]
    """The same of the amount divided by the card's average."""
    night: float
    """The share of transactions whose hour is drawn around 3 and not around the afternoon."""
    abroad: float
    """The share of transactions in a country that is not the home country."""
    channels: tuple[float, ...]
    """The share of each of `_CHANNELS`."""
    merchants: tuple[float, ...]
    """The weight of each of `_MERCHANTS`."""
    per_hour: float
    """The mean number of the card's other transactions in the hour before."""
    per_day: float
    """The same of the day before that hour."""
    days_between: float
    """The mean number of days since the card's last transaction."""
    log_distance: tuple[float, float]
    """Of the distance from home in kilometres; online transactions have none."""


# fmt: off
_EVERYDAY = _Story(False, 0.85, (3.1, 0.9), (-0.25, 0.7), 0.04, 0.03, (0.45, 0.25, 0.25, 0.05),
                   (30, 15, 8, 12, 8, 4, 3, 4, 6, 10), 0.06, 0.9, 1.4, (1.6, 1.1))
_SPREE = _Story(False, 0.06, (3.3, 1.0), (-0.1, 0.8), 0.08, 0.06, (0.30, 0.20, 0.48, 0.02),
                (10, 12, 2, 6, 25, 8, 4, 20, 3, 10), 1.6, 6.0, 0.2, (2.0, 1.2))
_JOURNEY = _Story(False, 0.06, (3.8, 1.0), (0.3, 0.8), 0.08, 0.90, (0.30, 0.40, 0.15, 0.15),
                  (12, 28, 6, 14, 8, 3, 15, 1, 10, 3), 0.4, 2.6, 0.6, (6.4, 0.9))
_LARGE_BUY = _Story(False, 0.03, (6.0, 0.7), (1.9, 0.5), 0.05, 0.10, (0.02, 0.45, 0.48, 0.05),
                    (1, 2, 1, 2, 10, 34, 30, 2, 3, 15), 0.1, 1.0, 1.2, (2.4, 1.3))
_TESTING = _Story(True, 0.30, (1.2, 0.8), (-2.0, 0.8), 0.30, 0.35, (0.01, 0.01, 0.97, 0.01),
                  (3, 2, 1, 6, 8, 6, 2, 50, 0, 22), 3.2, 6.5, 0.2, (2.0, 1.2))
_TAKEOVER = _Story(True, 0.30, (6.0, 0.8), (1.9, 0.6), 0.45, 0.55, (0.01, 0.02, 0.95, 0.02),
                   (1, 1, 0, 3, 12, 45, 22, 8, 0, 8), 0.9, 2.4, 0.9, (2.4, 1.3))
_STOLEN = _Story(True, 0.25, (4.9, 0.8), (1.1, 0.7), 0.25, 0.60, (0.35, 0.08, 0.05, 0.52),
                 (6, 3, 5, 2, 16, 18, 2, 1, 42, 5), 2.2, 4.0, 0.3, (5.2, 1.3))
# fmt: on
_QUIET = replace(_EVERYDAY, fraudulent=True, share=0.15)
_STORIES = (_EVERYDAY, _SPREE, _JOURNEY, _LARGE_BUY, _TESTING, _TAKEOVER, _STOLEN, _QUIET)


def transactions(rows: int = DEFAULT_ROWS, seed: int = DEFAULT_SEED) -> pd.DataFrame:
    """`rows` synthetic transactions, with the class in the column `TARGET`; the same for the same arguments.

    `days_since_last_transaction` is missing for a card's first transaction, `distance_from_home_km` for online ones.
    """
    generator = np.random.default_rng(seed)
    frauds = round(rows * FRAUD_RATE)
    counts = {True: frauds, False: rows - frauds}
    parts = []
    for fraudulent, count in counts.items():
        stories = [story for story in _STORIES if story.fraudulent == fraudulent]
        sizes = generator.multinomial(count, [story.share for story in stories])
        parts += [_draw(generator, story, int(size)) for story, size in zip(stories, sizes, strict=True)]
    table = pd.concat(parts, ignore_index=True)
    return table.iloc[generator.permutation(len(table))].reset_index(drop=True)


def _draw(generator: np.random.Generator, story: _Story, count: int) -> pd.DataFrame:
    channel = generator.choice(_CHANNELS, count, p=story.channels)
    distance = generator.lognormal(*story.log_distance, count).round(1)
    since_last = generator.exponential(story.days_between, count).round(2)
    per_hour = generator.poisson(story.per_hour, count)
    return pd.DataFrame(
        {
            "amount": generator.lognormal(*story.log_amount, count).clip(min=0.01).round(2),
            "amount_to_average": generator.lognormal(*story.log_ratio, count).round(3),
            "hour": _hours(generator, story.night, count),
            "days_since_last_transaction": np.where(generator.random(count) < 0.05, np.nan, since_last),
            "transactions_last_hour": per_hour,
            "transactions_last_day": per_hour + generator.poisson(story.per_day, count),
            "account_age_days": generator.gamma(2.0, 700.0, count).round(),
            "distance_from_home_km": np.where(channel == "online", np.nan, distance),
            "merchant_category": generator.choice(
                _MERCHANTS, count, p=np.array(story.merchants) / sum(story.merchants)
            ),
            "country": _countries(generator, story.abroad, count),
            "channel": channel,
            TARGET: FRAUD if story.fraudulent else HONEST,
        }
    )


def _hours(generator: np.random.Generator, night: float, count: int) -> NDArray[np.int64]:
    around = np.where(generator.random(count) < night, generator.normal(3, 2, count), generator.normal(15, 4, count))
    return np.floor(around).astype(np.int64) % 24


def _countries(generator: np.random.Generator, abroad: float, count: int) -> NDArray[np.str_]:
    return np.where(generator.random(count) < abroad, generator.choice(_COUNTRIES[1:], count), _HOME)
