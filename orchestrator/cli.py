"""The command line, `temperflow --help`."""

from __future__ import annotations

__all__ = ["app", "main"]

import atexit
import gc
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulators.errors import ConfigError, RunDirectoryError, TemperflowError

from .run_directory import RunDirectory
from .warned_once import warned_once

if TYPE_CHECKING:
    from .checking import CheckResult
    from .report import Comparison, Width

app = typer.Typer(
    name="temperflow",
    help="Tempered posteriors of costly simulators: simulate wisely on Ray, train one network, ask it anything.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
#: Without markup: names, paths and reasons may have brackets.
console = Console(markup=False)
_state = {"debug": False}
#: Of a parameter of a draw: in the network's pieces, all together, as a table and on its way into a file.
_DRAW_BYTES = 16

RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="Run directory of a campaign.")]
OwnCode = Annotated[
    bool, typer.Option("--own-code", help="Run the embedding or prior of your own that the run directory names.")
]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration file (YAML).")]
Directory = Annotated[
    Path | None, typer.Option("--dir", help="Run directory; default runs/NAME. An existing one is continued.")
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join; default RAY_ADDRESS, else this machine.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated.")
]


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    _state["debug"] = debug
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.captureWarnings(False)
    context.with_resource(warned_once())
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"


@app.command(epilog="Example: temperflow run examples/hudson_bay.yaml --set budget.simulations=2000")
def run(
    config: Config,
    directory: Directory = None,
    address: Address = None,
    settings: Settings = None,
) -> None:
    """Run a campaign, or continue it."""
    from .campaign import Campaign
    from .reporting import comparison

    result = Campaign.from_file(config, settings or (), directory, address).run()
    _print_checks(result.checks)
    _print_comparison(*comparison(RunDirectory(result.directory), result.posterior))
    console.print(f"\nreport:     {result.directory / 'report.html'}", soft_wrap=True)
    console.print(f"posterior:  {result.directory / 'posterior'}", soft_wrap=True)
    console.print(
        f"draws:      temperflow sample {result.directory} --beta 0.5 -n 1000 --out draws.csv", soft_wrap=True
    )


@app.command(epilog="Example: temperflow simulate examples/hudson_bay.yaml --set acquisition.method=sobol")
def simulate(
    config: Config,
    directory: Directory = None,
    address: Address = None,
    settings: Settings = None,
) -> None:
    """Run a campaign's simulations, or continue them; `run` trains the posterior on them later.

    A method that chooses trains meanwhile, to choose; with `--set acquisition.method=prior` nothing is trained.
    """
    from .campaign import Campaign

    campaign = Campaign.from_file(config, settings or (), directory, address)
    simulations = campaign.simulate()
    folder = campaign.run_directory.path
    console.print(f"{simulations} simulations in {folder}; `temperflow status {folder}` tells of them", soft_wrap=True)


@app.command(epilog="Example: temperflow status runs/hudson_bay")
def status(directory: RunDir) -> None:
    """What a campaign has done so far, and why simulations failed."""
    run = RunDirectory(directory)
    records = run.records()
    frame = run.store().read(["status", "reason", "seconds", "proposal", "attempts"]).to_pandas()
    settings = run.entry("config")
    budget = settings["budget"]
    state = "finished" if records.get("finished") else "posterior trained" if run.posterior.exists() else "simulating"
    waiting = "" if state == "finished" else " (or waiting to be continued)"
    console.print(Text.assemble((settings["name"], "bold"), f": {state}{waiting}"))
    of = f" of {budget['simulations']}" if budget.get("simulations") else ""
    imported = int((frame["proposal"] == "imported").sum())
    beside = f" and {imported} imported" if imported else ""
    console.print(f"{len(frame) - imported}{of} simulations{beside}, {frame['seconds'].sum():.1f} simulator-seconds")
    table = Table("status", "reason", "simulations", "attempts")
    groups = frame.groupby(["status", "reason"], dropna=False)
    for (kind, reason), part in sorted(groups, key=lambda item: -len(item[1]))[:20]:
        table.add_row(kind, reason or "", str(len(part)), str(int(part["attempts"].sum())))
    console.print(table)


