"""Support code that knows nothing of images or models: errors, files, downloads, devices, command lines."""
