"""What ``mest-fed program`` shows."""
