"""`python -m finetune_operator`: one replica of the operator."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys

from finetune_api import streams
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.ports import UnavailableError
from finetune_operator.kube.logs import configure_logs
from finetune_operator.kube.process import ProcessSettings, run_process

log = logging.getLogger("finetune_operator")


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM. 0: stopped on request; 2: wrong settings; anything else: a failure."""
    streams.never_fail()
    options = _parser().parse_args(arguments)
    configure_logs(format=options.log_format, level=options.log_level)
    try:
        config = OperatorConfig.from_environment(os.environ)
    except ValueError as error:
        print(f"finetune-operator: {error}", file=sys.stderr)
        return 2
    namespace = os.environ.get("POD_NAMESPACE", "finetune-system")
    config = config.model_copy(update={"instance": config.instance or namespace})
    settings = ProcessSettings(
        namespace=namespace,
        pod_name=os.environ.get("POD_NAME", os.uname().nodename),
        pod_address=os.environ.get("POD_IP", ""),
        kubeconfig=options.kubeconfig,
        context=options.context,
        listen=options.listen,
        probe_port=options.probe_port,
        door_port=options.door_port,
        metrics_port=options.metrics_port,
        lease_seconds=options.lease_seconds,
    )
    try:
        asyncio.run(run_process(config=config, settings=settings))
    except UnavailableError as error:
        print(f"finetune-operator: {error}", file=sys.stderr)
        return 2
    except Exception:
        log.exception("the operator failed")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = ProcessSettings(namespace="", pod_name="")
    parser = argparse.ArgumentParser(
        prog="finetune-operator",
        description="Trains and proves models from FineTuneJobs. FINETUNE_* variables set what runs may do.",
    )
    parser.add_argument("--kubeconfig", help="default: the pod's service account, else kubectl's own rules")
    parser.add_argument("--context", help="of the kubeconfig")
    parser.add_argument("--listen", default=defaults.listen, metavar="ADDRESS", help="default: all addresses")
    parser.add_argument("--probe-port", type=int, default=defaults.probe_port, help="/healthz, /readyz and /metrics")
    parser.add_argument("--door-port", type=int, default=defaults.door_port, help="where training pods report")
    parser.add_argument(
        "--metrics-port", type=int, default=defaults.metrics_port, help="of metrics with FINETUNE_METRICS=Authenticated"
    )
    parser.add_argument(
        "--lease-seconds", type=int, default=defaults.lease_seconds, help="how long a dead leader leads"
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser


if __name__ == "__main__":
    sys.exit(main())
