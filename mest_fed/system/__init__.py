"""What the operating system offers: control groups, limits, what processes use."""
