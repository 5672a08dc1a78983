"""The report as a page: one file that loads nothing and escapes all text of the model."""

import json
from html.parser import HTMLParser

import pytest

from tests.reports.conftest import installed_browser, make_completion, make_group
from trl_perception.cli.main import main
from trl_perception.reports.html import write_report

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Collects tags with their attributes, and the text inside each kind of tag."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self._open = [], {}, []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "line", "path"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        for tag in set(self._open):
            self.texts.setdefault(tag, []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def data(self):
        (number,) = [i for i, attributes in enumerate(self.all("script")) if attributes.get("id") == "data"]
        return json.loads(self.texts["script"][number])


def test_one_file_that_loads_nothing(clips, write_run):
    page = Page(write_report(write_run([make_group(clips[0])])))
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert "@import" not in page.source
    assert "url(" not in page.source
    assert any(attributes.get("name") == "viewport" for attributes in page.all("meta"))
    assert len(page.all("img")) == 4
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in page.all("img"))


def test_nothing_that_was_recorded_is_markup(clips, write_run):
    completion = make_completion([EVIL, "</script>", "&lt;", '"quoted"'], advantage=1.0, weights=[1.0, 2.0, 3.0, 4.0])
    completion["signals"].append({"name": EVIL, "kind": "token", "values": [1.0] * 4, "tokens": None})
    group = make_group(clips[0], prompt=EVIL, completions=[completion] * 5)
    group.update(sample=EVIL, problem_type=EVIL, solution=EVIL, reward_names=[EVIL, "format_reward"])
    run = write_run([group])
    state = {"log_history": [{"step": 1, f"appo/{EVIL}": 1.0, "reward": 1.0}, {"step": 2, "reward": 1.0}]}
    (run / "trainer_state.json").write_text(json.dumps(state))
    page = Page(write_report(run))
    assert [attributes.get("type") for attributes in page.all("script")] == ["application/json", None]
    assert page.source.count("<script") == 2
    assert page.source.count("</script>") == 2
    shown = [text for text in page.texts["i"] if text in completion["tokens"]]
    assert shown == completion["tokens"] * 5  # as text, whole
    assert EVIL in page.data["groups"][0]["tokens"]


def test_what_a_group_shows(clips, write_run):
    page = Page(write_report(write_run([make_group(clips[0]), make_group(clips[1], step=2)])))
    (first, _) = page.data["groups"]
    assert first["tokens"]["token_weights"] == [[0.5, 2.0, 0.5], [0.25, 2.5, 0.25]]
    assert first["tokens"]["credit"][0] == [-0.5, -2.0, -0.5]
    assert first["frames"]["frame_attention"][0] == [0.1, 0.2, 0.3, 0.4]
    assert first["token_frames"]["frame_attention"][0] == {"1": [0.0, 0.0, 0.0, 1.0]}
    assert [scale["name"] for scale in page.data["scales"]][:2] == ["token_weights", "credit"]
    cells = [a for a in page.all("figure") if "data-frame" in a]
    assert ["evidence" in cell["class"] for cell in cells] == [False, True, False, False] * 2
    assert "Tokens that <see>." in page.texts["p"]
    assert {"Reward", "Entropy", "Largest weight"} <= set(page.texts["b"])


def test_missing_media_are_replaced_by_a_reason(tmp_path, clips, write_run):
    gone = make_group(str(tmp_path / "gone.mp4"))
    content = make_group(clips[0], media=[{"kind": "video", "source": None, "name": "bytes (12 B)"}])
    page = Page(write_report(write_run([gone, content])))
    assert not page.all("img")
    notes = " ".join(page.texts["p"])
    assert "the file cannot be opened" in notes
    assert "which records do not keep" in notes


def test_values_that_are_not_finite_become_null(clips, write_run):
    group = make_group(clips[0])
    group["completions"][0]["token_weights"] = [float("nan"), 1.0, float("inf")]
    page = Page(write_report(write_run([group])))
    assert page.data["groups"][0]["tokens"]["token_weights"][0] == [None, 1.0, None]


def test_a_run_without_records_and_one_without_a_log(tmp_path, clips, write_run):
    run = tmp_path / "plain"
    run.mkdir()
    (run / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "reward": 1.0}]}))
    page = Page(write_report(run))
    assert "report_every" in page.texts["code"]
    recorded = write_run([make_group(clips[0])])
    (recorded / "trainer_state.json").unlink()
    assert "Curves" not in Page(write_report(recorded)).texts["h2"]


def test_two_runs_side_by_side(clips, write_run, capsys, tmp_path):
    one, two = write_run([make_group(clips[0])], "one"), write_run([make_group(clips[1])], "two")
    output = tmp_path / "out" / "both.html"
    main(["report", str(one), "--compare", str(two), "--output", str(output)])
    assert str(output) in capsys.readouterr().out
    page = Page(output)
    assert page.texts["table"].count("0.25") >= 2 or any("0.25 →" in text for text in page.texts["td"])
    charts = [json.loads(a["data-chart"]) for a in page.all("svg")]
    assert [line[0] for line in charts[0]["lines"]] == ["reward one", "reward two"]


def test_the_command_says_what_a_folder_lacks(tmp_path):
    with pytest.raises(SystemExit, match="holds no trainer_state"):
        main(["report", str(tmp_path)])


def test_a_browser_that_is_missing_fails_on_ci_and_is_skipped_elsewhere(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no chromium"):
        installed_browser()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no chromium"):
        installed_browser()
