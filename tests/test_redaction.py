"""No secret comes out: of a text, of an error of ours, of what it was raised from, of a log record."""

from __future__ import annotations

import http.client
import importlib
import inspect
import io
import json
import logging
import pickle
import subprocess
import time
import traceback
import urllib.error
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import requests
import yaml

from hubextrap import errors
from hubextrap.cli.markdown import append_summary
from hubextrap.cli.progress import LineProgress
from hubextrap.hub_access import hub_api, reason
from hubextrap.recipe import parse_recipe
from hubextrap.redaction import redact

TOKEN = "hf_" + "aBcDeFgHiJ" * 3 + "kLmN"
SECRET = "S3cretS1gnatur3"
SIGNED = f"https://cdn.example/repos/ab/cd?X-Amz-Credential=AKIA{SECRET}&X-Amz-Signature={SECRET}"
PLANTED = f"403 Forbidden for url '{SIGNED}' (Authorization: Bearer {TOKEN})"


def leaks(text: str) -> bool:
    return TOKEN[3:] in text or SECRET in text


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"Invalid token: {TOKEN}.",
        f"{{'token': '{TOKEN}'}}",
        f"/cache/{TOKEN}/x",
        f"https://me:{TOKEN}@huggingface.co/me/x",
        f"https://{TOKEN}@huggingface.co/me/x",
        f"https://me:{SECRET}@host/me/x",
        f"git+https://me:p@{SECRET}@host",
        f"socks5h://me:{SECRET}@proxy:1080",
        f"hf_oauth_eyJ{SECRET}.{SECRET}.{SECRET}",
        f"hf_oauth__refresh_{SECRET}",
        f"hf_jwt_{SECRET}-{SECRET}_{SECRET}",
        f"api_org_{SECRET}{SECRET}",
        f"eyJhbGciOiJIUzI1NiJ9.{SECRET}.{SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET}==",
        f"Proxy-Authorization: Basic {SECRET}",
        f"{{'authorization': 'Bearer {SECRET}'}}",
        f"[(b'Authorization', b'Bearer {SECRET}')]",
        f'{{\\"Authorization\\": \\"Bearer {SECRET}\\"}}',
        f"Bearer {SECRET} was refused",
        SIGNED,
        f"Redirect location: '{SIGNED}'",
        f"https://cdn.example/x?Policy={SECRET}&Signature={SECRET}&Key-Pair-Id={SECRET}",
        f"https://store.blob.core.windows.net/x?sv=2024-08-04&se=2030&sig={SECRET}%3D",
        f"https://storage.example/x?X-Goog-Signature={SECRET}",
        f"https://hub/api/x?token={SECRET}",
        f"https://hub/x?{SECRET}",
        f"HTTPSConnectionPool(host='cdn', port=443): Max retries exceeded with url: /x?sig={SECRET} (…)",
        f'https://cdn/x?a=inline; filename="b c";&Signature={SECRET}&Key-Pair-Id={SECRET}',
        f"X-Amz-Signature={SECRET}",
        f"X-Amz-Security-Token: {SECRET}",
        f"X-Xet-Access-Token: {SECRET}",
        f'{{"accessToken": "{SECRET}", "exp": 1, "casUrl": "https://cas"}}',
        f'{{"access_token": "{SECRET}", "refresh_token": "{SECRET}"}}',
        f'{{"token": "{SECRET}{SECRET}"}}',
        f"HF_TOKEN={SECRET} python train.py",
        f"client_secret={SECRET}",
        f"Cookie: token={SECRET}; session={SECRET}",
        f"{{'Set-Cookie': 'token={SECRET}; Path=/; HttpOnly'}}",
        f"<Error><AWSAccessKeyId>{SECRET}</AWSAccessKeyId><SignatureProvided>{SECRET}</SignatureProvided>",
        f"<StringToSign>AWS4-HMAC-SHA256\n{SECRET}</StringToSign>",
        f"lm-eval: error: unrecognized arguments: --token {SECRET}",
        f"--hf-token={SECRET} --x",
        f"https%3A%2F%2Fme%3A{SECRET}%40host%2Fx and https%253A%252F%252Fcdn%252Fx%253Fsig%253D{SECRET}",
        f"X-Amz-Signature%3D{SECRET}",
        f"https:/me:{SECRET}@host/as/a/path",
        f"{TOKEN[:9]}\u200b{TOKEN[9:]}",
        f"{TOKEN[:9]}\x1b[1m{TOKEN[9:20]}\x1b]8;;x\x07{TOKEN[20:]}",
        repr(f"{TOKEN[:9]}\x1b[1m{TOKEN[9:20]}\u200b{TOKEN[20:]}"),
        f"Authorization: AWS4-HMAC-SHA256 Credential={SECRET}{SECRET}, Signature={SECRET}{SECRET}",
    ],
)
def test_secrets_by_their_shape(text: str) -> None:
    shown = redact(text)
    assert not leaks(shown)
    assert "***" in shown
    assert redact(shown) == shown, "once is enough"
    assert redact(f"me/run@step_100: {text}; try again").startswith("me/run@step_100: ")


