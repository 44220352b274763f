"""A Triton Inference Server on this machine, for development and for comparisons: found, given a repository, run."""
