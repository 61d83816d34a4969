"""Sentences for the synthetic corpus: what AN4's speakers say (spelling, numbers, commands), and short plain English.

``sentence(rng) -> Sentence`` draws one. ``text`` holds words for the synthesiser (a capital 'A' is the letter, never
the article); the transcript is its lower case. ``dictated`` says that people say such things slowly, word by word.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

ONES = "one two three four five six seven eight nine".split()
DIGITS = ["zero", *ONES]
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
MONTHS = "january february march april may june july august september october november december".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth"
).split()
COMMANDS = "rubout erase enter go repeat stop start yes no help".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# In proportion to English names; drawn evenly half of the time, so that q, x and z are heard too.
NAME_LETTERS = "eeeeeeaaaaaarrrrrnnnnniiiillllooootttsssshhhcccddmmmuuggbbppkkywwfvjzxq"
NAMES = (
    "james mary john linda robert susan michael karen david nancy william betty richard helen joseph sandra thomas "
    "donna charles carol daniel ruth matthew sharon anthony michelle mark laura steven sarah paul kim andrew deborah "
    "joshua jessica kevin shirley brian cynthia george angela edward melissa ronald brenda timothy amy jason anna "
    "jeffrey virginia ryan rebecca jacob kathleen gary pamela nicholas martha eric debra smith johnson williams brown "
    "jones garcia miller davis wilson anderson taylor moore jackson martin lee thompson white harris clark lewis "
    "robinson walker young allen king wright scott torres nguyen hill flores green adams nelson baker hall rivera "
    "campbell mitchell carter roberts pittsburgh boston chicago denver houston phoenix seattle austin dallas memphis "
    "portland oakland omaha tulsa miami cleveland tampa newark toledo buffalo lincoln forbes fifth walnut wilkins "
    "murray beacon negley bartlett melwood craig bigelow liberty grant penn highland shady ellsworth kentucky howe "
    "pocusset quaker"
).split()
STREETS = "street avenue road lane drive court place way".split()

DETERMINERS = "the this that my your our their his her every another".split()
ADJECTIVES = (
    "old new small big red blue green quiet loud happy tired young early late warm cold long short heavy light clean "
    "dark bright empty full simple strange careful busy friendly hungry brave gentle famous local modern narrow open"
).split()
PEOPLE = (
    "man woman child teacher doctor farmer driver sister brother mother father friend neighbour student writer singer "
    "girl boy lawyer nurse baker captain guest visitor worker judge painter"
).split()
THINGS = (
    "house car book table window door garden river road letter picture boat train bridge box key lamp chair phone "
    "clock story song question answer paper bottle coat bag ticket map kitchen market school office church village "
    "mountain island forest field station hotel library museum hospital bicycle breakfast dinner coffee water bread "
    "apple horse dog cat bird fish tree flower shirt shoe ring coin wall roof floor street plane ship machine tool "
    "radio"
).split()
VERBS = (
    "found lost bought sold opened closed painted carried watched cleaned liked wanted needed remembered forgot "
    "brought moved repaired pushed pulled noticed followed visited left reached described borrowed returned ordered "
    "shared"
).split()
MOVES = "walked drove ran went came travelled hurried returned moved looked pointed".split()
PLACES = (
    "to the|from the|near the|behind the|past the|across the|towards the|around the|into the|away from the"
).split("|")
TIMES = (
    "yesterday|today|this morning|last night|on monday|on friday|in the evening|after lunch|before dinner|every day|"
    "last week|two days ago|at noon|in the winter|last summer|at the weekend|for an hour|once again"
).split("|")
PHRASES = (
    "how are you|thank you very much|see you tomorrow|what time is it|where do you live|i do not know|please come in|"
    "could you say that again|it is very cold today|i would like some tea|we are almost there|that is a good idea|"
    "please call me back|i will be there at nine|do you have a minute|let me think about it|have a nice day|"
    "she is not at home|they have already left|it does not matter|can you help me|i am looking for the station"
).split("|")


class Sentence(NamedTuple):
    text: str
    dictated: bool


def sentence(rng: Random) -> Sentence:
    """One sentence; about two thirds are of AN4's kinds."""
    kinds = {
        _code: 26, _spelled: 16, _command: 5, _digit_string: 16, _date: 7, _number: 8, _address: 5, _english: 17
    }  # fmt: skip
    return rng.choices(list(kinds), weights=list(kinds.values()))[0](rng)


def _letter(letter: str) -> str:
    return "A" if letter == "a" else letter


