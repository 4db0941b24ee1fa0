"""Training, evaluating and comparing ensembles: what the commands do, as a library."""
