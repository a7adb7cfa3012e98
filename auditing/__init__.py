"""Scored preference pairs -> checks with verdicts -> a report."""
