"""The report's pages and plots."""
