"""What the matching of spectral exposures has found, in a few lines for the log."""

from collections.abc import Iterator, Sequence

import numpy as np

from bkgmatch.spectra import MATCHED, SpectralMatch
from bkgmatch.stories import LISTED, each_or_all

__all__ = ["story"]

_NAMED = 4


def story(match: SpectralMatch, title: str, unit: str, few: int = LISTED) -> Iterator[tuple[bool, str]]:
    """
    Tell of a match: in general, then each exposure.

    Parameters
    ----------
    match : SpectralMatch
        Result.
    title : str
        What was matched, such as ``channel 1 SHORT``.
    unit : str
        Unit of the data.
    few : int
        Number of exposures that have a line each; of more the range is told.

    Yields
    ------
    is_warning : bool
        Whether the line is a warning.
    line : str
        Line.
    """
    matched = [s == MATCHED for s in match.status]
    sets = len(set(match.component[matched].tolist()))
    yield False, f"{title}: {sum(matched)} of {len(matched)} exposures matched{_of_pairs(match, unit)}"
    if sets > 1:
        yield True, f"{title}: the exposures fall into {sets} sets without overlap: each has a zero point of its own"
    yield from ((False, f"{title}: {line}") for line in _levels(match, np.flatnonzero(matched).tolist(), unit, few))
    for i, (name, status) in enumerate(zip(match.names, match.status, strict=True)):
        if status != MATCHED:
            reason = f"{status}, it is the only exposure" if len(match.names) == 1 else status
            yield True, f"{title}: {name} is left as it is: {reason}"
        if match.loose[i]:
            yield (
                True,
                f"{title}: {name}: the overlaps do not determine {_some(match.loose[i])}: a weak prior holds that",
            )
        if match.bounded[i]:
            yield True, f"{title}: {name}: its polynomial was flattened, to keep it within bounds outside the overlaps"


def _levels(match: SpectralMatch, known: list[int], unit: str, few: int) -> Iterator[str]:
    names, level, sigma = [match.names[i] for i in known], match.level[known], match.sigma[known]
    lines = [
        f"{name}: {_with_error(value, error)} {unit} from the mean of the set, on average"
        for name, value, error in zip(names, level, sigma, strict=True)
    ]
    yield from each_or_all(lines, names, level, sigma, unit, title="Mean polynomials", few=few)


def _of_pairs(match: SpectralMatch, unit: str) -> str:
    pairs = match.pairs
    if len(pairs.first) < 2:  # one pair always agrees
        return ""
    rms, worst = np.sqrt(np.mean(pairs.residual**2)), np.max(np.abs(pairs.residual) / pairs.sigma)
    return f"; residuals of {len(pairs.first)} pairs: {rms:.2g} {unit} rms, at most {worst:.1f} sigma"


def _with_error(value: float, sigma: float) -> str:
    """Value and error, with two digits of the error."""
    digits = int(np.clip(1 - np.floor(np.log10(sigma)), 0, 12)) if sigma > 0 else 6
    return f"{value:.{digits}f} +- {sigma:.{digits}f}" if sigma > 1e-9 else f"{value:.6g} +- {sigma:.2g}"


def _some(terms: Sequence[str]) -> str:
    if len(terms) <= _NAMED:
        return ", ".join(terms)
    return f"{', '.join(terms[:_NAMED])} and {len(terms) - _NAMED} more terms (try a lower bkg_degree)"
