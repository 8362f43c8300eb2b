"""The command line: each command parses, calls and prints; heavy imports stay inside them."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from dipa_bench.cli.console import INTERRUPTED, Stopped
from dipa_bench.cli.loading import loading_told
from dipa_bench.errors import UserError

# click's base of all usage errors, whether typer brings its own click or not
USAGE_ERROR = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

app = typer.Typer(
    help="Fair benchmarks of learned preconditioners for plug-and-play image reconstruction.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

TaskOption = Annotated[str | None, typer.Option(help="Task, e.g. sr; see `list tasks`.")]
UriOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="MLflow store; else MLFLOW_TRACKING_URI, else mlflow.db in this folder.",
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="MLflow store to read; else MLFLOW_TRACKING_URI, else the runs below mlruns/ here.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value, repeatable: problem.size=64, ldipa.train.clip=0.5"),
]
RunArgument = Annotated[
    str,
    typer.Argument(
        help="MLflow run id or model (models:/NAME), run folder, or study/method[/seed-0]."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<i>.")]
StudyOption = Annotated[str | None, typer.Option(help="Only the study of this name.")]
DatasetOption = Annotated[
    str | None,
    typer.Option(help="Images: NAME or NAME:PATH, e.g. folder:photos; see `list datasets`."),
]
RootOption = Annotated[
    str | None,
    typer.Option("--data-root", help="Where datasets without a path of their own lie."),
]
ProtocolOption = Annotated[str | None, typer.Option(help="tuned or published.")]
OldProtocolOption = Annotated[str | None, typer.Option("--rules", hidden=True)]


def _version(wanted: bool) -> None:
    if wanted:
        from dipa_bench import __version__

        print(f"dipa-bench {__version__}")
        raise typer.Exit


@app.callback(help=app.info.help)
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


@app.command()
def study(
    task: TaskOption = None,
    config: Annotated[
        str | None, typer.Option(help="Study file (TOML), or name of an embedded one.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Rows to run, with commas; patterns and all work.")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Solver settings of each row, and fits: budget.settings and budget.fits."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Minutes of each row's search instead: fitting and validating."),
    ] = None,
    replicates: Annotated[
        int | None,
        typer.Option(
            "--replicates",
            min=1,
            help="Whole searches, each with draws and fits of its own. [the preset's: 2, 3, 5]",
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="Processes: a number, or auto (one for each GPU, or each core). [this one]"
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="Dask cluster: dask://host:port, or file.py:NAME that gives one."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database that machines share, postgresql://...; else DIPA_BENCH_STORAGE. [files]"
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="quick (default on a CPU), standard (on a GPU) or paper.")
    ] = None,
    protocol: ProtocolOption = None,
    rules: OldProtocolOption = None,
    dataset: DatasetOption = None,
    data_root: RootOption = None,
    device: DeviceOption = "auto",
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the whole study.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the study; the same name continues it.")
    ] = None,
    sets: SetOption = None,
    tracking_uri: UriOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say trials, minutes and memory; start nothing.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the leaderboard, but no runs and no bars.")
    ] = False,
) -> None:
    """Search every method with the same budget, refit the winners, test each once.

    Interrupted, the same command continues where it stopped.
    """
    from dipa_bench.api import assignments
    from dipa_bench.cli.study import Request, print_plan, run

    request = Request(
        task=task,
        config=config,
        methods=methods,
        trials=trials,
        minutes=minutes,
        preset=preset,
        protocol=protocol or rules,
        device=device,
        seed=seed,
        name=name,
        sets=assignments(dataset, data_root, sets),
        replicates=replicates,
        workers=workers,
        cluster=cluster,
        storage=storage,
        tracking_uri=tracking_uri,
    )
    if dry_run:
        print_plan(request)
    else:
        run(request, quiet)


@app.command()
def leaderboard(
    task: Annotated[str, typer.Option(help="Task, or several: sr,cs,mri.")],
    format: Annotated[
        str, typer.Option(help="table, markdown (md), latex, html, csv or json.")
    ] = "table",
    output: Annotated[
        Path | None, typer.Option(help="Write to this file instead of the terminal.")
    ] = None,
    study: StudyOption = None,
    protocol: ProtocolOption = None,
    rules: OldProtocolOption = None,
    reference: Annotated[
        str | None, typer.Option(help="Row that differences are taken to [the study's].")
    ] = None,
    margin: Annotated[
        float, typer.Option(help="dB; rows closer than this to the reference are equivalent.")
    ] = 0.1,
    methods: Annotated[
        str | None,
        typer.Option(help="Rows to show, e.g. identity,ldipa, as they stand among all."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns to show, e.g. method,psnr,trials; any of the JSON's."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(help="Column to sort by; -COLUMN: largest first. [-psnr]")
    ] = None,
    pivot: Annotated[
        str | None, typer.Option(help="task or study: differences, with these in the columns.")
    ] = None,
    tracking_uri: StoreOption = None,
) -> None:
    """Rank the methods of a task by test PSNR, and say which are better than the reference."""
    from dipa_bench.cli.show import Wanted, show_leaderboard

    wanted = Wanted(
        task,
        study,
        protocol or rules,
        reference,
        margin,
        methods,
        columns,
        sort,
        pivot,
        tracking_uri,
    )
    show_leaderboard(wanted, format, output)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="Row, e.g. ldipa or STUDY/ldipa.")],
    second: Annotated[str, typer.Argument(help="Row that it is compared with.")],
    task: Annotated[str, typer.Option(help="Task, e.g. sr.")],
    margin: Annotated[float, typer.Option(help="dB; rows closer than this are equivalent.")] = 0.1,
    output: Annotated[
        Path | None, typer.Option(help="Also write an HTML page with a plot of all images.")
    ] = None,
    tracking_uri: StoreOption = None,
) -> None:
    """Compare two rows image by image: difference, images that gain and lose most, parameters."""
    from dipa_bench.cli.show import show_comparison

    show_comparison(task, first, second, margin, output, tracking_uri)


@app.command()
def tuning(
    task: Annotated[str, typer.Option(help="Task, e.g. sr.")],
    study: Annotated[
        str | None, typer.Option(help="Only the study of this name, with its replicates.")
    ] = None,
    by: Annotated[str, typer.Option(help="What counts as budget: trials or seconds.")] = "trials",
    format: Annotated[str, typer.Option(help="table, csv or json.")] = "table",
    protocol: ProtocolOption = None,
    rules: OldProtocolOption = None,
    reference: Annotated[
        str | None, typer.Option(help="Row that gains are taken to [the study's].")
    ] = None,
    tracking_uri: StoreOption = None,
) -> None:
    """Say what every search had found after how much: better, or only better tuned?"""
    from dipa_bench.cli.show import show_tuning

    show_tuning(task, study, by, format, protocol or rules, reference, tracking_uri)


@app.command()
def profile(
    task: Annotated[str, typer.Option(help="Task, e.g. sr.")],
    study: StudyOption = None,
    reference: Annotated[
        str | None, typer.Option(help="Row whose end is the target [the study's].")
    ] = None,
    margin: Annotated[float, typer.Option(help="dB that may be missing to it.")] = 0.1,
    format: Annotated[
        str, typer.Option(help="table, markdown (md), latex, html, csv or json.")
    ] = "table",
    protocol: ProtocolOption = None,
    tracking_uri: StoreOption = None,
) -> None:
    """Say how soon rows are as good as the reference ends: iterations, calls, seconds."""
    from dipa_bench.cli.show import show_profile

    show_profile(task, study, reference, margin, format, protocol, tracking_uri)


@app.command()
def dashboard(
    task: Annotated[str, typer.Option(help="Task, e.g. sr.")],
    output: Annotated[
        Path | None, typer.Option(help="Where to write it [dashboard-<task>.html].")
    ] = None,
    study: StudyOption = None,
    protocol: ProtocolOption = None,
    rules: OldProtocolOption = None,
    tracking_uri: StoreOption = None,
) -> None:
    """Write one self-contained HTML page with leaderboard, curves and pictures."""
    from dipa_bench.cli.show import make_dashboard

    make_dashboard(task, output, study, protocol or rules, tracking_uri)


@app.command()
def diagnose(
    task: TaskOption = None,
    config: Annotated[str | None, typer.Option(help="Study file whose problem to use.")] = None,
    preset: Annotated[str | None, typer.Option(help="quick, standard or paper.")] = None,
    dataset: DatasetOption = None,
    data_root: RootOption = None,
    device: DeviceOption = "auto",
    sets: SetOption = None,
) -> None:
    """Say what a preconditioner can do on a task: conditioning, null space, reference PSNRs."""
    from dipa_bench.api import assignments
    from dipa_bench.cli.inspect import show_diagnosis

    show_diagnosis(task, config, preset, device, assignments(dataset, data_root, sets))


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The study file to write, e.g. my-study.toml.")],
    task: Annotated[str, typer.Option(help="The task whose study it begins with.")] = "sr",
) -> None:
    """Write a commented study file: a task's own study with every other key beside it."""
    from dipa_bench.cli.inspect import write_study_file

    write_study_file(file, task)


