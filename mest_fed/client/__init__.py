"""The Flower ClientApp: the same client in a simulated fleet and on a device."""
