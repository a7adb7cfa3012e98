"""The audit: metrics (NumPy only) -> checks (numbers with verdicts) -> report (pages and plots)."""
