"""A study: a grid of recipes, models, tasks and seeds as cells, each trained, measured and reported on once."""
