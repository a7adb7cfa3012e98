"""Any source of preferences -> disjoint splits of token ids, with a ledger of what was dropped."""