@app.command("list")
def list_registered(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="tasks, methods, operators, rules, priors or datasets, all if left out; or "
            "parameters."
        ),
    ] = None,
    pattern: Annotated[
        str, typer.Argument(help="Shell pattern on the names; of parameters the method's name.")
    ] = "*",
) -> None:
    """List what is registered, plug-ins included, or the parameters of a method."""
    from dipa_bench.cli.inspect import show_registered

    show_registered(kind, pattern)


@app.command()
def rerun(
    run: Annotated[
        str,
        typer.Argument(
            help="MLflow run id or model (models:/NAME), run folder, or study/method[/trial-0003]."
        ),
    ],
    device: DeviceOption = "auto",
    tracking_uri: UriOption = None,
) -> None:
    """Repeat any run from its record and say whether its numbers agree (exit code 1 if not)."""
    from dipa_bench.cli.rerun import repeat_run

    repeat_run(run, device, tracking_uri)


@app.command()
def reconstruct(
    run: RunArgument,
    image: Annotated[
        Path, typer.Argument(help="A picture, .npy array, DICOM file or NIfTI volume.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="File to write, .png or .npy [<image>-<method>.png].")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Pixels on a side, or native (0): the picture's own [the run's]."),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(min=0, help="Standard deviation of the simulated noise [the run's]."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the noise [the run's].")] = None,
    measurement: Annotated[
        bool, typer.Option("--measurement", help="IMAGE is a .npy file of a real measurement y.")
    ] = False,
    device: DeviceOption = "auto",
    tracking_uri: UriOption = None,
) -> None:
    """Measure a picture of yours as a run's task does, and reconstruct it with the run's operator.

    The picture's central square is resized to the run's size. Prints PSNR and SSIM, beside those of
    the back-projection and of the tuned identity.
    """
    from dipa_bench.cli.reconstruct import Request, reconstruct_image

    request = Request(image, output, size, noise, seed, measurement)
    reconstruct_image(run, request, device, tracking_uri)


@app.command()
def evaluate(
    run: RunArgument,
    solver: Annotated[str | None, typer.Option(help="pnp-fista or red-fista.")] = None,
    prior: Annotated[str | None, typer.Option(help="Prior; see `list priors`.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="K.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="problem.key=value, repeatable: problem.options.factor=3"),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Solver settings to try there on validation images, for the operator and for the "
            "identity [16 where solver or prior change or no identity was tuned, else 0].",
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="table, csv or json.")] = "table",
    device: DeviceOption = "auto",
    tracking_uri: UriOption = None,
) -> None:
    """Test a run's operator on the test images at another solver, prior, K or operator.

    It is not fitted again. The identity stands beside it at the same setting.
    """
    from dipa_bench.cli.evaluate import evaluate_run

    given = {"solver": solver, "prior": prior, "iterations": iterations}
    options = [f"problem.{key}={value}" for key, value in given.items() if value is not None]
    evaluate_run(run, [*options, *(sets or [])], trials, device, format, tracking_uri)


@app.command()
def sync(
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Send everything anew; what the store has is not doubled."),
    ] = False,
    tracking_uri: UriOption = None,
) -> None:
    """Send to MLflow what could not be sent while a study ran."""
    from dipa_bench.cli.show import send_pending

    send_pending(tracking_uri, rebuild)


@app.command()
def export(
    study: Annotated[str, typer.Argument(help="Name of a study below mlruns/studies.")],
    output: Annotated[Path | None, typer.Option(help="File to write [<study>.zip].")] = None,
) -> None:
    """Write a study into one file, to move it to another machine or to read it with pandas."""
    from dipa_bench.cli.archive import export_study

    export_study(study, output)


@app.command("import")
def take_in(
    file: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the study here [the one it had].")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="NAME:PATH, where the study's images lie here.")
    ] = None,
    data_root: RootOption = None,
    prior: Annotated[
        str | None, typer.Option(help="Where the weights file of the study's prior lies here.")
    ] = None,
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="Its runs may import the module:function they name."),
    ] = False,
    tracking_uri: UriOption = None,
) -> None:
    """Take in a study that was exported elsewhere, as if it had been run here."""
    from dipa_bench.cli.archive import import_study

    places = {"dataset": dataset, "data_root": data_root, "prior": prior}
    import_study(file, name, places, trust_code, tracking_uri)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1.")] = 5000,
    browser: Annotated[bool, typer.Option("--open", help="Open them in a browser.")] = False,
    tracking_uri: UriOption = None,
) -> None:
    """Start MLflow's own pages on this machine."""
    from dipa_bench.cli.ui import start_ui

    start_ui(port, tracking_uri, browser)


