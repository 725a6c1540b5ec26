"""From records to numbers and verdicts. Pure functions of a run directory; nothing here is drawn or computed anew."""
