"""Flower's way to the server: ``[tool.flwr.app.components]`` names it."""

from pathlib import Path

from mest_fed.server.app import build_server_app

app = build_server_app(bundle=Path(__file__).absolute().parents[1])
