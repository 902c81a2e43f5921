"""The fifteen algorithms of "Formal Algorithms for Transformers" (Phuong & Hutter, 2207.09238).

One function for each, in the paper's order, with its names and shapes: vectors are columns,
matrices act from the left, a sequence of l tokens is a matrix of l columns. Loops where the paper
has loops; nothing is fast. Indices start at 0 here and at 1 there. tests/test_formal_algorithms.py
gives these functions the weights of chumoku's models and finds the same numbers.

Parameters (theta) are dictionaries with the paper's names: W_e [d_e, N_V], W_p [d_e, l_max],
W_u [N_V, d_e]; of an attention layer W_o [d_out, H d_mid], b_o and "heads", a list of
W_q [d_attn, d_x], W_k [d_attn, d_z], W_v [d_mid, d_z] with b_q, b_k, b_v; of an MLP W_mlp1, b_mlp1,
W_mlp2, b_mlp2; of a norm gamma, beta. `epsilon` under the root of the variance is 0 in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Theta = dict[str, Any]


def token_embedding(v: int, W_e: Tensor) -> Tensor:
    """Algorithm 1: token id -> e, [d_e]."""
    return W_e[:, v]


def positional_embedding(t: int, W_p: Tensor) -> Tensor:
    """Algorithm 2: position -> e_p, [d_e]."""
    return W_p[:, t]


def basic_attention(e: Tensor, context: Sequence[Tensor], head: Theta) -> Tensor:
    """Algorithm 3: one token e looks at a context of tokens; -> v~, [d_out]."""
    q = head["W_q"] @ e + head["b_q"]
    keys = [head["W_k"] @ e_t + head["b_k"] for e_t in context]
    values = [head["W_v"] @ e_t + head["b_v"] for e_t in context]
    d_attn = len(q)
    powers = [torch.exp(q @ k_t / math.sqrt(d_attn)) for k_t in keys]
    total = sum(powers)
    return sum(power / total * v_t for power, v_t in zip(powers, values, strict=True))  # type: ignore[return-value]


Mask = Callable[[int, int], bool]


def bidirectional(t_z: int, t_x: int) -> bool:
    return True


def unidirectional(t_z: int, t_x: int) -> bool:
    return t_z <= t_x


def attention(X: Tensor, Z: Tensor, head: Theta, mask: Mask) -> Tensor:
    """Algorithm 4: X [d_x, l_x] looks at Z [d_z, l_z]; -> V~, [d_out, l_x]."""
    Q = head["W_q"] @ X + head["b_q"][:, None]
    K = head["W_k"] @ Z + head["b_k"][:, None]
    V = head["W_v"] @ Z + head["b_v"][:, None]
    S = K.T @ Q
    seen = [[mask(t_z, t_x) for t_x in range(X.shape[1])] for t_z in range(Z.shape[1])]
    S = torch.where(torch.tensor(seen), S, -math.inf)
    return V @ torch.softmax(S / math.sqrt(len(K)), dim=0)


def mh_attention(X: Tensor, Z: Tensor, layer: Theta, mask: Mask) -> Tensor:
    """Algorithm 5: H heads, their results stacked, and one more matrix."""
    Y = torch.cat([attention(X, Z, head, mask) for head in layer["heads"]], dim=0)
    return layer["W_o"] @ Y + layer["b_o"][:, None]


def layer_norm(e: Tensor, norm: Theta) -> Tensor:
    """Algorithm 6: e [d_e] with mean 0 and variance 1, then scaled and moved."""
    m = e.sum() / len(e)
    v = ((e - m) ** 2).sum() / len(e)
    return (e - m) / torch.sqrt(v + norm.get("epsilon", 0.0)) * norm["gamma"] + norm["beta"]


def unembedding(e: Tensor, W_u: Tensor) -> Tensor:
    """Algorithm 7: e -> a probability for each token, [N_V]."""
    return torch.softmax(W_u @ e, dim=0)


def _columns(function: Callable[..., Tensor], X: Tensor, *args: Any) -> Tensor:
    return torch.stack([function(X[:, t], *args) for t in range(X.shape[1])], dim=1)


def _embedded(x: Sequence[int], theta: Theta) -> Tensor:
    pairs = enumerate(x)
    e = [token_embedding(v, theta["W_e"]) + positional_embedding(t, theta["W_p"]) for t, v in pairs]
    return torch.stack(e, dim=1)


def _gelu(x: Tensor) -> Tensor:
    """x times the probability that a standard normal number is below x."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _mlp(X: Tensor, layer: Theta, f: Callable[[Tensor], Tensor]) -> Tensor:
    hidden = f(layer["W_mlp1"] @ X + layer["b_mlp1"][:, None])
    return layer["W_mlp2"] @ hidden + layer["b_mlp2"][:, None]


def ed_transformer(z: Sequence[int], x: Sequence[int], theta: Theta) -> Tensor:
    """Algorithm 8, encoder-decoder: source z and target x -> P, [N_V, l_x]."""
    Z = _embedded(z, theta)
    for layer in theta["encoder"]:
        Z = _columns(
            layer_norm, Z + mh_attention(Z, Z, layer["attention"], bidirectional), layer["norm1"]
        )
        Z = _columns(layer_norm, Z + _mlp(Z, layer, torch.relu), layer["norm2"])
    X = _embedded(x, theta)
    for layer in theta["decoder"]:
        X = X + mh_attention(X, X, layer["attention"], unidirectional)
        X = _columns(layer_norm, X, layer["norm1"])
        X = X + mh_attention(X, Z, layer["cross_attention"], bidirectional)
        X = _columns(layer_norm, X, layer["norm2"])
        X = _columns(layer_norm, X + _mlp(X, layer, torch.relu), layer["norm3"])
    return _columns(unembedding, X, theta["W_u"])


