"""A server under load amid faults: kills, stalls, a full disk, bad bytes, reloads, new certificates."""
