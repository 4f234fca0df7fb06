"""Flower's way to the server: ``[tool.flwr.app.components]`` names it."""

from mest_fed.server.app import app

__all__ = ["app"]
