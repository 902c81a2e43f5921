"""How good a model is, as the field measures it.

Each function is a thin, typed door to the library that papers use, so that a number can be compared
with theirs: sacrebleu, rouge-score, seqeval, scikit-learn, SciPy. They are imported when first
needed. BLEU, chrF, ROUGE and SQuAD's numbers are percentages, as they are published; all others
lie between 0 and 1 (correlations between -1 and 1).

Raises everywhere: InputError where there is nothing to judge or lengths differ, DependencyError
where a library is missing.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from importlib.metadata import version
from typing import Any, Final

import torch
from torch import Tensor

from chumoku.errors import DependencyError, InputError
from chumoku.text.alignment import aligned
from chumoku.text.segmentation import segmenter

INSTALL: Final = 'pip install "chumoku[train]"'
BLEU_TOKENIZERS: Final = ("13a", "intl", "char", "zh", "none", "ja-mecab")
"""Of sacrebleu, without those that fetch a model from the network."""
Z_95: Final = 1.959963984540054
"""Two-sided 95% of the normal distribution."""

References = Sequence[str] | Sequence[Sequence[str]]
"""One right text for each hypothesis, or several."""


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"sklearn": "scikit-learn", "rouge_score": "rouge-score"}
        top = name.partition(".")[0]
        raise DependencyError(
            f"{package.get(top, top)} is not installed", advice=f"Run: {INSTALL}"
        ) from error


def _check(what: str, predicted: Sized, gold: Sized) -> None:
    if len(predicted) != len(gold):
        raise InputError(f"{what}: {len(predicted)} predictions for {len(gold)} right answers")
    if not len(gold):
        raise InputError(f"{what}: there is nothing to judge")


# ---- translation: sacrebleu (Post, 1804.08771) ----


def bleu(
    hypotheses: Sequence[str],
    references: References,
    tokenize: str = "13a",
    lowercase: bool = False,
) -> float:
    """Corpus BLEU in percent (Papineni et al., P02-1040), sacrebleu's defaults.

    tokenize: one of BLEU_TOKENIZERS. "ja-mecab" cuts with the IPA dictionary as sacrebleu does, but
    through fugashi, which the ja extra has; the scores are the same. `bleu_signature` names it all.
    """
    _check("BLEU", hypotheses, references)
    cut = _bleu_words(tokenize)
    streams = _streams([[cut(r) for r in some] for some in _several(references)])
    metric = _bleu_metric(tokenize, lowercase)
    return float(metric.corpus_score([cut(h) for h in hypotheses], streams).score)


def bleu_signature(tokenize: str = "13a", lowercase: bool = False, references: int = 1) -> str:
    """What to write beside a BLEU score: sacrebleu's signature of the settings."""
    _bleu_words(tokenize)
    metric = _bleu_metric(tokenize, lowercase)
    metric.num_refs = references
    signature = str(metric.get_signature())
    if tokenize == "ja-mecab":
        _mecab()
        return signature.replace("tok:none", f"tok:ja-mecab-fugashi-{version('fugashi')}-IPA")
    return signature


def _bleu_metric(tokenize: str, lowercase: bool) -> Any:
    kind = "none" if tokenize == "ja-mecab" else tokenize
    # force: no log message about texts that look tokenised; it does not change the score.
    return _library("sacrebleu.metrics").BLEU(lowercase=lowercase, tokenize=kind, force=True)


def _bleu_words(tokenize: str) -> Callable[[str], str]:
    """What is done to a text before sacrebleu sees it."""
    if tokenize not in BLEU_TOKENIZERS:
        raise InputError(
            f"BLEU knows no tokenizer {tokenize!r:.40}", advice=f"One of {BLEU_TOKENIZERS}."
        )
    if tokenize == "ja-mecab":
        return lambda text: " ".join(japanese_words(text.strip()))
    return lambda text: text


def _several(references: References) -> list[list[str]]:
    return [[r] if isinstance(r, str) else list(r) for r in references]


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """[hypothesis][reference] -> sacrebleu's [reference][hypothesis], filled up with None."""
    if not all(references):
        raise InputError("a hypothesis has no reference")
    most = max(map(len, references))
    return [[some[n] if n < len(some) else None for some in references] for n in range(most)]


@functools.cache
def _mecab() -> Callable[[Any], list[Any]]:
    options = {"mecab_dic": "ipadic", "normalize_text": False}
    return segmenter("mecab", options, lower=False, never_split=())


def japanese_words(text: str) -> list[str]:
    """MeCab's words with the IPA dictionary. DependencyError without chumoku[ja]."""
    return [word.text for word in _mecab()(aligned(text))]


# ---- summaries: rouge-score (Lin, W04-1013) ----


