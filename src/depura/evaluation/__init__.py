"""The judge: studies, streams, runs, records and statistics. Attacks and the purification core meet only here."""
