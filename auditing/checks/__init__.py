"""The checks: one file a section of the report, each check beside its own statistic."""
