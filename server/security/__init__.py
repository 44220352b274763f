"""Who may do what: keys and tokens, roles and limits, and what else stands between a stranger and the models."""
