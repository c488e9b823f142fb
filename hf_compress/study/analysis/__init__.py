"""What the results of a study show: effects, interactions and the paper's claims, with intervals."""
