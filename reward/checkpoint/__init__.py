"""What a saved reward model promises, and the fresh process that checks it."""
