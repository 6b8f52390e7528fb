"""MLflow: every round as a run, copied from the artifacts."""
