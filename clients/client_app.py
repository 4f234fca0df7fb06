"""Flower's way to the client: ``[tool.flwr.app.components]`` names it."""

from mest_fed.client.app import app

__all__ = ["app"]
