"""What every Transformer is made of, one idea a file.

Shape letters, here and everywhere: B batch, T query position, S key position, D model width,
N heads, K key/value heads, H head width, F feed-forward width, V vocabulary, R rank.
"""
