"""Entry point of Flower: the library is in ``mest_fed.client``."""
