"""The rules by which a final number is read out of a GSM8K completion, each as its authors wrote it.

Which rule a number was scored by can move it by several points, so every rule has a name and none is a mixture:

- ``official``: ``grade_school_math/dataset.py`` of Cobbe et al. 2021. The first ``#### N``, commas removed.
- ``strict``, ``flexible``: the two filters of lm-evaluation-harness, task gsm8k 3.0, and its ``exact_match``.
- ``cot``, ``llama``: the strict filters of its tasks gsm8k_cot 3.0 and gsm8k_cot_llama 4.0.
- ``lorasb``: ``instruction_tuning_eval/gsm8k_eval.py`` of LoRA-SB (after MetaMath): the number behind the last
  ``The answer is: ``. Its verdict also accepts a hundredth and the hundredfold of the gold number; ``lorasb_equal`` is
  plain equality.
- ``loraga``: ``reproduce/eval_gsm8k.py`` of LoRA-GA, which reads neither a comma nor a sign, on either side. For parity
  with its tables only.

Pure functions of text; nothing heavy is imported.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

INVALID = "[invalid]"  # what the official code and the harness give where nothing matches

_OFFICIAL = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_COT = re.compile(r"The answer is (\-?[0-9\.\,]+).")  # the harness leaves the last dot unescaped
_LLAMA = re.compile(r"The final answer is ((-?[$0-9.,]{2,})|(-?[0-9]+))")
_LORASB = re.compile(r"[\-+]?\d*[\.,/]?\d+")
_LORAGA = re.compile(r"####\s*(\d+)")
_GOLD = re.compile(r"-?[0-9][0-9.,]*")


def gold_number(answer: str) -> str | None:
    """The number behind the last ``####`` of a reference solution, as it is written (``"1,000"``); None if none is."""
    _, mark, tail = answer.rpartition("####")
    match = _GOLD.match(tail.strip()) if mark else None
    return match.group() if match else None


def official(completion: str) -> str:
    """The first ``#### N`` without commas, or ``INVALID``. ``#### $18`` does not match; ``#### 18.`` gives ``18.``."""
    match = _OFFICIAL.search(completion)
    return match.group(1).replace(",", "") if match else INVALID


def strict(completion: str) -> str:
    """The harness's ``strict-match`` of gsm8k: the first ``#### N`` with its commas, or ``INVALID``."""
    return _filtered(_OFFICIAL, completion, 0)


def flexible(completion: str) -> str:
    """The harness's ``flexible-extract``: the last thing that looks like a number, or ``INVALID``."""
    return _filtered(_FLEXIBLE, completion, -1)


def cot(completion: str) -> str:
    """The harness's ``strict-match`` of gsm8k_cot: the first ``The answer is N`` and one more character."""
    return _filtered(_COT, completion, 0)


def llama(completion: str) -> str:
    """The harness's ``strict-match`` of gsm8k_cot_llama: the last ``The final answer is N``."""
    return _filtered(_LLAMA, completion, -1)


def _filtered(pattern: re.Pattern[str], completion: str, which: int) -> str:
    found = pattern.findall(completion)
    if not found:
        return INVALID
    groups = found[which] if isinstance(found[which], tuple) else (found[which],)
    return next((group for group in groups if group), INVALID).strip()


def normalise(text: str) -> str:
    """What the harness's ``exact_match`` compares: without commas, dollars, all up to ``#### `` and one final dot."""
    for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"):
        text = re.sub(pattern, "", text)
    return text.lower()


def lorasb(completion: str) -> int | None:
    """The number behind the last ``The answer is: ``, rounded half to even; None if there is none.

    One separator is read (``1,450,000`` is 1450), fractions are evaluated, and n/0 is n. Division by another spelling
    of zero, and a fraction too large for a float, end the original script; here they are None.
    """
    _, mark, tail = completion.rpartition("The answer is: ")
    match = _LORASB.search(tail.strip()) if mark else None
    if match is None:
        return None
    found = match.group()
    try:
        if "/" in found:
            numerator, denominator = found.split("/")
            if not (_is_number(numerator) and _is_number(denominator)):
                return None
            return round(float(numerator) if denominator == "0" else float(Fraction(found)))
        value = float(found.replace(",", ""))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return None if math.isinf(value) else round(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return len(text) == 1 and unicodedata.numeric(text, None) is not None
    return True


def loraga(completion: str) -> int:
    """The digits behind the first ``####`` up to the first comma, dot or sign; 0 if there are none."""
    match = _LORAGA.search(completion)
    try:
        return int(match.group(1)) if match else 0
    except ValueError:  # more digits than Python converts
        return 0


def _official_right(completion: str, gold: str) -> bool:
    found = official(completion)
    return found != INVALID and found == official(f"#### {gold}")


def _harness_right(extract: Callable[[str], str]) -> Callable[[str, str], bool]:
    return lambda completion, gold: normalise(extract(completion)) == normalise(gold)


def _lorasb_equal(completion: str, gold: str) -> bool:
    found = lorasb(completion)
    return found is not None and float(found) == _value(gold)


def _lorasb_right(completion: str, gold: str) -> bool:
    found, wanted = lorasb(completion), _value(gold)
    if found is None:
        return False
    near = (wanted / 100, wanted, wanted * 100)
    return found == wanted or any(math.isclose(value, float(found), rel_tol=1e-4) for value in near)


def _value(gold: str) -> float:
    try:
        return float(gold.replace(",", ""))
    except ValueError:  # "1.2.3": equal to nothing
        return math.nan


def _loraga_right(completion: str, gold: str) -> bool:
    return loraga(completion) == loraga(f"#### {gold}")


@dataclass(frozen=True)
class Rule:
    """``right(completion, gold)``: the verdict, ``gold`` as ``gold_number`` gives it. ``metric``: its name in tables.

    ``source``: whose code it follows.
    """

    metric: str
    right: Callable[[str, str], bool]
    source: str


_HARNESS = "EleutherAI/lm-evaluation-harness 4e7e0d4, lm_eval/tasks/gsm8k"
RULES: dict[str, Rule] = {
    "official": Rule("exact_match", _official_right, "openai/grade-school-math 3101c7d, dataset.py"),
    "strict": Rule("strict", _harness_right(strict), f"{_HARNESS}/gsm8k.yaml"),
    "flexible": Rule("flexible", _harness_right(flexible), f"{_HARNESS}/gsm8k.yaml"),
    "cot": Rule("cot", _harness_right(cot), f"{_HARNESS}/gsm8k-cot.yaml"),
    "llama": Rule("llama", _harness_right(llama), f"{_HARNESS}/gsm8k-cot-llama.yaml"),
    "lorasb": Rule("lorasb", _lorasb_right, "RaghavSinghal10/lora-sb 37b33d4, gsm8k_eval.py"),
    "lorasb_equal": Rule("lorasb_equal", _lorasb_equal, "the same, plain equality"),
    "loraga": Rule("loraga", _loraga_right, "Outsider565/LoRA-GA 89af7de, reproduce/eval_gsm8k.py"),
}
ALWAYS = ("official", "strict", "flexible")


def reported(extract: str) -> list[Rule]:
    """The rules a run reports, the one that ``extract`` names first."""
    beside = ("lorasb_equal",) if extract == "lorasb" else ()
    return [RULES[name] for name in dict.fromkeys((extract, *ALWAYS, *beside))]


def verdicts(rule: Rule, completions: Sequence[str], golds: Sequence[str]) -> list[bool]:
    """Whether each completion is right. Raises ``ValueError`` when the two are not equally many."""
    return [rule.right(completion, gold) for completion, gold in zip(completions, golds, strict=True)]