def rouge(
    hypotheses: Sequence[str],
    references: References,
    language: str = "en",
    *,
    stem: bool = False,
) -> dict[str, float]:
    """rouge1, rouge2 and rougeL: mean F in percent; of several references the best one counts.

    language: "en" is the package's own tokenizer, which keeps only a-z and 0-9. "ja" cuts words
    with MeCab, as Japanese scores would be 0 otherwise. stem: Porter's stemmer, for English.
    """
    _check("ROUGE", hypotheses, references)
    if language not in ("en", "ja"):
        raise InputError(f"ROUGE knows no language {language!r:.40}", advice="Known: en, ja.")
    kinds = ["rouge1", "rouge2", "rougeL"]
    words = JapaneseWords() if language == "ja" else None
    scorer = _library("rouge_score.rouge_scorer").RougeScorer(
        kinds, use_stemmer=stem, tokenizer=words
    )
    sums = dict.fromkeys(kinds, 0.0)
    for hypothesis, some in zip(hypotheses, _several(references), strict=True):
        for kind, score in scorer.score_multi(some, hypothesis).items():
            sums[kind] += score.fmeasure
    return {kind: 100 * total / len(hypotheses) for kind, total in sums.items()}


class JapaneseWords:
    """A tokenizer for rouge-score: MeCab's words of the NFKC form, in lower case, without marks."""

    def tokenize(self, text: str) -> list[str]:
        words = japanese_words(unicodedata.normalize("NFKC", text).lower())
        return [word for word in words if any(map(str.isalnum, word))]


# ---- labels ----


def classification(
    predicted: Sequence[int], gold: Sequence[int], scores: Tensor | None, labels: Sequence[str]
) -> dict[str, float]:
    """accuracy, majority (what always giving the most frequent class would have) and macro_f1; for
    two classes also f1 and matthews (of class 1), and auc.

    scores: [B, C], or [B] of class 1; auc needs them, and rows of both classes. macro_f1 is the
    mean over the classes that occur in either list, as scikit-learn's.
    """
    _check("classification", predicted, gold)
    _check_classes([*predicted, *gold], len(labels))
    judge = _library("sklearn.metrics")
    predicted, gold = list(predicted), list(gold)
    values = {
        "accuracy": float(judge.accuracy_score(gold, predicted)),
        "majority": max(Counter(gold).values()) / len(gold),
        "macro_f1": float(judge.f1_score(gold, predicted, average="macro", zero_division=0.0)),
    }
    if len(labels) == 2:
        values["f1"] = float(judge.f1_score(gold, predicted, pos_label=1, zero_division=0.0))
        values["matthews"] = _matthews(predicted, gold)
        if scores is not None and len(set(gold)) == 2:
            of_one = (scores[:, 1] if scores.ndim == 2 else scores).double().cpu().numpy()
            _check("classification", of_one, gold)
            values["auc"] = float(judge.roc_auc_score(gold, of_one))
    return values


def _matthews(predicted: Sequence[int], gold: Sequence[int]) -> float:
    """Matthews' correlation (CoLA's metric) of 0s and 1s; 0 where one list is constant."""
    if len(set(predicted)) < 2 or len(set(gold)) < 2:
        return 0.0
    return float(_library("sklearn.metrics").matthews_corrcoef(gold, predicted))


def _check_classes(numbers: Iterable[int], classes: int) -> None:
    outside = [n for n in numbers if not 0 <= n < classes]
    if outside:
        raise InputError(f"class {outside[0]} is not one of the {classes} labels")


def multilabel(
    predicted: Sequence[Sequence[int]], gold: Sequence[Sequence[int]], labels: Sequence[str]
) -> dict[str, float]:
    """micro_f1, macro_f1 (mean over all labels) and exact (rows that are right as a whole).

    predicted, gold: [B][C], 1 where a row has the label.
    """
    _check("classification", predicted, gold)
    for row in (*predicted, *gold):
        if len(row) != len(labels) or not set(row) <= {0, 1}:
            raise InputError(f"a row of several labels is {len(labels)} times 0 or 1")
    judge = _library("sklearn.metrics")
    made, real = torch.tensor(predicted).numpy(), torch.tensor(gold).numpy()
    if len(labels) == 1:  # scikit-learn would take one column for two classes, and average both
        value = float(judge.f1_score(real[:, 0], made[:, 0], zero_division=0.0))
        return {
            "micro_f1": value,
            "macro_f1": value,
            "exact": float(judge.accuracy_score(real[:, 0], made[:, 0])),
        }
    return {
        "micro_f1": float(judge.f1_score(real, made, average="micro", zero_division=0.0)),
        "macro_f1": float(judge.f1_score(real, made, average="macro", zero_division=0.0)),
        "exact": float(judge.accuracy_score(real, made)),
    }


