"""``python -m mest_fed``: the command line, where its script is not on the path."""

from mest_fed.cli import main

main()
