"""How fast, how large and how chatty the system is, beside what the machine allows. ``scripts/bench`` runs it."""
