"""Triton Inference Servers that run the models: their addresses, connections, health, and calls."""
