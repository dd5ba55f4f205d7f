"""What the matching of spectral exposures has found, in a few lines for the log."""

from collections.abc import Iterator

import numpy as np

from bkgmatch.spectra import MATCHED, SpectralMatch

__all__ = ["story"]


def story(match: SpectralMatch, title: str, unit: str) -> Iterator[tuple[bool, str]]:
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

    Yields
    ------
    is_warning : bool
        Whether the line is a warning.
    line : str
        Line.
    """
    matched = [s == MATCHED for s in match.status]
    sets = len(set(match.component[matched].tolist()))
    yield False, f"{title}: {sum(matched)} of {len(matched)} exposures matched, {_of_pairs(match)}"
    if sets > 1:
        yield True, f"{title}: the exposures fall into {sets} sets without overlap: each has a zero point of its own"
    for i, (name, status) in enumerate(zip(match.names, match.status, strict=True)):
        if status != MATCHED:
            yield True, f"{title}: {name} is left as it is: {status}"
            continue
        yield False, f"{title}: {name}: mean background {match.level[i]:.6g} +- {match.sigma[i]:.2g} {unit}".rstrip()
        if match.loose[i]:
            yield (
                True,
                (
                    f"{title}: {name}: the overlaps do not determine {', '.join(match.loose[i])}: a weak prior holds "
                    "what is not determined near the mean of the set"
                ),
            )
        if match.bounded[i]:
            yield True, f"{title}: {name}: its polynomial was flattened, to keep it within bounds outside the overlaps"


def _of_pairs(match: SpectralMatch) -> str:
    pairs = match.pairs
    if not len(pairs.first):
        return "no pairs"
    pulls = np.abs(pairs.residual) / pairs.sigma
    return (
        f"{len(pulls)} pairs agree to {np.sqrt(np.mean(pairs.residual**2)):.3g} rms, "
        f"at worst {pulls.max():.1f} of their errors"
    )
