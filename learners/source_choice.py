"""Which source a learner has: what may go together, and the source itself once the data have a shape."""

from __future__ import annotations

__all__ = ["SOURCES", "SourceChoice"]

from dataclasses import dataclass

from simulators.errors import DataError, nearest

from .cost import Cost, Distance
from .known import KnownLikelihood, LogLikelihood
from .ratio import Ratio
from .source import Source
from .surrogate import Surrogate, SurrogateOptions
from .whitening import Whitening

#: What can be learned from simulations.
SOURCES = ("surrogate", "ratio", "cost")


@dataclass(frozen=True)
class SourceChoice:
    """What a user asks for.

    Attributes:
        name: One of `SOURCES`.
        distance: Of the source "cost", and of no other.
        log_likelihood: Known, in place of what would be learned; or None.
        loss: Likewise, a loss `L(theta, x)`.

    Raises:
        DataError: These do not go together.
    """

    name: str = "surrogate"
    distance: Distance | None = None
    log_likelihood: LogLikelihood | None = None
    loss: LogLikelihood | None = None

    def __post_init__(self) -> None:
        if self.name not in SOURCES:
            raise DataError(f"there is no source '{self.name}'; {nearest(self.name, SOURCES)}")
        if self.name == "cost" and self.distance is None:
            raise DataError(
                "source 'cost' needs a distance: a function of rows x (n, k) and x_o (n, k) that gives (n,)"
            )
        if self.name != "cost" and self.distance is not None:
            raise DataError(f"a distance is for source 'cost', but the source is '{self.name}'; leave one of them out")
        if self.log_likelihood is not None and self.loss is not None:
            raise DataError("give log_likelihood or loss, not both")
        if self.known is not None and self.name != "surrogate":
            raise DataError(
                f"source '{self.name}' is learned, but a log_likelihood or loss says all that there is to learn; "
                "leave one of them out"
            )

    @property
    def known(self) -> LogLikelihood | None:
        """The function of a source that is not learned."""
        return self.log_likelihood or self.loss

    def build(self, whitening: Whitening, dim_z: int, options: SurrogateOptions, seed: int) -> Source:
        """The source for data `z` of dimension `dim_z`, not fitted yet."""
        if self.known is not None:
            return KnownLikelihood(self.known, whitening, is_loss=self.loss is not None)
        if self.name == "ratio":
            return Ratio(whitening.dim, dim_z, options.hidden, seed)
        if self.distance is not None:
            return Cost(self.distance, whitening.dim, dim_z, options.hidden, seed)
        return Surrogate(whitening.dim, dim_z, options, seed, whitening.curved)
