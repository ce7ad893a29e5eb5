"""The bundled model `earthview`: its data generator, training and tables. A user of geoloc's public API."""
