"""Tests that draw at random: from a seed that changes by day, and more of them once a week."""

import datetime
import os
import random

#: Whether everything is done that a usual run of the suite does a part of.
EVERYTHING = bool(os.environ.get("GPUCORON_ALL_ORDERS"))
#: What GPUCORON_TEST_SEED says, so that a day can be repeated, or the date.
SEED = int(os.environ.get("GPUCORON_TEST_SEED") or datetime.date.today().strftime("%Y%m%d"))


def moments(count, name):
    """Draw numbers between 0 and 1, in any order: one from each `count`-th of that range."""
    drawn = random.Random(f"{SEED} {name}")
    values = [(k + drawn.random()) / count for k in range(count)]
    drawn.shuffle(values)
    return values
