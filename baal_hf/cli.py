"""The program `baal-hf`: a labelling project in a folder, a command for each step.

What is costly to import comes when a command needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from baal_hf.project import Project

app = typer.Typer(
    name="baal-hf",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Choose which rows to label next, have people label them, learn, and begin again.

\b
A project is a folder, and every step can be repeated without harm:
  baal-hf init reviews --data rows.csv --classes good,bad --model distilbert-base-uncased
  cd reviews
  baal-hf query --heuristic random -k 50 --out batch1.csv
  (fill in the column label of batch1.csv)
  baal-hf import batch1.csv --annotator anna
  baal-hf train
  baal-hf query --heuristic bald -k 50 --out batch2.csv
  baal-hf status

Exit codes: 0 done, 1 failed, 2 wrong usage.""",
)

ProjectOption = Annotated[Path, typer.Option("--project", metavar="FOLDER", help="The project's folder.")]
HeuristicOption = Annotated[
    str, typer.Option(metavar="NAME", help="How rows are ranked: random, bald, entropy, margin, ...")
]
IterationsOption = Annotated[int, typer.Option("--iterations", "-T", metavar="N", min=1, help="Posterior draws.")]
PoolSizeOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Score only that many random rows of the pool.", show_default="all"),
]


@app.command(short_help="Make a project in a folder.")
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the project is to be; made if it is not there.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Rows to label: .csv, .jsonl, .json or .parquet, or a folder of save_to_disk."
        ),
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Transformer to fine-tune: a folder, or an id of the hub.")
    ],
    classes: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Names of the classes, with commas between.")
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column of known classes in the data and test rows; used by run and for tests only."
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(metavar="NAME", help="Column of the texts.")] = "text",
    test: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Rows to test on, with texts and classes (column label).", show_default=False
        ),
    ] = None,
    max_length: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of a text that are read.")] = 128,
    epochs: Annotated[float, typer.Option(metavar="N", help="Epochs of each training.")] = 20,
    learning_rate: Annotated[float, typer.Option(metavar="RATE", help="Of each training.")] = 5e-5,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Of training.")] = 8,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of training and of random choices.")] = 0,
    consensus: Annotated[
        str, typer.Option(metavar="RULE", help="Label of a row with several annotators: last or majority.")
    ] = "last",
) -> None:
    """Make a project in FOLDER.

    Give the classes by name, or name the column that has them. The labels are asked for by name, in batches.
    """
    if classes is None and label_column is None:
        raise typer.BadParameter("give --classes, or --label-column that has them.", param_hint="--classes")
    if consensus not in ("last", "majority"):
        raise typer.BadParameter(f"last or majority, got {consensus}.", param_hint="--consensus")
    with _told(), _quiet():
        from baal_hf.project import Project, Settings, source
        from baal_hf.project.settings import stored_path
        from baal_hf.project.training import check_model

        if classes is not None:
            names = [name.strip() for name in classes.split(",")]
        else:
            names = source.class_names(source.rows_of(data), data, str(label_column))
        check_model(model)
        settings = Settings(
            data=stored_path(data, folder),
            text_column=text_column,
            classes=tuple(names),
            model=stored_path(model, folder) if Path(model).is_dir() else model,
            label_column=label_column,
            test=None if test is None else stored_path(test, folder),
            max_length=max_length,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=seed,
            consensus=consensus,
        )
        project, is_new = Project.create(folder, settings)
        typer.echo(f"Project {folder} is {'made' if is_new else 'there already, and the same'}.")
        _show_next(project)


@app.command(short_help="Show where the project stands and what to do next.")
def status(project: ProjectOption = Path()) -> None:
    """Show what is labelled, how annotators agree, how good the models are, and what to do next."""
    with _told(), _quiet():
        from baal_hf.project import Project
        from baal_hf.project.status import lines
        from baal_hf.project.status import status as status_of

        opened = Project(project)
        settings = opened.settings
        typer.echo(f"Project     {project.resolve().name}: texts of {settings.data}, model {settings.model}")
        for line in lines(status_of(opened.dataset(), opened.models()), _option(project)):
            typer.echo(line)


