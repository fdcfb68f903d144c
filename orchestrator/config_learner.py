"""What the configuration says of what is learned, and of where to simulate for it."""

from __future__ import annotations

__all__ = ["EMBEDDINGS", "METHODS", "AcquisitionConfig", "LearnerConfig"]

from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from simulators.errors import nearest

from .config_simulator import Section, gpus_that_ray_has

#: Embeddings that are built in.
EMBEDDINGS = ("mlp", "conv1d")


class LearnerConfig(Section):
    """The learner; the defaults suit most campaigns."""

    source: Literal["surrogate", "ratio", "cost"] = "surrogate"
    """Where what beta multiplies comes from. `surrogate`: a density of x is learned; `ratio`: classifiers learn the
    ratio of densities `p(x | theta) / p(x)`; `cost`: the mean `distance` of simulations from x is learned, and minus it
    takes the place of the log-likelihood. See [method.md](method.md)."""
    distance: str | None = None
    """`file.py:name` or `module:name` of a function `(x, x_o) -> d` of rows `(n, k)` and `(n, k)`, torch tensors, that
    gives `(n,)`; of the source `cost`."""
    embedding: str | None = None
    """What makes few numbers of an x of many: none; `mlp`; `conv1d`, for series; or `file.py:Class` of your own
    `torch.nn.Module`, made without arguments, which is called on scaled x `(n, k)` and gives `(n, m)`."""
    embedding_dim: int | None = Field(None, ge=1)
    """Numbers that `mlp` or `conv1d` give; by default twice as many as parameters, and at least 4."""
    embedding_channels: int = Field(1, ge=1)
    """Series of equal length, one after the other, that make up x, for `conv1d`."""
    members: list[
        Literal[
            "linear",
            "gaussian",
            "affine",
            "spline",
            "tailed",
            "full",
            "waves",
            "process",
            "location",
            "rounded",
            "committee",
            "committee-gaussian",
            "committee-graded",
        ]
    ] = []
    """Kinds of the surrogate ensemble's members; empty chooses by the dimension of x."""
    hidden: list[PositiveInt] = Field([128, 128, 128, 128], min_length=1)
    """Widths of the hidden layers of the surrogate, the ratio or the cost."""
    epochs: int = Field(200, ge=1)
    """Passes over the simulations in a fit from scratch, at most (training stops early)."""
    update_epochs: int = Field(40, ge=1)
    """The same for updates while simulations still come; of more than a thousand simulations fewer."""
    refine_epochs: int = Field(80, ge=1)
    """The same for a last fit that continues from the updates: one that begins anew has `epochs` (docs/method.md)."""
    bank: int = Field(512, ge=8)
    """Number of x on which the posterior network is distilled."""
    pairs: int = Field(140_000, ge=1000)
    """Training pairs of the posterior network in a pass (docs/method.md, step 3)."""
    posterior_epochs: int = Field(8, ge=1)
    """Number of such passes; twice as many where there is no guide."""
    cpus: float = Field(1.0, ge=0)
    """CPU cores reserved for the trainer while simulations run."""
    gpus: float | None = Field(None, ge=0)
    """GPUs of the trainer; by default one if the cluster has any."""
    compiled: bool = False
    """Compile training steps, which needs a C++ compiler where the trainer runs, and half a minute once for the network
    and for each kind of member. On a CPU steps of the surrogate then take 0.6, of the network 0.8 of their time: whole
    fits gain a few per cent to a fifth, and only campaigns that train for hours are the better for it."""

    _whole_gpus = field_validator("gpus")(gpus_that_ray_has)

    @field_validator("embedding")
    @classmethod
    def _known_embedding(cls, value: str | None) -> str | None:
        if value in (None, "none"):
            return None
        if value not in EMBEDDINGS and ":" not in value:
            known = nearest(value, (*EMBEDDINGS, "none"))
            raise ValueError(f"no embedding '{value}'; {known}, or name a class as 'file.py:Class'")
        return value

    @model_validator(mode="after")
    def _together(self) -> LearnerConfig:
        if self.source == "cost" and self.distance is None:
            raise ValueError("source `cost` needs a `distance`, such as mine.py:distance")
        if self.source != "cost" and self.distance is not None:
            raise ValueError(f"a `distance` is for the source `cost`, but the source is `{self.source}`; remove one")
        if self.source != "surrogate" and self.members:
            raise ValueError(f"`members` are those of a surrogate, but the source is `{self.source}`; remove one")
        if self.embedding_dim is not None and self.embedding not in EMBEDDINGS:
            raise ValueError(
                f"`embedding_dim` is for the embeddings {' and '.join(EMBEDDINGS)}, but the embedding is "
                f"{self.embedding or 'none'}; remove it"
            )
        if self.embedding_channels != 1 and self.embedding != "conv1d":
            raise ValueError(f"`embedding_channels` are for conv1d, but the embedding is {self.embedding or 'none'}")
        return self


METHODS = ("default", "variance", "tempered", "prior", "sobol")


class AcquisitionConfig(Section):
    """How (theta, beta) are chosen."""

    method: str = "default"
    """`default`: a share of prior draws, tempered-posterior draws and BoTorch's choice of what removes most variance;
    `variance`: the choice of the largest variance instead; `file.py:Name` or `module:Name`: the choice of your own
    class (see `docs/method.md`); `tempered`: no choice; `prior`: prior draws; `sobol`: a low-discrepancy sequence of
    the prior."""
    prior_share: float | None = Field(None, ge=0.05, le=1.0)
    """Share of the simulations that is always drawn from the prior; by default 0.2 or, where no observation is given,
    0.05: there the others are draws of the prior too, in favour of what is cheap."""
    chosen_share: float = Field(0.2, ge=0.0, le=1.0)
    """Share that is chosen one by one, by the methods that do so."""
    initial: int | None = Field(None, ge=1)
    """Prior draws before the first fit; by default an eighth of the budget, between 100 and 1000."""
    growth: float = Field(0.5, gt=0)
    """How far, relative to what the model was trained on, simulating may run ahead of a trainer that is
    slower than the simulator; above 1 also relative to `initial`, before the first model. Costly simulations never
    wait."""

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS and ":" not in method:
            raise ValueError(f"no method '{method}'; {nearest(method, METHODS)}, or name a class as 'file.py:Name'")
        return method

    def share_of_prior(self, targeted: bool) -> float:
        """`prior_share` or its default, in a campaign that has an observation or has none."""
        return self.prior_share or (0.2 if targeted else 0.05)

    @property
    def learns(self) -> bool:
        """Whether models steer the campaign; else only the last training matters."""
        return self.method not in ("prior", "sobol")

    @property
    def chooses(self) -> bool:
        """Whether some simulations are chosen one by one."""
        return self.learns and self.method != "tempered"