def _letters(rng: Random, count: int) -> str:
    return " ".join(_letter(rng.choice(LETTERS if rng.random() < 0.5 else NAME_LETTERS)) for _ in range(count))


def _digits(rng: Random, count: int) -> str:
    oh = rng.choice(["zero", "oh"])
    return " ".join(word if word != "zero" else oh for word in rng.choices(DIGITS, k=count))


def _below_hundred(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(TEENS)
    return rng.choice(TENS) if kind < 0.5 else f"{rng.choice(TENS)} {rng.choice(ONES)}"


def _code(rng: Random) -> Sentence:
    """'rubout g m e f three nine'"""
    command = rng.choice(["", "", "rubout", "erase", "enter", "repeat"])
    number = rng.choice([_below_hundred(rng), _digits(rng, rng.randint(1, 4)), ""])
    letters = _letters(rng, rng.randint(1, 6)) if rng.random() < 0.85 or not number else ""
    return Sentence(" ".join(part for part in (command, letters, number) if part), dictated=True)


def _spelled(rng: Random) -> Sentence:
    return Sentence(" ".join(_letter(letter) for letter in rng.choice(NAMES)), dictated=True)


def _command(rng: Random) -> Sentence:
    number = f" {_below_hundred(rng)}" if rng.random() < 0.3 else ""
    return Sentence(rng.choice(COMMANDS) + number, dictated=True)


def _digit_string(rng: Random) -> Sentence:
    """A zip code, a telephone number (with the pauses people make in it) or any digits."""
    kind = rng.choice(["zip", "phone", "long", "any"])
    if kind == "zip":
        return Sentence(_digits(rng, 5), dictated=True)
    if kind == "any":
        return Sentence(_digits(rng, rng.randint(1, 8)), dictated=True)
    comma = rng.choice([",", ""])
    number = f"{_digits(rng, 3)}{comma} {_digits(rng, 4)}"
    area = f"{_digits(rng, 3)}{comma} " if kind == "long" else ""
    return Sentence(rng.choice(["", "", "area code "]) * bool(area) + area + number, dictated=True)


def _date(rng: Random) -> Sentence:
    day = rng.choice([*ORDINALS, *(f"twenty {ordinal}" for ordinal in ORDINALS[:9]), "thirty first"])
    years = ["", f"nineteen {_below_hundred(rng)}", f"{rng.choice(['twenty', 'eighteen'])} {rng.choice(TEENS)}"]
    year = rng.choice(years)
    month = rng.choice(MONTHS)
    text = f"{month} {day} {year}" if rng.random() < 0.8 else f"the {day} of {month} {year}"
    return Sentence(text.strip(), dictated=False)


def _number(rng: Random) -> Sentence:
    hundreds = f"{rng.choice(ONES)} hundred"
    thousands = f"{rng.choice([rng.choice(ONES), _below_hundred(rng)])} thousand"
    choices = [
        _below_hundred(rng),
        f"{rng.choice(ONES)} {_below_hundred(rng)}",
        f"{hundreds} {rng.choice(['', 'and '])}{_below_hundred(rng)}",
        hundreds,
        f"{thousands} {hundreds}",
        f"{_below_hundred(rng)} and a half",
    ]
    return Sentence(rng.choice(choices), dictated=False)


def _address(rng: Random) -> Sentence:
    house = [_digits(rng, rng.randint(2, 4)), f"{rng.choice(ONES)} {_below_hundred(rng)}", _below_hundred(rng)]
    number = rng.choice(house)
    name = rng.choice(NAMES)
    street = rng.choice(STREETS)
    if rng.random() < 0.4:
        return Sentence(f"{number} {' '.join(_letter(letter) for letter in name)} {street}", dictated=True)
    return Sentence(f"{number} {name} {street}", dictated=False)


def _english(rng: Random) -> Sentence:
    if rng.random() < 0.15:
        return Sentence(rng.choice(PHRASES), dictated=False)
    who = rng.choice([f"{_noun(rng, PEOPLE)}", rng.choice(["i", "we", "they", "she", "he", "you"])])
    if rng.random() < 0.6:
        what = f"{rng.choice(VERBS)} {_noun(rng, THINGS)}"
    else:
        what = f"{rng.choice(MOVES)} {rng.choice(PLACES)} {rng.choice(THINGS)}"
    when = f" {rng.choice(TIMES)}" if rng.random() < 0.4 else ""
    return Sentence(f"{who} {what}{when}", dictated=False)


def _noun(rng: Random, nouns: list[str]) -> str:
    adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.5 else ""
    return f"{rng.choice(DETERMINERS)} {adjective}{rng.choice(nouns)}"