@app.command(short_help="Train a fresh model on the current labels.")
def train(project: ProjectOption = Path()) -> None:
    """Fine-tune a fresh copy of the model on the current labels, and measure it on the test rows.

    Without new labels there is nothing to do, and nothing is done.
    """
    with _told(), _quiet():
        from baal_hf.project import Project, training
        from baal_hf.project.status import model_line

        opened = Project(project)
        model = training.train(opened)
        if model is None:
            typer.echo(f"Nothing is new since model {opened.models()[-1].model}.")
        else:
            typer.echo(f"{model_line(model)}  ({model.seconds:.1f} s, models/{model.model})")
        _show_next(opened)


@app.command(short_help="Write the rows to label next to a file.")
def query(
    out: Annotated[Path, typer.Option(metavar="FILE", help="File for the rows: .jsonl, .csv or .parquet.")],
    heuristic: HeuristicOption = "bald",
    query_size: Annotated[int, typer.Option("--query-size", "-k", metavar="N", min=1, help="Number of rows.")] = 50,
    iterations: IterationsOption = 20,
    pool_size: PoolSizeOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that has other contents.")] = False,
    project: ProjectOption = Path(),
) -> None:
    """Write the rows to label next to a file, best first, with an empty column label to fill in.

    The same model, labels and arguments give the same rows. Without a trained model only --heuristic random works.
    """
    with _told(), _quiet():
        _check_heuristic(heuristic, iterations)
        from baal_hf.project import Project, batch_files, training
        from baal_hf.project.whole_file import put

        opened = Project(project)
        _check_out(out, opened)
        columns = training.query(opened, heuristic.lower(), query_size, iterations=iterations, pool_size=pool_size)
        content = batch_files.content(out, columns)
        told = f"{len(columns['row_id'])} rows"
        if out.exists() and out.read_bytes() == content:
            typer.echo(f"{out} has just these {told} already.")
        elif out.exists() and not overwrite:
            raise ValueError(f"{out} is there with other contents, perhaps labels: take another, or --overwrite.")
        else:
            put(out, content)
            model = f" of model {columns['model'][0]}" if columns["model"][0] else ""
            typer.echo(f"Wrote {told} to {out}, by {columns['heuristic'][0]}{model}.")
        if columns["model"][0] and not opened.is_trained():
            typer.echo(f"Model {columns['model'][0]} does not know the latest labels: baal-hf train, then query again.")
        typer.echo(f"Next: fill in its column label with {', '.join(opened.settings.classes)},")
        typer.echo(f"      then baal-hf import {out} --annotator YOUR_NAME{_option(project)}")


@app.command("import", short_help="Take in the labels of a batch.")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The batch with labels: .jsonl, .csv or .parquet.")],
    annotator: Annotated[str, typer.Option(metavar="NAME", help="Who gave the labels.")],
    skip_empty: Annotated[
        bool, typer.Option("--skip-empty", help="Leave rows with an empty label in the pool.")
    ] = False,
    relabel: Annotated[bool, typer.Option("--relabel", help="Replace other labels that this annotator gave.")] = False,
    project: ProjectOption = Path(),
) -> None:
    """Take in the labels of a batch, all or, if something is wrong with it, none.

    The file needs the columns row_id and label (the name of a class). To import it again is harmless.
    """
    if not annotator.strip():
        raise typer.BadParameter("a name is needed.", param_hint="--annotator")
    with _told(), _quiet():
        from baal_hf.project import Project

        opened = Project(project)
        _check_suffix(file)
        done, dataset = opened.import_file(file, annotator.strip(), skip_empty=skip_empty, relabel=relabel)
        told = [f"{len(done.new)} new labels by {annotator.strip()}"]
        told += [
            f"{len(rows)} {what}"
            for rows, what in (
                (done.changed, "changed"),
                (done.already, "were there already"),
                (done.empty, "rows without a label"),
            )
            if rows
        ]
        typer.echo(f"{', '.join(told)}. {dataset.n_labelled} of {len(dataset.labelled_map)} rows are labelled.")
        _show_next(opened)


