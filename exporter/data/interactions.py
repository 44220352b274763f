"""Who took which item when: a CSV, JSONL or Parquet file of `user,item,timestamp`, as a history for each user.

Rows that can't be read are listed; of rows that are equal the first stays. A user's items are in the order of their
times, and in the file's order where times are equal. Users with fewer than `MIN_EVENTS` items are told and left out:
nothing could be held out of theirs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from exporter.data.clean import times
from exporter.data.tabular import RawTable, read_file
from exporter.errors import DataError
from exporter.recipes.base import Dropped

USER, ITEM, TIME = "user", "item", "timestamp"
MIN_EVENTS = 4
"""Two to learn from, one to validate and one to test."""
MIN_USERS = 10
MAX_ITEMS = 50_000
"""The last layer gives a score for each, and its cost grows with them."""
SYNTHETIC_SOURCE = "synthetic-shop: SYNTHETIC visits drawn by exporter.data.interactions, nobody's real ones"
SYNTHETIC_NOTE = "SYNTHETIC data: the visits come from a seeded generator, and metrics say nothing about real people"


@dataclass(frozen=True, slots=True)
class Events:
    """The file as it was read, broken rows apart."""

    source: str
    sha256: str
    frame: pd.DataFrame
    """Columns `USER` and `ITEM` of texts, `TIME` of numbers."""
    where: tuple[str, ...]
    broken: tuple[Dropped, ...]
    notes: tuple[str, ...] = ()
    synthetic: bool = False


@dataclass(frozen=True, slots=True)
class Histories:
    """One for each user that is used, the oldest item first."""

    users: tuple[str, ...]
    items: tuple[tuple[str, ...], ...]
    duplicates: tuple[Dropped, ...]
    notes: tuple[str, ...]


def read(path: Path) -> Events:
    """The events of a file.

    Raises:
        DataError: the file is missing, not readable, or lacks one of the three columns.
    """
    return events(read_file(path, TIME))


def events(raw: RawTable) -> Events:
    """Of a table with the three columns; further ones are told and not used. Raises DataError if one is missing."""
    missing = [name for name in (USER, ITEM, TIME) if name not in raw.frame.columns]
    if missing:
        raise DataError(f"{raw.source}: no column {', '.join(missing)}; wanted are {USER}, {ITEM} and {TIME}")
    extra = [name for name in raw.frame.columns if name not in (USER, ITEM, TIME)]
    users, items = (_ids(raw.frame[name]) for name in (USER, ITEM))
    when = times(raw.frame[TIME])
    broken = list(raw.broken)
    good = np.ones(len(raw.frame), dtype=bool)
    for row, (user, item, time) in enumerate(zip(users, items, when.tolist(), strict=True)):
        problem = _problem(user, item, time)
        if problem:
            broken.append(Dropped(raw.where[row], problem))
            good[row] = False
    frame = pd.DataFrame({USER: users, ITEM: items, TIME: when}, dtype=object)[good].reset_index(drop=True)
    notes = (f"columns that are not used: {', '.join(extra)}",) if extra else ()
    where = tuple(raw.where[row] for row in np.flatnonzero(good))
    return Events(raw.source, raw.sha256, frame, where, tuple(broken), (*raw.notes, *notes), raw.synthetic)


def _ids(series: pd.Series[Any]) -> list[str | None]:
    """Texts without spaces around them; 7.0 is the id 7."""
    whole = pd.api.types.is_float_dtype(series)
    return [
        None if missing else (str(value).removesuffix(".0") if whole else str(value).strip()) or None
        for value, missing in zip(series.tolist(), series.isna().tolist(), strict=True)
    ]


def _problem(user: str | None, item: str | None, time: float) -> str:
    if user is None or item is None:
        return f"no {USER if user is None else ITEM}"
    if len(item.splitlines()) != 1:
        return f"{ITEM}: a line break in the id"
    return f"{TIME}: neither a number nor a date" if np.isnan(time) else ""


def histories(found: Events) -> Histories:
    """Drop what is there twice, order each user's items by time, leave users with too few out.

    Raises:
        DataError: fewer than `MIN_USERS` users are left, fewer than 2 items, or over `MAX_ITEMS`.
    """
    repeated = found.frame.duplicated().to_numpy()
    duplicates = tuple(Dropped(found.where[row], "equal to an earlier row") for row in np.flatnonzero(repeated))
    frame = found.frame[~repeated]
    frame = frame.sort_values(TIME, kind="stable", key=lambda column: column.astype(float))
    by_user = {str(user): tuple(part) for user, part in frame.groupby(USER, sort=True)[ITEM]}
    kept = {user: items for user, items in by_user.items() if len(items) >= MIN_EVENTS}
    if len(kept) < MIN_USERS:
        raise DataError(f"{len(kept)} users have {MIN_EVENTS} items or more, at least {MIN_USERS} such are needed")
    different = len({item for items in kept.values() for item in items})
    if not 2 <= different <= MAX_ITEMS:
        raise DataError(f"{different} different items, from 2 to {MAX_ITEMS} are supported")
    few = len(by_user) - len(kept)
    notes = (f"{few} users with fewer than {MIN_EVENTS} items are left out",) if few else ()
    return Histories(tuple(kept), tuple(kept.values()), duplicates, (*found.notes, *notes))


def popularity(items: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """Items with how often they were taken, the most popular first; by id where that is equal."""
    counts = Counter(item for history in items for item in history)
    return sorted(counts.items(), key=lambda found: (-found[1], found[0]))


def synthetic(users: int = 900, items: int = 120, seed: int = 7) -> Events:
    """SYNTHETIC visits to a shop: the same for the same arguments.

    Items stand in groups of ten that belong to a pastime. A user has two pastimes and changes between them now and
    then; within one, the next item is mostly one of the next three on the shelf, else any other of the group by its
    popularity. Nobody takes an item twice. So the order tells more than popularity does, and not all.
    """
    generator = np.random.default_rng(seed)
    groups = items // 10
    popular = 1 / (1 + np.arange(10))
    rows: list[tuple[str, str, int]] = []
    for user in range(users):
        pastimes = generator.choice(groups, 2, replace=False)
        current, place = int(generator.integers(2)), int(generator.integers(10))
        taken: list[int] = []
        clock = int(generator.integers(1_600_000_000, 1_700_000_000))
        for _ in range(int(generator.integers(6, 15))):
            if generator.random() < 0.15:
                current = 1 - current
                place = int(generator.choice(10, p=popular / popular.sum()))
            near = [(place + step) % 10 for step in (1, 2, 3)]
            shelf = near if generator.random() < 0.8 else range(10)
            free = [spot for spot in shelf if int(pastimes[current]) * 10 + spot not in taken]
            if not free:
                current = 1 - current
                continue
            weights = (
                popular[free] if len(shelf) == 10 else np.array([0.6, 0.3, 0.1])[[near.index(spot) for spot in free]]
            )
            place = int(generator.choice(free, p=weights / weights.sum()))
            taken.append(int(pastimes[current]) * 10 + place)
            clock += int(generator.exponential(86_400)) + 1
            rows.append((f"user-{user:04d}", f"item-{taken[-1]:03d}", clock))
    frame = pd.DataFrame(rows, columns=pd.Index([USER, ITEM, TIME]))
    digest = hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
    where = tuple(f"row {number}" for number in range(1, len(frame) + 1))
    return events(RawTable(SYNTHETIC_SOURCE, digest, TIME, frame, where, notes=(SYNTHETIC_NOTE,), synthetic=True))
