"""The fleet engine: Flower's Grid over worker processes, for any ServerApp and ClientApp."""
