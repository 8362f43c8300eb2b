"""Solver settings that a tuner asked for, and what was measured with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dipa_bench.parameters import Value

ALIKE = 2.0  # standard errors of a paired difference, within which two are not told apart
FAILED = 0.0  # dB, of settings that diverged: below all that reconstruct anything

Params = dict[str, Value]


@dataclass(frozen=True)
class Evaluation:
    """Settings that were run.

    Attributes:
        params: the searched parameters.
        psnr: of the validation images that they were run on, in racing order; empty where they
            diverged or failed.
    """

    params: Mapping[str, Value]
    psnr: Sequence[float]


@dataclass(frozen=True)
class Proposal:
    """Settings to run.

    Attributes:
        params: the searched parameters.
        images: how many validation images, in racing order.
        races: whether they may leave off once they are significantly worse than the best.
    """

    params: Params
    images: int
    races: bool


class Missing(Exception):
    """Evaluations that the search needs before it goes on."""

    def __init__(self, proposals: Sequence[Proposal]) -> None:
        super().__init__()
        self.proposals = list(proposals)


class Evaluations:
    """What is known, and what the search has asked for so far.

    What was run twice, on some images and then on more, is what it was the first time until the
    search asks for more: what the search does next must not depend on what it does later.
    """

    def __init__(self, evaluations: Sequence[Evaluation]) -> None:
        self._known: dict[tuple, list[np.ndarray]] = {}
        for one in evaluations:
            psnr = np.asarray(one.psnr, dtype=float)
            self._known.setdefault(params_key(one.params), []).append(psnr)
        self._asked: dict[tuple, Params] = {}
        self._psnr: dict[tuple, np.ndarray] = {}
        self._means: dict[tuple, dict[int, float]] = {}  # of settings over so many images
        self._leaders: dict[int, tuple | None] = {}  # over so many images
        self._runs: set[tuple] = set()

    def need(self, proposals: Sequence[Proposal]) -> None:
        """Looks settings up.

        Raises:
            Missing: those that were not run, or on fewer images.
        """
        answers = [self.found(one) for one in proposals]
        pairs = list(zip(proposals, answers, strict=True))
        if missing := [one for one, psnr in pairs if psnr is None]:
            raise Missing(missing)
        for one, psnr in pairs:
            key = params_key(one.params)
            self._asked.setdefault(key, one.params)
            if key not in self._psnr or len(psnr) > len(self._psnr[key]):
                self._psnr[key], self._means[key] = psnr, {}
                self._leaders = {
                    images: best for images, best in self._leaders.items() if len(psnr) < images
                }
            self._runs.add((key, one.images))

    def found(self, proposal: Proposal) -> np.ndarray | None:
        """PSNRs of the first run that answers a proposal; empty where it failed."""
        for psnr in self._known.get(params_key(proposal.params), ()):
            if proposal.races or not len(psnr) or len(psnr) >= proposal.images:
                return psnr
        return None

    @property
    def runs(self) -> int:
        """Evaluations that the search has asked for so far."""
        return len(self._runs)

    @property
    def asked(self) -> list[Params]:
        """What the search has asked for so far, at least one."""
        return list(self._asked.values())

    def seen(self, images: int) -> list[Params]:
        """What was asked for and run on at least so many images."""
        return [self._asked[key] for key in self._seen(images)]

    def value(self, params: Params, images: int) -> float:
        """Mean PSNR [dB] over the first images; from fewer by the difference to the best."""
        return self._value(params_key(params), images)

    def alike(self, one: Params, other: Params, images: int) -> bool:
        """Whether the first images leave it open which of two is better."""
        pair = [self._psnr[params_key(params)][:images] for params in (one, other)]
        if images < 2 or any(len(psnr) < images for psnr in pair):
            return False
        lead = np.subtract(*pair)
        return lead.mean() <= ALIKE * lead.std(ddof=1) / math.sqrt(images)

    def best(self, images: int) -> Params:
        """The first of `ranked`."""
        return self._asked[max(self._asked, key=lambda key: self._value(key, images))]

    def ranked(self, images: int, among: Sequence[Params] = ()) -> list[Params]:
        """Some settings, or all that was asked for, the best over the first images first."""
        keys = [params_key(params) for params in among] or list(self._asked)
        ranked = sorted(keys, key=lambda key: self._value(key, images), reverse=True)
        return [self._asked[key] for key in ranked]

    def best_seen(self, images: int) -> Params:
        """The best of what was run on at least so many images; of all where nothing was."""
        best = self._leader(images)
        return self.best(images) if best is None else self._asked[best]

    def _seen(self, images: int) -> list[tuple]:
        return [key for key in self._asked if len(self._psnr[key]) >= images]

    def _leader(self, images: int) -> tuple | None:
        """The best of what was run on at least so many images."""
        if images not in self._leaders:
            whole = self._seen(images)
            self._leaders[images] = max(
                whole, key=lambda key: self._mean(key, images), default=None
            )
        return self._leaders[images]

    def _value(self, key: tuple, images: int) -> float:
        psnr = self._psnr[key]
        if not len(psnr):
            return FAILED
        if len(psnr) >= images:
            return self._mean(key, images)
        best = self._leader(images)
        if best is None:
            return self._mean(key, len(psnr))
        lead = self._mean(key, len(psnr)) - self._mean(best, len(psnr))
        return self._mean(best, images) + lead

    def _mean(self, key: tuple, images: int) -> float:
        """Mean PSNR [dB] over the first images."""
        means = self._means[key]
        if images not in means:
            means[images] = float(self._psnr[key][:images].mean())
        return means[images]


def params_key(params: Mapping[str, Value]) -> tuple:
    """What two equal settings have in common, whatever their order."""
    return tuple(sorted(params.items()))