def e_transformer(x: Sequence[int], theta: Theta) -> Tensor:
    """Algorithm 9, encoder only (BERT): x -> P, [N_V, l_x]."""
    X = _embedded(x, theta)
    for layer in theta["encoder"]:
        X = X + mh_attention(X, X, layer["attention"], bidirectional)
        X = _columns(layer_norm, X, layer["norm1"])
        X = _columns(layer_norm, X + _mlp(X, layer, _gelu), layer["norm2"])
    X = _gelu(theta["W_f"] @ X + theta["b_f"][:, None])
    X = _columns(layer_norm, X, theta["norm"])
    return _columns(unembedding, X, theta["W_u"])


def d_transformer(x: Sequence[int], theta: Theta) -> Tensor:
    """Algorithm 10, decoder only (GPT): x -> P, [N_V, l_x]; column t predicts token t + 1."""
    X = _embedded(x, theta)
    for layer in theta["decoder"]:
        X_norm = _columns(layer_norm, X, layer["norm1"])
        X = X + mh_attention(X_norm, X_norm, layer["attention"], unidirectional)
        X_norm = _columns(layer_norm, X, layer["norm2"])
        X = X + _mlp(X_norm, layer, _gelu)
    X = _columns(layer_norm, X, theta["norm"])
    return _columns(unembedding, X, theta["W_u"])


def _tensors(theta: Any) -> Iterator[Tensor]:
    if isinstance(theta, Tensor):
        yield theta
    elif isinstance(theta, dict | list):
        for item in theta.values() if isinstance(theta, dict) else theta:
            yield from _tensors(item)


def _descend(theta: Theta, loss: Tensor, eta: float) -> float:
    """theta <- theta - eta * gradient of the loss."""
    tensors = list(_tensors(theta))
    gradients = torch.autograd.grad(loss, tensors)
    with torch.no_grad():
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor -= eta * gradient
    return float(loss.detach())


def ed_training(
    data: Iterable[tuple[Sequence[int], Sequence[int]]], theta: Theta, eta: float
) -> list[float]:
    """Algorithm 11: learns pairs (z, x); one step a pair. Returns the losses."""
    losses = []
    for z, x in data:
        P = ed_transformer(z, x, theta)
        loss = -sum(torch.log(P[x[t + 1], t]) for t in range(len(x) - 1))
        losses.append(_descend(theta, loss, eta))  # type: ignore[arg-type]
    return losses


def masked(
    x: Sequence[int], p_mask: float, mask_token: int, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """The inner loop of algorithm 12: x with some tokens masked, and the places of these."""
    hidden = [bool(torch.rand((), generator=generator) < p_mask) for _ in x]
    places = [t for t, chosen in enumerate(hidden) if chosen]
    return [mask_token if chosen else v for v, chosen in zip(x, hidden, strict=True)], places


def e_training(
    data: Iterable[Sequence[int]],
    theta: Theta,
    eta: float,
    p_mask: float,
    mask_token: int,
    generator: torch.Generator,
) -> list[float]:
    """Algorithm 12: learns to fill masked tokens. Returns the losses."""
    losses = []
    for x in data:
        x_masked, places = masked(x, p_mask, mask_token, generator)
        if places:
            P = e_transformer(x_masked, theta)
            loss = -sum(torch.log(P[x[t], t]) for t in places)
            losses.append(_descend(theta, loss, eta))  # type: ignore[arg-type]
    return losses


def d_training(data: Iterable[Sequence[int]], theta: Theta, eta: float) -> list[float]:
    """Algorithm 13: learns to predict the next token. Returns the losses."""
    losses = []
    for x in data:
        P = d_transformer(x, theta)
        loss = -sum(torch.log(P[x[t + 1], t]) for t in range(len(x) - 1))
        losses.append(_descend(theta, loss, eta))  # type: ignore[arg-type]
    return losses


def _sampled(p: Tensor, tau: float, generator: torch.Generator) -> int:
    """A token from q proportional to p^(1 / tau); tau = 0 is its limit, the most probable one."""
    if tau == 0:
        return int(p.argmax())
    q = (p / p.max()) ** (1 / tau)
    return int(torch.multinomial(q / q.sum(), 1, generator=generator))


def d_inference(
    x: Sequence[int], theta: Theta, tau: float, l_gen: int, generator: torch.Generator
) -> list[int]:
    """Algorithm 14: continues a prompt by l_gen tokens, which it returns."""
    prompt = list(x)
    for _ in range(l_gen):
        P = d_transformer(prompt, theta)
        prompt.append(_sampled(P[:, -1], tau, generator))
    return prompt[len(x) :]


def ed_inference(
    z: Sequence[int],
    theta: Theta,
    tau: float,
    bos: int,
    eos: int,
    l_max: int,
    generator: torch.Generator,
) -> list[int]:
    """Algorithm 15: writes a target for z, from bos up to eos (or l_max tokens, W_p's width)."""
    x = [bos]
    while x[-1] != eos and len(x) < l_max:
        P = ed_transformer(z, x, theta)
        x.append(_sampled(P[:, -1], tau, generator))
    return x
