"""Load that holds a server to its objectives: real inputs, sent when they are due, judged by an SLO file."""
