"""Which samples to learn from, which to choose by and which to judge by: whole groups, seeded, pure."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError
from toolkit.data.samples import Samples

Indices = NDArray[np.int64]
By = Literal["fold", "source", "group"]

HELD_FRACTION = 0.2
_TRIALS = 200
_TINY = 1e-9  # less than any sample's share of its class


def hold_out(samples: Samples, by: By, held: str | int | None, seed: int) -> tuple[Indices, Indices]:
    """Sorted indices to train on and to test on, disjoint and complete.

    By 'fold', the fold `held` (the lowest where None) is tested on; by 'source' or 'group', the group `held`,
    or, where None, whole groups dealt at random: about a fifth of each class, and both classes on both sides
    where the groups allow it.

    Raises HighwallError when the samples have no folds or groups, `held` is not among them, or nothing would
    be left to train on.
    """
    if by == "fold":
        if samples.folds is None:
            raise HighwallError("the data has no folds; add folds.csv, or split by source or group")
        test = _is_held(samples.folds.astype(np.str_), held, "fold", lowest=str(samples.folds.min()))
    elif samples.groups is None:
        raise HighwallError(f"the data has no {by}s; add index.csv or groups.csv, or split by fold")
    elif held is not None:
        test = _is_held(samples.groups, held, by, lowest=None)
    else:
        test = _deal_groups(samples.groups, samples.positive, HELD_FRACTION, np.random.default_rng(seed))
    if test.all():
        raise HighwallError(f"the data has one {by} only, so nothing is left to train on; add another")
    return np.flatnonzero(~test), np.flatnonzero(test)


def inner_validation(samples: Samples, train_idx: Indices, fraction: float, seed: int) -> tuple[Indices, Indices, str]:
    """Part of the training indices set aside to choose by: (fit, validation, note), sorted and disjoint.

    Whole groups, about `fraction` of each class. Where groups cannot put a class on both sides (no groups,
    or all its samples in one) its samples are dealt at random and the note says so; otherwise it is empty.

    Raises HighwallError when `fraction` is not between 0 and 1 or there are fewer than two samples.
    """
    if not 0 < fraction < 1:
        raise HighwallError(f"validation fraction {fraction} is not between 0 and 1; 0.15 is usual")
    train = np.sort(np.asarray(train_idx, dtype=np.int64))
    if len(train) < 2:
        raise HighwallError(f"{len(train)} training samples cannot be split to validate; add more")
    rng = np.random.default_rng(seed)
    positive = samples.positive[train]
    chosen = np.zeros(len(train), dtype=np.bool_)
    if samples.groups is not None:
        groups = samples.groups[train]
        if len(np.unique(groups)) > 1:
            chosen = _deal_groups(groups, positive, fraction, rng)
    split_labels = []
    for label in (False, True):
        members = np.flatnonzero(positive == label)
        if len(members) == 0 or 0 < chosen[members].sum() < len(members):
            continue
        split_labels.append(samples.class_names[int(label)])
        chosen[members] = False
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen[rng.permutation(members)[:count]] = True
    if not chosen.any():  # one sample of each class: validate on the negative one
        chosen[np.flatnonzero(~positive)[:1]] = True
    return train[~chosen], train[chosen], _note(split_labels, samples.groups is not None)


def _note(labels: list[str], grouped: bool) -> str:
    if not labels:
        return ""
    named = " and ".join(f"'{label}'" for label in labels)
    why = "too few groups hold it" if grouped else "the data has no groups"
    return f"samples of {named} were dealt to validation at random ({why}), so neighbours may flatter scores"


def _is_held(values: NDArray[np.str_], held: str | int | None, what: str, lowest: str | None) -> NDArray[np.bool_]:
    wanted = lowest if held is None else str(held)
    test = np.asarray(values == wanted, dtype=np.bool_)
    if not test.any():
        known = np.unique(values)
        some = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        raise HighwallError(f"no sample has {what} {wanted}; choose one of {some}")
    return test


def _deal_groups(
    groups: NDArray[np.str_], positive: NDArray[np.bool_], fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which samples are set aside, (N,), when whole groups are dealt: the best of many seeded deals.

    The best deal lacks a class on the fewest sides, then comes nearest to `fraction` of each class.
    """
    names, member = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), 2))
    np.add.at(counts, (member, positive.astype(np.int64)), 1)
    totals = counts.sum(axis=0)
    shares = counts[:, totals > 0] / totals[totals > 0]
    best: NDArray[np.bool_] = np.ones(len(names), dtype=np.bool_)
    best_cost = (np.inf, np.inf)
    for trial in range(_TRIALS):
        order = rng.permutation(len(names))
        # Each group leads some deal, so that a class held by few, large groups is not passed over for ever.
        order = np.concatenate(([trial % len(names)], order[order != trial % len(names)]))
        aside = _deal(shares, fraction, order)
        share = shares[aside].sum(axis=0)
        lacking = (share < _TINY).sum() + (share > 1 - _TINY).sum()
        cost = (float(lacking), float(np.abs(share - fraction).sum()))
        if cost < best_cost:
            best, best_cost = aside, cost
    return np.asarray(best[member], dtype=np.bool_)


def _deal(shares: NDArray[np.float64], fraction: float, order: Indices) -> NDArray[np.bool_]:
    """One deal, (G,): the first group of `order`, then each that is needed or brings classes to `fraction`.

    A group is needed when it has a class that nothing set aside has, and does not take the last of any.
    """
    aside = np.zeros(len(shares), dtype=np.bool_)
    aside[order[0]] = True
    total = shares[order[0]].tolist()
    for group in order[1:]:
        pairs = list(zip(total, shares[group].tolist(), strict=True))
        after = [had + more for had, more in pairs]
        gain = sum(abs(had - fraction) - abs(had + more - fraction) for had, more in pairs)
        needed = any(had == 0 < more for had, more in pairs) and max(after) < 1 - _TINY
        if gain > 0 or needed:
            aside[group] = True
            total = after
    return aside
