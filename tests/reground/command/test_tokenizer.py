"""What a round's checkpoint gets of the model that the round started from."""

from __future__ import annotations

import shutil
from pathlib import Path

from hubextrap.progress import SilentProgress
from hubextrap.regrounding.checkpoint import check_model, complete_tokenizer


def test_further_chat_templates_are_part_of_a_tokenizer(start: Path, tmp_path: Path) -> None:
    shutil.copytree(start, tmp_path / "start")
    template = Path("additional_chat_templates", "tool_use.jinja")
    (tmp_path / "start" / template).parent.mkdir()
    for name, content in ((template, "tools"), ("tekken.json", "{}"), ("notes.txt", "mine")):
        (tmp_path / "start" / name).write_text(content)
    trained = tmp_path / "trained"
    trained.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(start / name, trained)
    with SilentProgress().stage("check", 1) as stage:
        check_model(trained, tmp_path / "start", stage)
    assert {path.name for path in trained.iterdir()} == {"config.json", "model.safetensors"}  # it only reads
    complete_tokenizer(trained, tmp_path / "start")
    assert (trained / template).read_text() == "tools"
    assert {path.name for path in trained.rglob("*") if path.is_file()} == {
        path.name for path in (tmp_path / "start").rglob("*") if path.is_file() and path.name != "notes.txt"
    }
