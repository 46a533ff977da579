"""How good videos are: VBench's protocol, and measures that need no weights."""
