"""Fleets of simulated devices on one machine or a Ray cluster."""
