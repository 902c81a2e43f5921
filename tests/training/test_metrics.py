"""Each metric beside its formula written out here, and beside a wrong one that must differ."""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from chumoku.errors import DependencyError, InputError
from chumoku.training import metrics

EN = (
    ["the cat sat on the mat .", "he goes to school", "a dog barked loudly at night !"],
    ["the cat is on the mat .", "he went to school yesterday", "the dog barked loudly at night !"],
)
JA = (
    [
        "私は昨日、友達と映画を見に行きました。",
        "彼は学校へ行く。",
        "東京タワーは　とても高い　ABC 12.5％",
        "猫が好きだ！",
        "そこに居るのは誰ですか",
    ],
    [
        "私は昨日友達と一緒に映画を見ました。",
        "彼女は学校に行きました。",
        "東京タワーはとても高いです ABC 12.5％",
        "私は猫が大好きだ！",
        "そこにいるのは誰ですか？",
    ],
)


def draws(seed: int, count: int, classes: int) -> tuple[list[int], list[int]]:
    rng = random.Random(seed)
    gold = [rng.randrange(classes) for _ in range(count)]
    return [y if rng.random() < 0.6 else rng.randrange(classes) for y in gold], gold


# ---- BLEU and chrF ----


def own_bleu(hypotheses: Sequence[list[str]], references: Sequence[list[list[str]]]) -> float:
    """P02-1040 over word lists: clipped 1- to 4-gram precisions, the closest reference's length."""
    right, made = [0] * 4, [0] * 4
    length = closest = 0
    for words, some in zip(hypotheses, references, strict=True):
        length += len(words)
        closest += min((abs(len(r) - len(words)), len(r)) for r in some)[1]
        for n in range(1, 5):
            grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            most: Counter[tuple[str, ...]] = Counter()
            for r in some:
                most |= Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1))
            right[n - 1] += (grams & most).total()
            made[n - 1] += grams.total()
    mean = sum(math.log(r / m) for r, m in zip(right, made, strict=True)) / 4
    return 100 * math.exp(min(0.0, 1 - closest / length) + mean)


def test_bleu_is_its_formula() -> None:
    hypotheses, references = EN
    words = [h.split() for h in hypotheses]
    single = [[r.split()] for r in references]
    assert metrics.bleu(hypotheses, references, "none") == pytest.approx(own_bleu(words, single))
    several = [[r, "he goes to work today", "the cat sat"] for r in references]
    more = [[r.split() for r in some] for some in several]
    both = metrics.bleu(hypotheses, several, "none")
    assert both == pytest.approx(own_bleu(words, more))
    assert both != pytest.approx(own_bleu(words, single), abs=0.01)
    mixed = [several[0], several[1][:1], several[2][:2]]
    expected = own_bleu(words, [[r.split() for r in some] for some in mixed])
    assert metrics.bleu(hypotheses, mixed, "none") == pytest.approx(expected)
    swapped = metrics.bleu(references, hypotheses, "none")
    assert swapped != pytest.approx(metrics.bleu(hypotheses, references, "none"), abs=0.01)


def test_bleu_is_of_the_corpus_not_a_mean_of_sentences() -> None:
    pairs = list(zip(*EN, strict=True))
    mean = sum(metrics.bleu([h], [r], "none") for h, r in pairs) / len(pairs)
    assert metrics.bleu(*EN, "none") != pytest.approx(mean, abs=0.5)


def test_bleu_settings() -> None:
    assert metrics.bleu(["Hello, WORLD you there!"], ["Hello, world you there!"]) < 60
    assert metrics.bleu(["Hello, WORLD you!"], ["hello, world you!"], lowercase=True) > 99.9
    # 13a parts the comma from the word; "none" does not.
    assert metrics.bleu(["a b, c d e"], ["a b , c d e"]) > 99.9
    assert metrics.bleu(["a b, c d e"], ["a b , c d e"], "none") < 60
    assert metrics.bleu(["猫が好き"], ["猫が好き"], "char") > 99.9
    assert metrics.bleu_signature().startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|v")
    assert metrics.bleu_signature("none", True, 2).startswith("nrefs:2|case:lc|eff:no|tok:none|")
    with pytest.raises(InputError, match="flores200"):
        metrics.bleu(["a"], ["a"], "flores200")  # would fetch a model


