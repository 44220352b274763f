"""A load generator in one thread: requests made beforehand, sent when they are due, each answer checked.

`forwardpass tune` and loadtests/ use it; a server that only serves never imports it.
"""
