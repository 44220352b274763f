"""A server under half of its capacity for a long time, beside clients that misbehave: what leaks, and what is lost.

`steady.py` asks as it should be asked, `chaos.py` as it should not, `watch.py` looks at the server meanwhile,
`verdict.py` says whether all is well, and `run.py` puts them together.
"""
