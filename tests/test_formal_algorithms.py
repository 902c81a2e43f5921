"""examples/formal_algorithms.py, the paper taken literally, against this library's models.

The models get the paper's form where the published ones differ from it: BERT without the norm
after its embeddings, without segments and without the bias on its logits; GPT-2 with the exact
GELU; the encoder-decoder with learned positions and unscaled embeddings.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity.harness import difference, randomise
from torch import Tensor, nn

from chumoku.layers.attention import Attention, Shape, Visible
from chumoku.models import bert, gpt2, transformer

ROOT = Path(__file__).parents[1]


def load_example() -> Any:
    path = ROOT / "examples" / "formal_algorithms.py"
    spec = importlib.util.spec_from_file_location("formal_algorithms", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


paper = load_example()
LIMIT = 1e-12
LENGTH = 9


# ---- the weights of a model under the paper's names ----


def free(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def of_attention(layer: Attention) -> dict[str, Any]:
    def head(n: int) -> dict[str, Tensor]:
        found = {}
        for letter, linear in (("q", layer.query), ("k", layer.key), ("v", layer.value)):
            found[f"W_{letter}"] = free(linear.weight.chunk(layer.num_heads)[n])
            found[f"b_{letter}"] = free(linear.bias.chunk(layer.num_heads)[n])
        return found

    heads = [head(n) for n in range(layer.num_heads)]
    return {"heads": heads, "W_o": free(layer.output.weight), "b_o": free(layer.output.bias)}


def of_norm(norm: nn.LayerNorm) -> dict[str, Any]:
    return {"gamma": free(norm.weight), "beta": free(norm.bias), "epsilon": norm.eps}


def of_block(block: Any, *, cross: bool = False) -> dict[str, Any]:
    norms = [block.attention_norm, block.feedforward_norm]
    found = {"attention": of_attention(block.attention)}
    if cross:
        norms.insert(1, block.cross_attention_norm)
        found["cross_attention"] = of_attention(block.cross_attention)
    found |= {f"norm{n}": of_norm(norm) for n, norm in enumerate(norms, 1)}
    up, down = block.feedforward.up, block.feedforward.down
    found |= {"W_mlp1": free(up.weight), "b_mlp1": free(up.bias)}
    return found | {"W_mlp2": free(down.weight), "b_mlp2": free(down.bias)}


def theta_of(model: Any) -> dict[str, Any]:
    if isinstance(model, transformer.Model):
        embeddings = model.encoder.embeddings
        layers = {
            "encoder": [of_block(block) for block in model.encoder.blocks],
            "decoder": [of_block(block, cross=True) for block in model.decoder.blocks],
            "W_u": free(model.unembedding.weight),  # type: ignore[union-attr]
        }
    elif isinstance(model, bert.Model):
        embeddings, head = model.embeddings, model.head
        layers = {
            "encoder": [of_block(block) for block in model.blocks],
            "W_f": free(head.transform.weight),  # type: ignore[union-attr]
            "b_f": free(head.transform.bias),  # type: ignore[union-attr]
            "norm": of_norm(head.norm),  # type: ignore[union-attr]
            "W_u": free(head.output.weight),  # type: ignore[union-attr]
        }
    else:
        embeddings = model.embeddings
        layers = {
            "decoder": [of_block(block) for block in model.blocks],
            "norm": of_norm(model.final_norm),
            "W_u": free(model.unembedding.weight),
        }
    W_e, W_p = embeddings.token.weight.T, embeddings.position.weight.T
    return {"W_e": free(W_e), "W_p": free(W_p)} | layers


def flat(theta: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(theta, Tensor):
        return {name: theta}
    items = theta.items() if isinstance(theta, dict) else enumerate(theta)
    found: dict[str, Tensor] = {}
    for key, item in items:
        if not isinstance(item, float):
            found |= flat(item, f"{name}.{key}")
    return found


SIZES: dict[str, Any] = {"vocab_size": 13, "width": 12, "max_positions": LENGTH, "norm_eps": 1e-9}


def finished(model: Any, seed: int) -> Any:
    model = model.double().eval()
    randomise(model, seed)
    return model


def encoder_decoder(seed: int = 1) -> transformer.Model:
    config = transformer.Config(
        **SIZES,
        num_encoder_blocks=2,
        num_decoder_blocks=2,
        encoder_heads=3,
        decoder_heads=3,
        encoder_feedforward_width=10,
        decoder_feedforward_width=10,
        positions="learned",
        scaled_embeddings=False,
        attention_bias=True,
        tied=False,
        dropout=0.0,
    )
    model = finished(transformer.Model(config, "conditional-generation"), seed)
    # The paper's W_p serves source and target.
    model.decoder.embeddings.position = model.encoder.embeddings.position
    return model  # type: ignore[no-any-return]


def encoder(seed: int = 2) -> bert.Model:
    config = bert.Config(
        **SIZES,
        num_blocks=2,
        num_heads=3,
        feedforward_width=10,
        tied=False,
        dropout=0.0,
        attention_dropout=0.0,
    )
    model = finished(bert.Model(config, "masked-lm"), seed)
    model.embeddings.norm = nn.Identity()
    model.embeddings.segment.weight.data.zero_()
    model.head.bias.data.zero_()
    model.embeddings.segment.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    return model  # type: ignore[no-any-return]


def decoder(seed: int = 3) -> gpt2.Model:
    config = gpt2.Config(
        **SIZES,
        num_blocks=2,
        num_heads=3,
        feedforward_width=10,
        activation="gelu",
        tied=False,
        dropout=0.0,
        attention_dropout=0.0,
        embedding_dropout=0.0,
    )
    return finished(gpt2.Model(config, "causal-lm"), seed)  # type: ignore[no-any-return]


def tokens(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 12, (length,), generator=generator).tolist()


def P_of(model: Any, *ids: list[int]) -> Tensor:
    """Our logits of one sequence as the paper's P, [N_V, l]."""
    logits = model(*(torch.tensor([x]) for x in ids))
    return torch.softmax(logits[0], dim=-1).T


