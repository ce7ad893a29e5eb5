"""Where things are on the Earth, apart from cells: names of places, tiles, UTM."""