def test_japanese_bleu_is_that_of_sacrebleu_with_mecab() -> None:
    """Made by sacrebleu 2.6.0 with mecab-python3 and ipadic 1.0.0, which chumoku does not need:

    BLEU(tokenize="ja-mecab").corpus_score(JA[0], [JA[1]]).score, and with [JA[1], JA[0][::-1]].
    """
    hypotheses, references = JA
    assert metrics.bleu(hypotheses, references, "ja-mecab") == 39.683534272019806
    several = [[r, h] for r, h in zip(references, hypotheses[::-1], strict=True)]
    assert metrics.bleu(hypotheses, several, "ja-mecab") == 51.8191238880966
    assert metrics.bleu(hypotheses, references, "none") < 30  # only what stands between spaces
    assert "|tok:ja-mecab-fugashi-" in metrics.bleu_signature("ja-mecab")


# ---- ROUGE ----


def own_rouge(made: list[str], real: list[str]) -> list[float]:
    """F of common 1-grams, 2-grams, and of the longest common subsequence, in percent."""
    scores = []
    for n in (1, 2):
        a, b = (Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in (made, real))
        scores.append(2 * (a & b).total() / max(a.total() + b.total(), 1))
    row = [0] * (len(real) + 1)
    for word in made:
        last = row[:]
        for j, other in enumerate(real):
            row[j + 1] = last[j] + 1 if word == other else max(row[j], last[j + 1])
    scores.append(2 * row[-1] / (len(made) + len(real)))
    return [100 * score for score in scores]


def mean_rouge(pairs: Any, cut: Callable[[str], list[str]]) -> list[float]:
    each = [own_rouge(cut(h), cut(r)) for h, r in pairs]
    return [sum(column) / len(each) for column in zip(*each, strict=True)]


def test_rouge_is_its_formula() -> None:
    def cut(text: str) -> list[str]:
        return [word for word in text.split() if word.isalnum()]

    found = metrics.rouge(*EN)
    assert list(found) == ["rouge1", "rouge2", "rougeL"]
    assert list(found.values()) == pytest.approx(mean_rouge(zip(*EN, strict=True), cut))
    several = [["nothing", r] for r in EN[1]]
    assert metrics.rouge(EN[0], several) == pytest.approx(found)
    assert metrics.rouge(["he walks"], ["he walked"])["rouge1"] == pytest.approx(50)
    assert metrics.rouge(["he walks"], ["he walked"], stem=True)["rouge1"] == pytest.approx(100)


def test_japanese_rouge_is_of_mecab_words() -> None:
    """The package's own tokenizer drops every Japanese letter: what is left of JA is ABC 12 5."""
    import fugashi
    import ipadic

    tagger = fugashi.GenericTagger(ipadic.MECAB_ARGS)

    def cut(text: str) -> list[str]:
        text = text.replace("％", "%").replace("　", " ").replace("！", "!").lower()
        return [w.surface for w in tagger(text) if any(c.isalnum() for c in w.surface)]

    found = metrics.rouge(*JA, language="ja")
    assert list(found.values()) == pytest.approx(mean_rouge(zip(*JA, strict=True), cut))
    assert min(found.values()) > 40
    assert metrics.rouge(["猫が好きだ"], ["猫が好きだ"])["rouge1"] == 0
    assert metrics.rouge(["猫が好きだ"], ["猫が好きだ"], "ja") == pytest.approx(
        {"rouge1": 100, "rouge2": 100, "rougeL": 100}
    )
    assert metrics.rouge(["犬は嫌い"], ["猫が好きだ"], "ja")["rouge1"] == 0
    assert metrics.rouge(["。、"], ["。、"], "ja")["rouge1"] == 0  # marks are no words
    with pytest.raises(InputError, match="'fr'"):
        metrics.rouge(["a"], ["a"], "fr")