@app.command()
def doctor(tracking_uri: UriOption = None) -> None:
    """Check versions, device, disk, weights, data and the tracking store."""
    from dipa_bench.cli.inspect import show_health

    show_health(tracking_uri)


def main() -> None:
    """Runs the command line; users' mistakes end in one line and exit code 2."""
    before = signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C
    try:
        code = _run()
    except OSError as error:
        code = _fail(_disk(error))
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code)


def _run() -> int:
    try:
        with loading_told():
            code = _command()(prog_name="dipa-bench", standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer's answer to Ctrl-C
            print("stopped", file=sys.stderr)
        return code
    except UserError as error:
        return _fail(str(error))
    except USAGE_ERROR as error:
        return _usage(error)
    except (Stopped, KeyboardInterrupt, typer.Abort) as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return INTERRUPTED


@cache
def _command() -> Callable[..., int | None]:
    """All commands, read from their signatures once."""
    return typer.main.get_command(app)


def _stop(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _usage(error: Exception) -> int:
    """A mistake in the command's words; without any words the message is the help."""
    message = error.format_message()
    if "\n" in message:
        print(message)
        return 2
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "dipa-bench"
    return _fail(f"{message.rstrip('.')}; see `{command} --help`")


def _disk(error: OSError) -> str:
    if error.errno == errno.EPIPE:
        sys.stdout = open(os.devnull, "w")  # whoever read our output has left
        return "the output's reader has left"
    place = f" ({error.filename})" if error.filename else ""
    return (
        f"{error.strerror or error}{place}: mend that and run the same command again, what is "
        "finished is kept"
    )


def _fail(message: str) -> int:
    one_line = " ".join(message.split())
    print(f"dipa-bench: {one_line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
