"""Layouts of data sets: each turns files into the project's samples and knows nothing about models."""
