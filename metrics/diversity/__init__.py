"""How members differ, and what that gains."""
