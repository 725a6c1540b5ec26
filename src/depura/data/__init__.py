"""Images to work on: the bundled digits, and files and folders of the user's own."""
