RULES: dict[int, str]
