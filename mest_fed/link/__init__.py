"""The edge link: small boards that join a federation without Flower's node."""