# ---- algorithms 1 to 7 ----


def test_1_and_2_embeddings() -> None:
    model, x = decoder(), tokens(1, 7)
    theta = theta_of(model)
    ours = model.embeddings(torch.tensor([x]), torch.arange(7)[None])[0].T
    for t, v in enumerate(x):
        e = paper.token_embedding(v, theta["W_e"]) + paper.positional_embedding(t, theta["W_p"])
        assert torch.equal(e, ours[:, t])


def test_3_is_one_column_of_4() -> None:
    torch.manual_seed(0)
    layer = finished(Attention(Shape(6, 1, 4)), 5)
    head = of_attention(layer)["heads"][0]
    X, Z = torch.randn(2, 6, 5, dtype=torch.float64)
    V = paper.attention(X, Z, head, paper.bidirectional)
    for t in range(5):
        one = paper.basic_attention(X[:, t], list(Z.T), head)
        assert difference(V[:, t], one) < LIMIT
    causal = paper.attention(X, X, head, paper.unidirectional)
    for t in range(5):
        one = paper.basic_attention(X[:, t], list(X.T[: t + 1]), head)
        assert difference(causal[:, t], one) < LIMIT
    assert difference(causal, paper.attention(X, X, head, paper.bidirectional)) > 1e-3


@pytest.mark.parametrize("causal", [False, True])
def test_5_is_our_attention_and_torch_multihead_attention(causal: bool) -> None:
    torch.manual_seed(0)
    layer = finished(Attention(Shape(12, 3, 4)), 6)
    X = torch.randn(12, 5, dtype=torch.float64)
    mask = paper.unidirectional if causal else paper.bidirectional
    V = paper.mh_attention(X, X, of_attention(layer), mask)
    ours = layer(*layer.project(X.T[None]), Visible(None, causal))[0].T
    assert difference(ours, V) < LIMIT
    theirs = nn.MultiheadAttention(12, 3, dtype=torch.float64)
    linears = (layer.query, layer.key, layer.value)
    theirs.in_proj_weight.data = torch.cat([linear.weight for linear in linears])
    theirs.in_proj_bias.data = torch.cat([linear.bias for linear in linears])
    theirs.out_proj.load_state_dict(layer.output.state_dict())
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    assert difference(theirs(X.T, X.T, X.T, attn_mask=hidden)[0].T, V) < LIMIT


def test_6_and_7_norm_and_unembedding() -> None:
    model = decoder()
    e = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    theta = theta_of(model)
    ours = model.final_norm(e)
    assert difference(ours, paper.layer_norm(e, theta["norm"])) < LIMIT
    unbiased = (e - e.mean()) / e.std() * model.final_norm.weight + model.final_norm.bias
    assert difference(ours, unbiased) > 1e-3
    p = torch.softmax(model.unembed(e[None, None])[0, 0], -1)
    assert difference(p, paper.unembedding(e, theta["W_u"])) < LIMIT


