"""The audit: scored pairs -> statistics (NumPy only) -> checks with verdicts -> report; run.py joins them."""
