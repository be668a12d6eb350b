"""The words of the corpus, and made-up names of random syllables, split into a training share and a held-out share."""

from __future__ import annotations

import zlib
from random import Random


def _words(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


FIRST_NAMES = _words(
    "Mira Tomas Ines Jonas Leila Oskar Petra Samir Anna Boris Clara Daniel Elena Felix Greta Hugo Irene Jakob Karim Laura "
    "Marco Nadia Olga Pablo Rosa Simon Tara Viktor Wanda Yusuf Zora Adam Bella Cyrus Dora Emil Fatima Goran Helen Ivan "
    "Agnes Bruno Cora Dario Edith Frida Gustav Heidi Ingrid Julia Kurt Lena Milo Nora Otto Paula Rita Stefan Theo Ulla Vera "
    "Walter Xenia Zeno"
)
ANIMALS = _words(
    "herons otters foxes owls hares seals bats frogs geese swans crabs moths deer badgers beavers cranes ducks eagles "
    "falcons finches gulls hawks lizards lynxes martens mice moles newts ravens robins salmon snails spiders squirrels "
    "storks swallows terns toads trout turtles voles weasels wolves wrens bees beetles boars butterflies camels crows "
    "dolphins doves goats horses larks pelicans penguins pigeons puffins rabbits sparrows tortoises vipers whales"
)
PLACE_KINDS = ["Lake", "Mount", "Cape", "Port", "Fort", "Glen"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
CODE_WORDS = _words(
    "amber anchor apple arrow basket beacon bottle bridge button candle canyon carpet castle cedar cherry circle clover "
    "copper cotton crystal curtain desert diamond dragon engine feather fiddle forest garden ginger granite hammer harbor "
    "helmet honey island ivory jacket jasmine kettle ladder lantern lemon linen magnet maple marble meadow mirror "
    "needle ocean olive orchid paper pepper pillow planet pocket powder quartz ribbon river rocket saddle saffron shadow "
    "silver spiral summer temple thunder ticket timber tunnel valley velvet violet walnut willow window winter yellow"
)
#: (past, infinitive) of what people do with animals.
VERBS = [("counted", "count"), ("saw", "see"), ("found", "find"), ("photographed", "photograph")]
REMARKS = _words(
    "The wind was cold.|The sky was clear.|It rained all day.|The road was closed.|The boat was late.|The water was calm."
    "|There was fog in the morning.|The camp was quiet.|The snow was deep.|The path was dry.",
    "|",
)

_ONSETS = _words("b c d f g h j k l m n p r s t v w z br dr gr kr tr st sh th fl")
_VOWELS = _words("a e i o u a e o")
_CODAS = ["", "", "", "", "l", "n", "r", "s", "k", "m", "t", "z"]
_INNER_CODAS = ["l", "n", "r", "s", "m", "d"]


def is_held_out(word: str) -> bool:
    """Whether a made-up word belongs to the held-out fifth, which training never shows."""
    return zlib.crc32(word.lower().encode()) % 5 == 0


def made_word(random: Random, syllables: int, held_out: bool) -> str:
    """A word of that many random syllables, from the held-out share or from the training share.

    A tenth of the words of several syllables begin with a vowel; a fifth of the inner syllables end in a consonant.
    """
    while True:
        word = ""
        for i in range(syllables):
            if i and random.random() < 0.2:
                word += random.choice(_INNER_CODAS)
            bare = i == 0 and syllables > 1 and random.random() < 0.1
            word += ("" if bare else random.choice(_ONSETS)) + random.choice(_VOWELS)
        word += random.choice(_CODAS)
        if is_held_out(word) == held_out:
            return word
