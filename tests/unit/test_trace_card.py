from __future__ import annotations

from pathlib import Path

import pytest

from windtunnel.sources.traces.open import Trace, open_trace
from windtunnel.sources.traces.row import TraceRow

DATA = Path(__file__).parents[2] / "data" / "traces"
EXPECTED = {  # rows, span s, input mean p50 p99, output mean p50 p99, gaps CV, hit bound
    "mooncake_conversation.jsonl.gz": (12_031, 3536.999, (12035.061, 6909, 85400.4), (342.619, 350, 1118.5), None, 0.3664),
    "mooncake_arxiv_first1000.jsonl.gz": (1_000, 177.098, (9792.030, 6558, 77828.14), (199.084, 34, 831.04), None, 0.3799),
    "azure2023_code.csv.gz": (8_819, 3435.948, (2047.848, 1469, 7436), (27.883, 13, 251.46), 13.15, None),
    "azure2023_conv.csv.gz": (19_366, 3501.722, (1154.697, 1020, 4142), (211.126, 129, 601), 1.094, None),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_TR_40_numbers_of_the_bundled_files(name: str) -> None:
    rows, span, inputs, outputs, cv, bound = EXPECTED[name]
    card = open_trace(DATA / name).card()
    assert card.rows == rows and card.span_s == pytest.approx(span, abs=5e-4) and card.out_of_order == 0
    assert (card.input.mean, card.input.p50, card.input.p99) == pytest.approx(inputs, rel=1e-6, abs=5e-4)
    assert card.output is not None
    assert (card.output.mean, card.output.p50, card.output.p99) == pytest.approx(outputs, rel=1e-6, abs=5e-4)
    assert card.mean_rps == pytest.approx(rows / span, rel=1e-5) and card.peak_rps is not None and card.peak_rps > card.mean_rps
    if cv is not None:
        assert card.gaps_cv == pytest.approx(cv, abs=5e-3 if cv > 10 else 5e-4)
    assert card.hit_bound is None if bound is None else card.hit_bound == pytest.approx(bound, abs=5e-5)
    assert not card.skipped and card.fresh_tails == 0 and ("blocks" in card.nulls) == (bound is None)
    assert card.to_dict()["input"]["p50"] == inputs[1]


def test_TR_40_by_hand() -> None:
    rows = [TraceRow("a", 0.0, 10, 1, tenant="x", session="s", blocks=(1, 2)),
            TraceRow("b", 30.0, 20, None, tenant="x", session="s", blocks=(1, 2)),
            TraceRow("c", 59.0, 30, 3, tenant="y", blocks=(1, 3)), TraceRow("d", 120.0, 40, 5)]
    card = Trace.from_rows(rows, name="hand", block_size=16).card()
    assert (card.rows, card.sessions, card.turns_per_session, card.span_s) == (4, 1, 2.0, 120.0)
    assert card.mean_rps == pytest.approx(4 / 120) and card.peak_rps == pytest.approx(3 / 60)
    assert card.unique_blocks == 3 and card.hit_bound == pytest.approx(0.5)
    assert card.tenants == {"x": pytest.approx(2 / 3), "y": pytest.approx(1 / 3)}
    assert card.nulls["output_tokens"] == 1 and card.output is not None and card.output.mean == 3.0 and card.input.max == 40


def test_TR_40_text_and_html_say_the_same() -> None:
    card = Trace.from_rows([TraceRow("a", 0.0, 10, None)], name="<one>").card()
    text, html = repr(card), card._repr_html_()
    assert text.startswith("Trace <one> (rows)") and "output tokens unknown" in text and "&lt;one&gt;" in html
    for label, value in card.lines():
        assert label in text and value in text and label in html
    assert card.peak_rps is None and card.gaps_cv is None and card.mean_rps is None
