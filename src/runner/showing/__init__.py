"""A step's micro-batches as the language model reads them: made, drawn, and told in words or as a page."""
