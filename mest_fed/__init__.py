"""mest-fed: federated memory-economic sparse training."""

__version__ = "0.1.0"
