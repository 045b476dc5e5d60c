"""Data sets from where their authors have them to where their configuration expects them."""
