"""Reports: records in; a terminal table, Markdown and one self-contained HTML page out. Pure functions of a run
directory."""
