"""The pipeline as its users see it: the command line, DVC, Prefect and MLflow."""

import os

# Read when Prefect is imported, by whichever module comes first: no analytics, no promotion, log lines as they are, and
# time for its own server to start on a busy machine (20 s by default).
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_COLORS", "false")
os.environ.setdefault("PREFECT_SHOW_PROMOTIONAL_CONTENT", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
