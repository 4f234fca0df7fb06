"""What ``mest-fed study`` shows and writes."""