@app.command(epilog="Example: temperflow sample runs/hudson_bay --beta 0.5 -n 1000 --out draws.parquet")
def sample(
    directory: RunDir,
    out: Annotated[Path, typer.Option(help="File to write, .parquet or .csv.")],
    x: Annotated[
        str, typer.Option(help="`observation`, or a file with other data (.csv, .npy, .json, .parquet).")
    ] = "observation",
    beta: Annotated[float, typer.Option(help="Temperature.")] = 1.0,
    n: Annotated[int, typer.Option("-n", min=1, help="Draws.")] = 1000,
    seed: Annotated[int | None, typer.Option(help="Makes the draws repeatable.")] = None,
    refine: Annotated[
        bool, typer.Option("--refine", help="Correct the network's draws by what it learned from; takes seconds.")
    ] = False,
    own_code: OwnCode = False,
) -> None:
    """Draw from the tempered posterior."""
    import pandas as pd
    import psutil
    import pyarrow as pa

    from .config import ObservationConfig
    from .learner_parts import load_own_posterior
    from .location import Folder
    from .observation import read_observation

    if out.suffix.lower() not in (".parquet", ".csv"):
        raise ConfigError(f"expected --out to end in .parquet or .csv, got {out}")
    if not out.parent.is_dir():
        raise ConfigError(f"expected --out in a folder that is there, but {out.parent} is none; make it first")
    if out.is_dir():
        raise ConfigError(f"expected a file as --out, but {out} is a folder; name a file in it")
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"--out {out} cannot be written: {out.parent} does not allow it; choose another folder")
    posterior = load_own_posterior(RunDirectory(directory), own_code)
    most = psutil.virtual_memory().total // (_DRAW_BYTES * posterior.dim_theta)
    if n > most:
        raise ConfigError(f"expected -n of at most {most:,}, which is what the memory holds, got {n:,}; draw in parts")
    observed = None
    if x != "observation":
        tabular = Path(x).suffix.lower() in (".csv", ".parquet")
        records = RunDirectory(directory).records() if RunDirectory(directory).exists else {}
        columns = (records.get("observation") or {}).get("series", []) if tabular else []
        observed = read_observation(ObservationConfig(file=x, columns=columns), Path()).x
    draws = posterior.sample((n,), x=observed, beta=beta, seed=seed, refine=refine)
    frame = pd.DataFrame(draws.numpy(), columns=list(posterior.names))

    def write(file: pa.NativeFile) -> None:
        if out.suffix.lower() == ".csv":
            frame.to_csv(file, index=False, mode="wb")
        else:
            frame.to_parquet(file, index=False)

    try:
        Folder(out.parent).put(out.name, write)
    except RunDirectoryError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.__cause__}; choose another place") from error
    console.print(f"{n} draws at beta = {beta:g} in {out}", soft_wrap=True)


@app.command(epilog="Example: temperflow check runs/hudson_bay")
def check(
    directory: RunDir,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine", help="Check refined draws: what is still rejected is not the network's error. Takes minutes."
        ),
    ] = False,
    own_code: OwnCode = False,
) -> None:
    """Check the posterior's calibration (SBC) on the simulations kept from training."""
    from .checking import check as check_run
    from .checking import why_not
    from .learner_parts import load_own_posterior

    run = RunDirectory(directory)
    settings = run.entry("config")
    posterior = load_own_posterior(run, own_code)
    if refine:
        console.print("refining draws for every simulation kept from training: this takes minutes")
    results = check_run(run, posterior, settings["calibration"]["draws"], settings["seed"], refine)
    if not results:
        raise ConfigError(why_not(run, posterior))
    _print_checks(results)


@app.command(epilog="Example: temperflow report runs/hudson_bay")
def report(directory: RunDir, own_code: OwnCode = False) -> None:
    """Write the report anew, without simulating or training."""
    from .reporting import make_report

    run = RunDirectory(directory)
    gc.disable()  # One report leaves little garbage, and many objects to look through for it.
    try:
        make_report(run, own_code)
    finally:
        gc.enable()
    console.print(f"{run.report}", soft_wrap=True)


