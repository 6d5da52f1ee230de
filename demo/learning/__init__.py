"""How the bundled models were trained: what they are shown, and a script a model; the demo at run time imports none of it."""
