"""The table of needed examples in docs/statistics.md is what the code computes."""

from __future__ import annotations

from pathlib import Path

from finetune_stats.power import proportion_needed

PAGE = Path(__file__).parents[3] / "docs" / "statistics.md"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_needed_examples() -> None:
    table = PAGE.read_text().split("<!-- needed:", 1)[1].splitlines()
    header, _, *rows = [line for line in table if line.startswith("|")][:9]
    margins = [float(name.removeprefix("margin ").removesuffix(" %")) / 100 for name in cells(header)[1:]]
    assert len(rows) == 7
    for row in rows:
        discordance, *needed = cells(row)
        for margin, written in zip(margins, needed, strict=True):
            share = float(discordance.removesuffix("%")) / 100
            assert proportion_needed(discordance=share, difference=0, margin=margin, alpha=0.025) == int(
                written.replace(",", "")
            )
