"""What runs inside the peers' own environments: it may import a peer, and of this project its own folder only."""
