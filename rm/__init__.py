"""What train_rm.py, score.py and audit.py share."""