# ---- labels ----


def own_f1(predicted: Sequence[int], gold: Sequence[int], c: int) -> float:
    made = {n for n, y in enumerate(predicted) if y == c}
    real = {n for n, y in enumerate(gold) if y == c}
    return 2 * len(made & real) / max(len(made) + len(real), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_classes(dtype: torch.dtype) -> None:
    predicted, gold = draws(1, 200, 2)
    scores = torch.rand(200, 2, dtype=dtype, generator=torch.Generator().manual_seed(1))
    scores[::7, 1] = 0.5  # ties count half
    found = metrics.classification(predicted, gold, scores, ["no", "yes"])
    assert list(found) == ["accuracy", "majority", "macro_f1", "f1", "matthews", "auc"]
    pairs = list(zip(predicted, gold, strict=True))
    tp, fp, fn, tn = (pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0)))
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    one = scores[:, 1]
    ups, downs = one[[y == 1 for y in gold]], one[[y == 0 for y in gold]]
    wins = (ups[:, None] > downs).double() + 0.5 * (ups[:, None] == downs).double()
    assert found == pytest.approx(
        {
            "accuracy": (tp + tn) / 200,
            "majority": max(tp + fn, fp + tn) / 200,
            "macro_f1": (own_f1(predicted, gold, 0) + own_f1(predicted, gold, 1)) / 2,
            "f1": own_f1(predicted, gold, 1),
            "matthews": (tp * tn - fp * fn) / below,
            "auc": float(wins.mean()),
        }
    )
    assert metrics.classification(predicted, gold, one, ["no", "yes"]) == found
    wrong = metrics.classification(predicted, gold, scores.flip(1), ["no", "yes"])
    assert wrong["auc"] != pytest.approx(found["auc"], abs=0.01)
    assert own_f1(predicted, gold, 0) != pytest.approx(found["f1"], abs=1e-3)


def test_many_classes() -> None:
    predicted, gold = draws(2, 150, 4)
    labels = ["a", "b", "c", "d", "never"]
    found = metrics.classification(predicted, gold, None, labels)
    right = sum(p == y for p, y in zip(predicted, gold, strict=True))
    macro = sum(own_f1(predicted, gold, c) for c in range(4)) / 4  # of those that occur
    usual = max(map(gold.count, range(4)))
    assert found == pytest.approx(
        {"accuracy": right / 150, "majority": usual / 150, "macro_f1": macro}
    )


def test_constant_answers_are_no_error() -> None:
    """An untrained model says the same of every row; warnings would be errors here."""
    found = metrics.classification([0, 0, 0], [0, 1, 0], torch.zeros(3, 2), ["a", "b"])
    assert found == pytest.approx(
        {"accuracy": 2 / 3, "majority": 2 / 3, "macro_f1": 0.4, "f1": 0, "matthews": 0, "auc": 0.5}
    )
    assert "auc" not in metrics.classification([0, 1], [0, 0], torch.zeros(2, 2), ["a", "b"])
    assert metrics.entities([["O"]], [["O"]]) == {"precision": 0, "recall": 0, "f1": 0}
    assert metrics.multilabel([[0, 0]], [[0, 0]], ["a", "b"])["exact"] == 1
    assert metrics.regression([1.0, 1.0], [1.0, 3.0]) == {"pearson": 0, "spearman": 0, "mse": 2}


def test_several_labels_a_row() -> None:
    rng = random.Random(3)
    gold = [[int(rng.random() < 0.4) for _ in range(3)] for _ in range(60)]
    predicted = [[y ^ int(rng.random() < 0.2) for y in row] for row in gold]
    found = metrics.multilabel(predicted, gold, ["a", "b", "c"])
    columns = [tuple([row[c] for row in rows] for rows in (predicted, gold)) for c in range(3)]
    flat = [[y for row in rows for y in row] for rows in (predicted, gold)]
    assert found == pytest.approx(
        {
            "micro_f1": own_f1(flat[0], flat[1], 1),
            "macro_f1": sum(own_f1(p, y, 1) for p, y in columns) / 3,
            "exact": sum(p == y for p, y in zip(predicted, gold, strict=True)) / 60,
        }
    )
    one = metrics.multilabel([r[:1] for r in predicted], [r[:1] for r in gold], ["a"])
    assert one["micro_f1"] == one["macro_f1"] == pytest.approx(own_f1(*columns[0], 1))
    with pytest.raises(InputError, match="2 times 0 or 1"):
        metrics.multilabel([[0, 2]], [[0, 1]], ["a", "b"])


