"""What no client should send, to a real server: every layer, field by field.

`python -m tests.support.hostile` writes the table of server/security/HOSTILE.md.
"""
