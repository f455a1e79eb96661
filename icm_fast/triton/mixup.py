OPERATORS: dict[str, object] = {}
