"""Small, honest training: enough to reproduce the bundled weights and to start on data of one's own."""