@pytest.mark.parametrize(
    "text",
    [
        "global_step_100/hf_model: no such folder; hf_transfer and hf_xet are installed",
        "runs/hf_actor.py, hf_checkpoint1000, hf_model_step_100_converted_to_bfloat16, hf_transformers",
        "./hf_Qwen25Math7BInstruct/config.json: not valid JSON",
        "hf_Qwen25Math7BInstruct.safetensors",
        "runs/hf_Llama8b4bits00, hf_myModel2024run7 and hf_Qwen25Math7BIns are folders",
        "the option --token is missing; --max-tokens 100000; give --token TOKEN",
        "README.md: hf_oauth_scopes, hf_oauth_expiration_minutes: unknown key",
        "hf://me/run@step_100: no such revision",
        "hf://gpt2@main",
        "set HF_TOKEN, or log in with `hf auth login`; check that HF_TOKEN is valid",
        "me/x@step_1: the Hub answered 403 (Invalid credentials in Authorization header)",
        "eos_token='</s>', pad_token: <pad>, token=None, bos_token_id=1; unexpected token: foo",
        "https://huggingface.co/me/x/tree/main is gated; did you mean me/y? Yes.",
        "signature: prepare_inputs_for_generation(input_ids, past_key_values)",
        "a Bearer token is needed: Bearer authentication",
        "model.layers.0.self_attn.q_proj.weight: shape [4, 8] in step 0, [8, 8] in step 10",
        "3f786850e387550fdab836ed7e6dc881de23001b",
        "export HF_TOKEN=$TOKEN",
        "user@example.com, s3://bucket/key, file:///home/me/x",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_what_is_around_a_secret_stays() -> None:
    assert redact(f"no answer from {SIGNED}; run it again (https://a/b?c=d).") == (
        "no answer from https://cdn.example/repos/ab/cd?***; run it again (https://a/b?***)."
    )
    assert redact(f"Authorization: Bearer {SECRET}; check it") == "Authorization: ***; check it"
    assert redact(f"{TOKEN} and hf_oauth_{SECRET}") == "hf_*** and hf_***"


def test_tokens_in_use_whatever_their_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mirror's own tokens look like nothing in particular."""
    import huggingface_hub.constants

    assert redact("correct horse/battery") == "correct horse/battery"
    monkeypatch.setenv("HF_TOKEN", "correct horse/battery")
    assert redact("no: correct horse/battery") == redact("no: correct%20horse%2Fbattery") == "no: ***"
    monkeypatch.setenv("HF_TOKEN", "short")
    assert redact("a short word") == "a short word"
    file = tmp_path / "token"
    file.write_text("staple of the mirror\n")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(file))
    assert redact("with staple of the mirror") == "with ***"
    assert str(errors.PushError("with staple of the mirror")) == "with ***"


SOURCES = {
    "an API key": {"OPENAI_API_KEY": "sk-zq7abc.def"},
    "a password of one word": {"DB_PASSWORD": "swordfish"},
    "a proxy": {"HTTPS_PROXY": "http://me:zq7abc.def@proxy:1080"},
    "an encoded one": {"ALL_PROXY": "socks5://me:zq7%2Fabc.def@proxy:1080"},
    "the endpoint": {"HF_ENDPOINT": "https://zq7abc.def@hub"},
    "the hub's": {"HUBEXTRAP_HUB_TOKEN": "one two three"},
}


@pytest.mark.parametrize("source", SOURCES)
def test_secrets_in_the_environment(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SOURCES[source].items():
        monkeypatch.setenv(name, value)
        secret = unquote(value.partition("://")[2].partition("@")[0].rpartition(":")[2] or value)
        assert redact(f"{secret}, {quote(secret, safe='')}") == "***, ***"
        assert redact(json.dumps(secret)) == '"***"'
        for before in ("", "a", "me"):  # in base64 there are three ways to look
            assert b64encode(secret.encode()).decode()[4:-4] not in redact(
                f"x {b64encode(f'{before}:{secret}'.encode()).decode()}"
            )
        assert redact(f"{secret[:4]}\u200b{secret[4:]}") == "***"
        assert redact(f"│ {secret[:4]} │\n│ {secret[4:]}") == "│ ***"


def test_what_is_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "step_100 timestamp /home/me/id_rsa true 12345678 main-branch-2"
    for name, value in enumerate(text.split()):
        monkeypatch.setenv(f"N{name}_KEY", value)
    assert redact(text) == text


def test_secrets_in_files_and_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "stored_tokens").write_text(
        "[work]\nhf_token = stored.one.7\n\n[home]\nhf_token=other.two.8\n"
    )
    (tmp_path / "netrc").write_text("machine hub login me password netrc.three.9\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(
        "sys.argv", ["x", "--token", "given.four.1", "--hf-token=five.5five", "a=1,token=six.six6"]
    )
    said = "stored.one.7 other.two.8 netrc.three.9 given.four.1 five.5five six.six6"
    assert redact(said) == " ".join(["***"] * 6)
    (tmp_path / "netrc").write_text("machine hub login me password changed.again.9\n")
    assert redact("changed.again.9") == "***"


def test_what_the_endpoint_gave_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    xet = importlib.import_module("huggingface_hub.utils._xet")
    monkeypatch.setattr(xet, "XET_CONNECTION_INFO_CACHE", {"x": SimpleNamespace(access_token="zq7.xet")})
    assert redact("zq7.xetx zq7.xet") == "zq7.xetx zq7.xet", "too short to be one"
    monkeypatch.setattr(
        xet, "XET_CONNECTION_INFO_CACHE", {"x": SimpleNamespace(access_token="zq7.xet.access")}
    )
    assert redact("403 for zq7.xet.access") == "403 for ***"


COUNT = 200_000
LONG = (
    *(
        "a.",
        "https://",
        "https://a?",
        "eyJaaaaaaaaaaa.",
        "a=b; ",
        "hf_",
        '"',
        "x",
        "authorization: ",
        "--token ",
    ),
    *(
        "\x1b]",
        "\x1b[",
        "\n",
        "h\n",
        "https%3A%2F%2F",
        "%25",
        "a@",
        "hf_oauth_",
        "\u200b",
        "\u0301",
        " ",
        "-",
        "?",
    ),
    *("a://", "api_key", "\\x1b[", "\\u200b", "token=", "h" + " " * 40 + "\n"),
)


@pytest.mark.parametrize("piece", LONG, ids=ascii)
def test_long_texts_take_no_time(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hhhh.zq7")
    text = piece * (COUNT // len(piece))
    start_at = time.process_time()
    redact(text)
    assert time.process_time() - start_at < 1.0


def all_of(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for below in kind.__subclasses__():
        yield from all_of(below)


@pytest.mark.parametrize("kind", sorted(set(all_of(errors.HubExtrapError)), key=lambda kind: kind.__name__))
def test_no_error_of_ours_shows_a_secret(kind: type[Exception]) -> None:
    for error in (kind(PLANTED), kind(ValueError(PLANTED)), kind("a", PLANTED)):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert again.args == error.args
        for text in (str(error), repr(error), str(error.args), repr(again)):
            assert not leaks(text)
            assert "403 Forbidden" in text
    assert str(kind("as it was")) == "as it was"


_LIBRARIES = (
    "builtins", "huggingface_hub.errors", "httpx2", "httpx", "httpcore2", "httpcore", "requests.exceptions",
    "urllib3.exceptions", "urllib.error", "http.client", "ssl", "socket", "json", "yaml", "safetensors",
    "torch", "transformers.utils", "datasets.exceptions", "jinja2", "hf_xet", "subprocess", "filelock",
    "pickle", "concurrent.futures", "click",
)  # fmt: skip
_NO_TEXT = {
    "BaseExceptionGroup", "ExceptionGroup", "UnicodeDecodeError", "UnicodeEncodeError",
    "UnicodeTranslateError", "RequestNotRead", "ResponseNotRead", "StreamClosed", "StreamConsumed",
    "IncompleteRead", "InvalidChunkLength",
}  # fmt: skip
"""They hold other errors, bytes or numbers, or say always the same."""


def made(kind: type[BaseException]) -> BaseException:
    """An error of the class, with the secret wherever it takes a text."""
    special = {type(error): error for error in _special()}
    if kind in special:
        return special[kind]
    try:
        return kind(PLANTED)
    except TypeError:
        parameters = inspect.signature(kind).parameters.values()
    response = _response()
    given: dict[str, Any] = {"response": response, "request": response.request, "cause": ValueError(PLANTED)}
    given |= {"result": _Ended(), "lineno": 1}
    given |= {"table_column_names": [PLANTED], "requested_column_names": [PLANTED]}
    needed = {
        one.name: given.get(one.name, PLANTED)
        for one in parameters
        if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }
    return kind(**needed)


class _Ended:
    """How a sandboxed command ended."""

    def __getattr__(self, name: str) -> str | None:
        return PLANTED if name in ("stdout", "stderr") else None


def _response() -> Any:
    http_library = importlib.import_module("huggingface_hub.errors").HTTPError.__module__.partition(".")[0]
    library = importlib.import_module(http_library)
    return library.Response(403, request=library.Request("GET", SIGNED), text=PLANTED)


def _special() -> list[BaseException]:
    return [
        json.JSONDecodeError(PLANTED, PLANTED, 0),
        requests.exceptions.JSONDecodeError(PLANTED, PLANTED, 0),
        subprocess.CalledProcessError(1, ["curl", SIGNED], PLANTED, PLANTED),
        subprocess.TimeoutExpired(["curl", SIGNED], 1.0),
        urllib.error.HTTPError(SIGNED, 403, PLANTED, http.client.HTTPMessage(), io.BytesIO()),
        FileNotFoundError(2, PLANTED, SIGNED),
    ]


@pytest.mark.parametrize("library", _LIBRARIES)
def test_every_error_of_a_library_wrapped_in_one_of_ours(library: str) -> None:
    module = pytest.importorskip(library)  # httpx or httpx2, by the version of huggingface_hub
    kinds = {value for value in vars(module).values() if inspect.isclass(value)}
    found = {kind for kind in kinds if issubclass(kind, BaseException) and kind.__name__ not in _NO_TEXT}
    assert found
    for kind in found:
        foreign = made(kind)
        with pytest.raises(errors.SourceError) as caught:
            wrap(foreign)
        shown = "".join(traceback.format_exception(caught.type, caught.value, caught.tb))
        assert "SourceError: me/x: " in shown
        for text in (str(caught.value), repr(caught.value), shown, repr(foreign)):
            assert not leaks(text), f"{kind}: {text}"


def wrap(foreign: BaseException) -> None:
    try:
        try:
            raise foreign
        except BaseException as inner:
            raise RuntimeError(f"on the way: {inner}") from inner
    except RuntimeError as error:
        raise errors.SourceError(f"me/x: {error}; {reason(error)}") from error


def test_the_client_s_log_records(caplog: pytest.LogCaptureFixture) -> None:
    hub_api()
    for name in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        logger = logging.getLogger(name)
        logger.warning("Error while downloading from %s: %s", SIGNED, TOKEN)
        try:
            raise ValueError(PLANTED)
        except ValueError:
            logger.warning("failed", exc_info=True)
    assert caplog.text.count("Error while downloading from https://cdn.example/repos/ab/cd?***: hf_***") == 2
    assert "ValueError: 403 Forbidden" in caplog.text
    assert not leaks(caplog.text)
    assert not any(leaks(record.getMessage()) for record in caplog.records)


def test_progress_and_the_summary_page(tmp_path: Path) -> None:
    stream = io.StringIO()
    LineProgress(stream).say(f"trained again: {PLANTED}")
    append_summary(tmp_path / "summary.md", f"### {PLANTED}")
    for text in (stream.getvalue(), (tmp_path / "summary.md").read_text()):
        assert "403 Forbidden" in text
        assert not leaks(text)


@pytest.mark.parametrize("secret", [TOKEN, f"hf_oauth_{SECRET}", f"api_org_{SECRET}{SECRET}"])
def test_a_token_in_a_recipe_is_refused_unseen(secret: str) -> None:
    content = {
        "trajectory": {"repo": "me/x"},
        "merge_method": "persistence",
        "parameters": {"target_step": 3},
    }
    with pytest.raises(errors.RecipeError, match="contains what looks like a Hub token") as caught:
        parse_recipe(yaml.safe_dump(content) + f"# {secret}\n", "recipe.yaml")
    assert not leaks(str(caught.value))
    parse_recipe(yaml.safe_dump(content) + "# runs/hf_Qwen25Math7BInstruct/x, hf_model\n", "recipe.yaml")


@pytest.mark.parametrize(
    "key",
    [
        *("WANDB_API_KEY=", "OPENAI_API_KEY: ", "AWS_SECRET_ACCESS_KEY=", "HF_API_TOKEN: "),
        *("HUGGINGFACE_TOKEN=", "HUGGINGFACEHUB_API_TOKEN=", "hf-token=", "X-Auth-Token: "),
        *("PRIVATE-TOKEN: ", "x-api-key: ", "xet_token=", "casToken: "),
    ],
)
def test_names_that_other_programs_give_their_secrets(key: str) -> None:
    assert redact(f"{key}zq7.value") == f"{key}***"
