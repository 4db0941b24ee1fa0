"""Where images come from: named sets, image folders, files."""