@app.command(short_help="Simulate rounds on known labels.")
def run(
    heuristic: HeuristicOption = "bald",
    query_size: Annotated[
        int, typer.Option("--query-size", "-k", metavar="N", min=1, help="Rows to label in a round.")
    ] = 20,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Rounds of training.")] = 5,
    initial: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Rows labelled at random at first.", show_default="as many as in a round"
        ),
    ] = None,
    iterations: IterationsOption = 20,
    pool_size: PoolSizeOption = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the run.")] = 0,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of its folder in runs/.", show_default="heuristic and seed")
    ] = None,
    project: ProjectOption = Path(),
) -> None:
    """Simulate rounds on data whose classes are known, without touching the project's labels.

    Prints a line for each round. The same command goes on with a run that was stopped.
    """
    name = f"{heuristic.lower()}-{seed}" if name is None else name
    if Path(name).name != name:
        raise typer.BadParameter(f"the name of a folder is needed, got {name}.", param_hint="--name")
    with _told(), _quiet():
        _check_heuristic(heuristic, iterations)
        from baal_hf.project import Project, training

        records = training.simulation(
            Project(project),
            name,
            heuristic.lower(),
            query_size,
            rounds,
            initial=query_size if initial is None else initial,
            iterations=iterations,
            pool_size=pool_size,
            seed=seed,
        )
        for record in records:
            typer.echo(
                f"{record['heuristic']}  round {record['round']}  labelled {record['labelled']:5d}  "
                f"accuracy {record['eval_accuracy']:.3f}  loss {record['eval_loss']:.3f}"
            )
        typer.echo(f"Records: {project / 'runs' / name / 'records.jsonl'}")


@app.command(short_help="Write the labelled rows to a file.")
def export(
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="File for the labels: .jsonl, .csv or .parquet; replaced if there.")
    ],
    project: ProjectOption = Path(),
) -> None:
    """Write the labelled rows to a file: row_id, text, label, and the vote of each annotator."""
    with _told(), _quiet():
        from baal_hf.project import Project, batch_files
        from baal_hf.project.exporting import exported
        from baal_hf.project.whole_file import put

        opened = Project(project)
        _check_out(out, opened)
        columns = exported(opened.dataset(), opened.settings.text_column)
        put(out, batch_files.content(out, columns))
        typer.echo(f"Wrote {len(columns['row_id'])} labelled rows to {out}.")


@contextmanager
def _told() -> Iterator[None]:
    """What went wrong, in one line, and exit code 1."""
    try:
        yield
    except typer.Exit:  # a RuntimeError, too
        raise
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        typer.echo(f"baal-hf: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the screen to what the commands say; bars are for people who look on."""
    import datasets
    import transformers

    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars[0]:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        if bars[1]:
            datasets.enable_progress_bars()


def _show_next(project: Project) -> None:
    from baal_hf.project.status import next_steps
    from baal_hf.project.status import status as status_of

    steps = next_steps(status_of(project.dataset(), project.models()), _option(project.folder))
    for place, line in enumerate(steps):
        typer.echo(f"{'Next: ' if not place else '      '}{line}")


def _option(folder: Path) -> str:
    """What commands on this project need to say of its folder."""
    return "" if folder == Path() else f" --project {folder}"


def _check_heuristic(name: str, iterations: int) -> None:
    """Refuse a heuristic that is not there, cannot rank a pool, or needs more draws."""
    import numpy as np

    from baal_hf.heuristics import get_heuristic

    try:
        heuristic = get_heuristic(name)
        if "labels" in heuristic.needs:
            raise ValueError(f"{name} scores rows that have a label already, and a pool has none.")
        if tuple(heuristic.needs) == ("predictions",):
            heuristic.get_ranks(np.full((1, 2, iterations), 0.5), 1)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(str(error), param_hint="--heuristic") from None


def _check_suffix(path: Path) -> None:
    from baal_hf.project.batch_files import check_suffix

    try:
        check_suffix(path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _check_out(path: Path, project: Project) -> None:
    """Refuse a file that cannot be written, before the work, or that the project needs."""
    _check_suffix(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} for {path.name}.")
    needed = [project.path(name).resolve() for name in (project.settings.data, project.settings.test) if name]
    if path.resolve() in needed:
        raise ValueError(f"{path} has the project's own rows: take another file.")


def main() -> Any:
    """Run the program."""
    return app(prog_name="baal-hf")


if __name__ == "__main__":
    main()