# ---- algorithms 8 to 10 ----


@pytest.mark.parametrize("seed", range(3))
def test_8_9_10_equal_our_models(seed: int) -> None:
    z, x = tokens(seed, 6), tokens(seed + 50, 8)
    both = encoder_decoder(seed)
    assert difference(P_of(both, z, x), paper.ed_transformer(z, x, theta_of(both))) < LIMIT
    one = encoder(seed)
    assert difference(P_of(one, x), paper.e_transformer(x, theta_of(one))) < LIMIT
    causal = decoder(seed)
    assert difference(P_of(causal, x), paper.d_transformer(x, theta_of(causal))) < LIMIT


def test_8_9_10_notice_a_wrong_weight() -> None:
    """Negative control: two biases or two norms exchanged."""
    z, x = tokens(1, 6), tokens(2, 8)
    for model, run, stack in (
        (encoder_decoder(), lambda theta: paper.ed_transformer(z, x, theta), "decoder"),
        (encoder(), lambda theta: paper.e_transformer(x, theta), "encoder"),
        (decoder(), lambda theta: paper.d_transformer(x, theta), "decoder"),
    ):
        theta = theta_of(model)
        right, layer = run(theta), theta[stack][0]
        layer["norm1"], layer["norm2"] = layer["norm2"], layer["norm1"]
        assert difference(run(theta), right) > 1e-4
        theta = theta_of(model)
        head = theta[stack][1]["attention"]["heads"][0]
        head["b_q"], head["b_v"] = head["b_v"], head["b_q"]
        assert difference(run(theta), right) > 1e-4


# ---- algorithms 11 to 13: training ----

DATA = [tokens(seed, 4 + seed % 4) for seed in range(6)]
PAIRS = [(tokens(seed + 20, 5), x) for seed, x in enumerate(DATA)]
ETA = 0.01