def regression(predicted: Sequence[float], gold: Sequence[float]) -> dict[str, float]:
    """pearson, spearman and mse. A constant column goes with nothing: its correlations are 0."""
    _check("regression", predicted, gold)
    if not all(map(math.isfinite, (*predicted, *gold))):
        raise InputError("regression: a value is not a finite number")
    mse = sum((p - y) ** 2 for p, y in zip(predicted, gold, strict=True)) / len(gold)
    if len(set(predicted)) < 2 or len(set(gold)) < 2:
        return {"pearson": 0.0, "spearman": 0.0, "mse": mse}
    stats = _library("scipy.stats")
    return {
        "pearson": float(stats.pearsonr(predicted, gold).statistic),
        "spearman": float(stats.spearmanr(predicted, gold).statistic),
        "mse": mse,
    }


_TAG = re.compile(r"O|[BIES]-.+")


def entities(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision, recall and f1 over whole entities of all types (seqeval, as conlleval counts).

    predicted, gold: one tag a word, O or B-, I-, E-, S- and a type (IOB1, IOB2, IOBES).
    """
    _check("entities", predicted, gold)
    for n, (made, real) in enumerate(zip(predicted, gold, strict=True)):
        if len(made) != len(real):
            raise InputError(f"sentence {n} has {len(real)} tags, {len(made)} were predicted")
        for tag in (*made, *real):
            if not _TAG.fullmatch(tag):
                raise InputError(
                    f"{tag!r:.40} is no entity tag", advice="Use O, B-TYPE, I-TYPE, E-TYPE, S-TYPE."
                )
    judge = _library("seqeval.metrics.sequence_labeling")
    precision, recall, f1, _ = judge.precision_recall_fscore_support(
        [list(tags) for tags in gold],
        [list(tags) for tags in predicted],
        average="micro",
        zero_division=0,
    )
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


# ---- answers: SQuAD (1606.05250; no answer: 1806.03822), JSQuAD (JGLUE, 2022.lrec-1.317) ----


def squad(
    predicted: Sequence[str], gold: Sequence[Sequence[str]], language: str = "en"
) -> dict[str, float]:
    """exact and f1 in percent; of several right answers the best counts.

    An empty list, or an empty text, means that there is no answer; then only an empty prediction is
    right. language "en": as SQuAD's script. "ja": as JGLUE, whose F1 is over characters.
    """
    _check("SQuAD", predicted, gold)
    if language not in ("en", "ja"):
        raise InputError(f"SQuAD knows no language {language!r:.40}", advice="Known: en, ja.")
    normal = _normal_english if language == "en" else _normal_japanese
    units: Callable[[str], list[str]] = str.split if language == "en" else list
    exact = f1 = 0.0
    for answer, right in zip(predicted, gold, strict=True):
        made, real = normal(answer), [r for r in map(normal, right) if r] or [""]
        exact += max(made == r for r in real)
        f1 += max(_overlap(units(made), units(r)) for r in real)
    return {"exact": 100 * exact / len(gold), "f1": 100 * f1 / len(gold)}


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _normal_english(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _normal_japanese(text: str) -> str:
    return " ".join(text.lower().rstrip("。").split())


def _overlap(made: list[str], real: list[str]) -> float:
    """F1 of two bags."""
    if not made or not real:
        return float(made == real)
    return 2 * (Counter(made) & Counter(real)).total() / (len(made) + len(real))


# ---- retrieval ----


def ranks(scores_QC: Tensor, gold: Sequence[int]) -> list[int]:
    """The place of each query's right candidate, 1 the best. Equal scores count against it."""
    _check("retrieval", scores_QC, gold)
    _check_classes(gold, scores_QC.shape[1])
    own = scores_QC.gather(1, torch.tensor(gold, device=scores_QC.device)[:, None])
    places: list[int] = (~(scores_QC < own)).sum(1).tolist()  # a NaN is not below: it counts too
    return places


def recall_at(found: Sequence[int], k: int) -> float:
    """The share of `ranks` that are at most k."""
    _check("retrieval", found, found)
    return sum(place <= k for place in found) / len(found)


def mrr(found: Sequence[int]) -> float:
    """Mean of 1 / rank (Voorhees, TREC-8)."""
    _check("retrieval", found, found)
    return sum(1 / place for place in found) / len(found)


# ---- certainty ----


def wilson_lower(successes: int, n: int, z: float = Z_95) -> float:
    """Lower bound of a share at z deviations (Wilson, 1927); 0 of 0 is 0."""
    if not 0 <= successes <= n:
        raise InputError(f"{successes} of {n} is no share")
    if n == 0:
        return 0.0
    share, square = successes / n, z * z
    middle = share + square / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, (middle - spread) / (1 + square / n))
