"""The synthetic transactions: they say that they are synthetic, are the same every time, and are worth learning."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.data import fraud
from exporter.data.tabular import fraud_transactions
from exporter.recipes.tabular import TabularRecipe

NUMERIC = fraud.transactions(20_000).select_dtypes("number")


def test_everything_says_that_the_data_are_synthetic() -> None:
    """Nobody can meet these data without being told: module, source, notes and the command line's list."""
    raw = fraud_transactions()
    told = [fraud.__doc__ or "", raw.source, *raw.notes, TabularRecipe().bundled["fraud"]]
    assert len(raw.notes) == 1
    assert all("synthetic" in text.lower() for text in told)


def test_the_same_seed_gives_the_same_rows() -> None:
    """The rows are a function of their number and the seed."""
    assert fraud.transactions(500, seed=1).equals(fraud.transactions(500, seed=1))
    assert not fraud.transactions(500, seed=1).equals(fraud.transactions(500, seed=2))


def test_frauds_are_rare_and_spread_over_the_rows() -> None:
    """The share is the one that is documented, and the order of the rows tells nothing."""
    wanted = (fraud.transactions()[fraud.TARGET] == fraud.FRAUD).to_numpy()
    assert len(wanted) == fraud.DEFAULT_ROWS
    assert wanted.mean() == fraud.FRAUD_RATE
    halves = wanted.reshape(2, -1).sum(axis=1)
    assert abs(halves[0] - halves[1]) < 4 * np.sqrt(wanted.sum())


def test_values_are_plausible() -> None:
    """Positive amounts in whole cents, hours of a day, counts that contain each other, the documented gaps."""
    table = fraud.transactions(20_000)
    assert table["amount"].min() >= 0.01
    assert (np.round(table["amount"] * 100) == np.round(table["amount"] * 100, 6)).all()
    assert table["hour"].between(0, 23).all()
    assert (table["transactions_last_day"] >= table["transactions_last_hour"]).all()
    assert (table["distance_from_home_km"].isna() == (table["channel"] == "online")).all()
    assert 0.03 < table["days_since_last_transaction"].isna().mean() < 0.07
    assert table.drop(columns=["days_since_last_transaction", "distance_from_home_km"]).notna().all().all()


@pytest.mark.parametrize("column", NUMERIC.columns)
def test_no_single_column_decides(column: str) -> None:
    """The classes overlap in every column: frauds lie within the range of honest transactions."""
    table = fraud.transactions()
    honest = table.loc[table[fraud.TARGET] == fraud.HONEST, column]
    inside = table.loc[table[fraud.TARGET] == fraud.FRAUD, column].dropna().between(honest.min(), honest.max())
    assert inside.mean() > 0.95
