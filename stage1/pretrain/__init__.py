"""How the language models that ship with the package were trained."""