def stepped(model: Any, losses: Any) -> list[float]:
    """Torch's SGD on losses that are computed with torch's cross entropy."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=ETA)
    values = []
    for make in losses:
        optimiser.zero_grad()
        loss = make()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    return values


def check_same_weights(model: Any, theta: Any, before: Any) -> None:
    ours, theirs = flat(theta_of(model)), flat(theta)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert difference(tensor, theirs[name]) < 1e-10, name
    assert any(difference(tensor, flat(before)[name]) > 1e-3 for name, tensor in ours.items())


def next_token_loss(logits: Tensor, x: list[int]) -> Tensor:
    return F.cross_entropy(logits[0, :-1], torch.tensor(x[1:]), reduction="sum")


def test_11_encoder_decoder_training() -> None:
    model = encoder_decoder()
    theta, before = theta_of(model), theta_of(model)
    losses = paper.ed_training(PAIRS, theta, ETA)

    def loss(z: list[int], x: list[int]) -> Any:
        return lambda: next_token_loss(model(torch.tensor([z]), torch.tensor([x])), x)

    assert stepped(model, [loss(*pair) for pair in PAIRS]) == pytest.approx(losses)
    check_same_weights(model, theta, before)


def test_12_encoder_training() -> None:
    model = encoder()
    theta, before = theta_of(model), theta_of(model)
    losses = paper.e_training(DATA, theta, ETA, 0.4, 12, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    steps = []
    for x in DATA:
        x_masked, places = paper.masked(x, 0.4, 12, generator)
        targets = torch.tensor([v if t in places else -100 for t, v in enumerate(x)])
        assert all(v == (12 if t in places else x[t]) for t, v in enumerate(x_masked))
        if places:
            ids = torch.tensor([x_masked])
            steps.append(lambda i=ids, y=targets: F.cross_entropy(model(i)[0], y, reduction="sum"))
    assert stepped(model, steps) == pytest.approx(losses)
    check_same_weights(model, theta, before)


def test_12_masks_the_stated_share() -> None:
    generator = torch.Generator().manual_seed(1)
    x = [3] * 20_000
    _, places = paper.masked(x, 0.15, 12, generator)
    deviation = (len(x) * 0.15 * 0.85) ** 0.5
    assert abs(len(places) - 0.15 * len(x)) < 4 * deviation


def test_13_decoder_training() -> None:
    model = decoder()
    theta, before = theta_of(model), theta_of(model)
    losses = paper.d_training(DATA, theta, ETA)

    def loss(x: list[int]) -> Any:
        return lambda: next_token_loss(model(torch.tensor([x])), x)

    assert stepped(model, [loss(x) for x in DATA]) == pytest.approx(losses)
    check_same_weights(model, theta, before)


def test_11_12_13_lower_their_losses() -> None:
    ed, e, d = theta_of(encoder_decoder()), theta_of(encoder()), theta_of(decoder())
    generator = torch.Generator().manual_seed(3)
    first = paper.ed_training(PAIRS[:2], ed, 0.03)
    for _ in range(15):
        last = paper.ed_training(PAIRS[:2], ed, 0.03)
    assert sum(last) < 0.5 * sum(first)
    first = paper.e_training(DATA[:1] * 4, e, 0.03, 0.5, 12, generator)
    for _ in range(8):
        last = paper.e_training(DATA[:1] * 4, e, 0.03, 0.5, 12, generator)
    assert sum(last) / len(last) < 0.5 * sum(first) / len(first)
    first = paper.d_training(DATA[:2], d, 0.03)
    for _ in range(15):
        last = paper.d_training(DATA[:2], d, 0.03)
    assert sum(last) < 0.5 * sum(first)


# ---- algorithms 14 and 15: inference ----


def test_14_cold_is_greedy() -> None:
    model, prompt = decoder(), tokens(4, 3)
    theta, generator = theta_of(model), torch.Generator().manual_seed(0)
    greedy = list(prompt)
    for _ in range(5):
        greedy.append(int(model(torch.tensor([greedy]))[0, -1].argmax()))
    for tau in (0, 1e-4):
        assert paper.d_inference(prompt, theta, tau, 5, generator) == greedy[3:]


def test_14_at_temperature_one_draws_from_P_and_hot_is_uniform() -> None:
    """Pearson's chi squared with 12 degrees of freedom: 32.9 is exceeded once in 1,000."""
    theta, prompt = theta_of(decoder(8)), tokens(4, 3)
    # Closer to uniform, so that every token is expected often enough for the test.
    theta["W_u"] = theta["W_u"] * 0.3
    p = paper.d_transformer(prompt, theta)[:, -1].detach()
    generator, count = torch.Generator().manual_seed(5), 4000

    def chi_squared(tau: float, expected: Tensor) -> float:
        drawn = [paper._sampled(p, tau, generator) for _ in range(count)]
        counts = torch.bincount(torch.tensor(drawn), minlength=13)
        return float(((counts - count * expected) ** 2 / (count * expected)).sum())

    uniform = torch.full_like(p, 1 / 13)
    assert chi_squared(1.0, p) < 32.9
    assert chi_squared(1.0, uniform) > 100
    assert chi_squared(1e6, uniform) < 32.9
    assert chi_squared(2.0, p) > 100
    once = paper.d_inference(prompt, theta, 1.0, 4, torch.Generator().manual_seed(1))
    again = paper.d_inference(prompt, theta, 1.0, 4, torch.Generator().manual_seed(1))
    assert once == again


def test_15_writes_until_the_end() -> None:
    ended = 0
    for seed in range(8):
        model, z = encoder_decoder(seed), tokens(seed, 6)
        memory = model.encode(torch.tensor([z]))
        x = [0]
        while x[-1] != 5 and len(x) < LENGTH:
            x.append(int(model.decode(torch.tensor([x]), memory)[0, -1].argmax()))
        generator = torch.Generator().manual_seed(0)
        assert paper.ed_inference(z, theta_of(model), 0, 0, 5, LENGTH, generator) == x
        ended += x[-1] == 5
    assert 0 < ended < 8


# ---- the page ----


def test_the_page_names_lines_that_exist() -> None:
    """docs/formal-algorithms.md: fifteen rows; each names a function here and code that has it."""
    page = (ROOT / "docs" / "formal-algorithms.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|.*$", page, re.MULTILINE)
    assert rows == [str(n) for n in range(1, 16)]
    for line in page.splitlines():
        if not re.match(r"\| \d+ \|", line):
            continue
        example, places = line.split("|")[3], line.split("|")[4]
        for name in re.findall(r"`(\w+)`", example):
            assert callable(getattr(paper, name)), name
        links = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/.]+)\)", places)
        assert links, line
        for name, path in links:
            text = (ROOT / path).read_text(encoding="utf-8")
            last = name.split(".")[-1]
            assert re.search(rf"(def|class) {last}\b|^{last}\b", text, re.MULTILINE), (name, path)
