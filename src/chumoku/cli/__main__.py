"""`python -m chumoku.cli`."""

from chumoku.cli import entry

entry()