@app.command(epilog="Example: temperflow explore runs/hudson_bay")
def explore(
    target: Annotated[
        str, typer.Argument(metavar="DIR|MODEL", help="Run directory, or a registered model: `models:/NAME@alias`.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes any that is free.")] = 5006,
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
    own_code: OwnCode = False,
) -> None:
    """Explore the posterior in the browser: a slider for the temperature, any observation."""
    from .explorer import load_explored

    try:
        from .explorer_server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'the explorer needs {error.name}, which is not installed: pip install ".[explore]" in its clone'
        ) from error
    serve(load_explored(target, own_code), port, browser)


@app.command(epilog="Example: temperflow sync runs/hudson_bay")
def sync(
    directory: RunDir,
    uri: Annotated[
        str | None,
        typer.Option(help="Tracking server or store; needed where only DIR names a server, and you trust it."),
    ] = None,
) -> None:
    """Deliver to MLflow what is still on disk because the server was out."""
    from .sync import deliver

    delivered, link = deliver(directory, uri)
    console.print(f"{delivered} records delivered to {link['uri']}, run {link['run_id']}", soft_wrap=True)


@app.command("import", epilog="Example: temperflow import runs/hudson_bay old_simulations.npz --from-prior")
def import_(
    directory: RunDir,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Arrays theta and x in .npz, .h5 or .hdf5; or a .csv or .parquet table with a column for each "
            "parameter, all others being x, or with lists theta and x.",
        ),
    ],
    config: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="Configuration file (YAML); begins the campaign.")
    ] = None,
    from_prior: Annotated[
        bool, typer.Option("--from-prior", help="The parameters were drawn from the campaign's prior.")
    ] = False,
    own_code: OwnCode = False,
) -> None:
    """Add simulations that you have already; they cost nothing of the budget."""
    from .importing import import_simulations

    result = import_simulations(RunDirectory(directory.resolve()), file, config, from_prior, own_code)
    failures = f", {result.failures} of them failures" if result.failures else ""
    done = (
        "were imported before; nothing was added" if result.repeated else "imported; `temperflow run` learns from them"
    )
    console.print(f"{result.rows} simulations{failures}, {done}", soft_wrap=True)


def _print_checks(results: list[CheckResult]) -> None:
    for result in results:
        console.print(f"\nSBC over {result.population}: {result.verdict}", soft_wrap=True)
        console.print(
            f"  p-values {', '.join(f'{p:.2g}' for p in result.p_values)} "
            f"({result.effective_draws:.0f} effective draws)",
            soft_wrap=True,
        )


def _print_comparison(rows: list[Comparison], widths: list[Width]) -> None:
    if rows:
        table = Table("parameter", "known", "here", "shift/sd", "sd ratio", "agrees")
        for row in rows:
            table.add_row(
                row.parameter,
                f"{row.expected_mean:.3g} ± {row.expected_std:.2g}",
                f"{row.mean:.3g} ± {row.std:.2g}",
                f"{row.difference:+.2f}",
                f"{row.ratio:.2f}",
                "yes" if row.ok else "NO",
            )
        console.print("\nThe posterior at beta = 1 beside the known one (mean ± standard deviation)")
        console.print(table)
    if widths:
        narrow = [row.parameter for row in widths if not row.ok]
        verdict = f"not in {', '.join(narrow)}" if narrow else "in every parameter"
        console.print(f"wider at the lowest temperature than at beta = 1: {verdict}")


def main() -> None:
    """Entry point: exit code 0 only for success, one clear message instead of a traceback."""
    # On its way out Python would look through all objects for garbage once more: the better part of a second.
    atexit.register(gc.freeze)
    try:
        app(standalone_mode=True)
    except TemperflowError as error:
        if _state["debug"]:
            raise
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if _state["debug"]:
            raise
        Console(stderr=True).print(
            f"error: unexpected {type(error).__name__}: {error}\nRun `temperflow --debug ...` for the traceback; what "
            "was simulated is in the run directory.",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(1)
