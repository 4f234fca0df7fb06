"""What ``mest-fed plan`` asks, works out, prints and draws."""
