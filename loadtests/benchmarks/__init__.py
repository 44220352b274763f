"""One module for each claim that is measured; each runs as ``python -m loadtests.benchmarks.<name>``."""
