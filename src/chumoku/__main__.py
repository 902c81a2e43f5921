"""`python -m chumoku`."""

from chumoku.cli import entry

entry()
