"""The paper's figures, drawn with matplotlib."""
