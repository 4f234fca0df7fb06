"""The Flower ServerApp and its strategy."""
