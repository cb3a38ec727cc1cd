"""`hubextrap hub`: a loopback Hub."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import typer

from hubextrap.cli.examples import Explained
from hubextrap.cli.terminal import tell
from hubextrap.errors import HubExtrapError

app = typer.Typer(
    help="Run a local Hub, for tests, demos and machines without a network.", no_args_is_help=True
)


@app.command(cls=Explained)
def serve(
    folder: Path = typer.Argument(
        help="Folder that holds the repos. It is created if it does not exist.", metavar="DIR"
    ),
    host: str = typer.Option(
        "127.0.0.1", metavar="HOST", help="Address to listen on. Others can reach it unless it is loopback."
    ),
    port: int = typer.Option(
        8750, min=0, max=65535, metavar="PORT", help="Port to listen on. 0 takes a free one."
    ),
    token: str = typer.Option(
        "",
        envvar="HUBEXTRAP_HUB_TOKEN",
        metavar="TOKEN",
        help="Token that may write. Without it, a new one is made and printed.",
    ),
    user: str = typer.Option(
        "me", metavar="NAME", help="User that the token belongs to. Repos are written as NAME/…"
    ),
    xet: bool = typer.Option(
        False, "--xet", help="Transfer large files by Xet. Clients need hf-xet and this machine."
    ),
    run_jobs: bool = typer.Option(
        False,
        "--run-jobs",
        help="Run jobs that clients with the token submit, as processes of this machine. Loopback only.",
    ),
) -> None:
    """Serve the repos in DIR until Ctrl-C, to huggingface_hub, transformers and all that use them."""
    import secrets  # OpenSSL, which no other command's help needs

    from hubextrap.localhub import LocalHub

    secret = token or f"hf_{secrets.token_hex(17)}"
    try:
        hub = LocalHub(folder, host=host, port=port, tokens={secret: user}, xet=xet, run_jobs=run_jobs)
    except ImportError as error:
        raise HubExtrapError("--xet needs hf-xet: pip install hf-xet, or serve without --xet") from error
    except (OSError, TypeError, UnicodeError) as error:  # the latter two: a --host that is no name
        why = error.strerror if isinstance(error, OSError) else "the host is no name"
        raise HubExtrapError(
            f"cannot serve {folder} on {host}:{port}: {why}; choose another --port, --host or DIR"
        ) from error
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with hub:
        typer.echo(f"export HF_ENDPOINT={hub.url}" + ("" if xet else " HF_HUB_DISABLE_XET=1"))
        if not token:
            typer.echo(f"export HF_TOKEN={secret}")
        tell(f"serving {folder}; stop with Ctrl-C", err=True)
        stop.wait()
