"""Made-up restaurant descriptions for where the E2E data cannot be had: the E2E ontology, sentences of a small grammar.

Synthetic: no sentence was written by a person, a few dozen templates make all of them, and scores on it are no E2E
scores. Slots and values are those of the E2E ontology (Novikova, Dušek, Rieser 2017); as there, meaning representations
of the test split are longer than those of training, no meaning representation is in two splits, and each has several
references. The rows are a pure function of this file.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator

from lrx.data.e2e_mr import SLOTS, unparse
from lrx.data.splits import rank

VERSION = 1  # raise it when the rows change
# split -> (meaning representations, fewest and most slots, fewest and most references)
PLAN = {"train": (1500, (3, 8), (2, 2)), "select": (100, (3, 8), (2, 2)), "test": (150, (4, 8), (1, 8))}

VALUES: dict[str, tuple[str, ...]] = {
    "name": (
        "Alimentum", "Aromi", "Bibimbap House", "Blue Spice", "Browns Cambridge", "Clowns", "Cocum", "Cotto",
        "Fitzbillies", "Giraffe", "Green Man", "Loch Fyne", "Midsummer House", "Strada", "Taste of Cambridge",
        "The Cambridge Blue", "The Cricketers", "The Dumpling Tree", "The Eagle", "The Golden Curry",
        "The Golden Palace", "The Mill", "The Olive Grove", "The Phoenix", "The Plough", "The Punter",
        "The Rice Boat", "The Twenty Two", "The Vaults", "The Waterman", "The Wrestlers",
        "Travellers Rest Beefeater", "Wildwood", "Zizzi",
    ),
    "eatType": ("restaurant", "coffee shop", "pub"),
    "food": ("Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese"),
    "priceRange": ("cheap", "moderate", "high", "less than £20", "£20-25", "more than £30"),
    "customer rating": ("low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5"),
    "area": ("city centre", "riverside"),
    "familyFriendly": ("yes", "no"),
    "near": (
        "All Bar One", "Avalon", "Burger King", "Café Adriatic", "Café Brazil", "Café Rouge", "Café Sicilia",
        "Clare Hall", "Crowne Plaza Hotel", "Express by Holiday Inn", "Rainbow Vegetarian Café",
        "Raja Indian Cuisine", "Ranch", "The Bakers", "The Portland Arms", "The Six Bells", "The Sorrento",
        "Yippee Noodle Bar",
    ),
}  # fmt: skip
_ADJECTIVES = {"cheap": "cheap", "moderate": "moderately priced", "high": "expensive"}

Pick = Callable[..., str]
Mr = dict[str, str]


@functools.cache
def rows(split: str) -> list[tuple[str, list[str]]]:
    """(meaning representation, its references) of ``train``, ``select`` or ``test``, in a fixed order."""
    count, _, (fewest, most) = PLAN[split]
    found = []
    for mr in _meanings(split):
        text = unparse(list(mr.items()))
        wanted = fewest + rank("e2e references", text) % (most - fewest + 1)
        drawn = (_sentence(mr, _picker(text, trial)) for trial in range(8 * wanted))
        found.append((text, list(dict.fromkeys(drawn))[:wanted]))
        if len(found) == count:
            break
    return found


def _meanings(split: str) -> Iterator[Mr]:
    """Distinct meaning representations; a hash says which split may have one."""
    fewest, most = PLAN[split][1]
    seen: set[str] = set()
    for trial in range(100_000):
        generator = random.Random(rank("e2e meaning", split, trial))
        others = [slot for slot in SLOTS if slot != "name"]
        size = fewest + int(generator.random() * (most - fewest + 1))
        ranks = {slot: generator.random() for slot in others}
        chosen = {"name", *sorted(others, key=ranks.__getitem__)[: size - 1]}
        mr = {slot: VALUES[slot][int(generator.random() * len(VALUES[slot]))] for slot in SLOTS if slot in chosen}
        key = unparse(list(mr.items()))
        share = rank("e2e split", key) % 10
        if key not in seen and split == ("test" if share < 3 else "select" if share < 4 else "train"):
            seen.add(key)
            yield mr


def _picker(*key: object) -> Pick:
    generator = random.Random(rank("e2e sentence", *key))
    return lambda *texts: texts[int(generator.random() * len(texts))]


def _sentence(mr: Mr, pick: Pick) -> str:
    """One description of a meaning representation; every slot is said once."""
    price = mr.get("priceRange", "")
    adjective = _ADJECTIVES.get(price, "") if pick("adjective", "sentence") == "adjective" else ""
    said = [_opening(mr, adjective, pick), *_details(mr, "" if adjective else price, pick)]
    return " ".join(said)


def _opening(mr: Mr, adjective: str, pick: Pick) -> str:
    name, kind = mr["name"], mr.get("eatType") or pick("place", "venue")
    food = mr.get("food", "").replace("Fast food", "fast food")
    dish = food if food == "fast food" else f"{food} food"
    before = pick("cuisine", "serving") if food else ""
    words = [adjective, food if before == "cuisine" else "", kind]
    noun = " ".join(word for word in words if word)
    noun = f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"
    if before == "serving":
        noun += pick(f" serving {dish}", f" that serves {dish}", f" with {dish}")
    where = _where(mr, pick)
    if not where:
        return pick(f"{name} is {noun}.", f"There is {noun} called {name}.")
    return pick(
        f"{name} is {noun} {where}.",
        f"{where[0].upper()}{where[1:]}, there is {noun} called {name}.",
        f"There is {noun} {where} called {name}.",
        f"{name}, {where}, is {noun}.",
    )


def _where(mr: Mr, pick: Pick) -> str:
    area, near = mr.get("area", ""), mr.get("near", "")
    place = pick("in the city centre", "in the centre of the city") if area == "city centre" else ""
    if area == "riverside":
        place = pick("in the riverside area", "by the river", "at the riverside")
    beside = pick(f"near {near}", f"close to {near}", f"not far from {near}") if near else ""
    return pick(f"{place} {beside}", f"{beside} {place}").strip() if place and beside else place or beside


def _details(mr: Mr, price: str, pick: Pick) -> list[str]:
    """What the opening does not say, as sentences; the first two are joined now and then."""
    found = []
    if rating := mr.get("customer rating"):
        shape = pick("has", "rated")
        level = f"{'an' if rating == 'average' else 'a'} {rating} customer rating"
        found.append(f"it has {level}" if shape == "has" else f"customers gave it {level.replace('customer ', '')}")
    if price:
        shown = price if "£" in price else {"cheap": "low"}.get(price, price)
        found.append(pick(f"its prices are {shown}", f"the price range is {shown}"))
    if friendly := mr.get("familyFriendly"):
        yes = ("it is family friendly", "children are welcome", "it is a good place for families")
        no = ("it is not family friendly", "it is not a place for children", "it does not welcome families")
        found.append(pick(*(yes if friendly == "yes" else no)))
    if len(found) > 1 and pick("join", "apart") == "join":
        found[:2] = [f"{found[0]} and {found[1]}"]
    return [f"{text[0].upper()}{text[1:]}." for text in found]
