"""Input images: files, folders, links, tars, tables and URLs, in a fixed order, with their positions where known."""
