"""chumoku demo"""

from __future__ import annotations

from chumoku.cli.common import DEFAULT, Options


def run(*, options: Options = DEFAULT) -> None:
    """A short tour with real models: chat, similarity, attention.

    The first run fetches about 180 MB; later ones need no network.
    """
    from chumoku.cli.tour import tour

    tour(options)
