"""What every wing uses: errors, text, files, processes."""