def test_regression() -> None:
    rng = random.Random(4)
    gold = [float(rng.randrange(6)) for _ in range(80)]  # with ties
    predicted = [math.exp(y) + rng.gauss(0, 3) for y in gold]

    def pearson(a: Sequence[float], b: Sequence[float]) -> float:
        x, y = (torch.tensor(v, dtype=torch.float64) - sum(v) / len(v) for v in (a, b))
        return float(x @ y / (x.norm() * y.norm()))

    def mean_ranks(values: Sequence[float]) -> list[float]:
        return [sum(w < v for w in values) + (values.count(v) + 1) / 2 for v in values]

    found = metrics.regression(predicted, gold)
    assert found == pytest.approx(
        {
            "pearson": pearson(predicted, gold),
            "spearman": pearson(mean_ranks(predicted), mean_ranks(gold)),
            "mse": sum((p - y) ** 2 for p, y in zip(predicted, gold, strict=True)) / 80,
        }
    )
    assert found["pearson"] != pytest.approx(found["spearman"], abs=0.01)
    with pytest.raises(InputError, match="finite"):
        metrics.regression([math.nan, 1.0], [1.0, 2.0])


def test_entities_count_whole_ones() -> None:
    gold = [
        ["B-PER", "I-PER", "O", "B-地名"],
        ["B-ORG", "I-ORG", "I-ORG", "O"],
        ["O", "I-PER", "B-PER"],
    ]
    predicted = [
        ["B-PER", "I-PER", "O", "B-ORG"],  # one right, one of a wrong type
        ["B-ORG", "I-ORG", "O", "O"],  # too short
        ["O", "B-PER", "B-PER"],  # conlleval: an I- begins one too
    ]
    found = metrics.entities(predicted, gold)
    assert found == pytest.approx({"precision": 3 / 5, "recall": 3 / 5, "f1": 3 / 5})
    extra = [*predicted[:2], ["B-ORG", "B-PER", "B-PER"]]
    assert metrics.entities(extra, gold) == pytest.approx(
        {"precision": 3 / 6, "recall": 3 / 5, "f1": 6 / 11}
    )
    for tags, what in ((["PER"], "'PER'"), (["B-"], "'B-'"), (["O", "O"], "has 1 tags, 2 were")):
        with pytest.raises(InputError, match=what):
            metrics.entities([tags], [["O"]])


# ---- answers ----


def test_squad_normalises_english_as_its_script() -> None:
    def both(answer: str, *right: str, language: str = "en") -> tuple[float, float]:
        found = metrics.squad([answer], [list(right)], language)
        return found["exact"], pytest.approx(found["f1"], abs=1e-9)

    assert both("The Cat!", "a cat") == (100, 100)
    assert both("anthem", "them") == (0, 0)  # articles are whole words
    assert both("black cat sat", "the cat sat down") == (0, 100 * 2 * 2 / 6)
    assert both("cat cat", "cat") == (0, 100 * 2 / 3)  # a bag, not a set
    assert both("cat", "dog", "the cat") == (100, 100)
    assert both("") == both("", "") == both("the", "") == (100, 100)
    assert both("cat", "") == (0, 0)
    assert both("", "cat") == (0, 0)
    assert both("", "", "cat") == (0, 0)  # an answer and an empty one: the empty one is no answer
    found = metrics.squad(["cat", "dog"], [["cat"], ["cat dog"]])
    assert found == pytest.approx({"exact": 50, "f1": (100 + 200 / 3) / 2})


