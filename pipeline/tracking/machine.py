"""What the machine does while an arm is trained, as MLflow's own monitor sees it: its page's tab of system metrics."""

import logging
import os
from collections.abc import Mapping

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # a lost point of these is nobody's worry


class Machine:
    """CPU, memory, disk, network, and GPU where there is one, every ten seconds, into each run that is being worked on.

    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL changes the ten; MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false ends it.
    """

    def __init__(self) -> None:
        self.wanted = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0")
        self._monitors: dict[str, SystemMetricsMonitor] = {}

    def watch(self, uri: str, runs: Mapping[str, bool]) -> None:
        """runs: by id of a run of the store at this uri, whether it goes on; of others nothing changes."""
        for run, goes_on in runs.items():
            if not goes_on:
                self._end(run)
            elif self.wanted and run not in self._monitors:
                monitor = SystemMetricsMonitor(run, resume_logging=True, tracking_uri=uri)
                monitor.start()
                self._monitors[run] = monitor

    def end(self) -> None:
        """Write the last points; a later `watch` goes on after them."""
        for run in list(self._monitors):
            self._end(run)

    def _end(self, run: str) -> None:
        monitor = self._monitors.pop(run, None)
        if monitor is not None:
            monitor.finish()
