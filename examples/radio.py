"""A stochastic radio channel whose simulation takes as long as echoes are many.

Turin's model (Turin et al. 1972, IEEE Trans. Veh. Technol. 21, 1): a signal reaches the receiver over many paths.
Path l arrives after a delay tau_l, points of a Poisson process of rate lambda on [0, T_max], with a complex gain
alpha_l whose variance falls exponentially with the delay. At frequency f_k the receiver measures

    H_k = sum_l alpha_l exp(-2 pi i f_k tau_l) + W_k,
    E|alpha_l|^2 = G_0 B exp(-tau_l / T) / lambda,    E|W_k|^2 = sigma^2,

with the bandwidth B. The work is proportional to the number of paths, hence to lambda, whose prior spans a factor of
500. The data are what channel sounding reports of several measurements at once: the temporal moments
`m_i = int t^i |h(t)|^2 dt` of the impulse response, i = 0, 1, 2, by the means, standard deviations and correlations of
their logarithms (after Bharti et al. 2019, "Estimator for stochastic channel model without multipath extraction using
temporal moments", SPAWC).

Parameters: reverberation gain G_0, reverberation time T, rate lambda and noise variance sigma^2, all with log-uniform
priors, and therefore given by their logarithms to base 10.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.distributions import Independent, Uniform

BANDWIDTH, FREQUENCIES, MEASUREMENTS = 4e9, 401, 20
LATEST = (FREQUENCIES - 1) / BANDWIDTH
#: log10 of G_0, of T in seconds, of lambda in 1 / seconds, of sigma^2.
LOW, HIGH = (-9.0, -9.0, 7.0, -11.0), (-8.0, -8.0, 9.7, -9.0)
PRIOR = Independent(Uniform(torch.tensor(LOW), torch.tensor(HIGH)), 1)


def simulate(theta: np.ndarray, seed: int) -> np.ndarray:
    """Means of the log moments (3), then their standard deviations (3) and correlations (3), for `theta` `(4,)`."""
    gain, decay, rate, noise = 10.0 ** np.asarray(theta, dtype=float)
    rng = np.random.default_rng(seed)
    turn = -2j * np.pi * np.linspace(0.0, BANDWIDTH, FREQUENCIES)
    response = _complex(rng, (MEASUREMENTS, FREQUENCIES)) * np.sqrt(noise)
    for row in response:
        delays = rng.uniform(0.0, LATEST, rng.poisson(rate * LATEST))
        gains = np.sqrt(gain * BANDWIDTH / rate * np.exp(-delays / decay)) * _complex(rng, delays.shape)
        row += np.exp(np.outer(turn, delays)) @ gains
    power = np.abs(np.fft.ifft(response, axis=1)) ** 2
    times = np.arange(FREQUENCIES) / BANDWIDTH
    moments = np.log(np.stack([(power * times**i).sum(axis=1) for i in range(3)]))
    correlation = np.corrcoef(moments)[np.triu_indices(3, 1)]
    return np.concatenate([moments.mean(axis=1), np.log(moments.std(axis=1)), np.arctanh(correlation)])


def _complex(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Circular complex normal numbers of variance 1."""
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)
