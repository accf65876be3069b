"""Preference pairs with a rule that is soon learnt."""

import random

from steersman.records import PreferencePair

ANSWERS = ["Paris.", "Because it saw the shore.", "There are 3 apples left, and 12 pears.", "Thank you very much!"]
QUESTIONS = ["What is the capital of France?", "Tell me a joke about the sea.", "How many apples are left?"]


def pair(number, **change):
    """Of two answers the one that comes first among `ANSWERS` is better."""
    choose = random.Random(number)
    better, worse = sorted(choose.sample(range(len(ANSWERS)), 2))
    prompt = [{"role": "user", "content": choose.choice(QUESTIONS)}]
    record = {"id": str(number), "prompt": prompt, "chosen": ANSWERS[better], "rejected": ANSWERS[worse], **change}
    return PreferencePair.model_validate(record)
