"""What must be true of the load tests themselves, shown by commands."""
