"""Sums of replies: what workers add up, and the means that the server takes of it."""
