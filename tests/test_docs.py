"""The pages of docs/ and the README: their code runs, what they link to exists, and the errors they quote are the package's."""

import ast
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.public_names import without_docstring
from trl_perception.cli.main import COMMANDS
from trl_perception.cli.preflight import check_evaluation, check_training
from trl_perception.cli.train import for_launcher
from trl_perception.data import make_synthetic_dataset
from trl_perception.media import VideoSettings
from trl_perception.media.probe import QWEN_PIXELS, MediaFacts, visual_tokens
from trl_perception.media.sampling import frame_size, sample_indices
from trl_perception.trainers import TRAINERS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_TESTS = {"rewards.md"}  # its code runs in tests/rewards/test_docs.py
FOLDERS = ("benchmarks", "docs", "recipes", "tests", "trl_perception")


def blocks(page, language):
    """(line before, code) of each block of a page; `<!-- not run: why -->` before a Python block keeps it from running."""
    text = page.read_text()
    found = []
    for match in re.finditer(
        rf"(?P<before>[^\n]*)\n *```{language}\n(?P<code>.*?)^ *```$", text, re.DOTALL | re.MULTILINE
    ):
        found.append((match["before"], textwrap.dedent(match["code"])))
    return found


def anchors(page):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def literals(text):
    """The strings of a module but its docstrings; what an f-string fills in becomes "..."."""
    tree = ast.parse(text)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


RUN = [page for page in PAGES if page.name not in OWN_TESTS and blocks(page, "python")]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": f"docs_{page.stem}"}
    for before, code in blocks(page, "python"):
        if re.fullmatch(r"\s*<!-- not run: .+ -->", before):
            compile(code, page.name, "exec")
            continue
        exec(compile(code, page.name, "exec"), names)
    for name, test in list(names.items()):
        if name.startswith("test_"):
            test()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            wrong.append(target)
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`", text):
        if not (ROOT / path).exists() and "mine" not in path:  # the contributors' page invents a method
            wrong.append(path)
    assert wrong == []


def test_the_index_lists_every_page_once():
    listed = re.findall(r"^\| \[([\w.]+)\]\(\1\) \|", (ROOT / "docs" / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [page.name for page in PAGES[1:] if page.name != "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for _, code in blocks(page, "bash"):
        lines = [line.split("#")[0] for line in code.splitlines()]
        assert {word for line in lines for word in re.findall(r"^make ([\w-]+)", line)} <= targets
        assert {word for line in lines for word in re.findall(r"^trl-perception ([\w-]+)", line)} <= set(COMMANDS)


def commands(page):
    """The `trl-perception` commands of a page's blocks, continued lines joined."""
    for before, code in blocks(page, "bash"):
        for line in code.replace("\\\n", "").splitlines():
            if line.startswith("trl-perception "):
                yield before, shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_keys_and_names_that_there_are(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for file in ("rows", "train", "test"):
        (tmp_path / "data" / f"{file}.jsonl").touch()
    for _, (command, *args) in commands(page):
        if command == "train":
            check_training(for_launcher(args)[0])
        if command == "evaluate":
            check_evaluation(args)


def test_blocks_of_the_readme_are_run_or_say_why_not():
    """Those with `trl-perception` commands are run below; a block without one is the clone and the installation."""
    not_run = re.compile(r"\s*<!-- not run: .+ -->")
    for before, command in commands(ROOT / "README.md"):
        assert ("--accelerate_config" in command) == bool(not_run.fullmatch(before))


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path, monkeypatch):
    """The first run, then one on the reader's own clip, as a reader would type them."""
    monkeypatch.setenv("TRL_PERCEPTION_CACHE", str(tmp_path / "cache"))
    (row,) = [code for _, code in blocks(ROOT / "README.md", "json")]
    made = make_synthetic_dataset(tmp_path / "clips", size=1, families=["scene_color"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text(row)
    shutil.copy(made[0]["videos"][0], tmp_path / "data" / "clip.mp4")
    for before, command in commands(ROOT / "README.md"):
        if not before:
            program = [sys.executable, "-m", "trl_perception.cli.main", *command]
            done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
            assert done.returncode == 0, (command, done.stderr[-2000:])
    assert (tmp_path / "runs" / "own" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", TRAINERS)
def test_the_table_of_methods_has_every_trainer(name):
    """Its row links the trainer's file, its paper and its recipes; docs/methods.md has a section about each method."""
    trainer = TRAINERS[name]
    file = Path(inspect.getfile(trainer)).relative_to(ROOT).as_posix()
    text = (ROOT / "README.md").read_text()
    (row,) = re.findall(rf"^\|.*\[`{trainer.__name__}`\]\({file}\).*$", text, re.MULTILINE)
    assert f"https://arxiv.org/abs/{trainer._paper['id']}" in row
    assert f"[{name}](recipes/{name})" in row
    sections = re.findall(r"^## (.+)$", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE)
    assert name == "grpo" or any(trainer._name in section for section in sections)


def test_the_table_of_tokens_is_what_the_sampling_rules_give():
    text = (ROOT / "docs" / "cluster.md").read_text()
    row = r"^\| (\d+) \| (\d+) \| (\d+|not set) \| (\d+) \| (\d+) x (\d+) \| ([\d,]+) \|$"
    lines = re.findall(row, text, re.MULTILINE)
    assert len(lines) == 7
    clip = MediaFacts("video", height=720, width=1280, frames=30 * 60, fps=30.0)
    for fps, most, pixels, *shown in lines:
        settings = VideoSettings(
            float(fps), max_frames=int(most), max_pixels=None if pixels == "not set" else int(pixels)
        )
        frames = len(sample_indices(settings, clip.frames, clip.fps)[0])
        height, width = frame_size(clip.height, clip.width, frames, settings, size_limits=QWEN_PIXELS)
        assert shown == [str(frames), str(width), str(height), f"{visual_tokens(clip, settings):,}"]


def test_quoted_errors_are_those_of_the_package():
    quotes = [
        quote for _, quote in re.findall(r"^\*\*(`+)(.+?)\1\*\*$", (ROOT / "docs" / "faq.md").read_text(), re.MULTILINE)
    ]
    assert len(quotes) >= 15
    messages = [text for file in (ROOT / "trl_perception").rglob("*.py") for text in literals(file.read_text())]
    for quote in quotes:
        pattern = re.compile(".+?".join(re.escape(part) for part in quote.strip().split("...")), re.DOTALL)
        assert any(pattern.search(message) for message in messages), quote


def test_every_public_name_has_a_docstring():
    assert without_docstring() == []
