"""How tasks relate: measures of relatedness, groups of tasks that should be trained together."""
