"""Load for the server, and what it does under it. Nothing here is installed."""
