"""Hostile texts from every source through every exit: nothing acts, nothing is forged, no secret is shown."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import run_main
from evaluations import SETTINGS
from hostile_texts import (
    HARMLESS,
    HOSTILE,
    MIRROR,
    Tags,
    refuse_in_markdown,
    refuse_on_a_terminal,
    refuse_secrets,
)

from hubextrap import api
from hubextrap.cli.markdown import append_summary, evaluation_markdown, plan_markdown, predictions_markdown
from hubextrap.cli.progress import LineProgress
from hubextrap.errors import CommandFailed, HubExtrapError, SourceError
from hubextrap.evaluation.publishing import results_of
from hubextrap.evaluation.table import EvaluationTable, Row, Score, TaskRecord
from hubextrap.foreign_text import own_lines
from hubextrap.hub import PushTarget
from hubextrap.hub.card import model_card, with_results, with_target
from hubextrap.hub.carried_over import METADATA
from hubextrap.hub.provenance import CoefficientRule, OutputShard, build_provenance
from hubextrap.hub_access import redact_logs
from hubextrap.regrounding.command import CommandRunner
from hubextrap.trajectory.checkpoint import Checkpoint

each_text = pytest.mark.parametrize(
    "text",
    [  # every third at once, the others in the slow suite
        pytest.param(text, id=name, marks=() if number % 3 == 0 else pytest.mark.slow)
        for number, (name, text) in enumerate(HOSTILE.items())
    ],
)


@pytest.fixture(autouse=True)
def _token_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", MIRROR)


# cards


def card(**names: str) -> str:
    """A card in which one or several names are as given."""

    def name(source: str) -> str:
        return names.get(source, "harmless")

    checkpoints = [
        Checkpoint(0, f"me/{name('repo')}", name("branch"), "a" * 40, name("folder in a repo")),
        Checkpoint(10, None, "", None, f"/x/{name('folder')}"),
    ]
    provenance = build_provenance(
        checkpoints=checkpoints,
        merge_method="two_point",
        parameters={"target_step": 20, "tensors": name("tensor")},
        target_step=20,
        coefficients=[CoefficientRule(match=name("tensor"), method="two_point", coefficients={0: -1, 10: 2})],
        shards=[OutputShard(file="model.safetensors", size=3, sha256="a" * 64)],
        dtype="float32",
        out_dtype=None,
        recipe=f"x: 1\n# {name('comment')}\n",
    )
    last = f"---\n{yaml.safe_dump({'license': name('license'), 'license_name': name('license')})}---\n"
    return model_card(provenance, last, caveats=[name("caveat")])


CARD_SOURCES = ("repo", "branch", "folder in a repo", "folder", "tensor", "comment", "license", "caveat")
TABLES = ["| a |\n|---|\n| measured |", "| a |\n|---|\n| measured again |"]


@each_text
def test_cards(text: str) -> None:
    made, harmless = card(**dict.fromkeys(CARD_SOURCES, text)), card()
    refuse_in_markdown(made, like=harmless)
    front, usual = (yaml.safe_load(METADATA.match(one)[1]) for one in (made, harmless))  # type: ignore[index]
    assert set(front) <= set(usual)
    assert front["library_name"] == "transformers"
    published = with_results(with_target(made, "me/out", "main"), TABLES[0])
    refuse_in_markdown(published, like=with_results(with_target(harmless, "me/out", "main"), TABLES[0]))
    again = with_results(published, TABLES[1])
    assert again == published.replace(*TABLES), "nothing else of the card is lost"


# evaluations


def evaluated(**names: str) -> EvaluationTable:
    def name(source: str) -> str:
        return names.get(source, "harmless")

    def row(label: str, value: float) -> Row:
        score = Score(
            task=name("task"), metric=name("metric"), filter=name("filter"), value=value, stderr=0.1,
            higher_is_better=True, problems=(value, 2 * value, 0.0),
        )  # fmt: skip
        return Row(label=label, step=1, reference=f"me/{name('branch')}", commit="b" * 40, scores=(score,))

    record = TaskRecord(version=name("version"), sha256="c" * 64, num_fewshot=0, documents=3, dataset=None)
    return EvaluationTable(
        settings=SETTINGS.model_copy(
            update={"tasks": {name("task"): record}, "task_files": {name("file"): "math"}}
        ),
        rows=(row(f"prediction {name('label')}", 0.5), row("last", 0.25)),
        notes=(name("note"),),
    )


@each_text
def test_evaluations(text: str) -> None:
    from rich.console import Console

    from hubextrap.evaluation import to_rich

    sources = ("task", "metric", "filter", "branch", "version", "label", "note", "file")
    table, harmless = evaluated(**dict.fromkeys(sources, text)), evaluated()
    refuse_in_markdown(evaluation_markdown([table]), like=evaluation_markdown([harmless]))
    target = PushTarget.parse("me/out")
    if text == HOSTILE["surrogates"]:
        return  # no such results can be saved
    results, usual = (results_of(one, one.rows[0], target) for one in (table, harmless))
    refuse_in_markdown(results.markdown, like=usual.markdown)
    for figure in results.figures:
        for value in vars(figure).values():
            refuse_on_a_terminal(str(value))
    out = io.StringIO()
    Console(file=out, width=20_000, highlight=False).print(to_rich(table))
    refuse_on_a_terminal(out.getvalue())


@pytest.mark.parametrize("text", ["$\\frac{$ $x^$ \\$", "_hidden", "模型\ud800", "x" * 10_000])
def test_plots(text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from hubextrap.evaluation.curve import draw_table

    draw_table(evaluated(task=text, label=text), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_pages(tmp_path: Path) -> None:
    """One page of a scan whose tensors have these names, and whose scores are of such a task."""
    pytest.importorskip("matplotlib")
    from hubextrap.trajectory import find_trajectory

    run = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C"
    scan = api.scan(find_trajectory(str(run), max_step=120))

    def page(names: list[str], title: str, table: EvaluationTable) -> str:
        tensors = tuple(f"{name}{number}.weight" for number, name in enumerate(names))
        file, results = tmp_path / "scan.safetensors", tmp_path / "results.json"
        replace(scan, gram_table=replace(scan.gram_table, tensors=tensors)).save(file)
        table.save(results)
        api.report(file, evaluations=[results], out=tmp_path / "page.html", title=title)
        return (tmp_path / "page.html").read_text()

    count = len(scan.tensors)
    texts = [text for text in HOSTILE.values() if len(text) < 1000 and "\ud800" not in text]
    names = [" ".join(texts[start::count]) for start in range(count)]
    everything = " ".join(texts)[:3500]
    made = page(names, everything, evaluated(task=everything, label=everything, branch=everything))
    found, harmless = Tags(made), Tags(page(["harmless"] * count, "t", evaluated()))
    assert set(found.page) - {("wbr", ())} <= set(harmless.page)
    assert found.plots <= harmless.plots
    assert not {"script", "img", "a"} & found.plots
    refuse_secrets(made)
    charts = Path(api.__file__).parents[1] / "reporting" / "vendor" / "charts.min.js"
    assert not set(made.replace(charts.read_text(), "")) & set("\x1b\x9b\u202e\u200b\0")


# summaries of jobs


def planned(text: str) -> Any:
    return api.PlanReport(
        checkpoints=((0, text, "a" * 40, 3), (10, "harmless", None, None)),
        target_steps=(20,),
        horizons=(1.0,),
        expected_relative_errors=(None,),
        rules=((text, "two_point", ({0: -1.0, 10: 2.0},)),),
        outputs=(text,),
        warnings=(text,),
        notes=(text,),
        problems=(text, str(HubExtrapError(text))),
        files=(),
        bytes_read=1,
        bytes_written=1,
        peak_memory=1,
    )


@each_text
def test_summaries_of_jobs(text: str, tmp_path: Path) -> None:
    append_summary(tmp_path / "s.md", plan_markdown(Path(text.replace("\0", "")), planned(text)))
    append_summary(tmp_path / "t.md", plan_markdown(Path("harmless"), planned("harmless")))
    refuse_in_markdown((tmp_path / "s.md").read_text(), like=(tmp_path / "t.md").read_text())
    prediction = _prediction(text)
    refuse_in_markdown(
        predictions_markdown([prediction]), like=predictions_markdown([_prediction("harmless")])
    )


def _prediction(text: str) -> Any:
    from types import SimpleNamespace as Made

    provenance = Made(
        steps=(1, 2), horizon=1.0, clock=None, full_rate_steps=None, expected_relative_error=0.5,
        expected_relative_error_stderr=None, sample=None, trusted=None,
    )  # fmt: skip
    return Made(
        step=3, provenance=provenance, warnings=[text], notes=[text], folder=Path(text.replace("\0", "")),
        target=Made(name=text), pushed=Made(commit="a" * 40), identical_to_last=True, caveats=[text],
        verdict=Made(line=text),
    )  # fmt: skip


@each_text
def test_plans_on_a_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from hubextrap.cli.summaries import print_plan

    print_plan(Path(text.replace("\0", "")), planned(text))
    lines = capsys.readouterr().out
    refuse_on_a_terminal(lines)
    print_plan(Path("harmless"), planned("harmless"))
    assert lines.count("\n") == capsys.readouterr().out.count("\n")


# the terminal


@each_text
def test_errors(text: str) -> None:
    for error in (HubExtrapError(f"{text}: no such file"), SourceError(f"me/x@{text}", ValueError(text))):
        refuse_on_a_terminal(str(error))
        assert "\n" not in str(error)
    several = CommandFailed(own_lines("the trainer failed:", f"  {text}", "mend it"))
    refuse_on_a_terminal(str(several))
    assert str(several).count("\n") == 2
    assert str(HubExtrapError(str(several))) == str(several), "a message of ours keeps its lines"


@each_text
def test_progress(text: str) -> None:
    out = io.StringIO()
    progress = LineProgress(out)
    progress.say(f"left out {text}")
    with progress.stage(text, 3, "files") as stage:
        stage.advance(3)
    refuse_on_a_terminal(out.getvalue())
    assert out.getvalue().count("\n") == 2


@each_text
def test_a_bar(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from hubextrap.cli.progress import TerminalProgress

    out, bar = io.StringIO(), TerminalProgress()
    bar._console = Console(file=out, width=300)
    bar.say(f"left out {text}")
    with bar.stage(text[:200], 3, "files") as stage:
        stage.advance(3)
    refuse_on_a_terminal(out.getvalue())


def on_disk(text: str) -> str:
    """As the name of a file, as far as one can be called so."""
    name = ("credentials" if "://" in text else text).replace("/", "∕").replace("\0", "")
    while True:
        try:
            data = name.encode(errors="surrogateescape")
            if len(data) <= 200:
                return name
        except UnicodeEncodeError:
            name = name.encode("utf-8", "replace").decode()
        name = name[:-10] if len(name) > 40 else name[:-1]


COMMANDS = ("steps", "plan", "validate", "scan", "an option", "a command", "backtest")


@pytest.mark.slow
@each_text
def test_commands(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, files and words of the command line are called so."""
    monkeypatch.chdir(tmp_path)
    name = on_disk(text)
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(f"trajectory: {json.dumps({'repo': text})}\n{json.dumps(text)}: 1\n", errors="replace")
    folder = tmp_path / f"run{name}"[:60]
    for step in (1, 2):
        place = folder / f"step_{step}"
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    lines = {
        "steps": ("steps", str(folder)),
        "json": ("steps", "--json", "--fast", str(folder)),
        "plan": ("plan", str(recipe), "--summary", "summary.md"),
        "validate": ("recipes", "validate", str(recipe), f"{recipe}.absent"),
        "backtest": ("backtest", text.replace("\0", "")),
        "an option": ("merge", f"--{text}", "x"),
        "a value": ("merge", "x.yaml", "--workers", text),
        "a command": (text.replace("\0", "") or "x",),
        "verify": ("verify", text.replace("\0", "")),
    }
    for which, line in lines.items():
        ended = run_main(*line)
        assert ended.code in (0, 1, 2), (which, ended)
        refuse_on_a_terminal(ended.out + ended.err)
        if which == "json" and ended.code == 0:
            json.loads(ended.out)
    if (tmp_path / "summary.md").exists():
        refuse_secrets((tmp_path / "summary.md").read_text())


