"""The report card of a run, as Markdown and as one self-contained page, from records and events alone."""
