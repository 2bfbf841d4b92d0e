"""Make Grafana's dashboards of dashboards.yaml, one JSON file each: `python .../dashboards.py FOLDER`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_ONE = '{namespace="$namespace", name="$name"}'
_ANY = '{__name__=~"finetune_(job_phase_start_timestamp_seconds|endpoint_available)"}'
_MACRO = re.compile(r"(NOW|RATE|HOUR|SPREAD|DAYS)\(([\w:]+)(\{[^}]*\})?((?:, \w+)*)\)")
_SPREADS = {"SPREAD": "$__rate_interval", "DAYS": "1d"}
_STEP = f"max by (stage, step) (finetune_rollout_step_start_timestamp_seconds{_ONE})"
_ROLLOUT_STEPS = {
    "name": "Steps of the rollout",
    "datasource": _SOURCE,
    "enable": True,
    "expr": f"{_STEP} * 1000",
    "useValueForTime": True,
    "titleFormat": "{{stage}} {{step}}",
}


def dashboards() -> dict[str, str]:
    """Name to the text of its file, as Grafana imports it."""
    described = yaml.safe_load(Path(__file__).with_name("dashboards.yaml").read_text())
    return {name: json.dumps(_dashboard(name, **each), indent=1) + "\n" for name, each in described.items()}


def _dashboard(name: str, *, title: str, rows: dict[str, Any], choose: str = "") -> dict[str, Any]:
    namespaces = f"label_values({choose or _ANY}, namespace)"
    names = f'label_values({choose}{{namespace="$namespace"}}, name)'
    variables = [_variable("namespace", namespaces) | ({} if choose else {"multi": True, "includeAll": True})]
    variables += [_variable("name", names)] if choose else []
    return {
        "uid": f"finetune-{name}",
        "title": title,
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "annotations": {"list": [_ROLLOUT_STEPS] if name in ("endpoint", "gateway") else []},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}, *variables]},
        "panels": [{"id": number} | panel for number, panel in enumerate(_panels(rows, of=_ONE if choose else ""), 1)],
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {"name": name, "type": "query", "datasource": _SOURCE, "query": query, "refresh": 2, "sort": 1}


def _panels(rows: dict[str, Any], *, of: str) -> Iterator[dict[str, Any]]:
    y = 0
    for row, panels in rows.items():
        yield {
            "type": "row",
            "title": row,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
        }
        y += 1
        for place, (title, (unit, queries)) in enumerate(panels.items()):
            shown = [each for legend, query in queries.items() for each in _queries(legend, query, of=of)]
            yield {
                "type": "timeseries",
                "title": title,
                "datasource": _SOURCE,
                "gridPos": {"x": place % 3 * 8, "y": y + place // 3 * 8, "w": 8, "h": 8},
                "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
                "targets": [{"refId": "ABCDEFGH"[number]} | each for number, each in enumerate(shown)],
            }
        y += -(-len(panels) // 3) * 8


def _queries(legend: str, query: str, *, of: str) -> Iterator[dict[str, str]]:
    """A query in PromQL; of a spread, two."""
    for name, share in (("median ", 0.5), ("p99 ", 0.99)) if re.match("SPREAD|DAYS", query) else (("", 0.0),):

        def promql(found: re.Match[str], share: float = share) -> str:
            macro, metric, where, by = found[1], found[2], found[3] or of, found[4].removeprefix(", ")
            by = by or ("namespace, name" if macro == "NOW" else "")
            if macro in _SPREADS:
                labels, window = f"le, {by}".rstrip(", "), _SPREADS[macro]
                return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{where}[{window}])))"
            inner = {"NOW": "{}", "RATE": "rate({}[$__rate_interval])", "HOUR": "increase({}[1h])"}[macro]
            return f"{'max' if macro == 'NOW' else 'sum'} by ({by}) ({inner.replace('{}', metric + where)})"

        yield {"expr": _MACRO.sub(promql, query).replace("{ONE}", of), "legendFormat": f"{name}{legend}".strip()}


if __name__ == "__main__":
    for each, text in dashboards().items():
        (Path(sys.argv[1]) / f"{each}.json").write_text(text)