class _Server(BaseHTTPRequestHandler):
    """Refuses everything, in these words."""

    text = ""

    def do_GET(self) -> None:
        body = json.dumps({"error": self.text}).encode()
        self.send_response(400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_HEAD = do_GET  # noqa: N815 - as the base class calls them

    def log_message(self, *said: object) -> None:
        return


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


@each_text
def test_what_a_server_says(text: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server)
    monkeypatch.setattr(_Server, "text", text)
    ended = run_main("steps", "me/x")
    assert ended.code == 1
    assert "the Hub answered 400: " in ended.err
    refuse_on_a_terminal(ended.out + ended.err)


def test_what_a_trainer_says(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        for number, text in enumerate(HOSTILE.values()):
            if number % 3 and "token" not in text:
                continue
            echo = io.BytesIO()
            script = (
                f"import sys; sys.stdout.buffer.write({text.encode('utf-8', 'surrogatepass')!r}); sys.exit(3)"
            )
            runner = CommandRunner(lock.fileno(), print, echo)
            with pytest.raises(CommandFailed) as caught:
                runner.run([sys.executable, "-S", "-c", script], tmp_path / f"{number}.log", "it")
            refuse_on_a_terminal(str(caught.value))
            shown = echo.getvalue().decode()
            assert not set(shown) & set("\x1b\x9b\u202e\u200b\0")
            refuse_secrets(shown)


# logs

LOGGERS = (
    *(
        "httpx",
        "httpcore.connection",
        "urllib3.connectionpool",
        "filelock",
        "fsspec",
        "huggingface_hub.utils",
    ),
    *("hf_xet", "lm_eval.api", "datasets", "transformers.modeling", "mergekit.plan", "httpx2", "h11", None),
    "a.library.that.comes.later",
)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a program writes that logs everything of everybody; logging is as before afterwards."""
    out, factory, root = io.StringIO(), logging.getLogRecordFactory(), logging.getLogger()
    handler, level = logging.StreamHandler(out), root.level
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield out
    root.removeHandler(handler)
    root.setLevel(level)
    logging.setLogRecordFactory(factory)


@pytest.mark.parametrize("name", LOGGERS)
def test_records_of_libraries(name: str | None, log: io.StringIO) -> None:
    from hubextrap.cli.terminal import guarded

    for text in HOSTILE.values():
        with guarded() if name == LOGGERS[-1] else warnings.catch_warnings():
            if name != LOGGERS[-1]:
                redact_logs()
            logger = logging.getLogger(name)
            logger.info("HTTP Request: GET %s %d", text, 200)
            logger.debug({"text": text})
            try:
                raise ValueError(text)
            except ValueError:
                logger.warning("failed: %s", text, exc_info=True)
    for line in log.getvalue().split("\n"):
        assert not line.startswith("FORGED")
    refuse_secrets(log.getvalue())
    assert not set(log.getvalue()) & set("\x1b\x9b\x85\u202e\u200b\u2028\0")


def as_python_does(message: Any, kind: Any, file: str, number: int, *_: Any) -> None:
    sys.stderr.write(warnings.formatwarning(message, kind, file, number))


@each_text
def test_what_libraries_print(text: str) -> None:
    from hubextrap.cli.terminal import guarded, redacting_stdout

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    own = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        with guarded(), redacting_stdout(), warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = as_python_does  # pytest keeps warnings to itself
            print("it says", text)
            print("it says", text, file=sys.stderr)
            warnings.warn(text, stacklevel=1)
    finally:
        sys.stdout, sys.stderr = own
    for stream in (out, err):
        stream.flush()
        shown = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
        assert ("UserWarning" in shown) == (stream is err)
        assert not set(shown) & set("\x1b\x9b\x85\u202e\u200b\u2028\0")
        refuse_secrets(shown)


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays(text: str) -> None:
    from hubextrap import foreign_text as out

    for shown in (
        out.terminal_line,
        out.terminal_output,
        out.html_text,
        out.log_text,
        out.plot_text,
    ):
        assert shown(text) == text
    written = json.dumps([text], ensure_ascii=False)
    assert out.json_text(written) == written
    assert out.markdown_text(text) == text
    assert out.markdown_code(text) == f"`{text}`"
    assert str(HubExtrapError(text)) == text
