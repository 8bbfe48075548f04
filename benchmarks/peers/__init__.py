"""Training loops to compare, each in a process of its own: `python -m benchmarks.peers.NAME` prints JSON last."""
