"""How a GSM8K problem is put to a model: prompt formats, worked examples in front, and how an answer ends.

Every format has a source. A format says where an answer stops besides the end token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lrx.data.gsm8k_problems import Problem
from lrx.data.splits import rank


@dataclass(frozen=True)
class Format:
    """``prompt``: with ``{question}``; ``lead``: what begins an answer; ``scored``: what is added to a prompt that is
    generated from, not to one that is trained on; ``stop``: strings that end an answer; ``source``: whose it is.
    """

    prompt: str
    lead: str
    stop: tuple[str, ...]
    source: str
    scored: str = ""

    def ask(self, question: str) -> str:
        """The prompt of a question; braces in the question are text."""
        return self.prompt.replace("{question}", question)


_ENDS = ("</s>", "<|im_end|>")
FORMATS: dict[str, Format] = {
    "harness": Format(
        "Question: {question}\nAnswer:",
        " ",
        ("Question:", *_ENDS),
        "lm-evaluation-harness, task gsm8k 3.0",
    ),
    "cot": Format("Q: {question}\nA:", " ", ("Q:", *_ENDS), "lm-evaluation-harness, task gsm8k_cot 3.0"),
    "loraga": Format("Q: {question}\nA: ", " ", (), "LoRA-GA, reproduce/data.py: two blanks before the answer"),
    "alpaca": Format(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{question}\n\n### Response:",
        "",
        ("Instruction:", "Instruction", "Response:", "Response"),
        "LoRA-SB, utils/data_utils.py and gsm8k_eval.py",
        scored=" Let's think step by step.",
    ),
    "altlora": Format("Question: {question} </s> Answer: ", "", ("Question:", *_ENDS), "AltLoRA, main_lora.py"),
}

_MARKS = re.compile(r"<<[^<>\n]*>>")
_NUMBER_LINE = re.compile(r"\n?####[^\n]*(?:\nThe answer is:[^\n]*)?\s*\Z")
ENDINGS: dict[str, str] = {
    "hashes": "\n#### {number}",  # GSM8K; LoRA-GA cuts MetaMathQA back to it
    "metamath": "\n#### {number}\nThe answer is: {number}",
    "cot": "\nThe answer is {number}.",
    "llama": "\nThe final answer is {number}",
}


def strip_marks(solution: str) -> str:
    """Without the calculator's marks: ``9*2 = $<<9*2=18>>18`` -> ``9*2 = $18``."""
    return _MARKS.sub("", solution)


def end(problem: Problem, ending: str) -> tuple[str, bool]:
    """The solution ended as ``ending`` says, and whether that could be done: it needs the line ``#### N``.

    ``as_is`` leaves every solution as it is.
    """
    if ending == "as_is":
        return problem.solution, True
    body, found = _NUMBER_LINE.subn("", problem.solution)
    if not found:
        return problem.solution, False
    return body + ENDINGS[ending].format(number=problem.number), True


def answer(problem: Problem, ending: str, keep_marks: bool) -> tuple[str, bool]:
    """What a model is to write for a problem, without the format's lead, and whether the ending could be given."""
    text, done = end(problem, ending)
    return (text if keep_marks else strip_marks(text)), done


def exemplars(ending: str) -> list[tuple[str, str]]:
    """The eight fixed (question, answer) pairs, ended as ``ending`` says; ``as_is`` is the harness's own sentence."""
    given = "cot" if ending == "as_is" else ending
    if given in {"cot", "llama"}:  # as in gsm8k_cot and gsm8k_cot_llama: on the same line
        return [(question, body + " " + ENDINGS[given].strip().format(number=n)) for question, body, n in COT]
    return [(question, body + ENDINGS[given].format(number=n)) for question, body, n in COT]


def drawn(problems: Sequence[Problem], count: int) -> list[Problem]:
    """``count`` problems of the training split, by a hash of the question: the same for every run and model."""
    return sorted(problems, key=lambda problem: rank("gsm8k few-shot", problem.key))[:count]


def preamble(form: Format, shots: Sequence[tuple[str, str]]) -> str:
    """Worked examples in front of a prompt, an empty line after each."""
    return "".join(f"{form.ask(question)}{form.lead}{text}\n\n" for question, text in shots)


# Wei et al. 2022 (arXiv 2201.11903), as the harness's task gsm8k_cot has them: question, reasoning, number.
COT: tuple[tuple[str, str, str], ...] = (
    (
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
        "there will be 21 trees. How many trees did the grove workers plant today?",
        "There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have been "
        "21 - 15 = 6.",
        "6",
    ),
    (
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
        "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5.",
        "5",
    ),
    (
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
        "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, "
        "they had 74 - 35 = 39.",
        "39",
    ),
    (
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did "
        "Jason give to Denny?",
        "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = 8.",
        "8",
    ),
    (
        "Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does he have "
        "now?",
        "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 + 4 = 9.",
        "9",
    ),
    (
        "There were nine computers in the server room. Five more computers were installed each day, from monday to "
        "thursday. How many computers are now in the server room?",
        "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 = 20 computers "
        "were added. 9 + 20 is 29.",
        "29",
    ),
    (
        "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. How many golf "
        "balls did he have at the end of wednesday?",
        "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After losing 2 more, he "
        "had 35 - 2 = 33 golf balls.",
        "33",
    ),
    (
        "Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
        "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 dollars "
        "left. 23 - 15 is 8.",
        "8",
    ),
)