def test_squad_counts_japanese_characters() -> None:
    """As JGLUE: a last 。 falls away, and F1 is of characters; words would give 0."""
    found = metrics.squad(["東京タワー。"], [["東京都"]], "ja")
    assert found == pytest.approx({"exact": 0, "f1": 100 * 2 * 2 / 8})
    assert metrics.squad(["東京。"], [["東京"]], "ja")["exact"] == 100
    assert metrics.squad(["東京、"], [["東京"]], "ja")["exact"] == 0
    assert metrics.squad(["the ＡＢ"], [["ａｂ"]], "ja")["f1"] == pytest.approx(100 * 4 / 8)
    assert metrics.squad(["東京タワー。"], [["東京都"]])["f1"] == 0
    with pytest.raises(InputError, match="'de'"):
        metrics.squad(["a"], [["a"]], "de")


# ---- retrieval, certainty, errors ----


def test_retrieval() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.1], [0.4, 0.6, 0.5], [0.5, 0.5, 0.1]])
    found = metrics.ranks(scores, [0, 2, 2, 0])
    assert found == [1, 3, 2, 2]  # a tie counts against the right one
    assert metrics.recall_at(found, 1) == 0.25
    assert metrics.recall_at(found, 2) == 0.75
    assert metrics.mrr(found) == pytest.approx((1 + 1 / 3 + 1 / 2 + 1 / 2) / 4)
    assert metrics.ranks(torch.zeros(2, 5), [1, 4]) == [5, 5]  # all alike finds nothing
    assert metrics.ranks(torch.full((1, 3), math.nan), [0]) == [3]
    with pytest.raises(InputError, match="class 3"):
        metrics.ranks(scores, [0, 1, 2, 3])


def test_wilson_solves_its_equation() -> None:
    """The bound p is the smaller root of (s/n - p)^2 = z^2 p (1 - p) / n."""
    for successes, n in ((5, 10), (90, 100), (1, 7), (550, 1000), (10, 10)):
        p = metrics.wilson_lower(successes, n)
        share, z = successes / n, 1.959963984540054
        assert (share - p) ** 2 == pytest.approx(z * z * p * (1 - p) / n)
        assert 0 < p < share
    assert metrics.wilson_lower(0, 9) == metrics.wilson_lower(0, 0) == 0.0
    assert metrics.wilson_lower(9, 10, 3.0) < metrics.wilson_lower(9, 10)
    with pytest.raises(InputError):
        metrics.wilson_lower(3, 2)


def test_nothing_and_unequal_lengths_are_named() -> None:
    two: Any = {"bleu": ["a"], "rouge": ["a"], "squad": [["a"]]}
    for name, gold in two.items():
        with pytest.raises(InputError, match="2 predictions for 1"):
            getattr(metrics, name)(["a", "b"], gold)
        with pytest.raises(InputError, match="nothing to judge"):
            getattr(metrics, name)([], [])
    with pytest.raises(InputError, match="no reference"):
        metrics.bleu(["a"], [[]])
    with pytest.raises(InputError, match="class 2"):
        metrics.classification([2], [0], None, ["a", "b"])
    with pytest.raises(InputError, match="class -1"):
        metrics.classification([0], [-1], None, ["a", "b"])


@pytest.mark.parametrize(
    ("module", "package", "call"),
    [
        ("sacrebleu.metrics", "sacrebleu", lambda: metrics.bleu(["a"], ["a"])),
        ("rouge_score.rouge_scorer", "rouge-score", lambda: metrics.rouge(["a"], ["a"])),
        (
            "sklearn.metrics",
            "scikit-learn",
            lambda: metrics.classification([0], [0], None, ["a", "b"]),
        ),
        (
            "seqeval.metrics.sequence_labeling",
            "seqeval",
            lambda: metrics.entities([["O"]], [["O"]]),
        ),
        ("scipy.stats", "scipy", lambda: metrics.regression([0.0, 1.0], [0.0, 1.0])),
    ],
)
def test_a_missing_library_is_named(
    module: str, package: str, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=rf'{package} is not(.|\n)*chumoku\[train\]"'):
        call()
