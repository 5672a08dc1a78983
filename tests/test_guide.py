"""The numbers quoted in docs/guide.md match its figures, and each figure is small enough to display."""

import pytest

from benchmarks.guide_drawing import DRAWINGS
from benchmarks.guide_figures import METHODS, example

RIGHT, WRONG = 0, 1
SAID = ["<think>first blue triangle then purple triangle", "<think>at 0.0 blue cross at 2.5 purple cross"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return {method: example(method, tmp_path_factory.mktemp(method)) for method in METHODS}


@pytest.fixture
def as_printed(found):
    """The runs, if rounding on this processor samples the completions that the guide shows."""
    said = ["".join(found["appo"].tokens[number]).split("</think>")[0] for number in (RIGHT, WRONG)]
    if said != SAID:
        pytest.skip(
            "other completions are sampled here than in the guide; `python -m benchmarks.guide_figures` draws them"
        )
    return found


def at(of_one, number, word, nth=0):
    """The position of a word in a completion."""
    return [place for place, token in enumerate(of_one.tokens[number]) if token.strip() == word][nth]


def test_every_method_sees_the_same_group(as_printed):
    assert len({str(of_one.tokens) for of_one in as_printed.values()}) == 1
    grpo = as_printed["appo"]
    assert [score >= 0.5 for score in grpo.accuracy].count(True) == 3
    assert grpo.shown == (RIGHT, WRONG)
    # 0.9 accuracy + 0.1 format: three rewards of 1 and five of 0.1. Mean 0.4375, deviation 0.4658:
    # 0.5625 / 0.4658 = 1.21, -0.3375 / 0.4658 = -0.72
    assert [round(grpo.advantages[number], 2) for number in grpo.shown] == [1.21, -0.72]


def test_appo(as_printed):
    values = as_printed["appo"].values
    assert values["selected"].nonzero()[:, 0].tolist() == [0, 4, 6, 7]  # 0.0, 2.0, 3.0 and 3.5 s
    for number, word, nth in ((RIGHT, "triangle", 1), (RIGHT, "triangle", 2), (WRONG, "2", 0)):
        assert values["weights"][number, at(as_printed["appo"], number, word, nth)] > 1.69
    assert values["weights"][RIGHT, 0] == 1  # <think>


def test_pgpo(as_printed):
    weights = as_printed["pgpo"].values["weights"]
    assert weights[RIGHT].max() == weights[RIGHT, at(as_printed["pgpo"], RIGHT, "then")]
    assert weights[WRONG, at(as_printed["pgpo"], WRONG, "blue", nth=1)] == pytest.approx(7.04, abs=0.05)
    assert weights[[RIGHT, WRONG]].max() == weights[WRONG, at(as_printed["pgpo"], WRONG, "blue", nth=1)]
    assert weights[WRONG, at(as_printed["pgpo"], WRONG, "cross")] == pytest.approx(0.01, abs=0.005)
    for number in (RIGHT, WRONG):
        assert weights[number].sum() == pytest.approx(len(as_printed["pgpo"].tokens[number]), rel=1e-5)


def test_ktr(as_printed):
    of_one = as_printed["ktr"]
    values = of_one.values
    assert sorted(values["order"].tolist()) == list(range(8))
    assert values["order"].tolist().index(0) == 1  # the triangle's cells, seen at 0.5 and at 2.0 s
    assert values["order"].tolist().index(1) == 4
    for number, word in ((RIGHT, "triangle"), (WRONG, "cross")):
        assert values["entropy"][number, at(of_one, number, word, nth=1)]
    assert values["temporal"][RIGHT, at(of_one, RIGHT, "first")]
    union = values["visual"] | values["temporal"] | values["entropy"]
    assert (values["weights"] > 0).equal(union)


def test_ral(as_printed):
    of_one = as_printed["ral"]
    jsd = of_one.values["jsd"] * 1000
    assert jsd[RIGHT, at(of_one, RIGHT, "triangle", nth=1)] == pytest.approx(16.7, rel=0.05)
    assert jsd[WRONG, at(of_one, WRONG, "blue", nth=1)] == pytest.approx(18.8, rel=0.05)


def test_attention_distillation(as_printed):
    of_one = as_printed["attn_distill"]
    gkd = of_one.values["gkd"]
    assert gkd[RIGHT, at(of_one, RIGHT, "purple")] == pytest.approx(0.43, abs=0.03)
    assert gkd[WRONG, at(of_one, WRONG, "0", nth=1)] == pytest.approx(0.96, abs=0.03)
    place = at(of_one, WRONG, "0")
    assert gkd[WRONG, place] == pytest.approx(1.81, abs=0.03)
    assert max(gkd[n, : len(of_one.tokens[n])].max() for n in of_one.shown) == gkd[WRONG, place]


@pytest.mark.parametrize("method", METHODS)
def test_a_figure_is_drawn_and_small(found, method, tmp_path):
    path = tmp_path / f"{method}.png"
    DRAWINGS[method](found[method], path)
    assert 10_000 < path.stat().st_size < 100_000
