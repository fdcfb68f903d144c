"""The posterior as an MLflow pyfunc model, logged *from code*: no pickle.

MLflow copies this file and runs it to load the model; the numbers come from the posterior's own saved files. One input
row is one observation; the answer has `num_samples` rows for each, and a column `row` that says for which (`row_`
where a parameter is called `row`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from learners.asking import row_column
from learners.drawing import DrawingPosterior
from simulators.errors import TemperflowError

_MAX_SAMPLES = 1_000_000
#: What `mlflow models serve` runs.
_SERVER = "mlflow.pyfunc.scoring_server.app"


class PosteriorModel(PythonModel):
    """`predict(df, params={"beta": 1.0, "num_samples": 1000, "seed": 0, "refine": False})` -> posterior draws."""

    def load_context(self, context: PythonModelContext) -> None:
        folder = context.artifacts["posterior"]
        self.posterior = DrawingPosterior.load(folder) or _WithTorch(folder)
        self._refiner: _WithTorch | None = None
        # Made once, of plain texts: pandas' own take longer to make than the draws of a feature.
        self.columns = pd.Index([row_column(self.posterior.names), *self.posterior.names], dtype=object)
        if _SERVER in sys.modules:
            _settle()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Draws of `q(theta | x, beta)`, columns `row` and the parameters' names.

        MLflow fills in what is left out of `params`; here it is for whoever calls the model without its wrapper.

        Raises:
            MlflowException: What cannot be used, with the reason; a server answers 400.
        """
        low, high = self.posterior.beta_range
        usual = {"beta": min(max(1.0, low), high), "num_samples": 1000, "seed": 0, "refine": False}
        options = {**usual, **(params or {})}
        count, seed, rows = int(options["num_samples"]), int(options["seed"]), len(model_input)
        if not 0 <= seed < 2**63:
            raise MlflowException.invalid_parameter_value(f"expected a seed from 0 to 2^63 - 1, got {seed}")
        if not rows or not 1 <= count * rows <= _MAX_SAMPLES:
            raise MlflowException.invalid_parameter_value(
                f"expected between 1 and {_MAX_SAMPLES} samples in all, got {count} for each of {rows} rows"
            )
        try:
            x = model_input.to_numpy(dtype=np.float64)
            beta = float(options["beta"])
            if options["refine"]:
                draws = self._with_torch(context).sample_batched(count, x, beta, seed, refine=True)
            else:
                draws = self.posterior.sample_batched(count, x, beta, seed)
        except (TemperflowError, ValueError, TypeError) as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        values = _decimals(draws.swapaxes(0, 1).reshape(-1, draws.shape[-1]))
        frame = pd.DataFrame(dict(enumerate([np.repeat(np.arange(rows), count), *values.T])), copy=False)
        frame.columns = self.columns
        return frame

    def _with_torch(self, context: PythonModelContext) -> _WithTorch:
        """What refines: made when it is first asked for."""
        if isinstance(self.posterior, _WithTorch):
            return self.posterior
        if self._refiner is None:
            try:
                self._refiner = _WithTorch(context.artifacts["posterior"])
            except ImportError as error:
                raise ValueError(f"refine needs torch and zuko where the model runs, but: {error}") from error
        return self._refiner


class _WithTorch:
    """A posterior with an embedding, or of an unusual prior, or one that refines."""

    def __init__(self, folder: str) -> None:
        from learners.posterior import TemperedPosterior

        self._posterior = TemperedPosterior.load(folder)
        self.names, self.beta_range = self._posterior.names, self._posterior.beta_range

    def sample_batched(self, count: int, x: np.ndarray, beta: float, seed: int, refine: bool = False) -> np.ndarray:
        return self._posterior.sample_batched((count,), x, beta, seed, refine=refine).numpy()


def _decimals(values: np.ndarray) -> np.ndarray:
    """Single-precision numbers in double precision, at nine significant digits, which tell them all apart.

    What single precision leaves behind would else be written out, with seventeen digits in every answer of a server.
    """
    wide = values.astype(np.float64)
    with np.errstate(divide="ignore"):
        digits = 8 - np.floor(np.log10(np.abs(wide)))
    scale = 10.0 ** np.clip(digits, -300, 300)
    return np.where(wide == 0.0, 0.0, np.round(wide * scale) / scale)


def _settle() -> None:
    """Makes a process that serves, and does nothing else, quicker; every answer stays what it was, to the letter.

    A full garbage collection would walk through all that MLflow is made of while requests wait, 50 ms and more, and the
    thousand small objects of every answer set off a short one. MLflow hands requests to several threads, which take the
    interpreter from each other for 5 ms at every product of matrices: each for itself is 30 % faster. A server with
    several workers still answers several at once.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    with contextlib.suppress(RuntimeError):  # no loop is running
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    with contextlib.suppress(ImportError):
        from mlflow.utils.proto_json_utils import NumpyEncoder

        NumpyEncoder.iterencode = _in_one_piece  # type: ignore[method-assign]
    with contextlib.suppress(ImportError):
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        _hesitate(HttpToolsProtocol)


def _in_one_piece(self: json.JSONEncoder, o: Any, _one_shot: bool = False) -> Iterator[str]:
    """For `json.dump`, which writes into a file, Python's encoder makes a piece of every number; this is its C one."""
    return json.JSONEncoder.iterencode(self, o, _one_shot=True)


def _hesitate(protocol: Any) -> None:
    """Lets a server leave the next connection to another worker, if one is idle.

    Workers share a socket, and who wakes first takes all that wait there: of eight connections opened at once one
    worker got all in three of twenty tries, and kept them while the others had nothing to do.
    """
    accept = protocol.connection_made

    def connection_made(self: Any, transport: Any) -> None:
        accept(self, transport)
        if self.config.workers > 1 and len(self.connections) > 1:
            time.sleep(0.001)

    protocol.connection_made = connection_made


mlflow.models.set_model(PosteriorModel())
