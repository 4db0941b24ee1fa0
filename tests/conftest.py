"""Switch shape checking on for the whole library before anything of it is imported."""

from jaxtyping import install_import_hook

install_import_hook("deepens", "beartype.beartype")
